# SPDX-License-Identifier: Apache-2.0
"""Groups of so many signatures that comparing all pairs would take too long: sums of groups, filled batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..lib.signature_distance import Sums, compare
from ..lib.signature_format import Signature
from .agglomeration import NO_GROUP, Limits, agglomerate, found_late, merge_key

__all__ = ["online_labels", "pooled_sums"]

_BATCH = 512
_MOST_LATE = 1000

_Labels = NDArray[np.intp]


def online_labels(given: Sequence[Signature], between: float | None, limits: Limits) -> _Labels:
    """Return each signature's group; time and memory grow with signatures times groups.

    Two passes: the first founds groups, each from what all groups so far reject; the second gives each signature to
    the nearest of the groups that there are in the end.

    Parameters
    ----------
    given
        In an order that says nothing about their groups.
    between
        B, as for `compare`.
    limits
        As for a few signatures.
    """
    founding = limits.founding if any(s.total >= limits.founding for s in given) else 1
    groups = _found(given, founding, between, limits)
    for _ in range(2):
        _, groups = _nearest(given, groups, between, limits)
        groups = groups[groups.n.any(1)]
        again, _ = agglomerate(groups, between, limits)
        if len(groups) and again.max() + 1 == len(groups):
            break
        groups = groups.totals(again, int(again.max(initial=-1)) + 1)
    labels, _ = _nearest(given, groups, between, limits)
    left = np.flatnonzero(labels == NO_GROUP)[:_MOST_LATE]
    if len(left):
        sums = Sums.of([given[i] for i in left], groups.classes)
        labels[left] = found_late(sums, len(groups), between, limits)
    return labels


def pooled_sums(given: Sequence[Signature], labels: _Labels, count: int) -> Sums:
    """Return the sums of `count` groups, holding one batch of signatures at a time."""
    total = _nothing(given, count)
    for begin, batch in _batches(given):
        total.add_all(Sums.of(batch, total.classes).totals(labels[begin : begin + len(batch)], count))
    return total


def _nothing(given: Sequence[Signature], count: int) -> Sums:
    """Return empty sums of `count` groups, over all classes that occur."""
    classes = np.unique(np.concatenate([np.unique(np.concatenate([s.classes for s in b])) for _, b in _batches(given)]))
    return Sums.empty(classes, count, given[0].dimension)


def _batches(given: Sequence[Signature]) -> Iterator[tuple[int, Sequence[Signature]]]:
    for begin in range(0, len(given), _BATCH):
        yield begin, given[begin : begin + _BATCH]


def _found(given: Sequence[Signature], founding: int, between: float | None, limits: Limits) -> Sums:
    """Return groups that between them accept every signature large enough to found one."""
    groups, known = _nothing(given, 0), 0
    for _, batch in _batches(given):
        sums = Sums.of(batch, groups.classes)
        sums = sums[sums.n.sum(1) >= founding]
        if len(groups):
            labels = _accepting(sums, groups, between, limits)
            groups.add_all(sums.totals(labels, len(groups)))
            sums = sums[labels == NO_GROUP]
        if len(sums):
            sets, _ = agglomerate(sums, between, limits)
            groups = groups.joined(sums.totals(sets, int(sets.max()) + 1))
        if len(groups) > 1.25 * known:
            sets, _ = agglomerate(groups, between, limits)
            groups = groups.totals(sets, int(sets.max()) + 1)
            known = len(groups)
    return groups


def _nearest(given: Sequence[Signature], groups: Sums, between: float | None, limits: Limits) -> tuple[_Labels, Sums]:
    """Return the nearest group of each signature, and the sums of what then is in each group."""
    labels, totals = np.full(len(given), NO_GROUP, np.intp), Sums.empty(groups.classes, len(groups), given[0].dimension)
    if len(groups):
        for begin, batch in _batches(given):
            sums = Sums.of(batch, groups.classes)
            found = _accepting(sums, groups, between, limits)
            labels[begin : begin + len(batch)] = found
            totals.add_all(sums.totals(found, len(groups)))
    return labels, totals


def _accepting(sums: Sums, groups: Sums, between: float | None, limits: Limits) -> _Labels:
    """Return the nearest group that accepts each signature."""
    worst = merge_key(compare(sums, groups, between), limits)
    best = worst.argmin(1)
    return np.where(np.isfinite(worst[np.arange(len(sums)), best]), best, NO_GROUP)
