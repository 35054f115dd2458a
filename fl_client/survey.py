# SPDX-License-Identifier: Apache-2.0
"""What an edge says of its samples when the server asks, so that similar tasks are found: never the samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from ..core.errors import DatasetError, SolarCoronaError
from ..lib.discovery import DISCOVERY
from ..lib.questions import Question, Response
from ..lib.sealed import load_sealed, write_sealed
from ..lib.signature_distance import drifted
from ..lib.signatures import Embedding, InputMoments, Signature, needs_moments, sign
from ..lib.subspaces import SUBSPACE
from ..lib.survey import SURVEY, SurveyAnswer, SurveyQuestion, TaskAbout, signature_digest
from ..lib.task_mixture import TaskModel
from ..lib.trainable import Trainable
from .edge_data import Divide, EdgeData, Split, named_division
from .embedding import embedding_of
from .orders import Orders
from .subspace import answer_subspaces
from .task_discovery import Discovered, TaskDiscovery

__all__ = ["Survey"]

log = logging.getLogger(__name__)
_KEPT = "kept"


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
    trainable
        The model, for jobs that sign samples as its last hidden layer sees them.
    """

    def __init__(self, data: EdgeData | None, orders: Orders, *, edge: str, trainable: Trainable) -> None:
        self._data, self._orders, self._edge, self._trainable = data, orders, edge, trainable
        self.settle(None)
        self._kinds: dict[str, Callable[[Question, EdgeData], Response]] = {
            SURVEY: self._survey,
            SUBSPACE: answer_subspaces,
            DISCOVERY: TaskDiscovery().answer,
        }
        orders.find_split = self.split

    def settle(self, file: Path | None) -> None:
        """Begin anew, or where a process before this one was.

        Parameters
        ----------
        file
            Where the last question and what was signed lie for the process that comes next: after a restart, or for
            the next message where each has a process of its own. None keeps them in memory.
        """
        self._file, self._recalled = file, False
        self._divide: Divide | None = None
        self._question: Question | None = None
        self._asked: SurveyQuestion | None = None
        self._embed: Embedding | None = None
        self._signed: list[Signature] = []
        self._digest, self._pending = "", False
        self._orders.split = None

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
        if self._divide is None and rules.division == "discovery":
            self._recall()
        elif self._divide is None and rules.division != "none":
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
        before, signed = self._asked, bool(self._signed)
        asked, found = self._take(question)
        # Who is asked the same once more may have changed, also where looking costs a pass over the loader.
        again = signed and found is None and before is not None and before.spec == asked.spec
        samples = data.samples("train", anew=data.changes or again)
        self._digest = samples.digest()
        inputs = samples.x if self._embed is None else np.asarray(self._embed(samples.x))
        if asked.scale and not asked.spec.centre and len(inputs) >= asked.spec.min_count and needs_moments(inputs):
            return SurveyAnswer(tasks=(), moments=True).to_response([InputMoments.of(inputs).to_bytes()])
        if data.rules.division == "discovery":
            self._divide = None if found is None else Discovered(found, data.rules.chunk)
        self._orders.split = split = self.split()
        assert split is not None
        self._signed, self._pending = self._sign(asked, data, split), False
        self._keep()
        return self._answer(split, changed=False)

    def _take(self, question: Question) -> tuple[SurveyQuestion, TaskModel | None]:
        asked, found, model = SurveyQuestion.of(question)
        embed = embedding_of(self._trainable, dict(model)) if asked.spec.embedding else None
        self._question, self._asked, self._embed = question, asked, embed
        return asked, found

    def _sign(self, asked: SurveyQuestion, data: EdgeData, split: Split) -> list[Signature]:
        samples = data.samples("train")
        signed = []
        for task in range(len(split.names)):
            part = samples.of(split.indices("train", (task,)))
            signed.append(sign(part.x, part.y, asked.spec, self._embed))
        return signed

    def _answer(self, split: Split, *, changed: bool) -> Response:
        counts: NDArray[np.int64] = np.bincount(split.train, minlength=len(split.names))
        tasks = tuple(
            TaskAbout(name=name, samples=int(count), labelled=signature.labelled)
            for name, count, signature in zip(split.names, counts, self._signed, strict=True)
        )
        return SurveyAnswer(tasks=tasks, changed=changed).to_response([s.to_bytes() for s in self._signed])

    def look_again(self, known: str | None = None) -> Response | None:
        """Return a new answer if the samples have drifted since they were signed, until the server has it; else None.

        Parameters
        ----------
        known
            Digest of the signatures that the server has of this edge, if it says so: after it has got new ones, and
            where it cannot be sure that this is still the process that it knows, or it the server that got them.
        """
        if self._data is None:
            return None
        self._recall()
        if self._asked is None:
            return None if known is None else SurveyAnswer(tasks=(), lost=True).to_response([])
        if not self._signed:
            return None
        before, changed = self._pending, self._has_drifted(self._asked, self._data)
        if changed:
            log.info("the samples of this edge have changed; their new signatures go to the server")
            self._pending = True
        elif known is not None:
            self._pending = known != signature_digest([s.to_bytes() for s in self._signed])
        if changed or self._pending != before:
            self._keep()
        if not self._pending:
            return None
        split = self._orders.split = self._orders.split or self.split()
        assert split is not None
        if len(split.names) != len(self._signed):
            self._signed = self._sign(self._asked, self._data, split)
        return self._answer(split, changed=True)

    def forget(self) -> None:
        """Remove the file: the job is done."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _has_drifted(self, asked: SurveyQuestion, data: EdgeData) -> bool:
        """Look at the samples again, where that is cheap; tell whether they differ from what was signed."""
        if not data.changes:
            return False
        digest = data.samples("train", anew=True).digest()
        if digest == self._digest:
            return False
        self._digest = digest
        try:
            data.samples("evaluate", anew=True)
            split = self.split()
            assert split is not None
            signed = self._sign(asked, data, split)
        except SolarCoronaError as error:
            log.warning("the samples of this edge have changed and cannot be signed, so its tasks stay: %s", error)
            return False
        same = self._orders.split is None or split.names == self._orders.split.names
        self._orders.split = split
        if same and len(signed) == len(self._signed) and not any(map(drifted, self._signed, signed)):
            return False
        self._signed = signed
        return True

    def _keep(self) -> None:
        """Write down what the next process needs; a full disk costs a question and not the job."""
        if self._file is None or self._question is None:
            return
        record = self._question.to_content()
        signed = [s.to_bytes() for s in self._signed]
        record[_KEPT] = ConfigRecord({"digest": self._digest, "signed": signed, "pending": self._pending})
        try:
            write_sealed(self._file, record)
        except SolarCoronaError as error:
            log.warning("what this edge signed is not kept for after a restart: %s", error)

    def _recall(self) -> None:
        """Take up what a process before this one kept, the first time that it is needed."""
        if self._recalled or self._asked is not None:
            return
        self._recalled = True
        record = load_sealed(self._file, "what the edge signed")
        kept = None if record is None else record.get(_KEPT)
        if record is None or not isinstance(kept, ConfigRecord) or self._data is None:
            return
        try:
            found = self._take(Question.from_content(record))[1]
            signed = kept["signed"]
            assert isinstance(signed, list)
            self._signed = [Signature.from_bytes(part) for part in signed if isinstance(part, bytes)]
            self._digest, self._pending = str(kept["digest"]), bool(kept["pending"])
            if self._data.rules.division == "discovery":
                self._divide = None if found is None else Discovered(found, self._data.rules.chunk)
        except SolarCoronaError as error:
            log.warning("what this edge signed before its restart is of no use any more: %s", error)
            self._question = self._asked = self._embed = None
            self._signed = []
