# SPDX-License-Identifier: Apache-2.0
"""How samples become features that can be compared between edges: random Fourier features, and labels as classes."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..core.errors import DatasetError, WireError
from .signature_format import MAX_DIMENSION

__all__ = ["InputMoments", "SignatureSpec", "classes_of", "features_of", "needs_moments"]

_BLOCK = 2**20
_MOST_FEATURES = 65_536
_UNEQUAL = 5.0
_COUNT = struct.Struct(">I")


class SignatureSpec(BaseModel):
    """How every edge makes its signature; only signatures of one spec can be compared.

    Parameters
    ----------
    version
        Version of the method.
    seed
        Where the random projection comes from: the same numbers on every machine.
    dimension
        Number of features D; a class costs 2·D + 16 bytes.
    scale
        Frequency of the features, in radians for a standardised input.
    min_count
        A class with fewer samples on an edge is left out: small counts and what they give away never leave it.
    noise
        Standard deviation of the noise on a class mean, in units of the most that replacing one sample can move it
        (3/n_c); 0 adds none. It protects what a single sample of a known class looks like (Gaussian mechanism), not
        the counts n_c, which are sent as they are. On Fashion-MNIST with 200 to 500 samples an edge, ε = 8 costs
        nothing, ε = 4 misplaces edges (ARI .69 to 1.0) and ε = 2 finds one group only. See `noise_for`.
    use_labels
        Whether to take means class by class. Without, only the inputs are compared.
    centre, spread
        Mean and standard deviation to standardise inputs with, one number or one for each entry of their last axis
        (feature or channel). Empty: each sample is standardised by its own mean and deviation, so that edges need not
        agree on anything first. That is best for images (Fashion-MNIST, rotations: least η .69, and .47 with one
        scale for all) and as good for sensor windows. Tables whose features have units of their own need
        `standardised`: with a feature of pressures near 1013 among accelerations, label permutations are found with
        ARI 1.0 instead of .74. An edge's own mean and deviation would hide just the shifts that are to be found.
    shared_scale
        Whether edges first send moments of their inputs, from which `standardised` makes a scale for all. None leaves
        it to each edge (`needs_moments`), until the first answers have shown what most of them need.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    seed: int = Field(default=0, ge=0, lt=2**63)
    dimension: int = Field(default=64, ge=1, le=MAX_DIMENSION)
    scale: float = Field(default=1.5, gt=0, le=100)
    min_count: int = Field(default=3, ge=3, le=1_000_000)
    noise: float = Field(default=0.0, ge=0, le=1e6)
    use_labels: bool = True
    centre: tuple[float, ...] = Field(default=(), max_length=65_536)
    spread: tuple[float, ...] = Field(default=(), max_length=65_536)
    shared_scale: bool | None = None

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if len(self.centre) != len(self.spread):
            raise ValueError(f"centre has {len(self.centre)} numbers and spread {len(self.spread)}; expected as many")
        if not all(map(math.isfinite, self.centre)) or not all(0 < s < math.inf for s in self.spread):
            raise ValueError("centre and spread are not all finite, or a spread is not above 0; leave both empty")
        return self

    def standardised(self, moments: Sequence[InputMoments]) -> SignatureSpec:
        """Return this spec with the centre and spread that the edges' inputs have in common.

        Each is the median over the edges, so that a few of them with absurd numbers do not matter.

        Raises
        ------
        ValueError
            If there are none, or the edges' inputs differ in their last axis.
        """
        sizes = {len(m.means) for m in moments}
        if len(sizes) != 1:
            raise ValueError(f"edges have inputs with {sorted(sizes)} features; expected one number for all")
        centre = np.median([m.means for m in moments], axis=0)
        spread = np.sqrt(np.median([m.variances + (m.means - centre) ** 2 for m in moments], axis=0))
        spread = np.where(spread > 1e-6 * np.maximum(np.abs(centre), 1e-6), spread, 1.0)
        return SignatureSpec(
            **{**self.model_dump(), "centre": tuple(centre.tolist()), "spread": tuple(spread.tolist())}
        )

    @property
    def identity(self) -> int:
        """A checksum: signatures with different ones cannot be compared."""
        said = self.model_dump_json(exclude={"min_count", "noise", "use_labels", "shared_scale"})
        return zlib.crc32(said.encode())

    def asks_moments(self, x: ArrayLike) -> bool:
        """Tell whether an edge with these inputs is to answer with their moments, before it signs."""
        if self.centre or self.shared_scale is False:
            return False
        return self.shared_scale is True or needs_moments(x)


