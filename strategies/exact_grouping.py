# SPDX-License-Identifier: Apache-2.0
"""Groups of so few signatures that all pairs can be compared: merged from single ones, then settled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..lib.signature_distance import Sums, compare
from .agglomeration import NO_GROUP, Limits, Step, agglomerate, found_late, founders_of, merge_key
from .settling import settle

__all__ = ["exact_labels"]

_Labels = NDArray[np.intp]


def exact_labels(sums: Sums, between: float | None, limits: Limits) -> tuple[_Labels, _Labels, list[Step]]:
    """Return each row's group, the rows that founded them, and the steps of merging those."""
    founders = founders_of(sums, limits.founding)
    labels = np.full(len(sums), NO_GROUP, np.intp)
    if not len(founders):
        return labels, founders, []
    labels[founders], steps = agglomerate(sums[founders], between, limits)
    steps += _steps_above(sums.totals(labels, int(labels.max()) + 1), labels[founders], steps, between)
    labels[founders] = settle(sums[founders], labels[founders], between, limits)
    return _place_rest(sums, labels, founders, between, limits), founders, steps


def _steps_above(groups: Sums, labels: _Labels, steps: list[Step], between: float | None) -> list[Step]:
    """Return the steps that would merge groups that belong apart, the nearest first, as far as they share classes."""
    node = _last_nodes(labels, steps)
    above: list[Step] = []
    height = compare(groups, groups, between).eta
    np.fill_diagonal(height, np.inf)
    for _ in range(len(groups) - 1):
        i, j = sorted(divmod(int(height.argmin()), len(groups)))
        if not np.isfinite(height[i, j]):
            break
        above.append((node[i], node[j], max(float(height[i, j]), 0.0), False))
        node[i] = len(labels) + len(steps) + len(above) - 1
        groups.add(i, j)
        row = np.where(
            np.isfinite(height[i]) | np.isfinite(height[j]), compare(groups[i : i + 1], groups, between).eta[0], np.inf
        )
        height[j, :] = height[:, j] = np.inf
        row[[i, j]] = np.inf
        height[i, :] = height[:, i] = row
    return above


def _last_nodes(labels: _Labels, steps: list[Step]) -> list[int]:
    """Return the node of each group after `steps`."""
    of = labels.tolist()
    for left, _, _, _ in steps:
        of.append(of[left])
    nodes = [0] * (max(of) + 1)
    for node, label in enumerate(of):
        nodes[label] = node
    return nodes


def _place_rest(sums: Sums, labels: _Labels, founders: _Labels, between: float | None, limits: Limits) -> _Labels:
    """Give each signature that may not found a group to the nearest that accepts it."""
    rest = np.setdiff1d(np.arange(len(labels)), founders)
    if not len(rest) or not len(founders):
        return labels
    labels = labels.copy()
    count = int(labels.max()) + 1
    worst = merge_key(compare(sums[rest], sums.totals(labels, count), between), limits)
    best = worst.argmin(1)
    accepted = np.isfinite(worst[np.arange(len(rest)), best])
    labels[rest[accepted]] = best[accepted]
    left = rest[~accepted]
    labels[left] = found_late(sums[left], count, between, limits)
    return labels
