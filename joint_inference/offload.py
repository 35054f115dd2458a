# SPDX-License-Identifier: Apache-2.0
"""What decides whether a sample goes to the deep model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Decision", "OffloadAlgorithm", "Scores"]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the shallow model is sure of in one sample.

    Parameters
    ----------
    values
        Probabilities of K classes, which add up to 1; or scores of n boxes, n from 0, each between 0 and 1. float64.
    boxes
        Whether they are boxes'.
    """

    values: NDArray[np.float64]
    boxes: bool = False


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
