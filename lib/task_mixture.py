# SPDX-License-Identifier: Apache-2.0
"""A mixture of tasks: which of them a sample is of, by itself or with those that came with it.

A task is a place in a `Frame`; of which tasks an edge has how much is the edge's own. Samples in a chunk are of its
task, but for a share of strays (1 - purity), each of any other task that the edge has:

    p(chunk | its task h) = Π_i [purity·p_i(h) + (1 - purity)·Σ_{t≠h} π_t·p_i(t) / (1 - π_h)]

The tasks' places come from all edges together (EM over sums; Dempster, Laird & Rubin 1977), and start from clusters
that each edge finds by itself (one-shot federated clustering, Dennis et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import WireError
from .signature_features import SignatureSpec
from .task_directions import Evidence, Floats, Frame, Indices

__all__ = ["PURE_CHUNK", "Taken", "TaskModel", "TaskSums", "clusters", "gather", "posterior"]

# What strays look like where there are none: samples that are unusual for their own task.
PURE_CHUNK = 0.95
_EVEN = 0.9
_ROUNDS = 10
_CLUSTER_STEPS, _CLUSTER_STARTS, _MOST_CLUSTERS = 40, 4, 6
_GATHER_STEPS, _GATHER_STARTS = 100, 20
_RIDGE = 0.01
_STILL = 1e-4
_TINY = 1e-12
_MOST_RANK = 64

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Taken:
    """What samples are taken for.

    Parameters
    ----------
    shares
        Probability of each task: n x T.
    weights
        The edge's share of each task: T.
    loyal
        Probability that a sample is of its chunk's task, summed over samples.
    """

    shares: Floats
    weights: Floats
    loyal: float


@dataclass(frozen=True)
class TaskSums:
    """What one edge's samples say of the tasks' places; sums of several edges add.

    Parameters
    ----------
    linear, square
        Σ of the samples' evidence, weighted by how much each is of the task: T x r and T x r x r.
    samples
        Σ of those weights: T.
    loyal, counted
        Samples that are of their chunk's task, and all.
    """

    linear: Floats
    square: Floats
    samples: Floats
    loyal: float
    counted: float

    def __add__(self, other: TaskSums) -> TaskSums:
        return TaskSums(
            self.linear + other.linear,
            self.square + other.square,
            self.samples + other.samples,
            self.loyal + other.loyal,
            self.counted + other.counted,
        )

    def scaled(self, factor: float) -> TaskSums:
        """Return the sums of so many times the samples."""
        return TaskSums(
            factor * self.linear,
            factor * self.square,
            factor * self.samples,
            factor * self.loyal,
            factor * self.counted,
        )

    def places(self) -> Floats:
        """Return where the tasks are: T x r."""
        ridge = _RIDGE * np.eye(self.linear.shape[1])
        found: Floats = np.linalg.solve(self.square + ridge, self.linear[..., None])[..., 0].astype(np.float64)
        return found

    @property
    def purity(self) -> float:
        """Share of samples that are of their chunk's task, as if ten more had been seen of which nine were."""
        return (self.loyal + 9) / (self.counted + 10)


