# SPDX-License-Identifier: Apache-2.0
"""Edges whose data are of several tasks, made from real images: the scenarios S1 to S3 and S5 of the study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._data import load_cifar10, load_fashion_mnist, open_data

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


@dataclass(frozen=True)
class Pool:
    """Samples to draw edges from, and how an edge of them looks.

    Parameters
    ----------
    x, y, x_test, y_test
        Samples, n x …, float32, and classes.
    turn
        Gives samples as task t of the rotations sees them.
    class_groups
        Classes of each task where tasks are groups of classes.
    edges
        How many edges there are at first; four more come late.
    samples
        The least and most samples of an edge.
    held_out
        Samples that an edge evaluates on.
    flat
        Whether an edge's samples have one axis.
    """

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    turn: Callable[[NDArray[np.float32], int], NDArray[np.float32]]
    class_groups: tuple[tuple[int, ...], ...]
    edges: int = 32
    samples: tuple[int, int] = (200, 501)
    held_out: int = 60
    flat: bool = False

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.y.max()) + 1


@dataclass(frozen=True)
class TaskEdge:
    """One edge's samples, and the task that they are of, which no method is told."""

    task: int
    train: tuple[NDArray[np.float32], NDArray[np.int64]]
    held_out: tuple[NDArray[np.float32], NDArray[np.int64]]
    test: tuple[NDArray[np.float32], NDArray[np.int64]]


def load_pool(name: str, folder: Path) -> Pool:
    """Return `fashion` (Fashion-MNIST, 14 x 14, flat), `cifar` (CIFAR-10, 16 x 16 x 3) or `sensors` (64 steps x 6)."""
    return {"fashion": _fashion, "cifar": _cifar, "sensors": _sensors}[name](folder)


def _fashion(folder: Path) -> Pool:
    images = load_fashion_mnist(folder)
    return Pool(
        "fashion",
        _halved(images.x_train)[..., 0],
        images.y_train.astype(np.int64),
        _halved(images.x_test)[..., 0],
        images.y_test.astype(np.int64),
        turn=lambda x, task: np.rot90(x, task, (1, 2)),
        class_groups=((0, 1, 2), (3, 4, 5), (6, 7), (8, 9)),
        flat=True,
    )


def _cifar(folder: Path) -> Pool:
    images = load_cifar10(folder, train=20_000, test=8_000)
    return Pool(
        "cifar",
        4 * (_halved(images.x_train) - np.float32(0.5)),
        images.y_train,
        4 * (_halved(images.x_test) - np.float32(0.5)),
        images.y_test,
        turn=lambda x, task: np.rot90(x, task, (1, 2)),
        class_groups=((0, 1, 2), (3, 4, 5), (6, 7), (8, 9)),
        edges=20,
    )


def _halved(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return images at half their size, 0 to 1."""
    n, h, w, channels = x.shape
    halved: NDArray[np.float32] = x.reshape(n, h // 2, 2, w // 2, 2, channels).mean((2, 4), dtype=np.float32) / 255
    return halved


def _sensors(folder: Path) -> Pool:
    """Return phone windows of activities; each person's last recording is for testing."""
    with np.load(open_data(folder, "har_phone_watch.npz"), allow_pickle=False) as file:
        x, y, person = file["x_phone"].astype(np.float32), file["y"].astype(np.int64), file["subject"]
        recording = file["execution"]
    x = x / x.std((0, 1))
    train = np.array([r < recording[person == p].max() for r, p in zip(recording, person, strict=True)])
    return Pool(
        "sensors",
        x[train],
        y[train],
        x[~train],
        y[~train],
        turn=_held,
        class_groups=((0, 1), (2,), (3,), (4,)),
        edges=20,
        samples=(200, 401),
        held_out=40,
    )


def _held(x: NDArray[np.float32], task: int) -> NDArray[np.float32]:
    """Return windows of a phone that is carried turned by a quarter more about its third axis."""
    x = x.copy()
    for _ in range(task):
        for a, b in ((0, 1), (3, 4)):
            x[..., a], x[..., b] = -x[..., b].copy(), x[..., a].copy()
    return x


def make_edges(pool: Pool, scenario: str, seed: int, *, late: int = 4, test: int = 600) -> list[TaskEdge]:
    """Return edges of one task each; the last `late` are meant to join late, one of each task."""
    rng = np.random.default_rng([seed, *map(ord, scenario)])
    tasks, concentration = SCENARIOS[scenario]
    permutations = _permutations(rng, pool.classes)
    prior = np.full(pool.classes, 1 / pool.classes)
    order = list(rng.permutation(len(pool.x)))
    left = {c: [i for i in order if pool.y[i] == c] for c in range(pool.classes)}
    found = []
    for edge in range(pool.edges + late):
        task = edge % _TASKS if tasks else 0
        shares = prior if concentration is None else rng.dirichlet(concentration * pool.classes * prior)
        if scenario == "class groups":
            shares = np.zeros(pool.classes)
            shares[list(pool.class_groups[task])] = prior[list(pool.class_groups[task])]
            shares /= shares.sum()
        counts = rng.multinomial(int(rng.integers(*pool.samples)) + pool.held_out, shares)
        rows = np.array([i for c in range(pool.classes) for i in _draw(left, order, pool.y, c, counts[c], rng)])
        rng.shuffle(rows)
        x, y = _as_task(pool, pool.x[rows], pool.y[rows], scenario, task, permutations)
        weights = shares[pool.y_test] / np.bincount(pool.y_test, minlength=pool.classes)[pool.y_test]
        chosen = rng.choice(len(pool.y_test), test, replace=True, p=weights / weights.sum())
        other = _as_task(pool, pool.x_test[chosen], pool.y_test[chosen], scenario, task, permutations)
        cut = pool.held_out
        found.append(TaskEdge(task, (x[cut:], y[cut:]), (x[:cut], y[:cut]), other))
    return found


def _permutations(rng: np.random.Generator, classes: int) -> list[NDArray[np.int64]]:
    """Return one for each task, no two of which name any class alike.

    Else an edge with a single class may be of two tasks at once, and which it is cannot be found out.
    """
    mixed = rng.permutation(classes)
    place = np.argsort(mixed)
    return [mixed[(place + task) % classes] for task in range(_TASKS)]


def _draw(left: Any, order: list[int], y: NDArray[np.int64], label: int, count: int, rng: np.random.Generator) -> Any:
    """Take samples of a class that no edge has yet; when they are used up, any of the class."""
    taken = [left[label].pop() for _ in range(min(count, len(left[label])))]
    if len(taken) < count:
        taken += list(rng.choice([i for i in order if y[i] == label], count - len(taken)))
    return taken


def _as_task(
    pool: Pool,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    scenario: str,
    task: int,
    permutations: list[NDArray[np.int64]],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if scenario.startswith("rotations"):
        x = pool.turn(x, task)
    if scenario.startswith("permutations"):
        y = permutations[task][y]
    return np.ascontiguousarray(x.reshape(len(x), -1) if pool.flat else x), y
