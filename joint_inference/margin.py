# SPDX-License-Identifier: Apache-2.0
"""Margin: how far the best class is ahead of the second."""

from __future__ import annotations

from ..lib.confidences import margin_confidence
from ..lib.scores import Scores
from .credit import Hold
from .scored import ScoredAlgorithm

__all__ = ["Margin"]

_RATIO = 0.1


class Margin(ScoredAlgorithm):
    """Confidence p₁ − p₂, the default: the best ranking that needs no training, ahead of max-probability and entropy.

    For a detector it is the lowest box's score. Source: Scheffer, Decomain & Wrobel 2001, "Active hidden Markov models
    for information extraction"; measured beside others in a study of our own.

    Parameters
    ----------
    threshold, upload_ratio, hold
        See `ScoredAlgorithm`; by default a tenth of the samples is uploaded.
    """

    name = "margin"

    def __init__(
        self, *, threshold: float | None = None, upload_ratio: float | None = None, hold: Hold = "default"
    ) -> None:
        if threshold is None and upload_ratio is None:
            upload_ratio = _RATIO
        super().__init__(threshold=threshold, upload_ratio=upload_ratio, hold=hold)

    def confidence(self, scores: Scores) -> float:
        """Return p₁ − p₂."""
        return margin_confidence(scores)
