# SPDX-License-Identifier: Apache-2.0
"""Threshold: the probability of the best class (Chow 1970)."""

from __future__ import annotations

from typing import Any

from ..lib.confidences import max_confidence
from ..lib.hard_samples.detector import Seen
from .scored import RANDOM, ScoredDetector, share_of

__all__ = ["Threshold"]


class Threshold(ScoredDetector):
    """Keeps samples whose highest class probability is below a threshold; for a detector, the lowest box's score.

    Parameters
    ----------
    threshold
        Probability, 0 to 1.
    random, seed
        See `ScoredDetector`.
    """

    name = "threshold"

    def __init__(self, threshold: float = 0.7, *, random: float = RANDOM, seed: int | None = None) -> None:
        self._threshold = share_of("threshold", threshold)
        super().__init__(1.0 - self._threshold, random=random, seed=seed)

    def hardness(self, seen: Seen) -> float | None:
        """Return 1 − max p."""
        return None if seen.scores is None else 1.0 - max_confidence(seen.scores)

    def _parameters(self) -> dict[str, Any]:
        return {"threshold": self._threshold}
