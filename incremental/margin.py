# SPDX-License-Identifier: Apache-2.0
"""Margin: how far the best class is ahead of the second."""

from __future__ import annotations

from typing import Any

from ..lib.confidences import margin_confidence
from ..lib.hard_samples.detector import Seen
from .scored import RANDOM, ScoredDetector, share_of

__all__ = ["Margin"]


class Margin(ScoredDetector):
    """Keeps samples with p₁ − p₂ below a threshold; for a detector, the lowest box's score.

    Source: Scheffer, Decomain & Wrobel 2001, "Active hidden Markov models for information extraction".

    Parameters
    ----------
    threshold
        Difference of two probabilities, 0 to 1.
    random, seed
        See `ScoredDetector`.
    """

    name = "margin"

    def __init__(self, threshold: float = 0.4, *, random: float = RANDOM, seed: int | None = None) -> None:
        self._threshold = share_of("threshold", threshold)
        super().__init__(1.0 - self._threshold, random=random, seed=seed)

    def hardness(self, seen: Seen) -> float | None:
        """Return 1 − (p₁ − p₂)."""
        return None if seen.scores is None else 1.0 - margin_confidence(seen.scores)

    def _parameters(self) -> dict[str, Any]:
        return {"threshold": self._threshold}
