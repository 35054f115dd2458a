# SPDX-License-Identifier: Apache-2.0
"""A look at a LiteRT file's outline before LiteRT reads it: what it points to has to be there.

LiteRT checks that the file is well-formed, not that an operator's tensors exist: a single damaged number there ends
the process. Format: https://flatbuffers.dev/internals/; fields: LiteRT's schema.fbs, `Model` and below.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError

__all__ = ["check_litert"]

# Numbers of fields within their tables.
_OPERATOR_CODES, _SUBGRAPHS, _BUFFERS, _SIGNATURES = 1, 2, 4, 7
_TENSORS, _INPUTS, _OUTPUTS, _OPERATORS = 0, 1, 2, 3
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS, _SIGNATURE_SUBGRAPH = 0, 1, 4
_OLD_BUILTIN_CODE, _BUILTIN_CODE = 0, 3
_TYPE, _TENSOR_BUFFER, _QUANTIZATION, _MAP_TENSOR, _OPCODE = 1, 2, 4, 1, 0
_SCALE, _ZERO_POINT = 2, 3
_BUFFER_OFFSET, _BUFFER_SIZE = 1, 2
# Operators that may lack some of their inputs, such as a bias: convolutions, fully connected, recurrent and own ones.
_WITH_OPTIONAL_INPUTS = frozenset({3, 4, 9, 16, 24, 27, 32, 35, 44, 46, 52, 67, 132})
_NEVER_OPTIONAL = 2
# By the number of the tensor's type: UINT8 and INT8.
_ZERO_POINTS = {3: (0, 255), 9: (-128, 127)}
_MOST_ITEMS = 1_000_000


class _DamagedError(ValueError):
    pass


@dataclass(frozen=True)
class _Table:
    """A table of the file: where it starts, and where each field's value is relative to that."""

    data: mmap.mmap
    at: int

    def number(self, field: int, form: str = "I") -> int:
        """Return a number, 0 where it is left out."""
        place = self._place(field)
        return int(struct.unpack_from(f"<{form}", self.data, place)[0]) if place else 0

    def array(self, field: int, dtype: str) -> NDArray[Any]:
        """Return a vector of numbers of eight bytes or four, by NumPy's name of their type."""
        start, count = self._vector(field, np.dtype(dtype).itemsize)
        # A copy: a view would keep the file from being closed.
        return np.frombuffer(self.data, dtype, count, start).copy() if count else np.empty(0, dtype)

    def table(self, field: int) -> _Table | None:
        """Return a table, or None where it is left out."""
        place = self._place(field)
        return _Table(self.data, place + _unsigned(self.data, place)) if place else None

    def tables(self, field: int) -> list[_Table]:
        """Return a vector of tables."""
        start, count = self._vector(field, 4)
        places = range(start, start + 4 * count, 4)
        return [_Table(self.data, place + _unsigned(self.data, place)) for place in places]

    def _place(self, field: int) -> int:
        outline = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        if outline < 0:
            raise _DamagedError(f"at byte {self.at} stands a table without an outline")
        slot = 4 + 2 * field
        if slot >= struct.unpack_from("<H", self.data, outline)[0]:
            return 0
        offset = struct.unpack_from("<H", self.data, outline + slot)[0]
        return self.at + int(offset) if offset else 0

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + _unsigned(self.data, place)
        count = _unsigned(self.data, start)
        if count > _MOST_ITEMS or start + 4 + size * count > len(self.data):
            raise _DamagedError(f"at byte {start} stands a list of {count} items, more than there is room for")
        return start + 4, count


