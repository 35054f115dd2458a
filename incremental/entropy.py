# SPDX-License-Identifier: Apache-2.0
"""Entropy: how evenly the probabilities are spread (Shannon 1948)."""

from __future__ import annotations

from typing import Any

from ..lib.confidences import entropy_confidence
from ..lib.hard_samples.detector import Seen
from .scored import RANDOM, ScoredDetector, share_of

__all__ = ["Entropy"]


class Entropy(ScoredDetector):
    """Keeps samples with H/log K, H = −Σ p log p, above a threshold; for a detector that of a box's score, the highest.

    Of all that were measured it picks the most samples that nobody can label, after `EmbeddingDistance`.

    Parameters
    ----------
    threshold
        Share of the highest entropy that K classes can have, 0 to 1.
    random, seed
        See `ScoredDetector`.
    """

    name = "entropy"

    def __init__(self, threshold: float = 0.5, *, random: float = RANDOM, seed: int | None = None) -> None:
        self._threshold = share_of("threshold", threshold)
        super().__init__(self._threshold, random=random, seed=seed)

    def hardness(self, seen: Seen) -> float | None:
        """Return H/log K."""
        return None if seen.scores is None else 1.0 - entropy_confidence(seen.scores)

    def _parameters(self) -> dict[str, Any]:
        return {"threshold": self._threshold}
