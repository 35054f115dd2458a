# SPDX-License-Identifier: Apache-2.0
"""What decides whether a sample is kept to be labelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..scores import Scores
from .embedding import Embedding

__all__ = ["HardSampleDetector", "Seen", "Verdict"]


class Seen:
    """A sample that was answered, as a detector sees it.

    Parameters
    ----------
    scores
        What the model on the edge is sure of; None where that cannot be told.
    rate
        Share of the samples that the budget allows now, 0 to 1; the collector sets it.
    deep
        What the deep model is sure of, in joint inference; None where it did not answer this sample.
    embed
        Makes `embedding`, when a detector asks for it.
    """

    __slots__ = ("_embed", "_embedding", "deep", "rate", "scores")

    def __init__(
        self,
        scores: Scores | None,
        rate: float = 0.0,
        deep: Scores | None = None,
        embed: Callable[[], Embedding] | None = None,
    ) -> None:
        self.scores, self.rate, self.deep = scores, rate, deep
        self._embed = embed
        self._embedding: Embedding | None = None

    @property
    def embedding(self) -> NDArray[np.float32]:
        """At most 64 numbers, of which like samples have like ones; made when first asked for."""
        return self.embedded().values

    def embedded(self) -> Embedding:
        """Return the embedding, with how near is the same."""
        if self._embedding is None:
            self._embedding = self._embed() if self._embed is not None else Embedding(np.zeros(0, np.float32), -1.0)
        return self._embedding


class Verdict(NamedTuple):
    """What a detector says of a sample.

    Parameters
    ----------
    keep
        Whether it is to be kept. The budget has the last word.
    hardness
        Larger is harder; only the order counts. None where it is not known.
    reason
        `random` where chance alone decided, whatever the sample is like, so that it counts for audits; else `hard`.
    """

    keep: bool
    hardness: float | None
    reason: Literal["hard", "random"] = "hard"


@runtime_checkable
class HardSampleDetector(Protocol):
    """Decides sample by sample; one thread at a time calls it, within `predict`: it may neither wait nor compute long.

    `check_hard_sample_detector` is the contract that each one keeps, ours and a user's own.
    """

    def judge(self, seen: Seen) -> Verdict:
        """Say whether the next sample of a stream is kept."""

    def describe(self) -> dict[str, Any]:
        """Return the name and the parameters, for status pages: plain values only."""