@dataclass(frozen=True)
class TaskModel:
    """Tells which task a sample is of.

    Parameters
    ----------
    spec
        How features are made.
    frame
        The directions in which tasks differ.
    places
        Where the tasks are: T x r.
    purity
        Share of a chunk's samples that are of its task; from `PURE_CHUNK` on, all are.
    names
        Of the tasks.
    """

    spec: SignatureSpec
    frame: Frame
    places: Floats
    purity: float
    names: tuple[str, ...]

    def taken(self, features: Floats, labels: Indices, chunk: int | None) -> Taken:
        """Return what samples (n x D, in their order in time, with n class ids) are taken for."""
        likely = self.frame.evidence(features, labels).of(self.places)
        units = None if chunk is None else np.arange(len(likely)) // chunk
        return posterior(likely, units, self.purity)

    def sums(self, features: Floats, labels: Indices, chunk: int | None, *, least: int) -> TaskSums:
        """Return what samples say of the tasks' places; what fewer than `least` have counts to the largest task."""
        evidence = self.frame.evidence(features, labels)
        taken = self.taken(features, labels, chunk)
        shares = _folded(taken.shares, least)
        summed = evidence.weighted(shares)
        return TaskSums(
            summed.linear,
            summed.square,
            shares.sum(0),
            taken.loyal,
            float(len(evidence)),
        )

    def divide(self, features: Floats, labels: Indices, chunk: int | None) -> Indices:
        """Return the task of each sample, as its place among `names`.

        Where samples are judged one by one, an edge of which nine tenths are of one task has no other: what is left
        are unusual samples. Chunks are judged by many samples each, and are believed.
        """
        taken = self.taken(features, labels, chunk)
        singly = chunk is None or self.purity < PURE_CHUNK
        if singly and taken.weights.max() >= _EVEN:
            return np.full(len(features), int(taken.weights.argmax()), np.int64)
        found: Indices = taken.shares.argmax(1).astype(np.int64)
        return found

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays of which `of_arrays` makes the model anew."""
        return {
            "classes": self.frame.classes,
            "centre": self.frame.centre.astype(np.float32),
            "axes": self.frame.axes.astype(np.float32),
            "gram": self.frame.gram.astype(np.float32),
            "places": self.places.astype(np.float32),
        }

    @classmethod
    def of_arrays(
        cls, arrays: Arrays, *, spec: SignatureSpec, purity: float = 1.0, names: tuple[str, ...] = ()
    ) -> TaskModel:
        """Return a model from its arrays.

        Raises
        ------
        WireError
            If some are missing, do not fit each other, or are not finite.
        """
        try:
            classes = np.asarray(arrays["classes"], np.int64)
            centre, axes, gram, places = (
                np.asarray(arrays[name], np.float64) for name in ("centre", "axes", "gram", "places")
            )
        except (KeyError, ValueError, TypeError) as error:
            raise WireError(f"a model of tasks is not whole: {error}; update Solar Corona on both sides") from error
        rank = axes.shape[2] if axes.ndim == 3 else 0
        count, size = len(classes) if classes.ndim == 1 else -1, spec.dimension
        fits = (
            0 < rank <= _MOST_RANK
            and centre.shape == (count, size)
            and axes.shape == (count, size, rank)
            and gram.shape == (count, rank, rank)
            and places.ndim == 2
            and places.shape[1] == rank
            and (not names or len(names) == len(places))
        )
        if not fits or not all(np.isfinite(part).all() for part in (centre, axes, gram, places)):
            raise WireError("the arrays of a model of tasks do not fit each other or are not finite; ask for it anew")
        return cls(spec, Frame(classes, centre, axes, gram), places, purity, names)


def posterior(likely: Floats, units: Indices | None, purity: float) -> Taken:
    """Return what samples are taken for, with the weights of tasks that fit them best.

    Parameters
    ----------
    likely
        log p of each sample under each task, up to a constant of its own: n x T.
    units
        The chunk of each sample, from 0; None: each is by itself.
    purity
        See `TaskModel`.
    """
    count, tasks = likely.shape
    weights: Floats = np.full(tasks, 1 / tasks)
    if not count:
        return Taken(likely, weights, 0.0)
    likely = likely - likely.max(1, keepdims=True)
    shares, loyal = likely, float(count)
    for _ in range(_ROUNDS):
        if units is None:
            shares = _normal(likely + np.log(weights))
        elif purity >= PURE_CHUNK:
            shares = _normal(_added(likely, units) + np.log(weights))[units]
        else:
            shares, loyal = _with_strays(likely, units, purity, weights)
        weights = (shares.sum(0) + 0.5 / tasks) / (count + 0.5)
    return Taken(shares, weights, loyal)


def _with_strays(likely: Floats, units: Indices, purity: float, weights: Floats) -> tuple[Floats, float]:
    tasks = len(weights)
    others = np.where(np.eye(tasks, dtype=bool), 0.0, weights)
    mix = purity * np.eye(tasks) + (1 - purity) * others / np.maximum(others.sum(1, keepdims=True), _TINY)
    each = np.exp(likely)  # n x task of the sample
    under = np.maximum(each @ mix.T, 1e-300)  # n x task of the chunk
    chunks = _normal(_added(np.log(under), units) + np.log(weights))[units] / under
    loyal = float((chunks * purity * each).sum())
    return (chunks @ mix) * each, loyal


def _folded(shares: Floats, least: float) -> Floats:
    """Give the largest column what those have whose sum is below `least`, so that no small sum can be told."""
    sums = shares.sum(0)
    few = (sums < least) & (np.arange(len(sums)) != sums.argmax())
    folded = np.where(few, 0.0, shares)
    folded[:, sums.argmax()] += shares[:, few].sum(1)
    return folded


def _added(rows: Floats, units: Indices) -> Floats:
    total = np.zeros((int(units.max()) + 1, rows.shape[1]))
    np.add.at(total, units, rows)
    return total


def _normal(scores: Floats) -> Floats:
    found: Floats = np.exp(scores - scores.max(1, keepdims=True))
    found /= found.sum(1, keepdims=True)
    return found


def clusters(evidence: Evidence, most: int, seed: int, *, least: float = 0.0) -> tuple[Floats, Floats]:
    """Return places where units gather, and the share of the units at each: K x r and K.

    K, from 1 to `most`, is the one that the Bayesian information criterion prefers (Schwarz 1978). Of what is left,
    places with less than `least` of the units are given up, and their units counted to the largest.
    """
    rng = np.random.default_rng(seed)
    rank = evidence.linear.shape[1]
    best: tuple[float, Floats, Floats] = (np.inf, np.zeros((1, rank)), np.ones(1))
    for count in range(1, min(most, _MOST_CLUSTERS, len(evidence)) + 1):
        likely, places, weights = max(
            (_cluster(evidence, count, rng) for _ in range(_CLUSTER_STARTS if count > 1 else 1)), key=lambda f: f[0]
        )
        cost = -2 * likely + (count * rank + count - 1) * np.log(len(evidence))
        if cost < best[0]:
            best = cost, places, weights
    _, places, weights = best
    weights = _folded(weights[None], least)[0]
    return places[weights > 0], weights[weights > 0]


def _cluster(evidence: Evidence, count: int, rng: np.random.Generator) -> tuple[float, Floats, Floats]:
    mean, _ = evidence.expected()
    places = mean[rng.choice(len(mean), count, replace=False)] if count > 1 else mean.mean(0, keepdims=True)
    weights = np.full(count, 1 / count)
    ridge = _RIDGE * np.eye(evidence.linear.shape[1])
    for _ in range(_CLUSTER_STEPS):
        shares = _normal(evidence.of(places) + np.log(weights + _TINY))
        before, weights = weights, shares.mean(0)
        summed = evidence.weighted(shares)
        places = np.linalg.solve(summed.square + ridge, summed.linear[..., None])[..., 0]
        if np.abs(weights - before).max() < _STILL:
            break
    scores = evidence.of(places) + np.log(weights + _TINY)
    top = scores.max(1, keepdims=True)
    return float((top[:, 0] + np.log(np.exp(scores - top).sum(1))).sum()), places, weights


def gather(points: Floats, weights: Floats, count: int, seed: int) -> Floats:
    """Return `count` centres of weighted points (k-means, from starts that are far apart; Arthur & Vassilvitskii 2007).

    Parameters
    ----------
    points, weights
        n x r, and n numbers above 0; n is at least `count`.
    """
    rng = np.random.default_rng(seed)
    return min((_gathered(points, weights, count, rng) for _ in range(_GATHER_STARTS)), key=lambda found: found[0])[1]


def _gathered(points: Floats, weights: Floats, count: int, rng: np.random.Generator) -> tuple[float, Floats]:
    chosen = [int(rng.choice(len(points), p=weights / weights.sum()))]
    for _ in range(count - 1):
        near = weights * ((points[:, None] - points[chosen]) ** 2).sum(2).min(1)
        chosen.append(int(rng.choice(len(points), p=near / near.sum())) if near.sum() > 0 else chosen[0])
    centres = points[chosen].copy()
    labels = np.full(len(points), -1)
    for _ in range(_GATHER_STEPS):
        apart = ((points[:, None] - centres) ** 2).sum(2)
        new = apart.argmin(1)
        if (new == labels).all():
            break
        labels = new
        for place in np.unique(labels):
            rows = labels == place
            centres[place] = np.average(points[rows], axis=0, weights=weights[rows])
    return float((weights * ((points - centres[labels]) ** 2).sum(1)).sum()), centres
