# SPDX-License-Identifier: Apache-2.0
"""Measures what the pictures about similar tasks show, on the digits that come with an example; needs no other data.

    make bench NAME=similar_task_pictures

writes `docs/images/similar-tasks.json`; then `python scripts/draw_similar_tasks.py` draws. No peer and no goal here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solar_corona.core.events import RoundEvaluated, TasksGrouped
from solar_corona.core.files import write_bytes_atomic
from solar_corona.lib.signature_distance import Sums, compare, separation
from solar_corona.lib.signatures import SignatureSpec, merge, sign
from solar_corona.strategies import create

from ._simulation import Edge, Floats, Mlp, simulate

_ROOT = Path(__file__).parents[1]
DIGITS = _ROOT / "examples" / "07_writers" / "writers.npz"
TARGET = _ROOT / "docs" / "images" / "similar-tasks.json"

EDGES, TASKS, ROUNDS, LATE, GUARD = 16, 4, 20, 12, 6
TRAIN, HELD_OUT = 250, 80

Labels = NDArray[np.int64]
Samples = tuple[Floats, Labels]
Change = Callable[[Floats, Labels], Samples]


class Digits:
    """Digits at 14 x 14, dealt out so that none is used twice."""

    def __init__(self) -> None:
        with np.load(DIGITS) as file:
            x, self._y, self._kind = file["x_train"], file["y_train"].astype(np.int64), file["series_train"]
        self._x = (x.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255).astype(np.float32)
        self._left = list(np.random.default_rng(0).permutation(len(self._y)))

    def take(self, count: int, kind: int | None = None) -> Samples:
        """Return so many digits, of all writers or of one kind."""
        rows = [i for i in self._left if kind is None or self._kind[i] == kind][:count]
        self._left = [i for i in self._left if i not in set(rows)]
        return self._x[rows], self._y[rows]


def _edge(name: str, train: Samples, held_out: Samples, *, seed: int, here: Any = lambda _: True) -> Edge:
    flat = [(np.ascontiguousarray(x.reshape(len(x), -1)), y) for x, y in (train, held_out)]
    return Edge(name, Mlp(*flat[0], *flat[1], seed=seed), here=here)


def _turned(times: int) -> Change:
    return lambda x, y: (np.rot90(x, times, (1, 2)), y)


def measure_fleet() -> dict[str, Any]:
    """Run a fleet with four rotations, one edge of which comes late, under three ways of training."""

    def fleet() -> list[Edge]:
        digits = Digits()
        found = []
        for i in range(EDGES + 1):
            late = i == EDGES
            turn = _turned(i % TASKS)
            train, held_out = turn(*digits.take(TRAIN)), turn(*digits.take(HELD_OUT))
            here = (lambda number: number >= LATE - 1) if late else (lambda _: True)
            found.append(_edge("late" if late else f"edge-{i}", train, held_out, seed=i, here=here))
        return found

    options = {"finetune": 0, "guard_rounds": GUARD}
    edges = fleet()
    spec = SignatureSpec()
    signatures = [sign(*edge.model.train_data, spec) for edge in edges[:EDGES]]
    sums = Sums.of(signatures)
    distances = compare(sums, sums, separation(sums))
    run = simulate(edges, create("similarity-grouping", options, job={"rounds": ROUNDS}), rounds=ROUNDS)
    plain = simulate(fleet(), create("fedavg", {}), rounds=ROUNDS)
    grouped = next(e for e in run.events if isinstance(e, TasksGrouped))
    alone = []
    pupils = fleet()[:EDGES]
    for _ in range(ROUNDS + 1):
        alone.append(float(np.mean([p.model.evaluate()[1]["accuracy"] for p in pupils])))
        for pupil in pupils:
            pupil.model.train({})
    return {
        "tasks": [
            {"name": t.edge, "group": t.group, "own": t.own, "next": t.next, "map": list(t.map)} for t in grouped.tasks
        ],
        "tree": [list(step) for step in grouped.tree],
        "eta": [[round(float(v), 3) for v in row] for row in distances.eta],
        "z": [[round(float(v), 1) for v in row] for row in distances.z],
        "groups": _curve(run.events, late=False),
        "late": _curve(run.events, late=True),
        "one": _curve(plain.events, late=False),
        "alone": [round(value, 4) for value in alone],
        "signature_bytes": grouped.signature_bytes / EDGES,
        "guard": GUARD,
        "joins": LATE,
    }


def _curve(events: Sequence[Any], *, late: bool) -> list[tuple[int, float]]:
    found = []
    for event in events:
        if isinstance(event, RoundEvaluated):
            values = [m["accuracy"] for name, m in event.edges.items() if (name == "late") == late]
            if values:
                found.append((event.round, round(float(np.mean(values)), 4)))
    return found


def _swapped(x: Floats, y: Labels) -> Samples:
    return x, np.where(y == 3, 5, np.where(y == 5, 3, y))


CHANGES: dict[str, tuple[Change, int | None]] = {
    "nothing": (lambda x, y: (x, y), None),
    "other writers": (lambda x, y: (x, y), 4),
    "darker (x 0.6)": (lambda x, y: (0.6 * x, y), None),
    "noise": (lambda x, y: (_noisy(x), y), None),
    "moved by 1 pixel": (lambda x, y: (np.roll(x, 1, 2), y), None),
    "moved by 2 pixels": (lambda x, y: (np.roll(x, 2, 2), y), None),
    "negative": (lambda x, y: (1 - x, y), None),
    "a quarter turn": (_turned(1), None),
    "two labels swapped": (_swapped, None),
    "all labels moved on": (lambda x, y: (x, (y + 1) % 10), None),
}


def _noisy(x: Floats) -> Floats:
    rng = np.random.default_rng(len(x))
    return np.clip(x + rng.normal(0, 0.15, x.shape), 0, 1).astype(np.float32)


def measure_changes() -> list[dict[str, Any]]:
    """Change the data of half of the edges, and see how far that is and what two models gain over one."""
    found = []
    for name, (change, kind) in CHANGES.items():
        digits = Digits()
        first = 0 if kind is not None else None
        parts = []
        for i in range(8):
            whose = kind if i % 2 else first
            samples = digits.take(TRAIN, whose), digits.take(3 * HELD_OUT, whose)
            parts.append([change(*part) if i % 2 else part for part in samples])
        halves = [merge([sign(x.reshape(len(x), -1), y, SignatureSpec()) for (x, y), _ in parts[h::2]]) for h in (0, 1)]
        sums = Sums.of(halves)
        apart = compare(sums[:1], sums[1:], separation(sums))
        options = {"finetune": 0, "guard_rounds": 0, "transfer": "none"}
        finals = {
            "groups": np.mean(
                [_final(parts[h::2], create("fedavg", {})) for h in (0, 1)]  # two federations, as if it were known
            ),
            "one": _final(parts, create("fedavg", {})),
            "kept": _final(parts, create("similarity-grouping", {**options, "guard_rounds": GUARD})),
        }
        found.append(
            {
                "change": name,
                "eta": round(float(apart.eta[0, 0]), 3),
                "z": round(float(apart.z[0, 0]), 1),
                **{key: round(float(value), 4) for key, value in finals.items()},
            }
        )
        print(found[-1], flush=True)
    return found


def _final(parts: Sequence[Any], strategy: Any) -> float:
    edges = [_edge(f"edge-{i}", train, test, seed=i) for i, (train, test) in enumerate(parts)]
    run = simulate(edges, strategy, rounds=ROUNDS)
    ends = {e.edge: e for e in run.events if e.event == "edge-finished"}
    return float(np.mean([ends[edge.name].metrics["accuracy"] for edge in edges]))


def main() -> None:
    found = {"fleet": measure_fleet(), "changes": measure_changes()}
    write_bytes_atomic(TARGET, (json.dumps(found, indent=1) + "\n").encode())
    print(f"wrote {TARGET.relative_to(_ROOT)}")


if __name__ == "__main__":
    main()
