# SPDX-License-Identifier: Apache-2.0
"""What server and edges say to each other of tasks: how to divide and sign, and which tasks an edge has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from flwr.app import ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import WireError
from .compression import digest
from .questions import Arrays, Question, Response
from .signatures import SignatureSpec
from .task_mixture import TaskModel

__all__ = [
    "SURVEY",
    "SurveyAnswer",
    "SurveyQuestion",
    "TaskAbout",
    "TaskNames",
    "known_in",
    "signature_digest",
    "tell_known",
]

SURVEY = "survey"
_KNOWN = "solar-corona-known"
_NAMES = "solar-corona-task-names"
_MOST_TASKS = 1_000
# Weights have names of their own; these arrays are the tasks'.
_FOUND = "found/"


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


_T = TypeVar("_T", bound=_Said)


class TaskAbout(_Said):
    """One task of an edge."""

    name: Annotated[str, Field(max_length=200)]
    samples: Annotated[int, Field(ge=0, le=10**12)]
    labelled: bool = True


class SurveyQuestion(_Said):
    """How to sign; the question's arrays are the tasks that the fleet found, for edges that mix them.

    Beside them is the model whose last hidden layer is signed instead of the inputs, where the spec names one.
    """

    spec: SignatureSpec
    found_by: SignatureSpec | None = Field(default=None, description="How to make the features that tell tasks apart.")
    purity: Annotated[float, Field(ge=0, le=1)] = 1.0
    names: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=_MOST_TASKS)] = ()
    scale: bool = Field(
        default=True, description="The moments of the inputs may come first, where they have units of their own."
    )

    def to_question(self, found: TaskModel | None = None, model: Arrays | None = None) -> Question:
        """Return the question as it is sent."""
        arrays, said = dict(model or {}), self
        if found is not None:
            said = self.model_copy(update={"found_by": found.spec, "purity": found.purity, "names": found.names})
            arrays |= {f"{_FOUND}{name}": value for name, value in found.to_arrays().items()}
        return Question(SURVEY, said.model_dump_json(), arrays)

    @classmethod
    def of(cls, question: Question) -> tuple[SurveyQuestion, TaskModel | None, Arrays]:
        """Return what a question says, what tells tasks apart, and the model that embeds.

        Raises
        ------
        WireError
            If it cannot be read.
        """
        said = _read(cls, question.text)
        model = {name: value for name, value in question.arrays.items() if not name.startswith(_FOUND)}
        if said.spec.embedding and digest(model) != said.spec.embedding:
            raise WireError("the model in a question is not the one by which it asks to sign; update both sides")
        if said.found_by is None:
            return said, None, model
        found = {name.removeprefix(_FOUND): value for name, value in question.arrays.items() if name.startswith(_FOUND)}
        return said, TaskModel.of_arrays(found, spec=said.found_by, purity=said.purity, names=said.names), model


class SurveyAnswer(_Said):
    """The tasks of an edge; their signatures are the response's parts, in the same order."""

    tasks: Annotated[tuple[TaskAbout, ...], Field(max_length=_MOST_TASKS)]
    changed: bool = Field(default=False, description="The edge's samples are others than those it signed before.")
    moments: bool = Field(
        default=False,
        description="No signatures yet: the only part are the moments of the inputs, for a scale that all edges share.",
    )

    lost: bool = Field(
        default=False, description="The edge does not have what it signed any more, and has to be asked again."
    )

    def to_response(self, signatures: list[bytes]) -> Response:
        """Return the answer as it is sent."""
        return Response(SURVEY, self.model_dump_json(exclude_defaults=True), parts=tuple(signatures))

    @classmethod
    def of(cls, response: Response) -> SurveyAnswer:
        """Return what a response says; raise `WireError` if it cannot be read."""
        answer = _read(cls, response.text)
        if len(response.parts) != (1 if answer.moments else len(answer.tasks)):
            raise WireError(f"{len(response.parts)} signatures came for {len(answer.tasks)} tasks")
        return answer


def signature_digest(signatures: Sequence[bytes]) -> str:
    """Return a short text by which edge and server tell whether they mean the same signatures."""
    found = hashlib.sha256()
    for part in signatures:
        found.update(len(part).to_bytes(4, "big") + part)
    return found.hexdigest()[:16]


def tell_known(content: RecordDict, known: str) -> RecordDict:
    """Return a record with everything of `content`, and the digest of the signatures that the server has."""
    told = RecordDict(dict(content.items()))
    told[_KNOWN] = ConfigRecord({"signatures": known})
    return told


def known_in(content: RecordDict) -> str | None:
    """Return the digest of the edge's signatures that the server has, or None where it says nothing of them."""
    record = content.get(_KNOWN)
    known = record.get("signatures") if isinstance(record, ConfigRecord) else None
    return known if isinstance(known, str) else None


@dataclass(frozen=True)
class TaskNames:
    """The groups whose models a message holds, in its order, and which task of which edge goes with which.

    `group_of` has an edge's name, or `EDGE/TASK` where the edge has several.
    """

    groups: tuple[str, ...]
    group_of: dict[str, str]

    def attach(self, content: RecordDict) -> RecordDict:
        """Return a record with everything of `content`, and this beside it."""
        told = RecordDict(dict(content.items()))
        text = json.dumps({"groups": self.groups, "group_of": self.group_of})
        told[_NAMES] = ConfigRecord({"json": text})
        return told

    @classmethod
    def of(cls, content: RecordDict) -> TaskNames | None:
        """Return what a message says, or None if it says nothing; raise `WireError` if that cannot be read."""
        record = content.get(_NAMES)
        if not isinstance(record, ConfigRecord):
            return None
        try:
            said = json.loads(str(record.get("json")))
            names = cls(tuple(map(str, said["groups"])), {str(k): str(v) for k, v in said["group_of"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WireError(f"the names of a message's models cannot be read: {error}") from error
        if not set(names.group_of.values()) <= set(names.groups):
            raise WireError("a task goes with a model that the message does not have")
        return names


def _read(kind: type[_T], text: str) -> _T:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise WireError(f"what was said of tasks cannot be read: {error.errors()[0]['msg']}") from error
