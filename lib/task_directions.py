# SPDX-License-Identifier: Apache-2.0
"""The few directions in which tasks differ, found from what many edges saw and no one knows the task of.

A unit is what is of one task, or of the same mixture of tasks, all through: a chunk of a stream, or else an edge. Its
place a, a few numbers, moves the means of all classes at once, each along axes of its own:

    z = m_c + B_c·a + noise,   for each sample z of class c in the unit

so that T tasks are T places, and span T - 1 directions. (m_c is where a is 0, not the mean of the samples: edges have
tasks and classes in shares of their own, and around the means a direction more would show.) Classes are not spread
alike in all directions, and what a unit has too much of that is easily taken for a direction. So each place is judged
by other samples than those that it then explains, and a direction counts if two halves of the samples that were never
seen together find the same.

Sources: method of moments for mixtures (Vempala & Wang 2004; Anandkumar et al. 2014), factor analysis by EM (Rubin &
Thayer 1982), split-half reproducibility for the number of factors (Everett 1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Axes",
    "Evidence",
    "Frame",
    "Pull",
    "agreement",
    "better_axes",
    "fit_between",
    "fit_together",
    "pull",
    "whitening",
]

# A class that hardly any unit has says little of its axes: as if one unit more had found none.
_PRIOR = 1.0
_STEPS = 12
_TOGETHER = 4
_FLOOR = 1e-3
_START = 0.3
_TINY = 1e-9

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """What samples or units say of their place u: log p = linear·u - ½·u'·square·u and a constant.

    Parameters
    ----------
    linear
        n x r.
    square
        n x r x r.
    """

    linear: Floats
    square: Floats

    def __len__(self) -> int:
        return len(self.linear)

    def by_unit(self, units: Indices) -> Evidence:
        """Return the evidence of units, to which samples belong by number from 0."""
        count = int(units.max()) + 1 if len(units) else 0
        linear, square = np.zeros((count, *self.linear.shape[1:])), np.zeros((count, *self.square.shape[1:]))
        np.add.at(linear, units, self.linear)
        np.add.at(square, units, self.square)
        return Evidence(linear, square)

    def of(self, places: Floats) -> Floats:
        """Return log p at each of T places (T x r), up to a constant of each row: n x T."""
        pairs = (places[:, :, None] * places[:, None]).reshape(len(places), places.shape[1] ** 2)
        found: Floats = self.linear @ places.T - 0.5 * self._flat() @ pairs.T
        return found

    def weighted(self, shares: Floats) -> Evidence:
        """Return the sums of all evidence, weighted by each of T columns (n x T): T rows."""
        square = shares.T @ self._flat()
        return Evidence(shares.T @ self.linear, square.reshape(shares.shape[1], *self.square.shape[1:]))

    def _flat(self) -> Floats:
        return self.square.reshape(len(self), self.square.shape[1] ** 2)

    def expected(self) -> tuple[Floats, Floats]:
        """Return mean (n x r) and covariance (n x r x r) of a place that is N(0, 1) before anything is seen."""
        spread: Floats = np.linalg.inv(self.square + np.eye(self.linear.shape[1])).astype(np.float64)
        return np.einsum("nrs,ns->nr", spread, self.linear), spread


@dataclass(frozen=True)
class Axes:
    """Axes in whitened features.

    Parameters
    ----------
    along
        For each direction and class, how far a step in that direction moves the class: r x C x k.
    shift
        How far the classes lie from the samples' means where the place is 0: C x k.
    """

    along: Floats
    shift: Floats

    @classmethod
    def start(cls, rank: int, classes: int, size: int, seed: int) -> Axes:
        """Return axes that are anything."""
        along = _START * np.random.default_rng(seed).normal(size=(rank, classes, size))
        return cls(along, np.zeros((classes, size)))

    def __len__(self) -> int:
        return len(self.along)

    def padded(self, size: int) -> Axes:
        """Return the same axes among more features, of which they say nothing."""
        along, shift = np.zeros((*self.along.shape[:2], size)), np.zeros((len(self.shift), size))
        along[..., : self.along.shape[2]], shift[:, : self.shift.shape[1]] = self.along, self.shift
        return Axes(along, shift)

    def frame(self, classes: Indices, centre: Floats, white: Floats) -> Frame:
        """Return the frame around the samples' means `centre` (C x D), where `white` (D x D) whitens features.

        Axes of k features go by the first k of the whitened ones.
        """
        first = white[:, : self.along.shape[2]]
        return Frame(
            classes,
            centre + self.shift @ np.linalg.pinv(first),
            np.einsum("de,rce->cdr", first, self.along, optimize=True),
            np.einsum("rcd,scd->crs", self.along, self.along, optimize=True),
        )


@dataclass(frozen=True)
class Frame:
    """For each class its centre and the axes along which tasks move it.

    Parameters
    ----------
    classes
        Class ids, ascending: C.
    centre
        C x D.
    axes
        C x D x r, in units of the classes' common spread: `(features - centre) @ axes` is the evidence of a place.
    gram
        The axes' inner products in that metric: C x r x r.
    """

    classes: Indices
    centre: Floats
    axes: Floats
    gram: Floats

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return int(self.axes.shape[2])

    def where(self, labels: Indices) -> Indices:
        """Return the place of each label among the classes, -1 where it is none of them."""
        if not len(self.classes):
            return np.full(len(labels), -1, np.int64)
        found = np.minimum(np.searchsorted(self.classes, labels), len(self.classes) - 1)
        return np.where(self.classes[found] == labels, found, -1).astype(np.int64)

    def offsets(self, features: Floats, where: Indices) -> Floats:
        """Return how far samples are from their classes' centres, 0 for those of no known class: n x D."""
        found, known = np.zeros(features.shape), where >= 0
        found[known] = features[known] - self.centre[where[known]]
        return found

    def evidence(self, features: Floats, labels: Indices) -> Evidence:
        """Return what samples (n x D and n class ids) say of their places; one of an unknown class says nothing."""
        where, rank = self.where(labels), self.rank
        offsets, linear = self.offsets(features, where), np.zeros((len(features), rank))
        square = np.zeros((len(features), rank, rank))
        for place in np.unique(where[where >= 0]):
            rows = where == place
            linear[rows] = offsets[rows] @ self.axes[place]
            square[rows] = self.gram[place]
        return Evidence(linear, square)


