# SPDX-License-Identifier: Apache-2.0
"""Edges with one task each: similar ones are found, and get a model as good as if their tasks had been told.

Two sets are trained on: Fashion-MNIST (14 x 14, a perceptron), on which the method's thresholds were set, and CIFAR-10
(16 x 16 x 3, a small convolutional network), on which they were not. A third, windows of a phone's sensors, is only
grouped, not trained on: its tasks "the phone is turned" are not apart by nature, for its 23 people already carry the
phone upright, upside down, screen in and screen out, and there are about 200 windows of its rarest class for all edges
together. What grouping makes of all three sets is counted over more fleets than can be trained (`right_share_…`).

All methods start from the same weights, and an edge's steps take the same samples in the same round of each, so that
what differs between two methods is what they do. How far apart two runs of one method are that take other samples is
measured too (`noise_points`): a gap much smaller than that could not be seen otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from solar_corona.core.events import TasksGrouped
from solar_corona.lib.exchange import to_weights
from solar_corona.lib.records import arrays_in
from solar_corona.lib.signatures import SignatureSpec, sign
from solar_corona.strategies import create
from solar_corona.strategies.extensions import PerEdge
from solar_corona.strategies.grouping import group

from . import _report
from ._cnn import Cnn
from ._data import add_data_option
from ._report import Figure, median
from ._simulation import Edge, Mlp, Run, simulate
from ._task_scenarios import SCENARIOS, Pool, TaskEdge, load_pool, make_edges

OURS, ORACLE, AGAIN, LATE = "similarity-grouping", "oracle", "oracle, other samples", 4
PEERS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {},
    "ifca": {"groups": 4},
    "cfl": {},
    "pacfl": {},
    "fl-hc": {},
}
WITH_TASKS = [name for name, (tasks, _) in SCENARIOS.items() if tasks]
POOLS = {"fashion": "Fashion-MNIST", "cifar": "CIFAR-10"}
_OTHER_SAMPLES = 500_000
Scores = dict[str, float]
Results = Mapping[tuple[str, str], Sequence[Mapping[str, Scores]]]


def model_of(edge: TaskEdge, seed: int) -> Mlp:
    """Return an edge's model: a perceptron for flat images, else a convolutional network."""
    kind = Mlp if edge.train[0].ndim == 2 else Cnn
    return kind(*edge.train, *edge.held_out, seed=seed)


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


def run_oracle(edges: Sequence[TaskEdge], seed: int, rounds: int, other: int = 0) -> Scores:
    """Run FedAvg in each true task apart; a late edge gets its own task's model. `other` is added to models' seeds."""
    accuracies, late = [], []
    for task in sorted({edge.task for edge in edges}):
        mine = [(i, edge) for i, edge in enumerate(edges[:-LATE]) if edge.task == task]
        made = [Edge(f"edge-{i}", model_of(e, 1000 * seed + i + other)) for i, e in mine]
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


def measure(pool: Pool, scenario: str, seed: int, rounds: int) -> dict[str, Scores]:
    """Run all methods on one scenario and seed."""
    edges = make_edges(pool, scenario, seed)
    found = {"alone": run_alone(edges, seed, rounds)}
    found[ORACLE] = run_oracle(edges, seed, rounds)
    found[AGAIN] = run_oracle(edges, seed, rounds, _OTHER_SAMPLES)
    found[OURS], run = run_federated(OURS, {}, edges, seed, rounds)
    groups = groups_of(run)
    here = [f"edge-{i}" for i in range(len(edges) - LATE)]
    first = next(event for event in run.events if isinstance(event, TasksGrouped))
    found[OURS] |= {
        "ari": float(adjusted_rand_score([e.task for e in edges[:-LATE]], [groups[name] for name in here])),
        "groups": float(len({groups[name] for name in here})),
        "signature_bytes": first.signature_bytes / len(first.tasks),
    }
    for name, options in PEERS.items():
        found[name], _ = run_federated(name, options, edges, seed, rounds)
    return found


