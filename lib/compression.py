# SPDX-License-Identifier: Apache-2.0
"""Models in fewer bytes: a model as its difference from one that the receiver has, rounded, sparse, entropy coded.

Pure functions over named arrays. What they return together with the bytes is exactly what `decode` makes of them, so
that the sender knows what the receiver has and can carry the error of this time into the next (error feedback: Seide
et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847). Keeping the largest entries follows Aji & Heafield 2017
(arXiv:1704.05021), coding both directions Sattler et al. 2019 (arXiv:1903.02891).

Layout: for each array in the model's order one byte for its kind, its length (4 bytes, little-endian), its bytes.
Arrays of other dtypes than float16, float32 and float64 are never rounded.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from ..core.errors import WireError
from .exchange import ArraySpec, Weights, to_weights

__all__ = ["Coder", "decode", "digest", "encode", "form_of", "readable", "work_dtype"]

_ITEM = struct.Struct("<BI")
_SCALE = struct.Struct("<d")
_COUNT = struct.Struct("<I")
_MOST_BYTES = 2**32 - 1
_LEVELS = 127
_ESCAPE = 255
_STEP = 1.0  # of the root mean square of the differences; benchmarks/compression.py compares the accuracy
_SQUARED = 1e14  # sums of squares of larger float32 overflow
_LEAST = 1e-18  # a difference below this is none, and its square would be no normal float32
_SMALL = 256  # entries; below this the head of a sparse array costs more than it saves


class _Kind(IntEnum):
    """How one array is coded. All but `RAW` are differences from the base."""

    RAW = 0
    SAME = 1
    HALF = 2
    BYTE = 3
    SPARSE = 4


@dataclass(frozen=True)
class Coder:
    """How differences are coded.

    Parameters
    ----------
    method
        `exact` keeps every bit; `fp16` and `int8` round with one scale for each array; `topk` also keeps only the
        largest entries of each array.
    fraction
        Share of an array's entries that `topk` keeps.
    """

    method: Literal["exact", "fp16", "int8", "topk"]
    fraction: float = 1.0


def work_dtype(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return the dtype in which differences of `dtype` are made, or None where it is never rounded."""
    if dtype.kind != "f" or dtype.itemsize > 8:
        return None
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def form_of(weights: Mapping[str, NDArray[Any]]) -> list[ArraySpec]:
    """Return names, shapes and dtypes of a model."""
    return [ArraySpec(name=name, shape=value.shape, dtype=str(value.dtype)) for name, value in weights.items()]


