# SPDX-License-Identifier: Apache-2.0
"""Merging sets of signatures, the surest pair first, until all that are left belong apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..lib.signature_distance import Comparison, Sums, compare, compare_each

__all__ = [
    "NO_GROUP",
    "Limits",
    "Step",
    "agglomerate",
    "compare_with_rest",
    "found_late",
    "founders_of",
    "merge_key",
]

NO_GROUP = -1

# Pairs that little is known of come last: by then both have become parts of groups that more is known of.
_CAUTION = 2.0

_Labels = NDArray[np.intp]


@dataclass(frozen=True)
class Limits:
    """When two sets belong apart (Z and η both above), and how many samples it takes to found a group."""

    z: float
    eta: float
    founding: int


def merge_key(found: Comparison, limits: Limits) -> NDArray[np.float64]:
    """Return what to merge first: η at its worst, infinite for what belongs apart."""
    with np.errstate(invalid="ignore"):
        worst = np.maximum(found.eta, 0) + _CAUTION * found.sigma
    return np.where(found.rejects(limits.z, limits.eta), np.inf, worst)


Step = tuple[int, int, float, bool]


def agglomerate(sums: Sums, between: float | None, limits: Limits) -> tuple[_Labels, list[Step]]:
    """Merge the nearest two sets until all that are left belong apart; return labels from 0 and the steps."""
    count = len(sums)
    node = np.arange(count)
    root = np.arange(count)
    sums = sums[np.arange(count)]
    known = sums.statistics()
    found = compare(sums, sums, between)
    key, height = merge_key(found, limits), found.eta
    np.fill_diagonal(key, np.inf)
    steps: list[Step] = []
    names = np.arange(count)
    while len(names) > 1:
        best = key.argmin(1)
        least = key[np.arange(len(names)), best]
        alive = np.ones(len(names), bool)
        # Rows of what is gone stay until half of them are: to make the matrix smaller costs as much as to fill it.
        while alive.sum() * 2 > len(names) or len(names) < 16:
            i = int(least.argmin())
            if not np.isfinite(least[i]):
                break
            i, j = sorted((i, int(best[i])))
            steps.append((int(node[names[i]]), int(node[names[j]]), max(float(height[i, j]), 0.0), True))
            node[names[i]] = count + len(steps) - 1
            root[root == names[j]] = names[i]
            sums.add(i, j)
            alive[j] = False
            known.put(i, sums[i : i + 1].statistics())
            found = compare_each(known[i : i + 1], known, between)
            row = np.where(alive, merge_key(found, limits)[:, 0], np.inf)
            row[i] = np.inf
            key[j, :] = key[:, j] = np.inf
            key[i, :] = key[:, i] = row
            height[i, :] = height[:, i] = found.eta[:, 0]
            _update_best(key, best, least, i, j)
        if not np.isfinite(least.min()):
            break
        rows = np.flatnonzero(alive)
        sums, known, names = sums[rows], known[rows], names[rows]
        key, height = key[np.ix_(rows, rows)], height[np.ix_(rows, rows)]
    return np.unique(root, return_inverse=True)[1].astype(np.intp), steps


def _update_best(key: NDArray[np.float64], best: _Labels, least: NDArray[np.float64], i: int, j: int) -> None:
    """Bring each row's smallest entry up to date after rows i and j have changed."""
    new = key[:, i]
    stale = np.flatnonzero(((best == i) | (best == j)) & (new > least))
    better = new <= least
    better[[i, j]] = False
    best[better], least[better] = i, new[better]
    rows = np.unique(np.append(stale, [i, j]))
    best[rows] = key[rows].argmin(1)
    least[rows] = key[rows, best[rows]]


def founders_of(sums: Sums, least: int) -> _Labels:
    """Return the rows that may found groups: those large enough, or all if none is."""
    totals = sums.n.sum(1)
    found = np.flatnonzero(totals >= max(least, 1))
    return found if len(found) else np.flatnonzero(totals)


def compare_with_rest(sums: Sums, labels: _Labels, rows: _Labels, totals: Sums, between: float | None) -> Comparison:
    """Compare each of `rows` with the rest of its group."""
    rest = totals[labels[rows]].minus(sums[rows])
    return compare_each(sums[rows].statistics(), rest.statistics(), between)


def found_late(sums: Sums, first: int, between: float | None, limits: Limits) -> _Labels:
    """Return labels from `first` for signatures that every group rejects, where together they are large enough."""
    labels = np.full(len(sums), NO_GROUP, np.intp)
    usable = np.flatnonzero(sums.n.sum(1))
    if len(usable):
        sets, _ = agglomerate(sums[usable], between, limits)
        large = sums[usable].totals(sets, int(sets.max()) + 1).n.sum(1) >= limits.founding
        new = np.where(large, first + np.cumsum(large) - 1, NO_GROUP)
        labels[usable] = new[sets]
    return labels
