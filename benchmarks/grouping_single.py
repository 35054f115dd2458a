# SPDX-License-Identifier: Apache-2.0
"""Edges with one task each: similar ones are found, and get a model as good as if their tasks had been told."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from solar_corona.core.events import TasksGrouped
from solar_corona.lib.exchange import to_weights
from solar_corona.lib.records import arrays_in
from solar_corona.strategies import create
from solar_corona.strategies.extensions import PerEdge

from . import _report
from ._data import add_data_option
from ._report import Figure, median
from ._simulation import Edge, Mlp, Run, simulate
from ._task_scenarios import SCENARIOS, TaskEdge, load_pool, make_edges

OURS, LATE = "similarity-grouping", 4
PEERS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {},
    "ifca": {"groups": 4},
    "cfl": {},
    "pacfl": {},
    "fl-hc": {},
}
WITH_TASKS = [name for name, (tasks, _) in SCENARIOS.items() if tasks]
Scores = dict[str, float]


def model_of(edge: TaskEdge, seed: int) -> Mlp:
    """Return an edge's model: a perceptron for images, a convolutional network for windows of sensor data."""
    if edge.train[0].shape[1] == 196:
        return Mlp(*edge.train, *edge.held_out, seed=seed)
    from ._cnn import Cnn

    return Cnn(*edge.train, *edge.held_out, seed=seed)


def models_of(edges: Sequence[TaskEdge], seed: int, rounds: int) -> list[Edge]:
    """Return simulated edges; the late ones come when the last round is over, and get a model without training."""
    found = []
    for i, data in enumerate(edges):
        model = model_of(data, 1000 * seed + i)
        late = i >= len(edges) - LATE
        found.append(Edge(f"edge-{i}", model, here=lambda r, late=late: not late or r >= rounds))  # type: ignore[misc]
    return found


def run_federated(
    name: str, options: Mapping[str, Any], edges: Sequence[TaskEdge], seed: int, rounds: int
) -> tuple[Scores, Run]:
    """Run one method and return its scores."""
    made = models_of(edges, seed, rounds)
    strategy = create(name, options, min_edges=1, job={"rounds": rounds})
    begin = time.perf_counter()
    run = simulate(made, strategy, rounds=rounds, min_edges=len(made) - LATE)
    seconds = time.perf_counter() - begin
    after, shared = [], []
    for edge, data in zip(made, edges, strict=True):
        after.append(edge.model.accuracy(*data.test))
        content = strategy.content_for(edge.name) if isinstance(strategy, PerEdge) else None
        own = to_weights(next(iter(arrays_in(content).values()))) if content is not None else None
        shared.append(edge.model.accuracy(*data.test, own))
    scores = {
        "accuracy": float(np.mean(shared[:-LATE])),
        "personal": float(np.mean(after[:-LATE])),
        "late": float(np.mean(shared[-LATE:])),
    }
    return {**scores, "seconds": seconds, "bytes_up": run.bytes_up, "bytes_down": run.bytes_down}, run


def run_oracle(edges: Sequence[TaskEdge], seed: int, rounds: int) -> Scores:
    """Run FedAvg in each true task apart; a late edge gets its own task's model."""
    accuracies, late = [], []
    for task in sorted({edge.task for edge in edges}):
        mine = [(i, edge) for i, edge in enumerate(edges[:-LATE]) if edge.task == task]
        made = [Edge(f"edge-{i}", model_of(e, 1000 * seed + i)) for i, e in mine]
        simulate(made, create("fedavg", {}, min_edges=1), rounds=rounds)
        accuracies += [edge.model.accuracy(*data.test) for edge, (_, data) in zip(made, mine, strict=True)]
        late += [made[0].model.accuracy(*data.test) for data in edges[-LATE:] if data.task == task]
    return {"accuracy": float(np.mean(accuracies)), "late": float(np.mean(late))}


def run_alone(edges: Sequence[TaskEdge], seed: int, rounds: int) -> Scores:
    """Train each edge by itself, as long as the others train."""
    found = []
    for i, data in enumerate(edges[:-LATE]):
        model = model_of(data, 1000 * seed + i)
        for _ in range(rounds):
            model.train({})
        found.append(model.accuracy(*data.test))
    return {"accuracy": float(np.mean(found))}


def groups_of(run: Run) -> dict[str, str]:
    """Return each edge's group at the end, as the events say."""
    last = [event for event in run.events if isinstance(event, TasksGrouped)][-1]
    return {task.edge: task.group for task in last.tasks}


