# SPDX-License-Identifier: Apache-2.0
"""A few kilobytes that say how an edge's data are distributed: class means of random Fourier features.

Two edges that hold the same task have the same class means up to chance, whichever samples each holds of a class; a
rotation moves them, and so does another labelling. Signatures add: a group's is made from its members' alone.

The measured study behind it: class means of φ(x) = √(2/D)·cos(scale·Gx/√d + b) (Rahimi & Recht 2007), and for the
spread of their differences the unbiased traces of the covariance and of its square (Chen & Qin 2010; Bai & Saranadasa
1996).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..core.errors import DatasetError, WireError

__all__ = ["Embedding", "Signature", "SignatureSpec", "merge", "noise_for", "sign"]

Embedding = Callable[[NDArray[Any]], ArrayLike]

# What a sample can contribute: |φ|² <= 2, clipped to this around its mean of 1 where noise has to cover it.
_NORM_LOW, _NORM_HIGH = 0.5, 1.5
# Replacing one sample moves the sum of (φ, |φ|²) by at most √((2√2)² + 1²).
_SENSITIVITY = 3.0
# tr Σ² of features whose covariance is not sent, as a share of (tr Σ)²; image and sensor classes have 0.1 to 0.3.
_USUAL_SQUARE = 0.2
_BLOCK = 2**20
_MAX_DIMENSION = 4096
_MAX_CLASSES = 65_535
_MAX_COUNT = 2**40
_UNLABELLED = -1
_MAGIC = b"SCSG"
_HEAD = struct.Struct(">4sBBIHH")
_LABELLED, _EXACT = 1, 2


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
        (3/n_c); 0 adds none. It protects each single sample's features and norm (Gaussian mechanism), not the counts
        n_c, which are sent as they are. See `noise_for`.
    use_labels
        Whether to take means class by class. Without, only the inputs are compared.
    centre, spread
        Mean and standard deviation to standardise inputs with, one number or one for each entry of their last axis
        (feature or channel). Empty: each sample is standardised by its own mean and deviation, so that edges need not
        agree on anything first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    seed: int = Field(default=0, ge=0, lt=2**63)
    dimension: int = Field(default=64, ge=1, le=_MAX_DIMENSION)
    scale: float = Field(default=1.5, gt=0, le=100)
    min_count: int = Field(default=3, ge=3, le=1_000_000)
    noise: float = Field(default=0.0, ge=0, le=1e6)
    use_labels: bool = True
    centre: tuple[float, ...] = Field(default=(), max_length=65_536)
    spread: tuple[float, ...] = Field(default=(), max_length=65_536)

    @property
    def identity(self) -> int:
        """A checksum: signatures with different ones cannot be compared."""
        return zlib.crc32(self.model_dump_json(exclude={"min_count", "noise", "use_labels"}).encode())


def noise_for(epsilon: float, delta: float) -> float:
    """Return the `noise` of a spec that makes one signature (ε, δ)-differentially private for each sample.

    The classical bound of the Gaussian mechanism, σ = √(2·ln(1.25/δ))/ε (Dwork & Roth 2014, theorem A.1); above ε = 1,
    where that bound does not hold, the conversion of zero-concentrated privacy ρ = 1/(2σ²), ε = ρ + 2·√(ρ·ln(1/δ))
    (Bun & Steinke 2016). Each further signature of the same data costs as much again.

    Raises
    ------
    ValueError
        If `epsilon` is not positive or `delta` is not between 0 and 1.
    """
    if not (epsilon > 0 and 0 < delta < 1):
        raise ValueError(f"epsilon is {epsilon} and delta {delta}; expected epsilon > 0 and 0 < delta < 1")
    if epsilon <= 1:
        return math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    log = math.log(1 / delta)
    root = math.sqrt(log + epsilon) - math.sqrt(log)
    return 1 / (math.sqrt(2) * root)


@dataclass(frozen=True, eq=False)
class Signature:
    """Class means of an edge's (or a group's) features, and how certain each is.

    Parameters
    ----------
    identity
        `SignatureSpec.identity`.
    labelled
        Whether classes are labels; else there is one class, -1, of all inputs.
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
            f"a signature begins with {magic!r} version {version}, expected {_MAGIC!r} version 1; update both sides to one version"
        )
    if flags & ~(_LABELLED | _EXACT):
        raise WireError(f"a signature has unknown flags {flags}; update both sides to the same version")
    if not 1 <= dimension <= _MAX_DIMENSION:
        raise WireError(f"a signature has {dimension} features, expected 1 to {_MAX_DIMENSION}")
    width = 4 if flags & _EXACT else 2
    expected = _HEAD.size + size * (24 + width * dimension)
    if len(data) != expected:
        raise WireError(
            f"a signature of {size} classes and {dimension} features has {len(data)} bytes, expected {expected}; it was cut on its way"
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
    if not signature.labelled and signature.classes.tolist() not in ([], [_UNLABELLED]):
        refuse(f"without labels has other classes than {_UNLABELLED}")
    if (signature.noise < 0).any() or (signature.noise > 1e12).any():
        refuse("has a negative or absurd noise")
    room = 8 * np.sqrt(signature.noise)[:, None]
    if (np.abs(signature.means) > math.sqrt(2 / signature.dimension) * 1.01 + room).any():
        refuse("has means beyond what a cosine can give")
    if (signature.traces < 0).any() or (signature.traces > 8).any():
        refuse("has a variance beyond what a cosine can give")
    if (signature.squares < 0).any() or (signature.squares > 64).any():
        refuse("has a squared variance beyond what a cosine can give")


def sign(x: ArrayLike, y: ArrayLike | None, spec: SignatureSpec, embed: Embedding | None = None) -> Signature:
    """Return the signature of an edge's samples.

    Parameters
    ----------
    x
        Inputs of any shape and numeric dtype, samples first: n x ….
    y
        Labels, n; None where there are none. Whole numbers are classes, also as floats; text is hashed; one-hot rows
        (n x K) are classes too. Continuous targets (n or n x k) become further inputs, so that y given x counts.
    spec
        What the server sent.
    embed
        A function from a batch of `x` to features (n x k), such as a warm model's last hidden layer, taken in place of
        `x`. It must be the same function on every edge.

    Returns
    -------
    Signature
        With no class at all where every class has fewer than `spec.min_count` samples: such a signature can be
        neither grouped nor compared.

    Raises
    ------
    DatasetError
        If `x` has no numbers or some that are not finite, or `y` is of another length.
    """
    inputs = np.asarray(x)
    if inputs.ndim == 0 or inputs.dtype.kind not in "biuf":
        raise DatasetError(f"inputs are {inputs.dtype} of shape {inputs.shape}; expected numbers, samples first")
    labels, targets = (None, None) if y is None or not spec.use_labels else _labels(np.asarray(y), len(inputs))
    if embed is not None:
        inputs = np.asarray(embed(inputs))
        if inputs.ndim < 2 or inputs.dtype.kind != "f":
            raise DatasetError(f"the embedding gave {inputs.dtype} of shape {inputs.shape}; expected floats, n x k")
    features = _features(inputs, targets, spec)
    ids = np.full(len(inputs), _UNLABELLED, np.int64) if labels is None else labels
    return _summarise(features, ids, spec, labelled=labels is not None)


def _labels(y: NDArray[Any], count: int) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None]:
    """Return class ids, or continuous targets (n x k)."""
    if y.ndim == 0 or len(y) != count:
        raise DatasetError(f"labels have shape {y.shape}, expected one for each of the {count} inputs")
    if y.ndim > 1 and y[0:1].size == 1:
        y = y.reshape(len(y))
    if y.dtype.kind in "US":
        found, inverse = np.unique(y, return_inverse=True)
        hashed = [zlib.crc32(str(name).encode()) >> 1 for name in found.tolist()]
        return np.array(hashed, np.int64)[inverse], None
    if y.dtype.kind not in "biuf":
        raise DatasetError(f"labels are {y.dtype}, expected numbers or text")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise DatasetError("labels are not all finite numbers; remove those samples")
    if y.ndim == 1 and (y.dtype.kind != "f" or (y == np.rint(y)).all()) and _fits(y):
        return y.astype(np.int64), None
    rows = y.reshape(len(y), -1)
    if y.ndim == 2 and ((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all():
        return rows.argmax(1).astype(np.int64), None
    return None, rows.astype(np.float64)


def _fits(y: NDArray[Any]) -> bool:
    return not len(y) or (float(y.min()) > -(2**31) and float(y.max()) < 2**31)


def _features(x: NDArray[Any], targets: NDArray[np.float64] | None, spec: SignatureSpec) -> NDArray[np.float32]:
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
    if targets is not None:
        weights = _normal(stream, targets.shape[1] * spec.dimension).reshape(-1, spec.dimension)
        angles += (np.arcsinh(targets) @ weights * (spec.scale / math.sqrt(targets.shape[1]))).astype(np.float32)
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


def _summarise(
    features: NDArray[np.float32], ids: NDArray[np.int64], spec: SignatureSpec, *, labelled: bool
) -> Signature:
    found, counts = np.unique(ids, return_counts=True)
    kept = found[counts >= spec.min_count][:_MAX_CLASSES]
    means = np.zeros((len(kept), spec.dimension))
    traces, squares, noise = np.zeros(len(kept)), np.zeros(len(kept)), np.zeros(len(kept))
    rng = np.random.default_rng()
    for row, label in enumerate(kept):
        own = features[ids == label].astype(np.float64)
        if spec.noise:
            means[row], traces[row], squares[row], noise[row] = _noisy(own, spec.noise, rng)
        else:
            means[row], traces[row], squares[row] = _moments(own)
    return Signature(
        identity=spec.identity,
        labelled=labelled,
        classes=kept.astype(np.int64),
        counts=counts[counts >= spec.min_count][:_MAX_CLASSES].astype(np.int64),
        # Rounded at once, so that the edge and the server hold the same signature.
        means=means.astype(np.float16).astype(np.float32),
        traces=traces.astype(np.float32),
        squares=squares.astype(np.float32),
        noise=noise.astype(np.float32),
    )


def _moments(own: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, float]:
    count, dimension = own.shape
    mean = own.mean(0)
    centred = own - mean
    trace = float((centred**2).sum()) / (count - 1)
    # The smaller of the two Gram matrices has the same squared norm.
    gram = centred @ centred.T if count < dimension else centred.T @ centred
    raw = float((gram**2).sum()) / (count - 1) ** 2
    square = (count - 1) ** 2 / ((count - 2) * (count + 1)) * (raw - trace**2 / (count - 1))
    return mean, trace, max(square, trace**2 / dimension)


def _noisy(
    own: NDArray[np.float64], multiplier: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float, float, float]:
    """Return what is left of `_moments` when only noisy means of φ and |φ|² may be looked at."""
    count, dimension = own.shape
    sigma = multiplier * _SENSITIVITY / count
    norms = np.clip((own**2).sum(1), _NORM_LOW, _NORM_HIGH)
    mean = own.mean(0) + rng.normal(0, sigma, dimension)
    norm = float(norms.mean() + rng.normal(0, sigma))
    # What follows uses the noisy numbers alone, and so costs no privacy.
    trace = min(max(norm - float(mean @ mean) + dimension * sigma**2, 0.05), 1.5)
    return mean, trace, trace**2 * max(_USUAL_SQUARE, 1 / dimension), sigma**2


def merge(signatures: Sequence[Signature]) -> Signature:
    """Return the signature of all samples of several edges together.

    Counts, means and tr Σ are those of the pooled samples, exactly (within-edge and between-edge scatter add up).
    tr Σ² cannot be had from sums; √tr Σ² is the mean of the edges' own plus the scatter between their means, which is
    an upper bound and exact for edges that are alike.

    Raises
    ------
    ValueError
        If there are none, or they were made after different specs, or only some have labels.
    """
    if not signatures:
        raise ValueError("there are no signatures to merge; expected at least one")
    first = signatures[0]
    if any(s.identity != first.identity or s.labelled != first.labelled for s in signatures):
        raise ValueError("signatures of different specs, or with and without labels, cannot be merged; sign anew")
    if len(signatures) == 1:
        return first
    classes, rows = np.unique(np.concatenate([s.classes for s in signatures]), return_inverse=True)
    n = np.concatenate([s.counts for s in signatures]).astype(np.float64)
    mean = np.concatenate([s.means for s in signatures]).astype(np.float64)
    trace, square, noise = (
        np.concatenate([getattr(s, name) for s in signatures]).astype(np.float64)
        for name in ("traces", "squares", "noise")
    )

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.zeros((len(classes), *values.shape[1:]))
        np.add.at(out, rows, values)
        return out

    count = total(n)
    pooled = total(n[:, None] * mean) / count[:, None]
    between = total(n * ((mean - pooled[rows]) ** 2).sum(1))
    root = (total(n * np.sqrt(square)) + between) / count
    return Signature(
        identity=first.identity,
        labelled=first.labelled,
        classes=classes,
        counts=count.astype(np.int64),
        means=pooled.astype(np.float32),
        traces=((total((n - 1) * trace) + between) / np.maximum(count - 1, 1)).astype(np.float32),
        squares=(root**2).astype(np.float32),
        noise=(total(n**2 * noise) / count**2).astype(np.float32),
    )