def grouped_only(pool: Pool, seeds: int) -> list[tuple[str, float, int]]:
    """Group fleets without training: scenario, ARI and number of groups of each."""
    found = []
    for scenario in SCENARIOS:
        for seed in range(seeds):
            edges = make_edges(pool, scenario, seed)[:-LATE]
            made = group([sign(*edge.train, SignatureSpec()) for edge in edges])
            ari = float(adjusted_rand_score([edge.task for edge in edges], made.labels))
            found.append((scenario, ari, len(made.groups)))
    return found


def is_right(scenario: str, ari: float, groups: float) -> bool:
    """Tell whether exactly the true tasks were found."""
    return ari >= 0.98 and groups == (4 if scenario in WITH_TASKS else 1)


def gaps_of(results: Results, method: str, score: str = "accuracy") -> list[float]:
    """Return how many points a method is below the oracle: the median over seeds for each set and scenario."""
    return [
        median([100 * (run[ORACLE][score] - run[method][score]) for run in runs])
        for (_, scenario), runs in results.items()
        if scenario in WITH_TASKS
    ]


def figures_of(results: Results, grouped: Mapping[str, Sequence[tuple[str, float, int]]]) -> list[Figure]:
    """Return the figures, over all sets, scenarios and seeds; of several sets the worst counts, not the mean."""
    ours = [(scenario, run[OURS]) for (_, scenario), runs in results.items() for run in runs]
    aris = [found["ari"] for scenario, found in ours if scenario in WITH_TASKS]
    exact = [float(found["groups"] == 4) for scenario, found in ours if scenario in WITH_TASKS]
    alike = [found["groups"] for scenario, found in ours if scenario == "alike"]
    sizes = [found["signature_bytes"] for _, found in ours]
    gaps, late = gaps_of(results, OURS), gaps_of(results, OURS, "late")

    def in_each_set(scenario: str, points: Any) -> list[float]:
        return [median([100 * points(run) for run in runs]) for (_, name), runs in results.items() if name == scenario]

    loss = in_each_set("alike", lambda run: run["fedavg"]["accuracy"] - run[OURS]["accuracy"])
    over = in_each_set("Dirichlet", lambda run: run[OURS]["personal"] - run["alone"]["accuracy"])
    noise = [
        abs(100 * (run[ORACLE]["accuracy"] - run[AGAIN]["accuracy"]))
        for (_, scenario), runs in results.items()
        for run in runs
        if scenario in WITH_TASKS
    ]
    figures = [
        Figure("min_ari", min(aris), "ARI", 0.98, aris),
        Figure("exact_k_share", float(np.mean(exact)), "share of runs", 1.0, exact),
        Figure("worst_gap_points", max(gaps), "points", 0.5, gaps, "low"),
        Figure("signature_bytes", max(sizes), "bytes an edge", 3072, sizes, "low"),
        Figure("iid_groups_max", max(alike), "groups", 1, alike, "low"),
        Figure("iid_loss_points", max(loss), "points", 0.3, loss, "low"),
        Figure("skew_over_alone_points", min(over), "points", 1.0, over),
        Figure("late_gap_points", max(late), "points", 1.0, late, "low"),
        Figure("noise_points", median(noise), "points", None, noise),
    ]
    for name in PEERS:
        peer = gaps_of(results, name)
        figures.append(Figure(f"worst_gap_points_{name.replace('-', '_')}", max(peer), "points", None, peer))
    for pool, fleets in grouped.items():
        right = [float(is_right(*fleet)) for fleet in fleets]
        figures.append(Figure(f"right_share_{pool}", float(np.mean(right)), "share of fleets", None, right))
        found = [ari for scenario, ari, _ in fleets if scenario in WITH_TASKS]
        figures.append(Figure(f"min_ari_{pool}", min(found), "ARI", None, found))
    return figures