def measure(pool: Any, scenario: str, seed: int, rounds: int, peers: bool) -> dict[str, Scores]:
    """Run all methods on one scenario and seed."""
    edges = make_edges(pool, scenario, seed)
    found = {"alone": run_alone(edges, seed, rounds)}
    found["oracle"] = run_oracle(edges, seed, rounds)
    found[OURS], run = run_federated(OURS, {}, edges, seed, rounds)
    groups = groups_of(run)
    here = [f"edge-{i}" for i in range(len(edges) - LATE)]
    first = next(event for event in run.events if isinstance(event, TasksGrouped))
    found[OURS] |= {
        "ari": float(adjusted_rand_score([e.task for e in edges[:-LATE]], [groups[name] for name in here])),
        "groups": float(len({groups[name] for name in here})),
        "signature_bytes": first.signature_bytes / len(first.tasks),
    }
    for name, options in PEERS.items() if peers else [("fedavg", {})]:
        found[name], _ = run_federated(name, options, edges, seed, rounds)
    return found


def figures_of(results: Mapping[tuple[str, str], Sequence[Mapping[str, Scores]]]) -> list[Figure]:
    """Return the figures with a goal, over all data sets, scenarios and seeds."""
    grouped = {key: runs for key, runs in results.items() if key[1] in WITH_TASKS}
    alike = [run for (_, scenario), runs in results.items() if scenario == "alike" for run in runs]
    skewed = [run for (_, scenario), runs in results.items() if scenario == "Dirichlet" for run in runs]
    aris = [run[OURS]["ari"] for runs in grouped.values() for run in runs]
    exact = [float(run[OURS]["groups"] == 4) for runs in grouped.values() for run in runs]
    gaps = {
        key: median([100 * (r["oracle"]["accuracy"] - r[OURS]["accuracy"]) for r in runs])
        for key, runs in grouped.items()
    }
    late = {key: median([100 * (r["oracle"]["late"] - r[OURS]["late"]) for r in runs]) for key, runs in grouped.items()}
    sizes = [run[OURS]["signature_bytes"] for runs in results.values() for run in runs]
    loss = [100 * (run["fedavg"]["accuracy"] - run[OURS]["accuracy"]) for run in alike]
    over = [100 * (run[OURS]["personal"] - run["alone"]["accuracy"]) for run in skewed]
    return [
        Figure("min_ari", min(aris), "ARI", 0.98, aris),
        Figure("exact_k_share", float(np.mean(exact)), "share of runs", 1.0, exact),
        Figure("worst_gap_points", max(gaps.values()), "points", 0.5, list(gaps.values()), "low"),
        Figure("signature_bytes", max(sizes), "bytes an edge", 3072, sizes, "low"),
        Figure(
            "iid_groups_max",
            max(r[OURS]["groups"] for r in alike),
            "groups",
            1,
            [r[OURS]["groups"] for r in alike],
            "low",
        ),
        Figure("iid_loss_points", median(loss), "points", 0.3, loss, "low"),
        Figure("skew_over_alone_points", median(over), "points", 1.0, over),
        Figure("late_gap_points", max(late.values()), "points", 1.0, list(late.values()), "low"),
    ]


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--pools", nargs="+", default=["fashion", "sensors"], choices=["fashion", "sensors"])
    arguments = parser.parse_args()
    results: dict[tuple[str, str], list[dict[str, Scores]]] = defaultdict(list)
    for pool_name in arguments.pools:
        pool = load_pool(pool_name, arguments.data)
        rounds = arguments.rounds if pool_name == "fashion" else arguments.rounds // 2
        for scenario in arguments.scenarios:
            # The network for sensor data takes minutes where the perceptron takes seconds.
            for seed in range(arguments.seeds if pool_name == "fashion" else min(arguments.seeds, 3)):
                # The peers are compared on the study's own data; there they have been measured before.
                found = measure(pool, scenario, seed, rounds, peers=pool_name == "fashion")
                results[pool_name, scenario].append(found)
                shown = {name: round(scores["accuracy"], 4) for name, scores in found.items()}
                Console(stderr=True).print(pool_name, scenario, seed, shown, found[OURS])
    table = {
        f"{pool} · {scenario}": {
            method: {score: round(median([run[method][score] for run in runs]), 4) for score in runs[0][method]}
            for method in runs[0]
        }
        for (pool, scenario), runs in results.items()
    }

    def picture(axes: Any) -> None:
        rows = [name for name in table if OURS in table[name]]
        methods = [
            m
            for m in ("alone", "fedavg", "ifca", "cfl", "pacfl", "fl-hc", OURS, "oracle")
            if any(m in table[r] for r in rows)
        ]
        for place, method in enumerate(methods):
            values = [table[row].get(method, {}).get("accuracy", np.nan) for row in rows]
            colour = {OURS: "#e8590c", "oracle": "#212529"}.get(method, f"{0.45 + 0.08 * place:.2f}")
            axes.scatter(values, np.arange(len(rows)) + 0.07 * (place - 3), label=method, color=colour, s=18)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel("accuracy of the model that an edge gets, median over seeds")
        axes.legend(fontsize=7)

    _report.write("grouping_single", figures_of(results), extra=table, picture=picture)


if __name__ == "__main__":
    main()
