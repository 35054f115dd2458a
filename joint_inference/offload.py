# SPDX-License-Identifier: Apache-2.0
"""What decides whether a sample goes to the deep model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..lib.scores import Scores

__all__ = ["Decision", "OffloadAlgorithm"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a sample is uploaded, and why.

    Parameters
    ----------
    upload
        Whether the deep model is asked.
    confidence
        How sure the shallow model is, 0 to 1, as the algorithm measures it.
    reason
        One short phrase, such as `less sure than the threshold` or `the budget is spent`.
    """

    upload: bool
    confidence: float
    reason: str


@runtime_checkable
class OffloadAlgorithm(Protocol):
    """Decides sample by sample; one thread at a time calls it.

    `check_offload_algorithm` is the contract that each one keeps, ours and a user's own.
    """

    def decide(self, scores: Scores) -> Decision:
        """Decide on the next sample of a stream."""

    def describe(self) -> dict[str, Any]:
        """Return the name and the parameters, for status pages: plain values only."""
