# SPDX-License-Identifier: Apache-2.0
"""Sees each sample that is answered, and keeps what a detector picks, within the budget."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..confidences import max_confidence
from ..sample_coding import SampleForm
from ..sample_records import Reason
from ..scores import Scores
from .budget import Budget
from .detector import HardSampleDetector, Seen, Verdict
from .embedding import Embedding
from .kept_sample import KeptSample, own_copy, plain_prediction, probabilities_of, size_of
from .near_duplicates import NearDuplicates
from .sender import Sender
from .subjects import current_subject
from .worker_counts import WorkerCounts

__all__ = ["Answered", "Collector"]

_log = logging.getLogger(__name__)
_MOST_SAID = 100
# Mean confidence over about the latest 200 samples.
_FADE = 1 / 200
_DIGITS = 6
_PASSED = Verdict(False, None)


@dataclass(slots=True)
class Answered:
    """One sample that was answered.

    Parameters
    ----------
    sample
        As the script gave it, before `pre_fun`.
    result
        What the script got for it.
    scores
        What the edge's model is sure of; None where that cannot be told.
    embed
        Makes its embedding.
    deep
        What the deep model is sure of, where it answered.
    degraded
        Whether the deep model was wanted and did not answer.
    version
        Of the model on the edge.
    """

    sample: Any
    result: Any
    scores: Scores | None
    embed: Callable[[], Embedding]
    deep: Scores | None = None
    degraded: bool = False
    version: int = 0


class Collector:
    """Keeps hard samples and random ones; `see` is called with every sample, and waits for nothing.

    Parameters
    ----------
    detector
        Picks samples.
    sender
        Carries them away.
    budget
        How many may be kept.
    form
        How they are written.
    edge
        This edge's name.
    """

    def __init__(
        self,
        detector: HardSampleDetector,
        sender: Sender,
        *,
        budget: Budget,
        form: SampleForm | None = None,
        edge: str = "here",
    ) -> None:
        self._detector, self._sender, self._budget = detector, sender, budget
        self._form, self._edge = form or SampleForm(), edge
        self._near = NearDuplicates()
        self._lock = threading.Lock()
        self._seen = self._hard = self._random = self._kept = self._near_duplicates = self._over_budget = 0
        self._confidence, self._weight = 0.0, 0.0
        self._version = 0
        self._said: set[str] = set()
        sender.reporters.append(self._report)
        sender.start()

    @property
    def counts(self) -> WorkerCounts:
        """What was done so far."""
        return self._sender.counts()

    def see(self, answered: Answered) -> KeptSample | None:
        """Look at a sample that was answered; return what is kept of it, if it is.

        Whatever a detector raises, the answer stands: the log says it once, and the sample is passed over.
        """
        scores = answered.scores
        with self._lock:
            self._seen += 1
            self._version = answered.version
            confidence = max_confidence(scores) if scores is not None else None
            if confidence is not None:
                self._weight += _FADE * (1.0 - self._weight)
                self._confidence += _FADE * (confidence - self._confidence)
            seen = Seen(scores, self._budget.rate(), deep=answered.deep, embed=lambda: answered.embed().values)
            verdict = self._judged(seen)
            if not verdict.keep and not answered.degraded:
                return None
            try:
                return self._keep(answered, verdict, confidence)
            except Exception as error:  # noqa: BLE001 -- an answer does not depend on it
                self._warn_once(f"a sample cannot be kept: {type(error).__name__}: {error}")
                return None

    def close(self) -> None:
        """Send what is there, for some seconds at most."""
        if self._report in self._sender.reporters:
            self._sender.leave(self._report)

    def _judged(self, seen: Seen) -> Verdict:
        try:
            return self._detector.judge(seen)
        except Exception as error:  # noqa: BLE001
            # A detector may be the user's own, and a model's answer does not depend on it.
            self._warn_once(f"the detector {type(self._detector).__name__} raised {type(error).__name__}: {error}")
            return _PASSED

    def _keep(self, answered: Answered, verdict: Verdict, confidence: float | None) -> KeptSample | None:
        by_chance = verdict.keep and verdict.reason == "random"
        reason: Reason = "random" if by_chance else "degraded" if answered.degraded else "hard"
        if by_chance:
            self._random += 1
        else:
            self._hard += 1
        if not self._budget.has(random=by_chance):
            self._over_budget += 1
            return None
        embedding = answered.embed()
        if self._near.knows(embedding):
            self._near_duplicates += 1
            return None
        kept = KeptSample(
            own_copy(answered.sample),
            self._form,
            edge=self._edge,
            model=answered.version,
            taken_at=time.time(),
            reason=reason,
            confidence=_share(confidence),
            hardness=_finite(verdict.hardness),
            prediction=plain_prediction(answered.result, answered.scores),
            probabilities=probabilities_of(answered.scores),
            embedding=_rounded(embedding.values),
            subject=current_subject(),
            size=size_of(answered.sample),
        )
        if not self._sender.keep(kept):
            return None
        self._budget.take()
        self._kept += 1
        return kept

    def _report(self, counts: WorkerCounts) -> None:
        counts.seen, counts.hard, counts.random = self._seen, self._hard, self._random
        counts.kept, counts.near_duplicates, counts.over_budget = self._kept, self._near_duplicates, self._over_budget
        counts.version = self._version
        if self._weight > 0:
            counts.confidence = _share(self._confidence / self._weight)

    def _warn_once(self, text: str) -> None:
        if text[:60] not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(text[:60])
            _log.warning("hard samples: %s; answers go on", text[:500])


def _share(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(min(max(float(value), 0.0), 1.0), _DIGITS)


def _finite(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    return round(min(max(float(value), -1e30), 1e30), _DIGITS)


def _rounded(values: NDArray[np.float32]) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
