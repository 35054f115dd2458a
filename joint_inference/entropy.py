# SPDX-License-Identifier: Apache-2.0
"""Entropy: how evenly the probabilities are spread (Shannon 1948)."""

from __future__ import annotations

from ..lib.confidences import entropy_confidence
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
        return entropy_confidence(scores)
