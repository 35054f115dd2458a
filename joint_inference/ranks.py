# SPDX-License-Identifier: Apache-2.0
"""Where a score stands among those before it, in constant memory: a histogram that slowly forgets."""

from __future__ import annotations

import math
from array import array

__all__ = ["Ranks"]

_BINS = 112
# On the logit scale: easy samples of a good model crowd below 0.001, and the hard ones are worth telling apart.
_LOWEST, _HIGHEST = -9.0, 5.0
_SCALE = _BINS / (_HIGHEST - _LOWEST)
_LAST = _BINS - 1e-9
_MEMORY = 2000.0
_RESCALE = 1e9
_GROWTH = math.exp(1 / _MEMORY)


class Ranks:
    """The running distribution of numbers between 0 and 1.

    Bins are equal on the logit scale; a Fenwick tree (Fenwick 1994) sums them in logarithmic time. Each number counts
    for exp(−age/2000).

    Examples
    --------
    >>> ranks = Ranks()
    >>> places = [ranks.place(i % 100 / 100) for i in range(4000)]
    >>> round(ranks.place(0.25), 1), round(ranks.place(0.9), 1)
    (0.3, 0.9)
    """

    __slots__ = ("_total", "_tree", "_weight")

    def __init__(self) -> None:
        self._tree = array("d", bytes(8 * (_BINS + 1)))
        self._weight, self._total = 1.0, 0.0

    def place(self, value: float) -> float:
        """Return the share of earlier numbers below `value`, 0 to 1, and count it; 0.5 for the first."""
        if value <= 0:
            position = 0.0
        elif value >= 1:
            position = _LAST
        else:
            position = min(max((math.log(value / (1 - value)) - _LOWEST) * _SCALE, 0.0), _LAST)
        first = int(position)
        below = self._below(first)
        within = self._below(first + 1) - below
        found = (below + (position - first) * within) / self._total if self._total else 0.5
        self._add(first)
        return min(max(found, 0.0), 1.0)

    def _below(self, bins: int) -> float:
        total, tree = 0.0, self._tree
        while bins > 0:
            total += tree[bins]
            bins &= bins - 1
        return total

    def _add(self, place: int) -> None:
        weight, tree = self._weight, self._tree
        self._total += weight
        place += 1
        while place <= _BINS:
            tree[place] += weight
            place += place & -place
        # Older numbers fade because newer ones weigh more; all are brought down before that overflows.
        self._weight = weight * _GROWTH
        if self._weight > _RESCALE:
            scale = 1 / self._weight
            for i, value in enumerate(tree):
                tree[i] = value * scale
            self._total *= scale
            self._weight = 1.0
