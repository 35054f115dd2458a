# SPDX-License-Identifier: Apache-2.0
"""What an edge says of its samples when the server asks, so that similar tasks are found: never the samples."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DatasetError, SolarCoronaError
from ..lib.questions import Question, Response
from ..lib.signature_distance import drifted
from ..lib.signatures import InputMoments, Signature, sign
from ..lib.subspaces import SUBSPACE
from ..lib.survey import SURVEY, SurveyAnswer, SurveyQuestion, TaskAbout
from .edge_data import Divide, EdgeData, Split, named_division
from .orders import Orders
from .subspace import answer_subspaces
from .task_discovery import Discovered, discover

__all__ = ["Survey"]

log = logging.getLogger(__name__)


class Survey:
    """Answers questions about the samples of one edge.

    Parameters
    ----------
    data
        The samples; None where only the model has them, and then nothing can be said.
    orders
        Whatever trains on parts of the samples; it is told which part is which task.
    edge
        The edge's name.
    """

    def __init__(self, data: EdgeData | None, orders: Orders, *, edge: str) -> None:
        self._data, self._orders, self._edge = data, orders, edge
        self._divide: Divide | None = None
        self._question: SurveyQuestion | None = None
        self._signed: list[Signature] = []
        self._digest = ""
        self._kinds: dict[str, Callable[[Question, EdgeData], Response]] = {
            SURVEY: self._survey,
            SUBSPACE: answer_subspaces,
        }
        orders.find_split = self.split

    def respond(self, question: Question) -> Response:
        """Answer a question; what makes that impossible is said in the response, and the job goes on."""
        answer = self._kinds.get(question.kind)
        try:
            if answer is None:
                raise DatasetError(f"no edge knows questions of the kind {question.kind!r}; update Solar Corona there")
            if self._data is None:
                raise DatasetError("only the model knows its samples; pass them to fit() as train_loader=(x, y)")
            return answer(question, self._data)
        except SolarCoronaError as error:
            log.warning("a question about this edge's samples was not answered: %s", error)
            return Response(question.kind, refused=str(error))

    def split(self) -> Split | None:
        """Return the tasks of this edge, found when they are first needed; None where nothing can be told apart."""
        if self._data is None:
            return None
        rules = self._data.rules
        if self._divide is None and rules.division not in ("none", "discovery"):
            self._divide = named_division(rules.division)
        split = self._data.split(self._divide)
        if len(split.names) > 1 and not self._orders.divisible:
            log.warning(
                "this edge has the tasks %s, but its model cannot be trained on some of its samples (it has no "
                "use_samples and evaluate_on_train); they are taken as one",
                ", ".join(split.names),
            )
            return Split(("all",), np.zeros_like(split.train), np.zeros_like(split.evaluate))
        return split

    def _survey(self, question: Question, data: EdgeData) -> Response:
        self._question, found = SurveyQuestion.of(question)
        data.samples("train", anew=data.changes)
        self._digest = data.samples("train").digest()
        inputs = data.samples("train").x
        if self._question.spec.asks_moments(inputs):
            return SurveyAnswer(tasks=(), moments=True).to_response([InputMoments.of(inputs).to_bytes()])
        if data.rules.division == "discovery":
            self._divide = self._discovered(data, self._question, found)
        self._orders.split = split = self.split()
        assert split is not None
        self._signed = self._sign(self._question, data, split)
        return self._answer(split, changed=False)

    @staticmethod
    def _discovered(data: EdgeData, question: SurveyQuestion, found: tuple[Signature, ...]) -> Discovered:
        """Return how to tell tasks apart: by those that the fleet found, at first by this edge's own samples."""
        chunk = data.rules.chunk
        assert chunk is not None  # the job file's own check
        if found:
            return Discovered(question.spec, found, chunk)
        samples = data.samples("train")
        return discover(samples.x, samples.y, question.spec, chunk=chunk, least=data.rules.min_samples)

    def _sign(self, question: SurveyQuestion, data: EdgeData, split: Split) -> list[Signature]:
        samples = data.samples("train")
        signed = []
        for task in range(len(split.names)):
            part = samples.of(split.indices("train", (task,)))
            signed.append(sign(part.x, part.y, question.spec))
        return signed

    def _answer(self, split: Split, *, changed: bool) -> Response:
        counts: NDArray[np.int64] = np.bincount(split.train, minlength=len(split.names))
        tasks = tuple(
            TaskAbout(name=name, samples=int(count), labelled=signature.labelled)
            for name, count, signature in zip(split.names, counts, self._signed, strict=True)
        )
        return SurveyAnswer(tasks=tasks, changed=changed).to_response([s.to_bytes() for s in self._signed])

    def look_again(self) -> Response | None:
        """Return a new answer if the samples have drifted since they were signed, else None."""
        if self._question is None or self._data is None or not self._signed or not self._data.changes:
            return None
        samples = self._data.samples("train", anew=True)
        digest = samples.digest()
        if digest == self._digest:
            return None
        self._digest = digest
        self._data.samples("evaluate", anew=True)
        split = self.split()
        assert split is not None
        signed = self._sign(self._question, self._data, split)
        same = self._orders.split is not None and split.names == self._orders.split.names
        self._orders.split = split
        if same and not any(drifted(old, new) for old, new in zip(self._signed, signed, strict=True)):
            return None
        self._signed = signed
        log.info("the samples of this edge have changed; their new signatures go to the server")
        return self._answer(split, changed=True)
