# SPDX-License-Identifier: Apache-2.0
"""Half of the edges change their task in the middle; how soon is each in the right group again."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from solar_corona.core.events import RoundEvaluated, TasksGrouped
from solar_corona.strategies import create

from . import _report
from ._data import add_data_option
from ._report import Figure, median
from ._simulation import Edge, Mlp, Run, simulate
from ._task_scenarios import TaskEdge, load_pool, make_edges

PEERS = ("ifca", "fedavg")
OURS = "similarity-grouping"


def fleet(edges: Sequence[TaskEdge], seed: int) -> list[Edge]:
    """Return simulated edges whose arrays can be changed in place."""
    return [
        Edge(f"edge-{i}", Mlp(*(part.copy() for part in (*e.train, *e.held_out)), seed=1000 * seed + i))
        for i, e in enumerate(edges)
    ]


def movers(count: int) -> list[int]:
    """Return half of the edges, as many of each task: so every group loses half of its edges and gets as many."""
    return [i for i in range(count) if (i // 4) % 2 == 0]


def change(edge: Edge, to: TaskEdge) -> None:
    """Give an edge samples of another task, as many as it has."""
    for (x, y), (new_x, new_y) in ((edge.model.train_data, to.train), (edge.model.eval_data, to.held_out)):
        rows = np.arange(len(x)) % len(new_x)
        x[:], y[:] = new_x[rows], new_y[rows]


def run(name: str, edges: Sequence[TaskEdge], later: Sequence[TaskEdge], seed: int, rounds: int, at: int) -> Run:
    """Run one method; after round `at` half of the edges' samples are those of `later`."""
    made = fleet(edges, seed)

    def each_round(number: int) -> None:
        if number == at:
            for i in movers(len(made)):
                change(made[i], later[i])

    options: dict[str, Any] = {"groups": 4} if name == "ifca" else {"finetune": 0} if name == OURS else {}
    strategy = create(name, options, min_edges=1, job={"rounds": rounds})
    return simulate(made, strategy, rounds=rounds, each_round=each_round)


def judge(found: Run, truth: Sequence[int], at: int) -> tuple[float, float, float]:
    """Return rounds from detection to all being right, the share of the others that were moved, rounds to detection."""
    told = [event for event in found.events if isinstance(event, TasksGrouped)]
    before = {t.edge: t.group for t in [e for e in told if e.round <= at][-1].tasks}
    detected = next((e.round for e in told if e.round > at), float("inf"))
    right = float("inf")
    stay = sorted({*range(len(truth))} - {*movers(len(truth))})
    untouched = [f"edge-{i}" for i in stay]
    moved_others = 0.0
    for event in (e for e in told if e.round > at):
        groups = {t.edge: t.group for t in event.tasks}
        moved_others = max(moved_others, float(np.mean([groups[e] != before[e] for e in untouched])))
        expected = {truth[i]: groups[f"edge-{i}"] for i in stay}
        if all(groups[f"edge-{i}"] == expected[truth[i]] for i in range(len(truth))):
            right = min(right, event.round)
    return right - detected, moved_others, detected - at


def draw(curves: Mapping[str, Sequence[float]], at: int, axes: Any) -> None:
    """Draw each method's accuracy from round to round, named at its end."""
    looks = {OURS: ("#e8590c", 2.5), "ifca": ("#1971c2", 1.5), "fedavg": ("#868e96", 1.5)}
    names = {"ifca": "ifca, told that there are four tasks"}
    places = {OURS: (0, 9), "ifca": (0, -26), "fedavg": (0, 9)}
    for name, (colour, width) in looks.items():
        rounds = range(1, len(curves[name]) + 1)
        axes.plot(rounds, curves[name], color=colour, linewidth=width, marker="o", markersize=3)
        axes.annotate(
            names.get(name, name),
            (rounds[-1], curves[name][-1]),
            places[name],
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    axes.axvline(at, color="#868e96", linestyle=":", zorder=0)
    axes.annotate(
        "half of the edges\nchange their task",
        (at, 0.02),
        (6, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        fontsize=9,
        color="#495057",
    )
    axes.set_xlim(0.5, len(curves[OURS]) + 0.5)
    axes.set_xticks(range(2, len(curves[OURS]) + 1, 2))
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy on the edges' own held-out samples")
    axes.grid(axis="y", color="#e9ecef")


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    at = arguments.rounds // 2
    pool = load_pool("fashion", arguments.data)
    rounds_to_right, others, to_detect = [], [], []
    curves: dict[str, list[list[float]]] = {}
    for scenario in ("rotations", "permutations"):
        for seed in range(arguments.seeds):
            edges = make_edges(pool, scenario, seed, late=0)
            # The same tasks, other samples and another edge for each task: the one after the next.
            later = [*edges[1:], edges[0]]
            truth = [later[i].task if i in movers(len(edges)) else edge.task for i, edge in enumerate(edges)]
            for name in (OURS, *PEERS):
                found = run(name, edges, later, seed, arguments.rounds, at)
                accuracy = {e.round: e.metrics["accuracy"] for e in found.events if isinstance(e, RoundEvaluated)}
                curves.setdefault(name, []).append([accuracy[r] for r in sorted(accuracy) if r])
                if name == OURS:
                    right, moved, detected = judge(found, truth, at)
                    rounds_to_right.append(right)
                    others.append(moved)
                    to_detect.append(detected)
                    Console(stderr=True).print(scenario, seed, "right after", right, "others moved", moved, detected)
    means = {name: np.median(np.array(rows), axis=0) for name, rows in curves.items()}
    after = at + 2  # the second round that is trained on the new tasks
    peer = max(PEERS, key=lambda name: means[name][after - 1])
    figures = [
        Figure("rounds_to_right_max", max(rounds_to_right), "rounds after detection", 2, rounds_to_right, "low"),
        Figure("others_moved_max", max(others), "share", 0, others, "low"),
        Figure("rounds_to_detect", median(to_detect), "rounds", None, to_detect),
        Figure("accuracy_ratio_after_move", float(means[OURS][after - 1] / means[peer][after - 1]), "x"),
    ]

    extra = {name: [round(float(v), 4) for v in values] for name, values in means.items()}
    _report.write("grouping_moves", figures, extra=extra, picture=lambda axes: draw(extra, at, axes))


if __name__ == "__main__":
    main()
