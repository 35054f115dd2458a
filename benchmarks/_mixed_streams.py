# SPDX-License-Identifier: Apache-2.0
"""Edges whose stream mixes two of four tasks, made from real images: scenario S4 of the study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._simulation import Mlp
from ._task_scenarios import Pool

__all__ = ["CASES", "CHUNK", "TASKS", "Case", "MixedEdge", "fedem", "make_edges", "nothing"]

CHUNK, TASKS, _TEST = 10, 4, 400


@dataclass(frozen=True)
class Case:
    """How streams are.

    Parameters
    ----------
    skew
        Concentration of an edge's classes (Dirichlet); None: all alike.
    impure
        Share of samples that are of the other of the edge's two tasks than their chunk.
    tasks
        How many tasks an edge mixes; 1: there is only one at all.
    """

    skew: float | None = None
    impure: float = 0.0
    tasks: int = 2


CASES = {
    "plain": Case(),
    "label skew": Case(skew=0.3),
    "impure": Case(impure=0.2),
    "all everywhere": Case(tasks=TASKS),
    "alike": Case(tasks=1),
}


@dataclass(frozen=True)
class MixedEdge:
    """One edge's stream, the task of each of its samples, and for each of its tasks what to test on."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    task: NDArray[np.int64]
    tests: dict[int, tuple[NDArray[np.float32], NDArray[np.int64]]]


def make_edges(pool: Pool, kind: str, case: str, seed: int, *, edges: int = 32) -> list[MixedEdge]:
    """Return edges with 200 to 500 samples in chunks of ten, each chunk of one of the edge's tasks."""
    how = CASES[case]
    rng = np.random.default_rng([seed, *map(ord, kind + case)])
    seen = _views(pool, kind, rng)
    rows_of = [np.flatnonzero(pool.y == c) for c in range(pool.classes)]
    tests_of = [np.flatnonzero(pool.y_test == c) for c in range(pool.classes)]
    found = []
    for _ in range(edges):
        mixed = rng.choice(TASKS, how.tasks, replace=False) if how.tasks > 1 else np.zeros(1, np.int64)
        chunks = int(rng.integers(20, 51))
        share = rng.uniform(0.3, 0.7)
        parts = [1 - share, share] if how.tasks == 2 else np.full(how.tasks, 1 / how.tasks)
        task = np.repeat(mixed[rng.choice(how.tasks, chunks, p=parts)], CHUNK)
        if how.impure:
            task = np.where(rng.random(len(task)) < how.impure, mixed.sum() - task, task)
        even = np.full(pool.classes, 1 / pool.classes)
        shares = even if how.skew is None else rng.dirichlet(np.full(pool.classes, how.skew))
        rows = np.array([rng.choice(rows_of[c]) for c in rng.choice(pool.classes, len(task), p=shares)])
        x, y = seen(pool.x[rows], pool.y[rows], task)
        tests = {}
        for each in mixed:
            chosen = np.array([rng.choice(tests_of[c]) for c in rng.choice(pool.classes, _TEST, p=shares)])
            tests[int(each)] = seen(pool.x_test[chosen], pool.y_test[chosen], np.full(_TEST, each))
        found.append(MixedEdge(x, y, task, tests))
    return found


def _views(pool: Pool, kind: str, rng: np.random.Generator) -> Callable[..., Any]:
    """Return how samples look as their tasks see them: turned, or with other names for the classes."""
    mixed = rng.permutation(pool.classes)
    names = [mixed[(np.argsort(mixed) + task) % pool.classes] for task in range(TASKS)]

    def seen(x: NDArray[np.float32], y: NDArray[np.int64], task: NDArray[np.int64]) -> Any:
        x = x.copy()
        for each in np.unique(task):
            rows = task == each
            if kind == "rotations":
                x[rows] = pool.turn(x[rows], int(each))
            else:
                y = np.where(rows, names[each][y], y)
        return x.reshape(len(x), -1), y

    return seen


def nothing(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return no samples to evaluate on: what is compared here are the models."""
    return x[:0], np.zeros(0, np.int64)


def fedem(edges: list[MixedEdge], *, rounds: int, seed: int, components: int = TASKS) -> list[float]:
    """Return the accuracy on each edge's tasks under federated EM (Marfoq et al. 2021), told how many tasks there are.

    Every edge has weights of its own over components that all share, trains each on its samples as far as they are
    of it, and the server averages. On a test segment whose task is known it answers with the components as they share
    its samples of that task in training.
    """
    rng = np.random.default_rng(seed)
    models = [Mlp(e.x, e.y, *nothing(e.x), seed=1000 * seed + i) for i, e in enumerate(edges)]
    start = models[0].weights
    shared = [
        {name: rng.permutation(value.ravel()).reshape(value.shape) for name, value in start.items()}
        for _ in range(components)
    ]
    weights = [np.full(components, 1 / components) for _ in edges]
    shares: list[NDArray[np.float64]] = []
    for number in range(rounds + 1):
        shares = [_shares(m, e, shared, w) for m, e, w in zip(models, edges, weights, strict=True)]
        weights = [share.mean(0) for share in shares]
        if number == rounds:
            break
        total = np.sum([share.sum(0) for share in shares], axis=0)
        following = [{name: np.zeros_like(value) for name, value in start.items()} for _ in range(components)]
        for model, share in zip(models, shares, strict=True):
            for place in range(components):
                model.set_weights(shared[place])
                model.train_weighted(share[:, place])
                for name, value in model.weights.items():
                    following[place][name] += value * np.float32(share[:, place].sum() / total[place])
        shared = following
    found = []
    for model, edge, share in zip(models, edges, shares, strict=True):
        for task, (x, y) in edge.tests.items():
            mine = share[edge.task == task].mean(0) if (edge.task == task).any() else share.mean(0)
            mean = sum(w * model.probabilities(x, each) for w, each in zip(mine, shared, strict=True))
            found.append(float((np.asarray(mean).argmax(1) == y).mean()))
    return found


def _shares(
    model: Mlp, edge: MixedEdge, shared: list[dict[str, NDArray[np.float32]]], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    rows = np.arange(len(edge.y))
    likely = np.stack([model.probabilities(edge.x, each)[rows, edge.y] for each in shared], axis=1) * weights
    likely = likely.astype(np.float64) + 1e-12
    found: NDArray[np.float64] = likely / likely.sum(1, keepdims=True)
    return found
