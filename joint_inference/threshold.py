# SPDX-License-Identifier: Apache-2.0
"""Threshold: the probability of the best class (Chow 1970)."""

from __future__ import annotations

from ..lib.confidences import max_confidence
from ..lib.scores import Scores
from .credit import Hold
from .scored import ScoredAlgorithm

__all__ = ["Threshold"]

_THRESHOLD = 0.7


class Threshold(ScoredAlgorithm):
    """Confidence is the highest class probability; for a detector, the lowest box's score.

    Source: C. K. Chow, "On optimum recognition error and reject tradeoff", 1970.

    Parameters
    ----------
    threshold, upload_ratio, hold
        See `ScoredAlgorithm`; by default samples below 0.7 are uploaded.
    """

    name = "threshold"

    def __init__(
        self, threshold: float | None = None, *, upload_ratio: float | None = None, hold: Hold = "default"
    ) -> None:
        if threshold is None and upload_ratio is None:
            threshold = _THRESHOLD
        super().__init__(threshold=threshold, upload_ratio=upload_ratio, hold=hold)

    def confidence(self, scores: Scores) -> float:
        """Return max p."""
        return max_confidence(scores)