@dataclass(frozen=True)
class Pull:
    """Sums from which better axes follow; those of several edges add.

    Parameters
    ----------
    square
        Σ E[b·b'] over the samples of each class, where b is the place of a sample's unit as its other samples tell it,
        and a 1 behind: C x (r + 1) x (r + 1). Its last entry is the number of samples.
    linear
        Σ E[b]·(features - centre)': C x (r + 1) x D, or x k where they were multiplied by something.
    """

    square: Floats
    linear: Floats

    def __add__(self, other: Pull) -> Pull:
        return Pull(self.square + other.square, self.linear + other.linear)

    @property
    def samples(self) -> float:
        """How many samples were counted."""
        return float(self.square[:, -1, -1].sum())

    def times(self, white: Floats) -> Pull:
        """Return the sums of features that are multiplied by `white` (D x k)."""
        return Pull(self.square, self.linear @ white)

    def scaled(self, factor: float) -> Pull:
        """Return the sums of so many times the samples."""
        return Pull(factor * self.square, factor * self.linear)


def pull(
    frame: Frame, features: Floats, labels: Indices, units: Indices, *, least: int, white: Floats | None = None
) -> Pull:
    """Return how samples pull at the axes, each by the place that the others of its unit tell.

    Parameters
    ----------
    frame
        The axes so far.
    features, labels
        n x D, and class ids.
    units
        Which unit each sample is of.
    least
        A class with fewer samples is left out.
    white
        What to multiply the features' sums by (D x k), so that they are of k numbers; None leaves them as they are.
    """
    where, count = frame.where(labels), len(frame.classes)
    evidence = frame.evidence(features, labels)
    whole = evidence.by_unit(units)
    others = Evidence(whole.linear[units] - evidence.linear, whole.square[units] - evidence.square)
    mean, spread = others.expected()
    offsets = frame.offsets(features, where)
    offsets = offsets if white is None else offsets @ white
    mean, second = _with_one(mean, spread)
    size = frame.rank + 1
    square, linear = np.zeros((count, size, size)), np.zeros((count, size, offsets.shape[1]))
    for place in np.unique(where[where >= 0]):
        rows = np.flatnonzero(where == place)
        if len(rows) >= least:
            square[place], linear[place] = second[rows].sum(0), mean[rows].T @ offsets[rows]
    return Pull(square, linear)