def digest(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return 32 hexadecimal digits that tell one model, its form included, from any other."""
    form = [[name, str(value.dtype), list(value.shape)] for name, value in weights.items()]
    found = hashlib.blake2b(json.dumps(form).encode(), digest_size=16)
    for value in weights.values():
        found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def readable(arrays: ArrayRecord) -> Weights | None:
    """Return a record's arrays if they can be coded; None if they must go as they are.

    NaN, infinities and unusual dtypes are not coded, so that whoever screens a model sees what was sent.
    """
    try:
        weights = to_weights(arrays)
    except Exception:  # noqa: BLE001 - bytes and labels that do not fit: the receiver says what is wrong with them
        return None
    for name, value in weights.items():
        array = arrays[name]
        plain = value.dtype.kind in "biufc" and value.dtype.isnative and value.dtype.itemsize <= 16
        if not plain or str(value.dtype) != array.dtype or value.shape != tuple(array.shape):
            return None
        if value.dtype.kind in "fc" and not np.isfinite(value).all():
            return None
    return {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in weights.items()}


def encode(
    target: Mapping[str, NDArray[Any]],
    base: Mapping[str, NDArray[Any]] | None,
    coder: Coder,
    *,
    residual: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[bytes, Weights]:
    """Code `target` against `base`.

    Parameters
    ----------
    target
        Finite arrays.
    base
        Arrays of the same form, which the receiver has; None for zeros, which no method but `exact` and `fp16` takes.
    coder
        How.
    residual
        For each rounded array what earlier calls lost; it is added to the difference.

    Returns
    -------
    tuple
        The bytes, and the arrays that `decode` gives for them.
    """
    items: list[bytes] = []
    decoded: Weights = {}
    for name, value in target.items():
        start = base[name] if base is not None else None
        lost = residual.get(name) if residual is not None else None
        kind, body, decoded[name] = _encode_array(value, start, coder, lost)
        if len(body) > _MOST_BYTES:
            raise WireError(f"array {name} has more than {_MOST_BYTES} bytes and cannot be sent; split the layer")
        items += [_ITEM.pack(kind, len(body)), body]
    return b"".join(items), decoded


def decode(data: bytes, form: Sequence[ArraySpec], base: Mapping[str, NDArray[Any]] | None) -> Weights:
    """Return the arrays that `encode` coded.

    Parameters
    ----------
    data
        The bytes.
    form
        What the arrays are called and look like.
    base
        What they were coded against; None for zeros.

    Raises
    ------
    WireError
        If the bytes are damaged, or do not fit `form`.
    """
    found: Weights = {}
    parts = _items(memoryview(data))
    for spec in form:
        kind, body = next(parts, (None, b""))
        if kind is None:
            raise WireError(f"a coded model ends before its array {spec.name}; update both sides to the same version")
        try:
            dtype = np.dtype(spec.dtype)
            if dtype.kind not in "biufc" or min(spec.shape, default=0) < 0:
                raise ValueError(f"{spec} is no array that is sent coded")
            start = base[spec.name] if base is not None else None
            found[spec.name] = _decode_array(kind, bytes(body), spec, start)
        except (ValueError, TypeError, KeyError, OverflowError, zlib.error, struct.error) as error:
            raise WireError(f"array {spec.name} of a coded model cannot be read: {error}") from error
    if next(parts, None) is not None:
        raise WireError("a coded model has more arrays than its form names; update both sides to the same version")
    return found


def _items(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    offset = 0
    while offset < len(data):
        if offset + _ITEM.size > len(data):
            raise WireError("a coded model was cut; update both sides to the same version")
        kind, length = _ITEM.unpack_from(data, offset)
        offset += _ITEM.size
        if offset + length > len(data):
            raise WireError("a coded model was cut; update both sides to the same version")
        yield kind, data[offset : offset + length]
        offset += length


def _encode_array(
    value: NDArray[Any], base: NDArray[Any] | None, coder: Coder, residual: NDArray[Any] | None
) -> tuple[_Kind, bytes, NDArray[Any]]:
    """Return kind, bytes and what they decode to, which is computed from the same numbers in the same order."""
    work = work_dtype(value.dtype)
    if work is None or coder.method == "exact" or not value.size:
        raw = value.tobytes()
        if base is not None and raw == base.tobytes():
            return _Kind.SAME, b"", base
        return _Kind.RAW, raw, value
    difference = value.astype(work)
    with np.errstate(over="ignore", invalid="ignore"):
        if base is not None:
            difference -= base
        if residual is not None:
            difference += residual
        flat = difference.reshape(-1)
        largest = float(np.abs(flat).max())
    if not math.isfinite(largest):  # of two finite values that are as far apart as can be
        return _Kind.RAW, value.tobytes(), value
    if largest < _LEAST:
        return (_Kind.SAME, b"", base) if base is not None else (_Kind.RAW, value.tobytes(), value)
    if coder.method == "fp16":
        halves = (flat / work.type(largest)).astype("<f2")
        return _Kind.HALF, _SCALE.pack(largest) + halves.tobytes(), _moved(halves, largest, value, base)
    if base is None:
        raise ValueError("a whole model is coded as exact or fp16 only")
    if coder.method == "int8" or flat.size < _SMALL:
        step, levels = _rounded(flat, largest)
        return _Kind.BYTE, _SCALE.pack(step) + _deflate(levels), _moved(levels, step, value, base)
    places = _largest(flat, coder.fraction)
    step, levels = _rounded(flat[places], largest)
    gaps = _deflate(_gaps(places))
    head = _SCALE.pack(step) + _COUNT.pack(len(places)) + _COUNT.pack(len(gaps))
    return _Kind.SPARSE, head + gaps + _deflate(levels), _moved_at(places, levels, step, base)


def _moved(
    levels: NDArray[Any], scale: float, like: NDArray[Any] | ArraySpec, base: NDArray[Any] | None
) -> NDArray[Any]:
    """Return `base` with so many times `scale` added to each entry."""
    dtype = np.dtype(like.dtype)
    work = work_dtype(dtype)
    assert work is not None
    found = levels.astype(work).reshape(like.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        found *= work.type(scale)
        if base is not None:
            found += base
        return found.astype(dtype, copy=False)


def _moved_at(places: NDArray[np.intp], levels: NDArray[Any], scale: float, base: NDArray[Any]) -> NDArray[Any]:
    """Return `base` with so many times `scale` added to the entries at `places`."""
    work = work_dtype(base.dtype)
    assert work is not None
    found = np.array(base, order="C")
    flat = found.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        flat[places] = (flat[places].astype(work) + levels.astype(work) * work.type(scale)).astype(base.dtype)
    return found


def _rounded(flat: NDArray[Any], largest: float) -> tuple[float, NDArray[np.int8]]:
    """Return a step's width, and how many steps each value is."""
    # Wide enough for the largest value, and no narrower than what is seen beside the usual one: most values then are
    # few steps, which take 2 bits instead of 8.
    usual = math.sqrt(float(np.dot(flat, flat)) / flat.size) if largest < _SQUARED else 0.0
    step = max(largest / _LEVELS, _STEP * usual)
    scaled = flat * flat.dtype.type(1.0 / step)
    np.clip(np.rint(scaled, out=scaled), -_LEVELS, _LEVELS, out=scaled)
    return step, np.asarray(scaled, dtype=np.int8)


def _largest(flat: NDArray[Any], fraction: float) -> NDArray[np.intp]:
    """Return where the largest entries are, in ascending order."""
    kept = max(1, min(flat.size, round(flat.size * fraction)))
    sizes = np.abs(flat)
    threshold = np.partition(sizes, flat.size - kept)[flat.size - kept]
    return np.flatnonzero((sizes >= threshold) & (sizes > 0))[:kept]


def _gaps(places: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return how many entries lie before each place, as bytes; 255 means so many and more to come."""
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // _ESCAPE + 1) - 1
    found = np.full(int(ends[-1]) + 1, _ESCAPE, np.uint8)
    found[ends] = gaps % _ESCAPE
    return found


def _places(gaps: NDArray[np.uint8], count: int, size: int) -> NDArray[np.intp]:
    ends = np.flatnonzero(gaps != _ESCAPE)
    if len(ends) != count or (count and ends[-1] != len(gaps) - 1):
        raise ValueError("its places are damaged")
    places = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(count)
    if count and places[-1] >= size:
        raise ValueError(f"it has an entry {places[-1]} of {size}")
    return places.astype(np.intp)


def _decode_array(kind: int, body: bytes, spec: ArraySpec, base: NDArray[Any] | None) -> NDArray[Any]:
    size, dtype = math.prod(spec.shape), np.dtype(spec.dtype)
    if kind == _Kind.RAW:
        if len(body) != size * dtype.itemsize:
            raise ValueError(f"it has {len(body)} bytes, expected {size * dtype.itemsize}")
        return np.frombuffer(body, dtype).reshape(spec.shape)
    if base is not None and kind == _Kind.SAME and not body:
        return base
    work = work_dtype(dtype)
    if work is None or (base is None and kind != _Kind.HALF):
        raise ValueError(f"kind {kind} does not go with {dtype} {'against a base' if base is not None else 'alone'}")
    if kind == _Kind.HALF:
        if len(body) != _SCALE.size + 2 * size:
            raise ValueError(f"it has {len(body)} bytes, expected {_SCALE.size + 2 * size}")
        halves = np.frombuffer(body, "<f2", offset=_SCALE.size)
        if not np.isfinite(halves).all():
            raise ValueError("it has differences that are not finite, which are never sent rounded")
        return _moved(halves, _scale(body, work), spec, base)
    if kind == _Kind.BYTE:
        return _moved(_levels(body[_SCALE.size :], size), _scale(body, work), spec, base)
    if kind == _Kind.SPARSE and base is not None:
        return _decode_sparse(body, _scale(body, work), base)
    raise ValueError(f"it is of kind {kind}, which this version does not know")


def _decode_sparse(body: bytes, scale: float, base: NDArray[Any]) -> NDArray[Any]:
    (count,), (length,) = _COUNT.unpack_from(body, _SCALE.size), _COUNT.unpack_from(body, _SCALE.size + _COUNT.size)
    start = _SCALE.size + 2 * _COUNT.size
    if count > base.size or start + length > len(body):
        raise ValueError(f"it says that it keeps {count} of {base.size} entries")
    gaps = _inflate(body[start : start + length], count + base.size // _ESCAPE + 1)
    places = _places(np.frombuffer(gaps, np.uint8), count, base.size)
    return _moved_at(places, _levels(body[start + length :], count), scale, base)


def _levels(data: bytes, count: int) -> NDArray[np.int8]:
    levels = np.frombuffer(_inflate(data, count), np.int8)
    if len(levels) != count:
        raise ValueError(f"it has {len(levels)} values, expected {count}")
    return levels


def _scale(body: bytes, work: np.dtype[Any]) -> float:
    (scale,) = _SCALE.unpack_from(body)
    if not (0 < scale <= float(np.finfo(work).max)):
        raise ValueError(f"its scale is {scale}, expected a finite number above 0")
    return float(scale)


def _deflate(values: NDArray[Any]) -> bytes:
    # Rounded differences have no repeats worth looking for; their histogram is all that there is to gain, and runs of
    # zeros where little moved.
    coder = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    return coder.compress(values.tobytes()) + coder.flush()


def _inflate(data: bytes, most: int) -> bytes:
    decoder = zlib.decompressobj(-15)
    found = decoder.decompress(data, most + 1)
    if len(found) > most or not decoder.eof or decoder.unused_data:
        raise ValueError(f"it holds other than the {most} bytes that were expected")
    return found
