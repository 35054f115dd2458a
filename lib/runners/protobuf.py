# SPDX-License-Identifier: Apache-2.0
"""A look at an ONNX file's outline without an ONNX package: whether it is whole, and where its weights are.

Wire format: https://protobuf.dev/programming-guides/encoding/; fields: onnx.proto, `ModelProto` and below.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ...core.errors import ModelError

__all__ = ["check_onnx", "looks_like_onnx"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# ModelProto.ir_version and .graph; GraphProto.initializer; TensorProto.external_data, an entry's key and value.
_IR_VERSION, _GRAPH, _INITIALIZER, _EXTERNAL, _KEY, _VALUE = 1, 7, 5, 13, 1, 2
_MOST_FIELDS = 10_000_000

_Field = tuple[int, int, int, int]
_Buffer = bytes | mmap.mmap


class _DamagedError(ValueError):
    pass


def looks_like_onnx(head: bytes) -> bool:
    """Tell whether a file's first bytes may be those of an ONNX model: ir_version comes first, and is small."""
    return len(head) > 2 and head[0] == (_IR_VERSION << 3 | _VARINT) and 1 <= head[1] < 64 and head[2] & 7 in (0, 2)


def check_onnx(path: Path, *, name: str) -> tuple[PurePosixPath, ...]:
    """Check that an ONNX file is whole as far as its outline tells, and return the files that hold weights for it.

    Raises
    ------
    ModelError
        If it is cut off or damaged, holds no graph, or a file that it names is not beside it.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            external = _external_files(data)
        except _DamagedError as error:
            raise ModelError(f"{name}: is no whole ONNX model ({error}); fetch or save it anew") from error
    for place in external:
        if place.is_absolute() or ".." in place.parts:
            raise ModelError(f"{name}: wants weights from {str(place)!r:.200}, outside its folder; it is not loaded")
        if not (path.parent / place).is_file():
            raise ModelError(
                f"{name}: keeps weights in {str(place)!r:.200}, which is not beside it; put it there, or save the "
                f"model in one file: onnx.save(onnx.load(…), …)"
            )
    return external


def _external_files(data: _Buffer) -> tuple[PurePosixPath, ...]:
    graphs = [(start, end) for number, kind, start, end in _fields(data, 0, len(data)) if _is(number, kind, _GRAPH)]
    if not graphs:
        raise _DamagedError("it holds no graph")
    found: dict[PurePosixPath, None] = {}
    for graph in graphs:
        for number, kind, start, end in _fields(data, *graph):
            if _is(number, kind, _INITIALIZER):
                found.update(dict.fromkeys(_places(data, start, end)))
    return tuple(found)


def _places(data: _Buffer, start: int, end: int) -> Iterator[PurePosixPath]:
    for number, kind, *entry in _fields(data, start, end):
        if _is(number, kind, _EXTERNAL):
            texts = {inner: bytes(data[a:b]) for inner, wire, a, b in _fields(data, *entry) if wire == _BYTES}
            if texts.get(_KEY) == b"location":
                yield PurePosixPath(texts.get(_VALUE, b"").decode("utf-8", "replace"))


def _is(number: int, kind: int, wanted: int) -> bool:
    return number == wanted and kind == _BYTES


def _fields(data: _Buffer, start: int, end: int) -> Iterator[_Field]:
    """Yield number, wire type, start and end of each field of a message."""
    at = start
    for _ in range(_MOST_FIELDS):
        if at == end:
            return
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            first, at = at, _varint(data, at, end)[1]
        elif kind in (_FIXED64, _FIXED32):
            first, at = at, at + (8 if kind == _FIXED64 else 4)
        elif kind == _BYTES:
            length, first = _varint(data, at, end)
            at = first + length
        else:
            raise _DamagedError(f"at byte {at} stands a field of an unknown kind")
        if number == 0 or at > end:
            raise _DamagedError(f"a part of it would end at byte {at}, behind its end at {end}")
        yield number, kind, first, at
    raise _DamagedError(f"it has more than {_MOST_FIELDS} parts")


def _varint(data: _Buffer, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _DamagedError(f"it is cut off at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _DamagedError(f"at byte {at} stands a number that is too long")
