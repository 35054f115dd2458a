# SPDX-License-Identifier: Apache-2.0
"""The wire codec: a whole message in as few Flower objects as possible.

Flower sends every record, array and array chunk of a message as an object of its own, each one request up and one
down. `pack` puts them all into one `ConfigRecord` (several only beyond 16 MiB), and `unpack` gives the same
`RecordDict` back, so that strategies and engines see ordinary records and never know.

Layout of the payload: `SCW1`, length of the head (4 bytes, big-endian), the head as JSON, then the bytes that the head
refers to. Nothing in it is executable; every length is checked before it is used.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from ..core.errors import WireError
from .records import configs_in

__all__ = ["MAX_PAYLOAD", "is_packed", "pack", "packed_size", "unpack"]

MAGIC = b"SCW1"
PART_BYTES = 16 * 2**20
MAX_PAYLOAD = 4 * 2**30
_HEAD = struct.Struct(">4sI")
_PREFIX = "solar-corona-"
_KINDS: dict[str, type[ArrayRecord] | type[ConfigRecord] | type[MetricRecord]] = {
    "arrays": ArrayRecord,
    "config": ConfigRecord,
    "metrics": MetricRecord,
}


def pack(record: RecordDict) -> RecordDict:
    """Return `record` in wire form.

    Parameters
    ----------
    record
        Any mixture of `ArrayRecord`, `ConfigRecord` and `MetricRecord`.
    """
    buffers: list[bytes] = []
    offset = 0

    def keep(data: bytes) -> list[int]:
        nonlocal offset
        buffers.append(data)
        offset += len(data)
        return [offset - len(data), len(data)]

    head = []
    for key, value in record.items():
        if isinstance(value, ArrayRecord):
            arrays = [[name, a.dtype, list(a.shape), a.stype, *keep(a.data)] for name, a in value.items()]
            head.append(["arrays", key, arrays])
        elif isinstance(value, ConfigRecord):
            head.append(["config", key, [[name, *_pack_value(v, keep)] for name, v in value.items()]])
        else:
            head.append(["metrics", key, [[name, "v", v] for name, v in value.items()]])
    text = json.dumps(head, separators=(",", ":")).encode()
    payload = b"".join([_HEAD.pack(MAGIC, len(text)), text, *buffers])
    count = max(1, -(-len(payload) // PART_BYTES))
    return RecordDict(
        {
            f"{_PREFIX}{i}": ConfigRecord(
                {"part": i, "parts": count, "data": payload[i * PART_BYTES : (i + 1) * PART_BYTES]}
            )
            for i in range(count)
        }
    )


def _pack_value(value: Any, keep: Any) -> list[Any]:
    if isinstance(value, bytes):
        return ["b", keep(value)]
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return ["bs", [keep(item) for item in value]]
    return ["v", value]


def is_packed(record: RecordDict) -> bool:
    """Tell whether `record` is in wire form."""
    return f"{_PREFIX}0" in record


def packed_size(record: RecordDict) -> int:
    """Return the payload's size in bytes of a record in wire form."""
    return sum(len(data) for part in configs_in(record).values() if isinstance(data := part.get("data"), bytes))


def unpack(record: RecordDict, *, consume: bool = False) -> RecordDict:
    """Return what `pack` was given.

    Parameters
    ----------
    record
        A record in wire form.
    consume
        Give up each part of `record` once it is read, so that a large message is never in memory twice.

    Raises
    ------
    WireError
        If `record` is not in wire form, is damaged, or is larger than `MAX_PAYLOAD` bytes.
    """
    payload = _Payload(_parts(record))
    if consume:
        record.clear()
    if payload.size < _HEAD.size:
        raise WireError(f"a message of {payload.size} bytes is too short; update both sides to the same version")
    magic, length = _HEAD.unpack(payload.take(0, _HEAD.size))
    start = _HEAD.size + length
    if magic != MAGIC or start > payload.size:
        raise WireError("a message is not in our wire format, or was cut; update both sides to the same version")
    try:
        head = json.loads(payload.take(_HEAD.size, length))
        return RecordDict(dict(_unpack_records(head, payload, start)))
    except WireError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WireError(f"a message's head cannot be read: {error}") from error


class _Payload:
    """The bytes of a message in its parts, read from front to back; what is behind is given up."""

    def __init__(self, parts: list[bytes]) -> None:
        self._starts = list(accumulate((len(part) for part in parts[:-1]), initial=0))
        self._parts: list[bytes | None] = list(parts)
        self.size = sum(map(len, parts))

    def take(self, offset: int, length: int) -> bytes:
        """Return bytes; what lies before them cannot be read again."""
        if not length:
            return b""
        first, last = bisect_right(self._starts, offset) - 1, bisect_right(self._starts, offset + length - 1) - 1
        pieces = []
        for i in range(first, last + 1):
            part, start = self._parts[i], self._starts[i]
            if part is None:
                raise WireError("a message refers to bytes out of order")
            pieces.append(memoryview(part)[max(0, offset - start) : offset + length - start])
        found = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
        for i in range(last):
            self._parts[i] = None
        return found


def _parts(record: RecordDict) -> list[bytes]:
    parts: dict[int, bytes] = {}
    count, size = 0, 0
    for name, part in configs_in(record).items():
        index, of, data = part.get("part"), part.get("parts"), part.get("data")
        if not (
            name.startswith(_PREFIX) and isinstance(index, int) and isinstance(of, int) and isinstance(data, bytes)
        ):
            raise WireError(f"a message has a part {name!r} that is not in our wire format")
        parts[index], count = data, of
        size += len(data)
        if size > MAX_PAYLOAD:
            raise WireError(f"a message is larger than {MAX_PAYLOAD} bytes")
    if not len(parts) == len(record) == count or sorted(parts) != list(range(count)) or not parts:
        raise WireError(f"a message has {len(parts)} of {count} parts")
    return [parts[i] for i in range(count)]


def _unpack_records(head: list[Any], payload: _Payload, start: int) -> Iterator[tuple[str, Any]]:
    read = 0

    def take(where: list[int]) -> bytes:
        nonlocal read
        offset, length = where
        if (
            type(offset) is not int
            or type(length) is not int
            # Each byte is referred to once, so that a small message cannot ask for a large copy.
            or not read == offset <= offset + length <= payload.size - start
        ):
            raise WireError("a message refers to bytes that it does not have, or refers to them twice")
        read = offset + length
        return payload.take(start + offset, length)

    for kind, key, items in head:
        if kind == "arrays":
            yield (
                key,
                ArrayRecord(
                    {
                        name: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=take([offset, length]))
                        for name, dtype, shape, stype, offset, length in items
                    }
                ),
            )
        elif kind in _KINDS:
            values = {name: _unpack_value(tag, value, take) for name, tag, value in items}
            yield key, _KINDS[kind](values)
        else:
            raise WireError(f"a message has a record of unknown kind {kind!r}")


def _unpack_value(tag: str, value: Any, take: Any) -> Any:
    if tag == "b":
        return take(value)
    return [take(item) for item in value] if tag == "bs" else value
