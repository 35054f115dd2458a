# SPDX-License-Identifier: Apache-2.0
"""Sound as a WAV file, of 16 bits or of floats, which Python's own `wave` does not write."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import WireError

__all__ = ["decode_wav", "encode_wav"]

_MOST_CHANNELS = 8
_PCM, _FLOAT = 1, 3
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_CHUNK, _FORMAT = struct.Struct("<4sI"), struct.Struct("<HHIIHH")
_DTYPES: dict[tuple[int, int], np.dtype[Any]] = {(_PCM, 16): np.dtype("<i2"), (_FLOAT, 32): np.dtype("<f4")}


def encode_wav(sound: NDArray[Any], rate: int) -> bytes | None:
    """Return a WAV file, or None where the array is no sound.

    Parameters
    ----------
    sound
        Shape (samples,) or (samples, channels) with at most 8 channels; int16, or floats, of which 32 bits are kept.
    rate
        Samples a second.
    """
    channels = sound.shape[1] if sound.ndim == 2 else 1
    if sound.ndim not in (1, 2) or not 1 <= channels <= _MOST_CHANNELS or sound.size >= 1 << 28:
        return None
    if sound.dtype != np.int16 and sound.dtype.kind != "f":
        return None
    kind, dtype = (_PCM, "<i2") if sound.dtype == np.int16 else (_FLOAT, "<f4")
    data = np.asarray(sound, dtype, order="C").tobytes()
    width = np.dtype(dtype).itemsize
    return (
        _HEADER.pack(
            b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16,
            kind, channels, rate, rate * channels * width, channels * width, 8 * width, b"data", len(data),
        )
        + data
    )  # fmt: skip


def decode_wav(content: bytes, *, axes: int = 1) -> NDArray[Any]:
    """Return the sound of a WAV file: (samples,), or (samples, channels) for several channels or with `axes` 2.

    Raises
    ------
    WireError
        If it is damaged, or of another form than 16 bits or floats of 32.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise WireError("a sound is no WAV file")
    place, channels = 12, 0
    dtype: np.dtype[Any] | None = None
    while place + _CHUNK.size <= len(content):
        name, size = _CHUNK.unpack_from(content, place)
        place += _CHUNK.size
        if name == b"fmt " and size >= _FORMAT.size and place + _FORMAT.size <= len(content):
            kind, channels, _, _, _, bits = _FORMAT.unpack_from(content, place)
            dtype = _DTYPES.get((kind, bits))
            if dtype is None or not 1 <= channels <= _MOST_CHANNELS:
                raise WireError(
                    f"a sound has {bits} bits of the kind {kind} in {channels} channels; expected 16-bit "
                    f"PCM or 32-bit floats in at most {_MOST_CHANNELS}"
                )
        elif name == b"data" and dtype is not None:
            if size > len(content) - place or size % (channels * dtype.itemsize):
                raise WireError("a sound ends within its samples")
            values: NDArray[Any] = np.frombuffer(content, dtype, size // dtype.itemsize, place).astype(
                dtype.newbyteorder("=")
            )
            return values.reshape(-1, channels) if channels > 1 or axes == 2 else values
        place += size + size % 2
    raise WireError("a sound has no samples")
