# SPDX-License-Identifier: Apache-2.0
"""Small fleets whose edges hold one of two tasks, and what a run says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks._simulation import Edge, Mlp, Run

__all__ = ["Pulled", "by_task", "edge", "finals", "fleet", "groups_in", "samples", "warnings_in"]

CENTRES = np.random.default_rng(7).normal(size=(2, 4, 12)).astype(np.float32)


class Pulled(Mlp):
    """A perceptron that knows `proximal-mu`, and what to be pulled towards."""

    anchor: Mapping[str, np.ndarray] | None = None

    def pull_towards(self, anchor: Mapping[str, np.ndarray] | None) -> None:
        self.anchor = anchor

    def train(self, config: Mapping[str, Any]) -> tuple[int, Mapping[str, float]]:
        strength = float(config.get("proximal-mu", 0.0))
        towards = {name: np.array(value) for name, value in (self.anchor or self.weights).items()}
        steps, self._steps = self._steps, 1
        for _ in range(steps):
            samples, metrics = super().train(config)
            step = np.float32(self._rate * strength)
            self.weights = {name: w - step * (w - towards[name]) for name, w in self.weights.items()}
        self._steps = steps
        return samples, metrics


def samples(task: int, count: int, seed: int, *, classes: int = 4, swap: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Two tasks with other inputs for the same classes; with `swap` the same inputs under other labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    x = CENTRES[0 if swap else task][y] + 0.5 * rng.normal(size=(count, 12))
    return x.astype(np.float32), ((y + task) % classes if swap else y).astype(np.int64)


def edge(name: str, task: int, seed: int, count: int = 120, *, kind: type = Mlp, swap: bool = False, **more) -> Edge:
    """An edge with samples of one task."""
    train, held_out = samples(task, count, seed, swap=swap), samples(task, 60, seed + 500, swap=swap)
    return Edge(name, kind(*train, *held_out, hidden=16, classes=4), **more)


def fleet(count: int = 8, *, tasks: int = 2, **more) -> list[Edge]:
    """Edges whose tasks take turns."""
    return [edge(f"edge-{i}", i % tasks, i, **more) for i in range(count)]


def groups_in(run: Run) -> dict[tuple[str, str], str]:
    """Each task's group at the end."""
    last = [e for e in run.events if e.event == "tasks-grouped"][-1]
    return {(t.edge, t.task): t.group for t in last.tasks}


def by_task(run: Run, tasks: int = 2) -> list[set[str]]:
    """Each true task's set of groups."""
    found: list[set[str]] = [set() for _ in range(tasks)]
    for (name, _), group in groups_in(run).items():
        found[int(name.rpartition("-")[2]) % tasks].add(group)
    return found


def finals(run: Run) -> dict[str, Any]:
    """What each edge ended with."""
    return {e.edge: e for e in run.events if e.event == "edge-finished"}


def warnings_in(run: Run) -> list[str]:
    """What the user was warned of."""
    return [e.message for e in run.events if e.event == "warned"]