def measured(pool: Pool, scenario: str, seed: int, rounds: int, keep: Path | None) -> dict[str, Scores]:
    """Return what `measure` gives, from `keep` if an earlier run left it there."""
    file = None if keep is None else keep / f"{pool.name}-{scenario.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    if file is not None and file.is_file():
        kept: dict[str, Scores] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    found = measure(pool, scenario, seed, rounds)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")
    shown = {name: round(scores["accuracy"], 4) for name, scores in found.items()}
    Console(stderr=True).print(pool.name, scenario, seed, shown, found[OURS])
    return found


def draw(table: Mapping[str, Mapping[str, Scores]], axes: Any) -> None:
    """Draw how far each method is from the oracle, one panel for each set."""
    figure = axes.figure
    axes.remove()
    sets = [name for name in POOLS.values() if any(row.startswith(name) for row in table)]
    figure.set_size_inches(9, 4.6)
    looks = {
        "alone": ("#adb5bd", "o"),
        "fedavg": ("#868e96", "s"),
        "ifca": ("#1971c2", "^"),
        "cfl": ("#2f9e44", "v"),
        "pacfl": ("#9c36b5", "D"),
        "fl-hc": ("#e8a500", "P"),
        OURS: ("#e8590c", "*"),
    }
    for place, panel in enumerate(figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]):
        rows = [name for name in table if name.startswith(sets[place])]
        panel.axvline(0, color="#212529", linewidth=1, zorder=1)
        for method, (colour, marker) in looks.items():
            values = [100 * (table[r][method]["accuracy"] - table[r][ORACLE]["accuracy"]) for r in rows]
            size = 110 if method == OURS else 28
            panel.scatter(values, range(len(rows)), s=size, c=colour, marker=marker, label=method, zorder=2, alpha=0.9)
        panel.set_yticks(range(len(rows)), [row.partition(" · ")[2] for row in rows])
        panel.invert_yaxis()
        panel.set_title(sets[place], fontsize=10, loc="left")
        panel.grid(axis="y", color="#e9ecef", linewidth=6, zorder=0)
        panel.set_axisbelow(True)
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
    figure.supxlabel("points of accuracy from the oracle, which is told the tasks (median over seeds)", fontsize=9)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8, frameon=False)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fleets", type=int, default=20, help="fleets of each scenario that are only grouped")
    parser.add_argument("--rounds", type=int, default=30, help="on Fashion-MNIST; half as many on CIFAR-10")
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--pools", nargs="+", default=list(POOLS), choices=list(POOLS))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep each run there, and go on from those there")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)  # Flower's, a line for each group and round
    results: dict[tuple[str, str], list[dict[str, Scores]]] = defaultdict(list)
    for name in arguments.pools:
        pool = load_pool(name, arguments.data)
        rounds = arguments.rounds if name == "fashion" else arguments.rounds // 2
        for scenario in arguments.scenarios:
            for seed in range(arguments.seeds):
                results[name, scenario].append(measured(pool, scenario, seed, rounds, arguments.keep))
    grouped = {
        name: grouped_only(load_pool(name, arguments.data), arguments.fleets) for name in (*arguments.pools, "sensors")
    }
    table = {
        f"{POOLS[pool]} · {scenario}": {
            method: {score: round(median([run[method][score] for run in runs]), 4) for score in runs[0][method]}
            for method in runs[0]
        }
        for (pool, scenario), runs in results.items()
    }
    wrong = {
        pool: {
            scenario: f"{sum(not is_right(*fleet) for fleet in fleets if fleet[0] == scenario)} of {arguments.fleets}"
            for scenario in SCENARIOS
        }
        for pool, fleets in grouped.items()
    }
    _report.write(
        "grouping_single",
        figures_of(results, grouped),
        extra={**table, "fleets grouped wrongly": wrong},
        picture=lambda axes: draw(table, axes),
    )


if __name__ == "__main__":
    main()
