# SPDX-License-Identifier: Apache-2.0
"""Entropy: how evenly the probabilities are spread (Shannon 1948)."""

from __future__ import annotations

import math

from ..lib.scores import Scores
from .credit import Hold
from .scored import ScoredAlgorithm

__all__ = ["Entropy"]

_THRESHOLD = 0.5


class Entropy(ScoredAlgorithm):
    """Confidence 1 − H/log K, H = −Σ p log p; for a detector, that of each box's score, the lowest of all.

    Parameters
    ----------
    threshold, upload_ratio, hold
        See `ScoredAlgorithm`; by default samples below 0.5 are uploaded.
    """

    name = "entropy"

    def __init__(
        self, threshold: float | None = None, *, upload_ratio: float | None = None, hold: Hold = "default"
    ) -> None:
        if threshold is None and upload_ratio is None:
            threshold = _THRESHOLD
        super().__init__(threshold=threshold, upload_ratio=upload_ratio, hold=hold)

    def confidence(self, scores: Scores) -> float:
        """Return 1 − H/log K."""
        values = scores.values.tolist()
        if scores.boxes:
            return min((_sureness((value, 1 - value)) for value in values), default=1.0)
        return _sureness(values)


def _sureness(probabilities: list[float] | tuple[float, ...]) -> float:
    if len(probabilities) < 2:
        return 1.0
    entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
    return min(max(1 - entropy / math.log(len(probabilities)), 0.0), 1.0)
