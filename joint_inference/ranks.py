# SPDX-License-Identifier: Apache-2.0
"""Where a score stands among those before it, in constant memory: a histogram that slowly forgets."""

from __future__ import annotations

import math
from array import array

__all__ = ["Ranks"]

_BINS = 64
_WIDEST = 12.0
_MEMORY = 2000.0
_RESCALE = 1e9
_GROWTH = math.exp(1 / _MEMORY)


class Ranks:
    """The running distribution of numbers between 0 and 1.

    Bins are equal on the logit scale, so that both ends, where confidences crowd, are told apart; a Fenwick tree
    (Fenwick 1994) sums them in logarithmic time. Each number counts for exp(−age/2000).

    Examples
    --------
    >>> ranks = Ranks()
    >>> places = [ranks.place(i % 100 / 100) for i in range(4000)]
    >>> round(ranks.place(0.25), 1), round(ranks.place(0.9), 1)
    (0.3, 0.9)
    """

    __slots__ = ("_bins", "_total", "_tree", "_weight")

    def __init__(self) -> None:
        self._bins, self._tree = array("d", bytes(8 * _BINS)), array("d", bytes(8 * (_BINS + 1)))
        self._weight, self._total = 1.0, 0.0

    def place(self, value: float) -> float:
        """Return the share of earlier numbers below `value`, 0 to 1, and count it; 0.5 for the first."""
        if value <= 0:
            position = 0.0
        elif value >= 1:
            position = _BINS - 1e-9
        else:
            logit = min(max(math.log(value / (1 - value)), -_WIDEST), _WIDEST)
            position = min((logit + _WIDEST) * (_BINS / (2 * _WIDEST)), _BINS - 1e-9)
        bin_ = int(position)
        tree = self._tree
        below, i = 0.0, bin_
        while i > 0:
            below += tree[i]
            i &= i - 1
        found = (below + (position - bin_) * self._bins[bin_]) / self._total if self._total else 0.5
        weight = self._weight
        self._bins[bin_] += weight
        self._total += weight
        i = bin_ + 1
        while i <= _BINS:
            tree[i] += weight
            i += i & -i
        # Older numbers fade because newer ones weigh more; all are brought down before that overflows.
        self._weight = weight * _GROWTH
        if self._weight > _RESCALE:
            self._rescale()
        return found

    def _rescale(self) -> None:
        scale = 1 / self._weight
        for values in (self._bins, self._tree):
            for i, value in enumerate(values):
                values[i] = value * scale
        self._total *= scale
        self._weight = 1.0
