# SPDX-License-Identifier: Apache-2.0
"""Mixed: the smallest margins among the latest, and random ones beside them; the default."""

from __future__ import annotations

from ..lib.confidences import margin_confidence
from ..lib.hard_samples.detector import Seen
from .scored import RANDOM, ScoredDetector

__all__ = ["Mixed"]


class Mixed(ScoredDetector):
    """Keeps what stands out by its margin 1 − (p₁ − p₂), and 30 % by chance.

    Hard samples alone teach a model less than random ones do, most of all when everything has shifted; with some
    chance among them they teach it more (measured; `docs/explanation/incremental-learning.md`). Which of the kept ones
    are labelled is decided in the cloud, which spreads them out.

    Parameters
    ----------
    random, seed
        See `ScoredDetector`.
    """

    name = "mixed"

    def __init__(self, *, random: float = RANDOM, seed: int | None = None) -> None:
        super().__init__(random=random, seed=seed)

    def hardness(self, seen: Seen) -> float | None:
        """Return 1 − (p₁ − p₂)."""
        return None if seen.scores is None else 1.0 - margin_confidence(seen.scores)
