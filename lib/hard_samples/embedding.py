# SPDX-License-Identifier: Apache-2.0
"""A few numbers for each sample, of which like samples have like ones, at little cost."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EMBEDDING_OUTPUT", "MOST_NUMBERS", "Embedding", "embedding_of"]

MOST_NUMBERS = 64
EMBEDDING_OUTPUT = "embedding"
"""A model's output of this name, such as its penultimate layer, is what its samples are compared by."""

_GRID, _DENSE = 8, 64
_CHANNELS = (1, 3, 4)
_NUMBERS = "biuf"
_LARGEST = 4_096
_CLOSE_PICTURES, _SAME, _NEVER = 0.05, 1e-6, -1.0


@dataclass(frozen=True, slots=True)
class Embedding:
    """What samples are compared by.

    Parameters
    ----------
    values
        At most 64 finite numbers.
    near
        Below this distance, beside their own length, two samples are the same for a labeller; below 0 none are.
    """

    values: NDArray[np.float32]
    near: float


def embedding_of(inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> Embedding:
    """Return the embedding of one sample.

    Parameters
    ----------
    inputs, outputs
        Of the model, without the batch axis. An output named `embedding` is taken; else the first input: a picture's
        mean brightness in 8 x 8 fields, other numbers as they are or, where there are more than 64, in a random
        projection (Achlioptas 2003), texts by the words in them.
    """
    own = outputs.get(EMBEDDING_OUTPUT)
    if own is not None and own.dtype.kind in _NUMBERS:
        return Embedding(_projected(own), _CLOSE_PICTURES)
    value = next(iter(inputs.values()))
    if value.dtype.kind not in _NUMBERS:
        return Embedding(_finite(_of_texts(value.ravel().tolist())), _NEVER)
    picture = _picture(value)
    if picture is not None:
        return Embedding(_finite(_fields(picture)), _CLOSE_PICTURES)
    return Embedding(_projected(value), _SAME)


def _picture(value: NDArray[Any]) -> NDArray[Any] | None:
    """Return an image as height x width x channels, or None where it is none."""
    if value.ndim == 2:
        value = value[:, :, None]
    if value.ndim == 3 and value.shape[2] not in _CHANNELS and value.shape[0] in _CHANNELS:
        value = np.moveaxis(value, 0, 2)
    large = value.ndim == 3 and value.shape[2] in _CHANNELS and min(value.shape[:2]) >= _GRID
    return value if large else None


def _fields(picture: NDArray[Any]) -> NDArray[np.float32]:
    # Of a large picture not every pixel is looked at.
    height, width = (max(side // _DENSE, 1) for side in picture.shape[:2])
    sparse = picture[::height, ::width]
    rows, columns = (side // _GRID for side in sparse.shape[:2])
    whole = sparse[: rows * _GRID, : columns * _GRID]
    fields = whole.reshape(_GRID, rows, _GRID, columns, -1)
    found: NDArray[np.float32] = fields.mean((1, 3, 4), dtype=np.float32).ravel()
    return found


def _projected(value: NDArray[Any]) -> NDArray[np.float32]:
    flat = value.ravel()
    if flat.size > _LARGEST:
        step = -(-flat.size // _LARGEST)
        flat = flat[::step]
    found = _finite(flat)
    return found if found.size <= MOST_NUMBERS else _finite(found @ _projection(found.size))


@lru_cache(maxsize=8)
def _projection(size: int) -> NDArray[np.float32]:
    signs = np.random.default_rng(size).integers(0, 2, (size, MOST_NUMBERS)) * 2 - 1
    found: NDArray[np.float32] = (signs / np.sqrt(MOST_NUMBERS)).astype(np.float32)
    return found


def _of_texts(texts: Iterable[Any]) -> NDArray[np.float32]:
    found = np.zeros(MOST_NUMBERS, np.float32)
    for text in texts:
        words = (text if isinstance(text, bytes) else str(text).encode("utf-8", "replace")).split()
        for word in words[:_LARGEST]:
            found[zlib.crc32(word) % MOST_NUMBERS] += 1
    return found


def _finite(values: NDArray[Any]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=1e15, neginf=-1e15)
    return found
