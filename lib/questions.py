# SPDX-License-Identifier: Apache-2.0
"""Questions that a strategy asks edges before they train, and what they answer: of their data, never the data.

A strategy that has `configure_query` returns `Question`s as messages' content; the edge's `Response` comes to its
`aggregate_query`. Each kind of question has its own text and arrays, which whoever asks or answers checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from ..core.errors import WireError
from .records import arrays_in

__all__ = ["Arrays", "Question", "Response"]

_KEY = "solar-corona-question"
_ARRAYS = "solar-corona-question-arrays"
_MOST_TEXT = 4 * 2**20
_MOST_PARTS = 100_000

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Question:
    """What is asked: its kind, a JSON text, arrays and byte strings."""

    kind: str
    text: str = "{}"
    arrays: Arrays = field(default_factory=dict)
    parts: tuple[bytes, ...] = ()

    def to_content(self) -> RecordDict:
        """Return the question as a message's content."""
        return _to_content(self.kind, self.text, self.arrays, self.parts, "")

    @classmethod
    def from_content(cls, content: RecordDict) -> Question:
        """Return the question of a message; raise `WireError` if it has none."""
        kind, text, arrays, parts, _ = _from_content(content)
        return cls(kind, text, arrays, parts)


@dataclass(frozen=True)
class Response:
    """What an edge says to a question of the same kind; `refused` says why it cannot."""

    kind: str
    text: str = "{}"
    arrays: Arrays = field(default_factory=dict)
    parts: tuple[bytes, ...] = ()
    refused: str = ""

    def to_content(self) -> RecordDict:
        """Return the response as a reply's content."""
        return _to_content(self.kind, self.text, self.arrays, self.parts, self.refused[:2_000])

    @classmethod
    def from_content(cls, content: RecordDict) -> Response:
        """Return the response in a reply; raise `WireError` if there is none."""
        return cls(*_from_content(content))

    @staticmethod
    def is_in(content: RecordDict) -> bool:
        """Tell whether a reply has a response in it."""
        return _KEY in content

    @property
    def size(self) -> int:
        """Bytes of what it says."""
        return len(self.text) + sum(map(len, self.parts)) + sum(a.nbytes for a in self.arrays.values())


def _to_content(kind: str, text: str, arrays: Arrays, parts: tuple[bytes, ...], refused: str) -> RecordDict:
    content = RecordDict({_KEY: ConfigRecord({"kind": kind, "text": text, "parts": list(parts), "refused": refused})})
    if arrays:
        content[_ARRAYS] = ArrayRecord({name: Array(np.asarray(value, order="C")) for name, value in arrays.items()})
    return content


def _from_content(content: RecordDict) -> tuple[str, str, Arrays, tuple[bytes, ...], str]:
    record = content.get(_KEY)
    if not isinstance(record, ConfigRecord):
        raise WireError("a message holds no question, and no response to one")
    kind, text, parts, refused = (record.get(name) for name in ("kind", "text", "parts", "refused"))
    if not (isinstance(kind, str) and isinstance(text, str) and isinstance(refused, str) and isinstance(parts, list)):
        raise WireError("a question or its response is not of the expected form; update both sides")
    if len(text) > _MOST_TEXT or len(parts) > _MOST_PARTS:
        raise WireError(f"a question or its response has {len(text)} characters in {len(parts)} parts, which is absurd")
    try:
        arrays = {name: array.numpy() for name, array in arrays_in(content).get(_ARRAYS, ArrayRecord()).items()}
    except Exception as error:  # The bytes come from elsewhere, and NumPy refuses them in many ways.
        raise WireError(f"an array of a question cannot be read: {type(error).__name__}: {error}") from error
    return kind, text, arrays, tuple(part for part in parts if isinstance(part, bytes)), refused
