# SPDX-License-Identifier: Apache-2.0
"""Edges that mix two tasks in their stream: all together find them, and get models as good as if they had been told."""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from solar_corona.core.spec import Tasks
from solar_corona.strategies import create

from . import _report
from ._data import add_data_option
from ._mixed_streams import CASES, CHUNK, TASKS, MixedEdge, fedem, make_edges, nothing
from ._report import Figure, median
from ._simulation import Edge, Mlp, simulate
from ._task_scenarios import load_pool

KINDS = ("rotations", "permutations")
GOALS = {"rotations": 1.0, "permutations": 2.0}
"""Points below the oracle that are allowed where no chunks are known."""
CHUNKS, NO_CHUNKS = "ours, chunks", "ours, no chunks"
_ALONE_STEPS = 15
Scores = dict[str, float]
Runs = dict[str, list[dict[str, Scores]]]


def run_ours(edges: Sequence[MixedEdge], seed: int, rounds: int, *, chunk: int | None) -> Scores:
    """Run the job's discovery and return how well samples are divided, and what the models are worth."""
    tasks = Tasks(division="discovery", chunk=chunk)
    made = [_edge(e, i, seed, tasks=tasks) for i, e in enumerate(edges)]
    options = {"finetune": 0, "guard_rounds": 0}
    strategy = create("similarity-grouping", options, min_edges=1, job={"rounds": rounds, "discover": True})
    run = simulate(made, strategy, rounds=rounds)
    accuracies, truth, found, wholes = [], [], [], []
    groups: set[str] = set()
    for edge, data in zip(made, edges, strict=True):
        node = run.nodes[edge.name]
        assert node.result is not None
        assert node.split is not None
        content = strategy.content_for(edge.name)  # type: ignore[attr-defined]
        keys = [key for key in content if key.startswith("arrays/")]
        groups |= set(keys)
        served = [
            (tasks if tasks is not None else tuple(range(len(node.split.names)))) for tasks, _ in node.result.weights
        ]
        model_of = {task: place for place, tasks_of in enumerate(served) for task in tasks_of}
        group = np.array([model_of[int(task)] for task in node.split.train])
        truth.append(data.task)
        found.append(np.array([keys[place] for place in group]))
        wholes.append(np.concatenate([_most(part) for part in np.split(data.task, len(data.task) // CHUNK)]))
        for task, test in data.tests.items():
            mine = np.bincount(group[data.task == task], minlength=len(served))
            weights = node.result.weights[int(mine.argmax())][1]
            accuracies.append(edge.model.accuracy(*test, weights))
    last = [event for event in run.events if event.event == "tasks-grouped"][-1]
    return {
        "accuracy": float(np.mean(accuracies)),
        "ari": float(adjusted_rand_score(np.concatenate(truth), np.concatenate(found))),
        "ari_of_chunks": float(adjusted_rand_score(np.concatenate(wholes), np.concatenate(found))),
        "groups": float(len(groups)),
        "survey_bytes": float(last.signature_bytes / len(edges)),
    }


def _edge(data: MixedEdge, place: int, seed: int, **more: Any) -> Edge:
    return Edge(f"edge-{place}", Mlp(data.x, data.y, *nothing(data.x), seed=1000 * seed + place), **more)


def _most(part: Any) -> Any:
    return np.full(len(part), np.bincount(part).argmax())


def run_oracle(edges: Sequence[MixedEdge], seed: int, rounds: int) -> Scores:
    """Run FedAvg for each true task, over each edge's samples of it."""
    accuracies = []
    for task in range(TASKS):
        mine = [(i, e) for i, e in enumerate(edges) if (e.task == task).sum() >= CHUNK]
        if not mine:
            continue
        made = [
            Edge(f"edge-{i}", Mlp(e.x[e.task == task], e.y[e.task == task], *nothing(e.x), seed=1000 * seed + i))
            for i, e in mine
        ]
        simulate(made, create("fedavg", {}, min_edges=1), rounds=rounds)
        weights = {name: value.copy() for name, value in made[0].model.weights.items()}
        accuracies += [made[0].model.accuracy(*e.tests[task], weights) for e in edges if task in e.tests]
    return {"accuracy": float(np.mean(accuracies))}


def run_named(name: str, edges: Sequence[MixedEdge], seed: int, rounds: int) -> Scores:
    """Run a strategy that knows of no tasks within an edge, as it is."""
    options = {
        "fedavg": {},
        "ifca": {"groups": TASKS, "seed": seed},
        "similarity-grouping": {"finetune": 0, "guard_rounds": 0},
    }[name]
    made = [_edge(e, i, seed) for i, e in enumerate(edges)]
    run = simulate(made, create(name, options, min_edges=1, job={"rounds": rounds}), rounds=rounds)
    accuracies = []
    for edge, data in zip(made, edges, strict=True):
        result = run.nodes[edge.name].result
        assert result is not None
        weights = result.weights[0][1]
        accuracies += [edge.model.accuracy(*test, weights) for test in data.tests.values()]
    return {"accuracy": float(np.mean(accuracies))}


def run_alone(edges: Sequence[MixedEdge], seed: int, rounds: int) -> Scores:
    """Let each edge train on all its own samples, as long as the others do."""
    accuracies = []
    for i, data in enumerate(edges):
        model = _edge(data, i, seed).model
        for _ in range(rounds):
            model.train({})
        accuracies += [model.accuracy(*test) for test in data.tests.values()]
    return {"accuracy": float(np.mean(accuracies))}


def measure(kind: str, case: str, edges: list[MixedEdge], seed: int, rounds: int) -> dict[str, Scores]:
    """Return the scores of all methods that a case is about."""
    found = {
        CHUNKS: run_ours(edges, seed, rounds, chunk=CHUNK),
        "oracle": run_oracle(edges, seed, rounds),
        "fedavg": run_named("fedavg", edges, seed, rounds),
    }
    if case in ("plain", "alike"):
        found[NO_CHUNKS] = run_ours(edges, seed, rounds, chunk=None)
    if case == "plain":
        found["ifca, 4 told"] = run_named("ifca", edges, seed, rounds)
        found["whole edges grouped"] = run_named("similarity-grouping", edges, seed, rounds)
        found["fedem, 4 told"] = {"accuracy": float(np.mean(fedem(edges, rounds=rounds, seed=seed)))}
        found["alone"] = run_alone(edges, seed, rounds)
    Console(stderr=True).print(kind, case, seed, found)
    return found


def figures_of(results: Runs) -> list[Figure]:
    """Return what the benchmark stands for; ARI is of single samples but where its name says chunks."""
    figures = []
    plain = [f"{kind}, plain" for kind in KINDS]

    def points(name: str, method: str, reference: str = "oracle") -> list[float]:
        return [100 * (run[reference]["accuracy"] - run[method]["accuracy"]) for run in results[name]]

    def scores(name: str, method: str, score: str) -> list[float]:
        return [run[method][score] for run in results[name]]

    gaps = [median(points(name, CHUNKS)) for name in plain]
    figures.append(Figure("gap_chunks_points", max(gaps), "points", 0.5, gaps, "low"))
    for kind, goal in GOALS.items():
        repeats = points(f"{kind}, plain", NO_CHUNKS)
        figures.append(Figure(f"gap_no_chunks_{kind}_points", median(repeats), "points", goal, repeats, "low"))
    figures.append(Figure("ari_chunks_min", min(min(scores(name, CHUNKS, "ari")) for name in plain), "ARI", 0.98))
    for kind in KINDS:
        repeats = scores(f"{kind}, plain", NO_CHUNKS, "ari")
        figures.append(Figure(f"ari_no_chunks_{kind}", median(repeats), "ARI", None, repeats))
        for case in ("label skew", "impure", "all everywhere"):
            name, short = f"{kind}, {case}", f"{kind}_{case.replace(' ', '_')}"
            repeats = scores(name, CHUNKS, "ari")
            figures.append(Figure(f"ari_{short}", median(repeats), "ARI", 0.9, repeats))
            gap = points(name, CHUNKS)
            figures.append(Figure(f"gap_{short}_points", median(gap), "points", None, gap, "low"))
    alike = results["rotations, alike"]
    groups = [run[method]["groups"] for run in alike for method in (CHUNKS, NO_CHUNKS)]
    figures.append(Figure("alike_groups_max", max(groups), "groups", 1, groups, "low"))
    lost = [value for method in (CHUNKS, NO_CHUNKS) for value in points("rotations, alike", method, "fedavg")]
    figures.append(Figure("alike_loss_points", max(lost), "points", 0.3, lost, "low"))
    for method, name in ((CHUNKS, "bytes_chunks"), (NO_CHUNKS, "bytes_no_chunks")):
        repeats = [value for each in plain for value in scores(each, method, "survey_bytes")]
        figures.append(Figure(name, max(repeats), "bytes an edge", None, repeats, "low"))
    return figures


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    pool = load_pool("fashion", arguments.data)
    results: Runs = defaultdict(list)
    for seed in range(arguments.seeds):
        for case in CASES:
            for kind in KINDS if case != "alike" else KINDS[:1]:
                edges = make_edges(pool, kind, case, seed)
                results[f"{kind}, {case}"].append(measure(kind, case, edges, seed, arguments.rounds))
        write(results)  # so that a run that is cut short leaves the seeds that it got to


def write(results: Runs) -> None:
    """Print and write what was measured so far."""
    table = {
        name: {
            method: {score: round(median([run[method][score] for run in runs]), 4) for score in runs[0][method]}
            for method in runs[0]
        }
        for name, runs in results.items()
    }

    def picture(axes: Any) -> None:
        colours = {"fedavg": "#868e96", NO_CHUNKS: "#fab005", CHUNKS: "#e8590c", "oracle": "#212529"}
        for place, (method, colour) in enumerate(colours.items()):
            shown = [(row, scores[method]["accuracy"]) for row, scores in enumerate(table.values()) if method in scores]
            rows, values = zip(*shown, strict=True)
            axes.barh(np.array(rows) + 0.2 * (place - 1.5), values, 0.2, label=method, color=colour)
        axes.set_yticks(range(len(table)), list(table))
        axes.set_xlabel("accuracy on segments whose task is known, median over seeds")
        axes.legend()

    _report.write("grouping_mixed", figures_of(results), extra=table, picture=picture)


if __name__ == "__main__":
    main()