def check_litert(path: Path, *, name: str) -> None:
    """Check that what a LiteRT file's operators, subgraphs and signatures point to is there.

    Raises
    ------
    ModelError
        If it is not, or the file is cut off or damaged in another way that its outline tells.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _check(_Table(data, _unsigned(data, 0)), len(data))
        except (struct.error, IndexError, ValueError) as error:
            raise ModelError(f"{name}: is no whole LiteRT model ({error}); fetch or save it anew") from error


def _check(model: _Table, size: int) -> None:
    codes = [_builtin(code) for code in model.tables(_OPERATOR_CODES)]
    buffers = model.tables(_BUFFERS)
    for index, buffer in enumerate(buffers):
        # Large weights may stand behind the tables.
        end = buffer.number(_BUFFER_OFFSET, "Q") + buffer.number(_BUFFER_SIZE, "Q")
        if end > size:
            raise _DamagedError(f"buffer {index} would end at byte {end}, behind the file's end at {size}")
    subgraphs = model.tables(_SUBGRAPHS)
    if not subgraphs:
        raise _DamagedError("it holds no graph")
    for index, subgraph in enumerate(subgraphs):
        _check_subgraph(subgraph, f"subgraph {index}", codes, len(buffers))
    for index, signature in enumerate(model.tables(_SIGNATURES)):
        _check_signature(signature, f"signature {index}", subgraphs)


def _check_subgraph(subgraph: _Table, where: str, codes: Sequence[int], buffers: int) -> None:
    tensors = subgraph.tables(_TENSORS)
    for index, tensor in enumerate(tensors):
        _within(tensor.number(_TENSOR_BUFFER), buffers, f"{where}, tensor {index}", "buffer")
        _check_quantization(tensor, f"{where}, tensor {index}")
    written = set(subgraph.array(_INPUTS, "<i4").tolist())
    for field in (_INPUTS, _OUTPUTS):
        for each in subgraph.array(field, "<i4").tolist():
            _within(each, len(tensors), where, "tensor")
    for index, operator in enumerate(subgraph.tables(_OPERATORS)):
        place = f"{where}, operator {index}"
        code = operator.number(_OPCODE)
        _within(code, len(codes), place, "operator code")
        for position, each in enumerate(operator.array(_INPUTS, "<i4").tolist()):
            optional = codes[code] in _WITH_OPTIONAL_INPUTS and position >= _NEVER_OPTIONAL
            if not (optional and each == -1):
                _within(each, len(tensors), place, "tensor")
        for each in operator.array(_OUTPUTS, "<i4").tolist():
            _within(each, len(tensors), place, "tensor")
            if each in written:
                raise _DamagedError(f"{place} writes to tensor {each}, which is given or written before")
            written.add(each)


def _check_quantization(tensor: _Table, where: str) -> None:
    quantization, limits = tensor.table(_QUANTIZATION), _ZERO_POINTS.get(tensor.number(_TYPE, "b"))
    if quantization is None or limits is None:
        return
    zero_points = quantization.array(_ZERO_POINT, "<i8")
    if np.any((zero_points < limits[0]) | (zero_points > limits[1])):
        raise _DamagedError(f"{where} has zero points outside {limits[0]} to {limits[1]}")
    scales = quantization.array(_SCALE, "<f4")
    # Weights have a scale for each channel, which may be 0 where all of them are.
    if len(scales) == 1 and not np.finfo(np.float32).tiny <= scales[0] < np.inf:
        raise _DamagedError(f"{where} has the scale {scales[0]}")


def _check_signature(signature: _Table, where: str, subgraphs: Sequence[_Table]) -> None:
    chosen = signature.number(_SIGNATURE_SUBGRAPH)
    _within(chosen, len(subgraphs), where, "subgraph")
    tensors = len(subgraphs[chosen].tables(_TENSORS))
    for each in (*signature.tables(_SIGNATURE_INPUTS), *signature.tables(_SIGNATURE_OUTPUTS)):
        _within(each.number(_MAP_TENSOR), tensors, where, "tensor")


def _builtin(code: _Table) -> int:
    # Old files have room for 127 codes only; new ones keep the larger ones in a field of their own.
    return max(code.number(_OLD_BUILTIN_CODE, "b"), code.number(_BUILTIN_CODE, "i"))


def _within(index: int, count: int, where: str, what: str) -> None:
    if not 0 <= index < count:
        raise _DamagedError(f"{where} points to {what} {index}, and there are {count}")


def _unsigned(data: mmap.mmap, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