@dataclass(frozen=True)
class InputMoments:
    """Mean and variance of an edge's inputs for each entry of their last axis (feature or channel): k float64 each."""

    means: NDArray[np.float64]
    variances: NDArray[np.float64]

    @classmethod
    def of(cls, x: ArrayLike) -> InputMoments:
        """Return the moments of inputs, samples first.

        Raises
        ------
        DatasetError
            If there are no values, or some are not finite.
        """
        values = np.asarray(x)
        if values.ndim < 2 or not values.size or values.dtype.kind not in "biuf":
            raise DatasetError(
                f"inputs are {values.dtype} of shape {values.shape}; expected numbers, samples x features"
            )
        axes = tuple(range(values.ndim - 1))
        with np.errstate(invalid="ignore", over="ignore"):
            means, variances = values.mean(axes, dtype=np.float64), values.var(axes, dtype=np.float64)
        if not (np.isfinite(means).all() and np.isfinite(variances).all()):
            raise DatasetError("inputs have NaN or infinite values; remove or replace them before they are signed")
        return cls(means, variances)

    def to_bytes(self) -> bytes:
        """Return the wire form, 4 + 16·k bytes."""
        return (
            _COUNT.pack(len(self.means)) + self.means.astype("<f8").tobytes() + self.variances.astype("<f8").tobytes()
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> InputMoments:
        """Return what `to_bytes` was called on.

        Raises
        ------
        WireError
            If `data` is damaged, or has values that are not finite or variances below 0.
        """
        size = _COUNT.unpack_from(data)[0] if len(data) >= _COUNT.size else 0
        if not 1 <= size <= _MOST_FEATURES or len(data) != _COUNT.size + 16 * size:
            raise WireError(f"moments of {size} features have {len(data)} bytes; they were cut on their way")
        means, variances = np.frombuffer(data, "<f8", offset=_COUNT.size).astype(np.float64).reshape(2, size)
        if not (np.isfinite(means).all() and np.isfinite(variances).all() and (variances >= 0).all()):
            raise WireError("moments are not finite or have a variance below 0; do not count their edge")
        return cls(means, variances)


def needs_moments(x: ArrayLike) -> bool:
    """Tell whether inputs are a table whose features have units of their own, so that a spec needs their moments.

    That is so if the largest feature is several times the usual one. Images, windows and sequences, also flattened
    ones, are standardised sample by sample as well or better.
    """
    if np.ndim(x) != 2 or not np.size(x):
        return False
    sizes = np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis=0))
    usual = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 0.0
    return bool(sizes.max() > _UNEQUAL * usual)


def classes_of(y: NDArray[Any], count: int) -> NDArray[np.int64] | None:
    """Return class ids of `count` labels, or None where they are no classes (several continuous targets)."""
    if y.ndim == 0 or len(y) != count:
        raise DatasetError(f"labels have shape {y.shape}, expected one for each of the {count} inputs")
    if y.ndim > 1 and y[0:1].size == 1:
        y = y.reshape(len(y))
    if y.dtype.kind in "US":
        found, inverse = np.unique(y, return_inverse=True)
        hashed = [zlib.crc32(str(name).encode()) >> 1 for name in found.tolist()]
        return np.array(hashed, np.int64)[inverse]
    if y.dtype.kind not in "biuf":
        raise DatasetError(f"labels are {y.dtype}, expected numbers or text")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise DatasetError("labels are not all finite numbers; remove those samples")
    if y.ndim == 1:
        whole = (y.dtype.kind != "f" or bool((y == np.rint(y)).all())) and _fits(y)
        return y.astype(np.int64) if whole else _bins(y.astype(np.float64))
    if y.ndim == 2 and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all():
        chosen: NDArray[np.int64] = y.argmax(1).astype(np.int64)
        return chosen
    return None


