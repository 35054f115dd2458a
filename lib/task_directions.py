# SPDX-License-Identifier: Apache-2.0
"""The few directions in which tasks differ, found from what many edges saw and no one knows the task of.

A unit is what is of one task, or of the same mixture of tasks, all through: a chunk of a stream, or else an edge. Its
place a, a few numbers, moves the means of all classes at once, each along axes of its own:

    z = m_c + B_c·a + noise,   for each sample z of class c in the unit

so that T tasks are T places, and span T - 1 directions. Classes are not spread alike in all directions, and what a unit
has too much of that is easily taken for a direction. So each place is judged by other samples than those that it then
explains, and a direction counts if two halves of the samples that were never seen together find the same.

Sources: method of moments for mixtures (Vempala & Wang 2004; Anandkumar et al. 2014), factor analysis by EM (Rubin &
Thayer 1982), split-half reproducibility for the number of factors (Everett 1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Evidence", "Frame", "Pull", "agreement", "better_axes", "fit_between", "fit_together", "pull", "whitening"]

# A class that hardly any unit has says little of its axes: as if one unit more had found none.
_PRIOR = 1.0
_STEPS = 12
_TOGETHER = 4
_FLOOR = 1e-3
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

    @classmethod
    def of(cls, classes: Indices, centre: Floats, axes: Floats, white: Floats) -> Frame:
        """Return the frame of `axes` (r x C x k) in whitened features; `white` (D x k) is what whitens them."""
        return cls(
            classes,
            centre,
            np.einsum("de,rce->cdr", white, axes, optimize=True),
            np.einsum("rcd,scd->crs", axes, axes, optimize=True),
        )

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
        Σ E[a·a'] over the samples of each class, a being the place of a sample's unit as its other samples tell it:
        C x r x r.
    linear
        Σ E[a]·(features - centre)': C x r x D, or x k where they were multiplied by something.
    samples
        How many samples were counted.
    """

    square: Floats
    linear: Floats
    samples: float

    def __add__(self, other: Pull) -> Pull:
        return Pull(self.square + other.square, self.linear + other.linear, self.samples + other.samples)

    def times(self, white: Floats) -> Pull:
        """Return the sums of features that are multiplied by `white` (D x k)."""
        return Pull(self.square, self.linear @ white, self.samples)

    def scaled(self, factor: float) -> Pull:
        """Return the sums of so many times the samples."""
        return Pull(factor * self.square, factor * self.linear, factor * self.samples)


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
    square, linear = np.zeros((count, frame.rank, frame.rank)), np.zeros((count, frame.rank, offsets.shape[1]))
    samples = 0
    for place in np.unique(where[where >= 0]):
        rows = np.flatnonzero(where == place)
        if len(rows) >= least:
            square[place] = spread[rows].sum(0) + mean[rows].T @ mean[rows]
            linear[place] = mean[rows].T @ offsets[rows]
            samples += len(rows)
    return Pull(square, linear, float(samples))


def better_axes(pulled: Pull) -> Floats:
    """Return the axes (r x C x k) that explain what pulled, of whitened features, for places of mean square 1."""
    rank = pulled.square.shape[1]
    axes = np.linalg.solve(pulled.square + _PRIOR * np.eye(rank), pulled.linear).transpose(1, 0, 2)
    return _even(axes, pulled.square.sum(0) / max(pulled.samples, 1.0))


def _even(axes: NDArray[Any], second: Floats) -> Floats:
    """Return axes for places of mean square 1, from those for places whose mean square is `second`."""
    lower = np.linalg.cholesky(second + _TINY * np.eye(len(axes)))
    found: Floats = np.einsum("rs,rcd->scd", lower, axes, optimize=True)
    return found


def agreement(one: Floats, other: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return how far two sets of axes span the same, and the directions of `one` that come nearest to `other`.

    Parameters
    ----------
    one, other
        r x C x D each, whitened.
    weights
        Samples of each class: C.

    Returns
    -------
    cosines
        Of the angles between the two, falling: r. Of two that have nothing in common they are near 0.
    directions
        In the same order: r x C x D, as strong as the axes are on average.
    """
    root = np.sqrt(np.maximum(weights, _TINY))[None, :, None]
    first, second = (np.linalg.svd((root * axes).reshape(len(axes), -1), full_matrices=False) for axes in (one, other))
    turn, cosines, _ = np.linalg.svd(first[2] @ second[2].T)
    directions = (turn.T @ first[2]).reshape(one.shape) * float(first[1].mean()) / root
    return np.clip(cosines, 0.0, 1.0), directions


def whitening(scatter: Floats) -> Floats:
    """Return what makes a covariance (D x D) that of white noise, the widest directions first: D x D."""
    size = len(scatter)
    scale = max(float(np.trace(scatter)) / size, _TINY)
    values, vectors = np.linalg.eigh(scatter + _FLOOR * scale * np.eye(size))
    found: Floats = (vectors / np.sqrt(np.maximum(values, _FLOOR * scale)))[:, ::-1]
    return found


def fit_between(halves: Sequence[tuple[Floats, Floats]], rank: int, seed: int) -> tuple[Floats, Floats]:
    """Return the axes in which units differ, found twice: with places from one half that explain the other.

    Parameters
    ----------
    halves
        For each half of every unit's samples, the sums of their whitened deviations from the half's own class means
        (N x C x D) and their numbers (N x C).
    rank
        How many axes.
    seed
        Where the search starts.
    """
    one, other = (
        _fit(halves[half], halves[1 - half], _start(halves[half][0].shape, rank, seed + half), _STEPS)
        for half in (0, 1)
    )
    return one, other


def fit_together(whole: tuple[Floats, Floats], start: Floats) -> Floats:
    """Return axes (r x C x D) from all samples of the units, going on from `start` (r x C x D)."""
    return _fit(whole, whole, start, _TOGETHER)


def _start(shape: tuple[int, ...], rank: int, seed: int) -> Floats:
    return 0.3 * np.random.default_rng(seed).normal(size=(rank, *shape[1:]))


def _fit(judged: tuple[Floats, Floats], explained: tuple[Floats, Floats], axes: Floats, steps: int) -> Floats:
    (sums, numbers), (other_sums, other_numbers) = judged, explained
    for _ in range(steps):
        gram = np.einsum("rcd,scd->crs", axes, axes, optimize=True)
        evidence = Evidence(
            np.einsum("rcd,kcd->kr", axes, sums, optimize=True),
            np.einsum("kc,crs->krs", numbers, gram, optimize=True),
        )
        mean, spread = evidence.expected()
        second = spread + mean[:, :, None] * mean[:, None]
        square = np.einsum("kc,krs->crs", other_numbers, second, optimize=True) + _PRIOR * np.eye(len(axes))
        linear = np.einsum("kr,kcd->crd", mean, other_sums, optimize=True)
        axes = _even(np.linalg.solve(square, linear).transpose(1, 0, 2), second.mean(0))
    return axes
