# SPDX-License-Identifier: Apache-2.0
"""Whether confidences still come as they did when an algorithm was calibrated."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

__all__ = ["ConfidenceWatch"]

_BINS, _WINDOW, _IN_A_ROW = 10, 500, 2
# The 1 − 10⁻⁴ quantile of χ² with 9 degrees of freedom: in independent data, two windows in a row exceed it once in
# 10⁸ windows.
_LIMIT = 33.72


class ConfidenceWatch:
    """Compares windows of 500 confidences with those of the calibration by Pearson's χ² for two samples.

    A stream that stays on one scene for long differs from a mixed sample, and is reported too: no promise was made
    for it.

    Parameters
    ----------
    edges
        Nine cuts between ten bins, the deciles of the calibration's confidences.
    counts
        How many of the calibration's confidences fell into each bin.
    """

    def __init__(self, edges: Sequence[float], counts: Sequence[int]) -> None:
        if len(edges) != _BINS - 1 or len(counts) != _BINS:
            raise ValueError(f"there are {len(edges)} edges and {len(counts)} counts; expected {_BINS - 1} and {_BINS}")
        self._edges, self._reference = list(edges), list(counts)
        self._seen, self._window = [0] * _BINS, 0
        self._strikes = 0
        self.drifted = False

    def take(self, confidence: float) -> bool:
        """Take in a confidence; return True once, when drift is found."""
        self._seen[bisect_right(self._edges, confidence)] += 1
        self._window += 1
        if self._window < _WINDOW:
            return False
        self._strikes = self._strikes + 1 if self._distance() > _LIMIT else 0
        self._seen, self._window = [0] * _BINS, 0
        if self._strikes < _IN_A_ROW or self.drifted:
            return False
        self.drifted = True
        return True

    def _distance(self) -> float:
        total = sum(self._reference)
        a, b = math.sqrt(total / _WINDOW), math.sqrt(_WINDOW / total)
        return sum(
            (b * then - a * now) ** 2 / (then + now)
            for then, now in zip(self._reference, self._seen, strict=True)
            if then + now
        )
