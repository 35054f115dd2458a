# SPDX-License-Identifier: Apache-2.0
"""Edges whose data are of several tasks, made from real images: the scenarios S1 to S3 and S5 of the study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._data import load_cifar10, load_fashion_mnist

__all__ = ["SCENARIOS", "Pool", "TaskEdge", "load_pool", "make_edges"]

SCENARIOS = {
    "rotations": (True, None),
    "permutations": (True, None),
    "class groups": (True, None),
    "rotations, Dirichlet": (True, 0.3),
    "permutations, Dirichlet": (True, 0.3),
    "Dirichlet": (False, 0.2),
    "alike": (False, None),
}
"""Name: whether it has four tasks, and the label skew's concentration."""

_TASKS = 4
_CLASS_GROUPS = ((0, 1, 2), (3, 4, 5), (6, 7), (8, 9))


@dataclass(frozen=True)
class Pool:
    """Images to draw edges from: n x h x w (x c) float32 in 0 to 1."""

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]


@dataclass(frozen=True)
class TaskEdge:
    """One edge's samples, flattened, and the task that they are of, which no method is told."""

    task: int
    train: tuple[NDArray[np.float32], NDArray[np.int64]]
    held_out: tuple[NDArray[np.float32], NDArray[np.int64]]
    test: tuple[NDArray[np.float32], NDArray[np.int64]]


def load_pool(name: str, folder: Path) -> Pool:
    """Return Fashion-MNIST at 14 x 14, or CIFAR-10 at 16 x 16 in colour."""
    images = load_fashion_mnist(folder) if name == "fashion" else load_cifar10(folder, train=20_000, test=4_000)
    return Pool(
        name,
        _halved(images.x_train),
        images.y_train.astype(np.int64),
        _halved(images.x_test),
        images.y_test.astype(np.int64),
    )


def _halved(x: NDArray[Any]) -> NDArray[np.float32]:
    x = x.astype(np.float32) / (255.0 if x.max() > 2 else 1.0)
    n, h, w = x.shape[:3]
    halved: NDArray[np.float32] = x.reshape(n, h // 2, 2, w // 2, 2, -1).mean((2, 4)).squeeze()
    return halved


def make_edges(
    pool: Pool, scenario: str, seed: int, *, edges: int = 32, late: int = 4, held_out: int = 60, test: int = 600
) -> list[TaskEdge]:
    """Return edges of 200 to 500 samples; the last `late` are meant to join late, one of each task."""
    rng = np.random.default_rng([seed, *map(ord, scenario)])
    tasks, concentration = SCENARIOS[scenario]
    permutations = [np.arange(10), *(_derangement(rng) for _ in range(_TASKS - 1))]
    order = list(rng.permutation(len(pool.x)))
    left = {c: [i for i in order if pool.y[i] == c] for c in range(10)}
    found = []
    for edge in range(edges + late):
        task = edge % _TASKS if tasks else 0
        shares = np.full(10, 0.1) if concentration is None else rng.dirichlet(np.full(10, concentration))
        if scenario == "class groups":
            shares = np.zeros(10)
            shares[list(_CLASS_GROUPS[task])] = 1 / len(_CLASS_GROUPS[task])
        count = int(rng.integers(200, 501))
        counts = rng.multinomial(count + held_out, shares)
        rows = np.array([i for c in range(10) for i in _draw(left, order, pool.y, c, counts[c], rng)])
        rng.shuffle(rows)
        x, y = _as_task(pool.x[rows], pool.y[rows], scenario, task, permutations)
        weights = shares[pool.y_test] / np.bincount(pool.y_test, minlength=10)[pool.y_test]
        chosen = rng.choice(len(pool.y_test), test, replace=True, p=weights / weights.sum())
        xt, yt = _as_task(pool.x_test[chosen], pool.y_test[chosen], scenario, task, permutations)
        found.append(TaskEdge(task, (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out]), (xt, yt)))
    return found


def _derangement(rng: np.random.Generator) -> NDArray[np.int64]:
    while True:
        found = rng.permutation(10)
        if (found != np.arange(10)).all():
            return found


def _draw(left: Any, order: list[int], y: NDArray[np.int64], label: int, count: int, rng: np.random.Generator) -> Any:
    """Take samples of a class that no edge has yet; when they are used up, any of the class."""
    taken = [left[label].pop() for _ in range(min(count, len(left[label])))]
    if len(taken) < count:
        taken += list(rng.choice([i for i in order if y[i] == label], count - len(taken)))
    return taken


def _as_task(
    x: NDArray[np.float32], y: NDArray[np.int64], scenario: str, task: int, permutations: list[NDArray[np.int64]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if scenario.startswith("rotations"):
        x = np.rot90(x, task, (1, 2))
    if scenario.startswith("permutations"):
        y = permutations[task][y]
    return np.ascontiguousarray(x.reshape(len(x), -1)), y
