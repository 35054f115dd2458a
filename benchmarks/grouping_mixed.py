# SPDX-License-Identifier: Apache-2.0
"""Edges that mix two tasks in their stream: each finds its own, and gets models as good as if they had been told."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from solar_corona.core.spec import Tasks
from solar_corona.strategies import create

from . import _report
from ._data import add_data_option
from ._report import Figure, median
from ._simulation import Edge, Mlp, simulate
from ._task_scenarios import Pool, load_pool

CASES: dict[str, tuple[float | None, float]] = {"plain": (None, 0.0), "label skew": (0.3, 0.0), "impure": (None, 0.2)}
"""Name: concentration of an edge's classes, and the share of samples that are of the chunk's other task."""

KINDS = ("rotations", "permutations")
_CHUNK, _TASKS, _TEST = 10, 4, 400
Scores = dict[str, float]


@dataclass(frozen=True)
class MixedEdge:
    """One edge's stream, the task of each of its samples, and for each of its tasks what to test on."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    task: NDArray[np.int64]
    tests: dict[int, tuple[NDArray[np.float32], NDArray[np.int64]]]


def make_edges(pool: Pool, kind: str, case: str, seed: int, *, edges: int = 32) -> list[MixedEdge]:
    """Return edges with 200 to 500 samples in chunks of ten, each chunk of one of the edge's two tasks."""
    concentration, impure = CASES[case]
    rng = np.random.default_rng([seed, *map(ord, kind + case)])
    mixed = rng.permutation(10)
    names = [mixed[(np.argsort(mixed) + task) % 10] for task in range(_TASKS)]
    rows_of = [np.flatnonzero(pool.y == c) for c in range(10)]
    tests_of = [np.flatnonzero(pool.y_test == c) for c in range(10)]

    def seen(x: NDArray[np.float32], y: NDArray[np.int64], task: NDArray[np.int64]) -> Any:
        x = x.copy()
        for each in np.unique(task):
            rows = task == each
            if kind == "rotations":
                x[rows] = pool.turn(x[rows], int(each))
            else:
                y = np.where(rows, names[each][y], y)
        return x.reshape(len(x), -1), y

    found = []
    for _ in range(edges):
        pair = rng.choice(_TASKS, 2, replace=False)
        chunks = int(rng.integers(20, 51))
        task = np.repeat(pair[(rng.random(chunks) < rng.uniform(0.3, 0.7)).astype(int)], _CHUNK)
        task = np.where(rng.random(len(task)) < impure, pair.sum() - task, task)
        shares = np.full(10, 0.1) if concentration is None else rng.dirichlet(np.full(10, concentration))
        rows = np.array([rng.choice(rows_of[c]) for c in rng.choice(10, len(task), p=shares)])
        x, y = seen(pool.x[rows], pool.y[rows], task)
        tests = {}
        for each in pair:
            chosen = np.array([rng.choice(tests_of[c]) for c in rng.choice(10, _TEST, p=shares)])
            tests[int(each)] = seen(pool.x_test[chosen], pool.y_test[chosen], np.full(_TEST, each))
        found.append(MixedEdge(x, y, task, tests))
    return found


