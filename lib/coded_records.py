# SPDX-License-Identifier: Apache-2.0
"""How a coded model lies in a message: in its `ArrayRecord`'s place, a `ConfigRecord` that says what it builds on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flwr.app import ConfigRecord
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import WireError
from .compression import Coder
from .exchange import ArraySpec

__all__ = ["NEEDS_MODEL", "CodedModel", "Label", "ReplyCoding", "read_coded"]

NEEDS_MODEL = 409
"""Code of the error with which an edge says that it does not have the model that a message builds on."""

_LABEL, _STEPS = "solar-corona-coded", "steps"
_MOST_STEPS = 64
_Version = Annotated[str, Field(max_length=64)]


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ReplyCoding(_Said):
    """How the edge is to code its reply."""

    method: Literal["fp16", "int8", "topk"]
    fraction: float = Field(default=1.0, gt=0, le=1)

    @property
    def coder(self) -> Coder:
        """The same as a coder."""
        return Coder(self.method, self.fraction)


class Label(_Said):
    """What a coded model is.

    Versions are digests of models (`compression.digest`), so nobody can take one model for another.
    """

    base: _Version = Field(default="", description="Model that the first step builds on; none: zeros of `form`.")
    version: _Version = Field(default="", description="What comes out; empty in replies, which nothing builds on.")
    keep: bool = Field(default=True, description="Whether later messages may build on this model.")
    form: list[ArraySpec] = Field(default_factory=list, description="Without base: the model's form.")
    reply: ReplyCoding | None = None


@dataclass(frozen=True)
class CodedModel:
    """A coded model: its label and, one after the other, the steps from its base."""

    label: Label
    steps: tuple[bytes, ...]

    def to_record(self) -> ConfigRecord:
        """Return it as it lies in a message."""
        # Flower's lists of bytes may not be empty, and a label without steps means "the model that you have".
        steps: dict[str, Any] = {_STEPS: list(self.steps)} if self.steps else {}
        return ConfigRecord({_LABEL: self.label.model_dump_json(exclude_defaults=True), **steps})


def read_coded(record: Any) -> CodedModel | None:
    """Return the coded model that a message's record is, or None if it is none.

    Raises
    ------
    WireError
        If it is one and cannot be read.
    """
    text = record.get(_LABEL) if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        return None
    try:
        label = Label.model_validate_json(text)
    except ValidationError as error:
        raise WireError(f"a coded model's label cannot be read: {error.errors()[0]['msg']}") from error
    steps: Any = record.get(_STEPS, [])
    if not isinstance(steps, Sequence) or len(steps) > _MOST_STEPS or not all(isinstance(s, bytes) for s in steps):
        raise WireError(f"a coded model has other than up to {_MOST_STEPS} steps; update both sides to one version")
    return CodedModel(label, tuple(steps))
