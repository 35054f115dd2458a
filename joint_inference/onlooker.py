# SPDX-License-Identifier: Apache-2.0
"""Shows what was answered to what keeps hard samples, and to what compares a canary with the version before."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..core.errors import ModelError
from ..lib.hard_samples.collector import Collector
from ..lib.hard_samples.detector import Seen
from ..lib.hard_samples.embedding import Embedding, embedding_of
from ..lib.hard_samples.kept_sample import KeptSample
from ..lib.scores import ConfidenceFunction, Scores, scores_of
from ..lib.shadow_model import Compared
from .answers import of_sample
from .deep_model import DeepAnswer
from .shallow_model import Ran, ShallowModel

__all__ = ["Onlooker"]

_log = logging.getLogger(__name__)


class Onlooker:
    """Looks at answers after they were made; what it finds never changes one.

    Parameters
    ----------
    model
        What answers.
    collector
        Keeps hard samples; None keeps none.
    confidence
        How sure a model is, for models that are neither classifiers nor detectors.
    """

    def __init__(self, model: ShallowModel, collector: Collector | None, confidence: ConfidenceFunction | None) -> None:
        self._model, self._collector, self._confidence = model, collector, confidence
        self._said = False

    def glance(self, ran: Ran, result: Any, scores: Sequence[Scores | None], seconds: float) -> None:
        """Look at a call that nobody asked the story of, as far as there is time for it.

        Parameters
        ----------
        ran, result, scores
            What the model made of it, what `post_fun` made of that, and what is sure of each sample, or nothing yet.
        seconds
            That the answer took.
        """
        if self._model.beside is not None:
            self.look(ran, result, scores)
        elif self._collector is not None:
            self._glance(self._collector, ran, result, scores, seconds)

    def look(
        self,
        ran: Ran,
        result: Any,
        scores: Sequence[Scores | None],
        *,
        hard: Sequence[int] = (),
        deep: DeepAnswer | None = None,
        away: bool = False,
    ) -> Sequence[KeptSample | None]:
        """Look at each sample of a call; return what was kept of each.

        Parameters
        ----------
        ran, result, scores
            As for `glance`; `result` is what the script gets.
        hard, deep
            The samples that the deep model was to answer, and its answer.
        away
            Whether it had none.
        """
        batch = ran.given
        kept: list[KeptSample | None] = [None] * len(batch)
        beside = self._model.beside
        if self._collector is None and beside is None:
            return kept
        scores = scores or [self._score(ran, result, place) for place in range(len(batch))]
        if self._collector is not None:
            for place, sample in enumerate(batch.samples):
                own = of_sample(result, place, batch)
                row = hard.index(place) if place in hard else None
                theirs = self._deep_scores(deep, row, own) if deep is not None and row is not None else None
                seen = Seen(scores[place], 0.0, theirs, partial(_embedding, ran, place))
                degraded = away and row is not None
                kept[place] = self._collector.see(seen, sample, own, version=ran.version, degraded=degraded)
        if beside is not None:
            failed = ran.failed is not None
            version = ran.version if ran.failed is None else ran.failed
            own_scores = [None] * len(batch) if failed else scores
            beside.offer(Compared(batch.inputs, version, ran.seconds, own_scores, failed, kept, time.time()))
        return kept

    def _glance(
        self, collector: Collector, ran: Ran, result: Any, scores: Sequence[Scores | None], seconds: float
    ) -> None:
        batch = ran.given
        for place, sample in enumerate(batch.samples):
            if collector.passes():
                continue
            begin = time.perf_counter()
            own = of_sample(result, place, batch)
            sure = scores[place] if scores else self._score(ran, result, place)
            seen = Seen(sure, 0.0, None, partial(_embedding, ran, place))
            collector.see(seen, sample, own, version=ran.version, came=0)
            collector.took(time.perf_counter() - begin, seconds / len(batch))

    def _score(self, ran: Ran, result: Any, place: int) -> Scores | None:
        try:
            return self._model.scores_of(ran.outputs, place, of_sample(result, place, ran.given))
        except ModelError as error:
            # Chance alone keeps samples of such a model.
            if not self._said:
                self._said = True
                _log.warning("which samples are hard cannot be told: %s", error)
            return None

    def _deep_scores(self, deep: DeepAnswer, row: int, result: Any) -> Scores | None:
        try:
            return scores_of([value[row] for value in deep.outputs.values()], result, self._confidence)
        except (ModelError, IndexError):
            return None


def _embedding(ran: Ran, place: int) -> Embedding:
    return embedding_of(
        {name: value[place] for name, value in ran.given.inputs.items()},
        {name: value[place] for name, value in ran.outputs.items()},
    )