def nothing(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return no samples to evaluate on: what is compared here are the groups' models."""
    return x[:0], np.zeros(0, np.int64)


def run_ours(edges: Sequence[MixedEdge], seed: int, rounds: int) -> Scores:
    """Run the job's discovery and return how well samples are divided, and what the models are worth."""
    tasks = Tasks(division="discovery", chunk=_CHUNK)
    made = [
        Edge(f"edge-{i}", Mlp(e.x, e.y, *nothing(e.x), seed=1000 * seed + i), tasks=tasks) for i, e in enumerate(edges)
    ]
    options = {"finetune": 0, "guard_rounds": 0}
    strategy = create("similarity-grouping", options, min_edges=1, job={"rounds": rounds, "discover": True})
    run = simulate(made, strategy, rounds=rounds)
    accuracies, truth, found = [], [], []
    groups: set[str] = set()
    for i, (edge, data) in enumerate(zip(made, edges, strict=True)):
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
        found.append(np.array([hash(keys[place]) % 2**31 for place in group]))
        for task, test in data.tests.items():
            mine = np.bincount(group[data.task == task], minlength=len(served))
            weights = node.result.weights[int(mine.argmax())][1]
            accuracies.append(edge.model.accuracy(*test, weights))
        del i
    up = sum(len(e.y) for e in edges)
    return {
        "accuracy": float(np.mean(accuracies)),
        "ari": float(adjusted_rand_score(np.concatenate(truth), np.concatenate(found))),
        "groups": float(len(groups)),
        "survey_bytes": float(strategy._groups.signature_bytes / len(edges)),  # type: ignore[attr-defined]  # noqa: SLF001
        "samples": float(up),
    }


def run_oracle(edges: Sequence[MixedEdge], seed: int, rounds: int) -> Scores:
    """Run FedAvg for each true task, over each edge's samples of it."""
    accuracies = []
    for task in range(_TASKS):
        mine = [(i, e) for i, e in enumerate(edges) if (e.task == task).sum() >= 10]
        made = [
            Edge(f"edge-{i}", Mlp(e.x[e.task == task], e.y[e.task == task], *nothing(e.x), seed=1000 * seed + i))
            for i, e in mine
        ]
        simulate(made, create("fedavg", {}, min_edges=1), rounds=rounds)
        weights = {name: value.copy() for name, value in made[0].model.weights.items()}
        accuracies += [made[0].model.accuracy(*e.tests[task], weights) for e in edges if task in e.tests]
    return {"accuracy": float(np.mean(accuracies))}


def run_plain(edges: Sequence[MixedEdge], seed: int, rounds: int) -> Scores:
    """Run FedAvg over all samples: what a federation that knows of no tasks gets."""
    made = [Edge(f"edge-{i}", Mlp(e.x, e.y, *nothing(e.x), seed=1000 * seed + i)) for i, e in enumerate(edges)]
    simulate(made, create("fedavg", {}, min_edges=1), rounds=rounds)
    weights = {name: value.copy() for name, value in made[0].model.weights.items()}
    return {"accuracy": float(np.mean([made[0].model.accuracy(*t, weights) for e in edges for t in e.tests.values()]))}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    pool = load_pool("fashion", arguments.data)
    results: dict[str, list[dict[str, Scores]]] = defaultdict(list)
    for kind in KINDS:
        for case in CASES:
            for seed in range(arguments.seeds):
                edges = make_edges(pool, kind, case, seed)
                found = {
                    "ours": run_ours(edges, seed, arguments.rounds),
                    "oracle": run_oracle(edges, seed, arguments.rounds),
                    "fedavg": run_plain(edges, seed, arguments.rounds),
                }
                results[f"{kind}, {case}"].append(found)
                Console(stderr=True).print(kind, case, seed, found)
    gaps = {
        name: [100 * (run["oracle"]["accuracy"] - run["ours"]["accuracy"]) for run in runs]
        for name, runs in results.items()
    }
    plain = {name: median(gaps[name]) for name in gaps if name.endswith("plain")}
    aris = {name: [run["ours"]["ari"] for run in runs] for name, runs in results.items()}
    figures = [
        Figure("gap_chunks_points", max(plain.values()), "points", 0.5, list(plain.values()), "low"),
        Figure("ari_chunks_min", min(min(aris[name]) for name in plain), "ARI", 0.98),
        *(
            Figure(f"ari_{name.replace(', ', '_').replace(' ', '_')}", median(aris[name]), "ARI", 0.9, aris[name])
            for name in results
            if name not in plain
        ),
    ]
    table = {
        name: {
            method: {score: round(median([run[method][score] for run in runs]), 4) for score in runs[0][method]}
            for method in runs[0]
        }
        for name, runs in results.items()
    }

    def picture(axes: Any) -> None:
        for place, (method, colour) in enumerate({"fedavg": "#868e96", "ours": "#e8590c", "oracle": "#212529"}.items()):
            values = [table[name][method]["accuracy"] for name in table]
            axes.barh(np.arange(len(table)) + 0.25 * (place - 1), values, 0.25, label=method, color=colour)
        axes.set_yticks(range(len(table)), list(table))
        axes.set_xlabel("accuracy on segments whose task is known, median over seeds")
        axes.legend()

    _report.write("grouping_mixed", figures, extra=table, picture=picture)


if __name__ == "__main__":
    main()