def _bins(y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return sign and power of two of each target: bins that edges need not agree on, whatever the unit is."""
    bins: NDArray[np.int64] = (np.sign(y) * (np.frexp(y)[1] + 2000)).astype(np.int64)
    return bins


def _fits(y: NDArray[Any]) -> bool:
    return not len(y) or (float(y.min()) > -(2**31) and float(y.max()) < 2**31)


def features_of(x: NDArray[Any], spec: SignatureSpec) -> NDArray[np.float32]:
    """Return φ: n x D."""
    count = len(x)
    flat = x.reshape(count, -1) if count else x.reshape(0, math.prod(x.shape[1:]))
    size, last = flat.shape[1], x.shape[-1] if x.ndim > 1 else 1
    if not size:
        raise DatasetError(f"inputs of shape {x.shape} have no values; expected at least one for each sample")
    centre, spread = _standard(flat, last, spec)
    stream = np.random.PCG64(spec.seed)
    phase = _uniform(stream, spec.dimension) * (2 * math.pi)
    angles = np.zeros((count, spec.dimension), np.float32)
    # In blocks of columns: for a large image neither the whole matrix nor a float copy of all inputs is ever held.
    step = max(last, _BLOCK // max(count, spec.dimension) // last * last)
    for begin in range(0, size, step):
        end = min(size, begin + step)
        block = flat[:, begin:end].astype(np.float32)
        block -= centre if centre.shape[1] == 1 else np.tile(centre, (end - begin) // last)
        block /= spread if spread.shape[1] == 1 else np.tile(spread, (end - begin) // last)
        angles += block @ _normal(stream, (end - begin) * spec.dimension).reshape(end - begin, spec.dimension)
    angles *= spec.scale / math.sqrt(size)
    angles += phase.astype(np.float32)
    np.cos(angles, out=angles)
    angles *= math.sqrt(2 / spec.dimension)
    return angles


def _standard(flat: NDArray[Any], last: int, spec: SignatureSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what to take off and what to divide by: n x 1, 1 x 1 or 1 x last."""
    means, deviations = np.empty((len(flat), 1), np.float64), np.empty((len(flat), 1), np.float64)
    rows = max(1, _BLOCK // flat.shape[1])
    for begin in range(0, len(flat), rows):
        block = flat[begin : begin + rows].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            means[begin : begin + rows, 0], deviations[begin : begin + rows, 0] = block.mean(1), block.std(1)
    if not (np.isfinite(means).all() and np.isfinite(deviations).all()):
        raise DatasetError("inputs have NaN or infinite values; remove or replace them before they are signed")
    if not spec.centre:
        # A constant sample has nothing but its mean to tell; it becomes zero.
        return means.astype(np.float32), np.where(deviations > 1e-6, deviations, 1.0).astype(np.float32)
    centre, spread = np.array([spec.centre], np.float32), np.array([spec.spread], np.float32)
    for name, value in (("centre", centre), ("spread", spread)):
        if value.shape[1] not in {1, last}:
            raise DatasetError(f"the {name} of the spec is for {value.shape[1]} features, the inputs have {last}")
    return centre, spread


def _uniform(stream: np.random.PCG64, count: int) -> NDArray[np.float64]:
    """Return numbers in (0, 1] from the raw stream: unlike `Generator`'s, it never changes with NumPy's version."""
    raw: NDArray[np.uint64] = stream.random_raw(count)
    return ((raw >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53


def _normal(stream: np.random.PCG64, count: int) -> NDArray[np.float32]:
    """Return normal numbers (Box & Muller 1958)."""
    pairs = -(-count // 2)
    u = _uniform(stream, 2 * pairs).reshape(pairs, 2)
    radius, angle = np.sqrt(-2 * np.log(u[:, 0])), 2 * math.pi * u[:, 1]
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]).reshape(-1)[:count].astype(np.float32)
