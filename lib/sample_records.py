# SPDX-License-Identifier: Apache-2.0
"""A kept sample, as it travels from a script to its node's LocalController and on to the hub.

The script's side needs neither pydantic nor an HTTP library, so that a small edge stays small.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..core.errors import WireError

__all__ = ["FRAME_TYPE", "Reason", "SampleRecord", "encode_record", "pack", "pack_encoded", "sample_id_of", "unpack"]

FRAME_TYPE = "application/vnd.solar-corona.samples"
"""The media type of a frame of samples."""

Reason = Literal["hard", "random", "degraded", "asked"]
"""Why a sample was kept: it is hard; it was drawn, whatever it is like, and counts for audits; the deep model was
wanted and away; the script asked for it."""

_REASONS = ("hard", "random", "degraded", "asked")
_LENGTH = struct.Struct("<I")
_MOST_HEADER = 16 << 20
_MOST_VALUES = 4_096


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """What is known of a kept sample beside its content.

    Parameters
    ----------
    id
        SHA-256 of the content, in hexadecimal; the same content is the same sample.
    media_type, size
        Form of the content, such as `image/png`, and its bytes.
    edge
        Where it was seen.
    model
        Version that answered; 0 where none is known.
    taken_at
        Seconds since 1970, by the edge's clock.
    reason
        Why it was kept.
    confidence
        How sure the model was, 0 to 1.
    hardness
        What the detector made of it; larger is harder. Only the order counts.
    prediction
        What `predict` returned, as JSON: a class, a list of boxes, or a text.
    probabilities
        Of a classifier's classes, at most 4,096.
    embedding
        What diversity is measured on: a short vector.
    subject
        Whom the sample is of, where the script says so; samples of a subject can be deleted together.
    ahead
        Whether the content went ahead of the record, in pieces; a frame then holds none of it, and `size` stays the
        content's.
    """

    id: str
    media_type: str
    size: int
    edge: str
    model: int
    taken_at: float
    reason: Reason
    confidence: float | None = None
    hardness: float | None = None
    prediction: Any = None
    probabilities: Sequence[float] | None = None
    embedding: Sequence[float] | None = None
    subject: str | None = None
    ahead: bool = False

    @classmethod
    def from_json(cls, value: Any) -> SampleRecord:
        """Return a record that another process sent, checked.

        Raises
        ------
        WireError
            If it is none.
        """
        if not isinstance(value, dict) or not set(value) <= set(_FIELDS):
            raise WireError("a sample's record is no mapping of the fields that it has")
        try:
            record = cls(**value)
        except TypeError as error:
            raise WireError(f"a sample's record is not whole: {error}") from error
        _check(record)
        return record


_FIELDS = tuple(field.name for field in fields(SampleRecord))


def _check(record: SampleRecord) -> None:
    def text(value: Any, most: int) -> bool:
        return isinstance(value, str) and 0 < len(value) <= most

    def number(value: Any, low: float = float("-inf"), high: float = float("inf")) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    def vector(value: Any) -> bool:
        return value is None or (
            isinstance(value, list | tuple)
            and len(value) <= _MOST_VALUES
            and all(number(each, -1e30, 1e30) for each in value)
        )

    checks = {
        "id": text(record.id, 64) and len(record.id) == 64 and set(record.id) <= set("0123456789abcdef"),
        "media_type": text(record.media_type, 100),
        "size": isinstance(record.size, int) and record.size >= 0,
        "edge": text(record.edge, 63),
        "model": isinstance(record.model, int) and record.model >= 0,
        "taken_at": number(record.taken_at, 0, 1e12),
        "reason": record.reason in _REASONS,
        "confidence": record.confidence is None or number(record.confidence, 0, 1),
        "hardness": record.hardness is None or number(record.hardness, -1e30, 1e30),
        "prediction": len(json.dumps(record.prediction)) <= 1 << 16,
        "probabilities": vector(record.probabilities),
        "embedding": vector(record.embedding),
        "subject": record.subject is None or text(record.subject, 200),
        "ahead": isinstance(record.ahead, bool),
    }
    wrong = [name for name, right in checks.items() if not right]
    if wrong:
        raise WireError(f"a sample's record has a wrong {' and '.join(wrong)}")


def sample_id_of(content: bytes) -> str:
    """Return the id of a sample's content."""
    return hashlib.sha256(content).hexdigest()


def pack(samples: Iterable[tuple[SampleRecord, bytes]]) -> bytes:
    """Return a frame: the length of a JSON list of records, the list, and the contents one after another.

    The content of a record that is `ahead` has to be empty here.

    >>> record = SampleRecord(sample_id_of(b"x"), "text/plain", 1, "here", 1, 0.0, "hard")
    >>> [content for _, content in unpack(pack([(record, b"x")]))]
    [b'x']
    """
    return pack_encoded((encode_record(record), content) for record, content in samples)


def encode_record(record: SampleRecord) -> bytes:
    """Return a record as it stands in a frame's list.

    Raises
    ------
    ValueError
        If it holds what JSON cannot, such as NaN.
    """
    values = {name: getattr(record, name) for name in _FIELDS}
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode()


def pack_encoded(samples: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a frame of records that `encode_record` made, and their contents."""
    records, contents = [], []
    for record, content in samples:
        records.append(record)
        contents.append(content)
    header = b"[" + b",".join(records) + b"]"
    return b"".join((_LENGTH.pack(len(header)), header, *contents))


def unpack(frame: bytes | memoryview) -> list[tuple[SampleRecord, bytes]]:
    """Return a frame's samples. Whether a content is what its id says is not looked at here.

    A record that is `ahead` comes with an empty content.

    Raises
    ------
    WireError
        If it is no frame.
    """
    if len(frame) < _LENGTH.size:
        raise WireError("a frame of samples is shorter than its header")
    (length,) = _LENGTH.unpack_from(frame)
    if length > min(_MOST_HEADER, len(frame) - _LENGTH.size):
        raise WireError("a frame of samples ends within its header")
    try:
        records = json.loads(bytes(frame[_LENGTH.size : _LENGTH.size + length]))
    except (ValueError, RecursionError) as error:
        raise WireError("a frame's header is no JSON") from error
    if not isinstance(records, list):
        raise WireError("a frame's header is no list of records")
    found, begin = [], _LENGTH.size + length
    for record in (SampleRecord.from_json(value) for value in records):
        size = 0 if record.ahead else record.size
        content = bytes(frame[begin : begin + size])
        if len(content) != size:
            raise WireError(f"a frame ends within the content of sample {record.id}")
        found.append((record, content))
        begin += size
    if begin != len(frame):
        raise WireError(f"a frame has {len(frame) - begin} bytes after its last sample")
    return found