def _with_one(mean: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """Return the mean of places with a 1 behind (n x (r + 1)), and of their squares."""
    longer = np.concatenate([mean, np.ones((len(mean), 1))], axis=1)
    second = longer[:, :, None] * longer[:, None]
    second[:, :-1, :-1] += spread
    return longer, second


def better_axes(pulled: Pull, before: Axes) -> Axes:
    """Return the axes that explain what pulled at those before, for places of mean 0 and mean square 1."""
    size = pulled.square.shape[1]
    found = np.linalg.solve(pulled.square + _PRIOR * np.eye(size), pulled.linear).transpose(1, 0, 2)
    moments = pulled.square.sum(0) / max(pulled.samples, 1.0)
    mean = moments[-1, :-1]
    lower = np.linalg.cholesky(moments[:-1, :-1] - np.outer(mean, mean) + _TINY * np.eye(size - 1))
    return Axes(
        np.einsum("rs,rcd->scd", lower, found[:-1], optimize=True),
        before.shift + found[-1] + np.einsum("r,rcd->cd", mean, found[:-1], optimize=True),
    )


def agreement(one: Axes, other: Axes, weights: Floats) -> tuple[Floats, Axes]:
    """Return how far two sets of axes span the same, and axes of that span, the most common first.

    Parameters
    ----------
    one, other
        Axes of as many features.
    weights
        Samples of each class: C.

    Returns
    -------
    cosines
        Of the angles between the two, falling: r. Of two that have nothing in common they are near 0.
    axes
        In the same order, as strong as those of `one` are on average.
    """
    root = np.sqrt(np.maximum(weights, _TINY))[None, :, None]
    first, second = (np.linalg.svd((root * a.along).reshape(len(a), -1), full_matrices=False) for a in (one, other))
    turn, cosines, _ = np.linalg.svd(first[2] @ second[2].T)
    along = (turn.T @ first[2]).reshape(one.along.shape) * float(first[1].mean()) / root
    return np.clip(cosines, 0.0, 1.0), Axes(along, (one.shift + other.shift) / 2)


def whitening(scatter: Floats) -> Floats:
    """Return what makes a covariance (D x D) that of white noise, the widest directions first: D x D."""
    size = len(scatter)
    scale = max(float(np.trace(scatter)) / size, _TINY)
    values, vectors = np.linalg.eigh(scatter + _FLOOR * scale * np.eye(size))
    found: Floats = (vectors / np.sqrt(np.maximum(values, _FLOOR * scale)))[:, ::-1]
    return found


def fit_between(halves: Sequence[tuple[Floats, Floats]], rank: int, seed: int) -> tuple[Axes, Axes]:
    """Return the axes in which units differ, found twice: with places from one half that explain the other.

    Parameters
    ----------
    halves
        For each half of every unit's samples, the sums of their whitened deviations from the classes' means
        (N x C x k) and their numbers (N x C).
    rank
        How many axes.
    seed
        Where the search starts.
    """
    _, classes, size = halves[0][0].shape
    one, other = (
        _fit(halves[half], halves[1 - half], Axes.start(rank, classes, size, seed + half), _STEPS) for half in (0, 1)
    )
    return one, other


def fit_together(whole: tuple[Floats, Floats], start: Axes) -> Axes:
    """Return axes from all samples of the units, going on from `start`."""
    return _fit(whole, whole, start, _TOGETHER)


def _fit(judged: tuple[Floats, Floats], explained: tuple[Floats, Floats], axes: Axes, steps: int) -> Axes:
    (sums, numbers), (other_sums, other_numbers) = judged, explained
    for _ in range(steps):
        gram = np.einsum("rcd,scd->crs", axes.along, axes.along, optimize=True)
        evidence = Evidence(
            np.einsum("rcd,kcd->kr", axes.along, sums - numbers[..., None] * axes.shift, optimize=True),
            np.einsum("kc,crs->krs", numbers, gram, optimize=True),
        )
        mean, second = _with_one(*evidence.expected())
        offsets = other_sums - other_numbers[..., None] * axes.shift
        pulled = Pull(
            np.einsum("kc,krs->crs", other_numbers, second, optimize=True),
            np.einsum("kr,kcd->crd", mean, offsets, optimize=True),
        )
        axes = better_axes(pulled, axes)
    return axes
