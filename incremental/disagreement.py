# SPDX-License-Identifier: Apache-2.0
"""Disagreement: how differently the shallow and the deep model answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..lib.hard_samples.detector import Seen
from ..lib.scores import Scores
from .scored import RANDOM, ScoredDetector, share_of

__all__ = ["Disagreement"]


class Disagreement(ScoredDetector):
    """Keeps samples on which the two models of joint inference are further apart than a threshold.

    Source: Seung, Opper & Sompolinsky 1992, "Query by committee". Without a deep model, or where it did not answer,
    only chance keeps a sample.

    Parameters
    ----------
    threshold
        Total variation ½ Σ |p − q| of the class probabilities, 0 to 1. Where the models have other numbers of classes,
        and for detectors, it is the difference of their highest scores.
    random, seed
        See `ScoredDetector`.
    """

    name = "disagreement"

    def __init__(self, threshold: float = 0.5, *, random: float = RANDOM, seed: int | None = None) -> None:
        self._threshold = share_of("threshold", threshold)
        super().__init__(self._threshold, random=random, seed=seed)

    def hardness(self, seen: Seen) -> float | None:
        """Return the total variation."""
        return None if seen.scores is None or seen.deep is None else _apart(seen.scores, seen.deep)

    def _parameters(self) -> dict[str, Any]:
        return {"threshold": self._threshold}


def _apart(own: Scores, deep: Scores) -> float:
    p, q = own.values, deep.values
    if not own.boxes and not deep.boxes and p.shape == q.shape:
        return min(0.5 * float(np.abs(p - q).sum()), 1.0)
    return abs(float(p.max(initial=0.0)) - float(q.max(initial=0.0)))
