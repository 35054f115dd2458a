# SPDX-License-Identifier: Apache-2.0
"""What all algorithms share that look at one number a sample: a threshold on it, or a ratio held by the credit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ..core.errors import ModelError
from ..lib.scores import Scores
from .credit import BoundedCredit, Hold, is_share
from .offload import Decision
from .ranks import Ranks

__all__ = ["ScoredAlgorithm"]

_SPENT, _KEPT = "hard among its like, and within the ratio", "easy among its like, or the ratio is spent"


class ScoredAlgorithm(ABC):
    """Uploads samples whose confidence is below a threshold, or the least sure ones at an upload ratio.

    Parameters
    ----------
    threshold
        Confidence, 0 to 1, below which a sample is uploaded.
    upload_ratio
        Share of the samples to upload, held over any window by `BoundedCredit`.
    hold
        How closely: `strict`, `default` or `relaxed`.

    Raises
    ------
    ModelError
        If both are given, or neither, or one is no share.
    """

    name: str

    def __init__(
        self, *, threshold: float | None = None, upload_ratio: float | None = None, hold: Hold = "default"
    ) -> None:
        if (threshold is None) == (upload_ratio is None):
            raise ModelError(
                f"{type(self).__name__} needs either a threshold or an upload_ratio; give one of them, such as "
                f"upload_ratio=0.1"
            )
        if threshold is not None and not is_share(threshold):
            raise ModelError(f"threshold is {threshold!r}, expected a confidence from 0 to 1")
        self._credit = BoundedCredit(upload_ratio, hold=hold) if upload_ratio is not None else None
        # NumPy's numbers are taken, and are none in the status's JSON.
        self._threshold = None if threshold is None else float(threshold)
        self._ratio, self._hold = None if upload_ratio is None else float(upload_ratio), hold
        self._ranks = Ranks()

    @abstractmethod
    def confidence(self, scores: Scores) -> float:
        """Return how sure the shallow model is, 0 to 1."""

    def decide(self, scores: Scores) -> Decision:
        """Decide on the next sample."""
        confidence = self.confidence(scores)
        if self._credit is not None:
            upload = self._credit.take(self._ranks.place(1.0 - confidence))
            return Decision(upload, confidence, _SPENT if upload else _KEPT)
        assert self._threshold is not None
        upload = confidence < self._threshold
        side = "below" if upload else "not below"
        return Decision(upload, confidence, f"{self.name} {side} {self._threshold:g}")

    def describe(self) -> dict[str, Any]:
        """Return the name and the parameters."""
        told: dict[str, Any] = {"name": self.name}
        if self._threshold is not None:
            told["threshold"] = self._threshold
        else:
            told |= {"upload_ratio": self._ratio, "hold": self._hold}
        return told
