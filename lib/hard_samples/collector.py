# SPDX-License-Identifier: Apache-2.0
"""Sees each sample that is answered, and keeps what a detector picks, within the budget."""

from __future__ import annotations

import logging
import math
import random as chance
import threading
import time
from typing import Any

from ..confidences import max_confidence
from ..said_once import SaidOnce
from ..sample_coding import SampleForm
from ..sample_records import Reason
from ..scores import Scores
from .budget import Budget
from .detector import HardSampleDetector, Seen, Verdict
from .kept_sample import KeptSample, own_copy, plain_prediction, size_of
from .near_duplicates import NearDuplicates
from .sender import Sender
from .subjects import current_subject
from .worker_counts import WorkerCounts

__all__ = ["Collector"]

_log = logging.getLogger(__name__)
# Mean confidence over about the latest 200 samples, of which every eighth is looked at.
_FADE, _EVERY_EIGHTH = 1 / 25, 7
_DIGITS = 6
# Of an answer's time, a look may take so much, on average; so many samples are looked at for one that may be kept.
_COST, _FOR_BUDGET = 0.03, 4.0
_FIRST_LOOKS, _SLOWLY, _RARE = 20, 1 / 64, 20.0


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
        self._version = self._looks = 0
        self._share, self._draw = 1.0, chance.Random().random  # noqa: S311
        self._look_seconds = self._answer_seconds = 0.0
        self._said = SaidOnce(_log)
        sender.join(self._report)

    @property
    def counts(self) -> WorkerCounts:
        """What was done so far."""
        return self._sender.counts()

    def passes(self) -> bool:
        """Count a sample, and tell whether it need not be looked at.

        Looking takes some microseconds. Where a model answers so fast that this would add more than 3 %, chance leaves
        samples out, evenly, but never so many that the budget is not used.
        """
        with self._lock:
            self._seen += 1
        return self._share < 1.0 and self._draw() >= self._share

    def took(self, look: float, answer: float) -> None:
        """Note how many seconds a look took, and the answer before it."""
        if self._looks <= _FIRST_LOOKS:
            # The first calls of anything are slow.
            self._look_seconds, self._answer_seconds = look, answer
            return
        self._look_seconds += _SLOWLY * (min(look, _RARE * self._look_seconds) - self._look_seconds)
        self._answer_seconds += _SLOWLY * (min(answer, _RARE * self._answer_seconds) - self._answer_seconds)
        bearable = _COST * self._answer_seconds / max(self._look_seconds, 1e-9)
        self._share = min(max(bearable, _FOR_BUDGET * self._budget.rate(self._seen)), 1.0)

    def see(
        self, seen: Seen, sample: Any, result: Any, *, version: int = 0, degraded: bool = False, came: int = 1
    ) -> KeptSample | None:
        """Look at a sample that was answered; return what is kept of it, if it is.

        Whatever a detector raises, the answer stands: the log says it once, and the sample is passed over.

        Parameters
        ----------
        seen
            What the detector sees of it.
        sample, result
            As the script gave it, before `pre_fun`, and what the script gets for it.
        version
            Of the model on the edge.
        degraded
            Whether the deep model was wanted and did not answer.
        came
            Samples to count with it: 0 where `passes` did.
        """
        # Most samples go no further than this, and each of these lines costs them all.
        with self._lock:
            self._seen += came
            self._version = version
            self._looks += 1
            rate = self._budget.rate(self._seen)
            # Where some were passed, those that are looked at stand for them too.
            seen.rate = rate if came else min(rate / self._share, 1.0)
            try:
                verdict = self._detector.judge(seen)
                if not self._looks & _EVERY_EIGHTH:
                    self._note_confidence(seen.scores)
                if verdict.keep or degraded:
                    return self._keep(seen, verdict, sample, result, version, degraded)
            except Exception as error:  # noqa: BLE001
                # The detector may be the user's own, and a model's answer does not depend on it.
                self._warn_once(
                    f"{type(self._detector).__name__} or what keeps its samples raised {type(error).__name__}: {error}"
                )
            return None

    def close(self) -> None:
        """Send what is there, for some seconds at most."""
        self._sender.leave(self._report)

    def _note_confidence(self, scores: Scores | None) -> None:
        if scores is not None:
            self._weight += _FADE * (1.0 - self._weight)
            self._confidence += _FADE * (max_confidence(scores) - self._confidence)

    def _keep(
        self, seen: Seen, verdict: Verdict, sample: Any, result: Any, version: int, degraded: bool
    ) -> KeptSample | None:
        by_chance = verdict.keep and verdict.reason == "random"
        reason: Reason = "random" if by_chance else "degraded" if degraded else "hard"
        if by_chance:
            self._random += 1
        else:
            self._hard += 1
        if not self._budget.has(random=by_chance):
            self._over_budget += 1
            return None
        if self._near.knows(seen.embedded()):
            self._near_duplicates += 1
            return None
        scores = seen.scores
        kept = KeptSample(
            own_copy(sample),
            self._form,
            edge=self._edge,
            model=version,
            taken_at=time.time(),
            reason=reason,
            confidence=_share(max_confidence(scores)) if scores is not None else None,
            hardness=_finite(verdict.hardness),
            prediction=plain_prediction(result, scores),
            scores=scores,
            embedding=seen.embedding,
            subject=current_subject(),
            size=size_of(sample),
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
        # Before the eighth sample nothing is known of it.
        if self._weight > 0:
            counts.confidence = _share(self._confidence / self._weight)

    def _warn_once(self, text: str) -> None:
        self._said.warn(text[:60], f"hard samples: {text[:500]}; answers go on")


def _share(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(min(max(float(value), 0.0), 1.0), _DIGITS)


def _finite(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    return round(min(max(float(value), -1e30), 1e30), _DIGITS)
