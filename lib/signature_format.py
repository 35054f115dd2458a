# SPDX-License-Identifier: Apache-2.0
"""The form of a signature: its parts, its bytes, and what is refused when it comes from elsewhere.

Layout: `SCSG`, version, flags, identity of the spec, D, C, then columns of C or C x D numbers, little-endian. Nothing
in it is executable; every length is checked before it is used.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import WireError

__all__ = ["MAX_CLASSES", "MAX_DIMENSION", "UNLABELLED", "Signature"]

MAX_DIMENSION = 4096
MAX_CLASSES = 65_535
UNLABELLED = -(2**31)  # no label's: those that are whole numbers lie above it
_MAX_COUNT = 2**40
_MAGIC = b"SCSG"
_HEAD = struct.Struct(">4sBBIHH")
_LABELLED, _EXACT = 1, 2


@dataclass(frozen=True, eq=False)
class Signature:
    """Class means of an edge's (or a group's) features, and how certain each is.

    Parameters
    ----------
    identity
        `SignatureSpec.identity`.
    labelled
        Whether classes are labels; else there is one class, `UNLABELLED`, of all inputs.
    classes
        Class ids, ascending: C x int64.
    counts
        Samples of each class n_c: C x int64.
    means
        Class means μ_c: C x D float32.
    traces
        tr Σ_c, unbiased: C x float32.
    squares
        tr Σ_c², unbiased and at least tr(Σ_c)²/D: C x float32.
    noise
        Variance that privacy noise added to each coordinate of each μ_c: C x float32.
    """

    identity: int
    labelled: bool
    classes: NDArray[np.int64]
    counts: NDArray[np.int64]
    means: NDArray[np.float32]
    traces: NDArray[np.float32]
    squares: NDArray[np.float32]
    noise: NDArray[np.float32]

    @property
    def total(self) -> int:
        """Number of samples that it counts."""
        return int(self.counts.sum())

    @property
    def dimension(self) -> int:
        """Number of features D."""
        return int(self.means.shape[1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signature) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the wire form: 2·D + 24 bytes for each class of an edge, 4·D + 24 for each of a merged signature.

        Means that fit into half precision travel so; an edge's always do.
        """
        half = self.means.astype(np.float16)
        exact = not np.array_equal(half.astype(np.float32), self.means)
        flags = (_LABELLED if self.labelled else 0) | (_EXACT if exact else 0)
        head = _HEAD.pack(_MAGIC, 1, flags, self.identity, self.dimension, len(self.classes))
        columns = (self.traces, self.squares, self.noise)
        return b"".join(
            [
                head,
                self.classes.astype("<i4").tobytes(),
                self.counts.astype("<i8").tobytes(),
                *(column.astype("<f4").tobytes() for column in columns),
                (self.means if exact else half).astype("<f4" if exact else "<f2").tobytes(),
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Signature:
        """Return what `to_bytes` was called on.

        Raises
        ------
        WireError
            If `data` is of another version, damaged, or says what no data could: counts below 1, features that are
            larger than a cosine.
        """
        return _read(data)


def _read(data: bytes) -> Signature:
    if len(data) < _HEAD.size:
        raise WireError(f"a signature has {len(data)} bytes, expected at least {_HEAD.size}; it was cut on its way")
    magic, version, flags, identity, dimension, size = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != 1:
        raise WireError(
            f"a signature begins with {magic!r} version {version}, expected {_MAGIC!r} version 1; "
            "update both sides to the same version"
        )
    if flags & ~(_LABELLED | _EXACT):
        raise WireError(f"a signature has unknown flags {flags}; update both sides to the same version")
    if not 1 <= dimension <= MAX_DIMENSION:
        raise WireError(f"a signature has {dimension} features, expected 1 to {MAX_DIMENSION}")
    width = 4 if flags & _EXACT else 2
    expected = _HEAD.size + size * (24 + width * dimension)
    if len(data) != expected:
        raise WireError(
            f"a signature of {size} classes and {dimension} features has {len(data)} bytes, expected {expected}; "
            "it was cut on its way"
        )
    offset = _HEAD.size

    def take(dtype: str, count: int) -> NDArray[Any]:
        nonlocal offset
        values = np.frombuffer(data, dtype, count, offset)
        offset += values.nbytes
        return values

    classes, counts = take("<i4", size).astype(np.int64), take("<i8", size).astype(np.int64)
    traces, squares, noise = (take("<f4", size).astype(np.float32) for _ in range(3))
    means = take("<f4" if width == 4 else "<f2", size * dimension).astype(np.float32).reshape(size, dimension)
    signature = Signature(identity, bool(flags & _LABELLED), classes, counts, means, traces, squares, noise)
    _check(signature)
    return signature


def _check(signature: Signature) -> None:
    def refuse(what: str) -> None:
        raise WireError(f"a signature {what}; it is damaged or was made to mislead, so do not count its edge")

    for name in ("means", "traces", "squares", "noise"):
        if not np.isfinite(getattr(signature, name)).all():
            refuse(f"has {name} that are not finite numbers")
    if (signature.counts < 1).any() or (signature.counts > _MAX_COUNT).any():
        refuse(f"counts fewer than 1 or more than {_MAX_COUNT} samples of a class")
    if (np.diff(signature.classes) <= 0).any():
        refuse("does not list its classes once each, in ascending order")
    if not signature.labelled and signature.classes.tolist() not in ([], [UNLABELLED]):
        refuse(f"without labels has other classes than {UNLABELLED}")
    if (signature.noise < 0).any() or (signature.noise > 1e12).any():
        refuse("has a negative or absurd noise")
    room = 8 * np.sqrt(signature.noise)[:, None]
    if (np.abs(signature.means) > math.sqrt(2 / signature.dimension) * 1.01 + room).any():
        refuse("has means beyond what a cosine can give")
    if (signature.traces < 0).any() or (signature.traces > 8).any():
        refuse("has a variance beyond what a cosine can give")
    if (signature.squares < 0).any() or (signature.squares > 64).any():
        refuse("has a squared variance beyond what a cosine can give")
