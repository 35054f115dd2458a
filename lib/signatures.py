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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.errors import DatasetError
from .signature_distance import Distance, Sums, distance, drifted, label_free_eta
from .signature_features import InputMoments, SignatureSpec, classes_of, features_of, needs_moments
from .signature_format import MAX_CLASSES, UNLABELLED, Signature

__all__ = [
    "Distance",
    "Embedding",
    "InputMoments",
    "Signature",
    "SignatureSpec",
    "distance",
    "drifted",
    "embed_samples",
    "label_free_eta",
    "merge",
    "needs_moments",
    "noise_for",
    "sign",
    "sign_embedded",
]

Embedding = Callable[[NDArray[Any]], ArrayLike]

# What a sample can contribute: |φ|² <= 2, clipped to this around its mean of 1 where noise has to cover it.
_NORM_LOW, _NORM_HIGH = 0.5, 1.5
# Replacing one sample moves the sum of (φ, |φ|²) by at most √((2√2)² + 1²).
_SENSITIVITY = 3.0
# tr Σ² of features whose covariance is not sent, as a share of (tr Σ)²; image and sensor classes have 0.02 to 0.3.
_USUAL_SQUARE = 0.2


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


def sign(x: ArrayLike, y: ArrayLike | None, spec: SignatureSpec, embed: Embedding | None = None) -> Signature:
    """Return the signature of an edge's samples.

    Parameters
    ----------
    x
        Inputs of any shape and numeric dtype, samples first: n x ….
    y
        Labels, n; None where there are none. Whole numbers are classes, also as floats; text is hashed; one-hot rows
        (n x K) are classes too. One continuous target is binned by its sign and power of two, so that y given x
        counts; several are left out, and so are labels of other shapes.
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
    return sign_embedded(*embed_samples(x, y, spec, embed), spec)


def embed_samples(
    x: ArrayLike, y: ArrayLike | None, spec: SignatureSpec, embed: Embedding | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the features of samples, n x D, and their class ids, all `UNLABELLED` without labels; see `sign`."""
    inputs = np.asarray(x)
    if inputs.ndim == 0 or inputs.dtype.kind not in "biuf":
        raise DatasetError(f"inputs are {inputs.dtype} of shape {inputs.shape}; expected numbers, samples first")
    labels = None if y is None or not spec.use_labels else classes_of(np.asarray(y), len(inputs))
    if embed is not None:
        inputs = np.asarray(embed(inputs))
        if inputs.ndim < 2 or inputs.dtype.kind != "f":
            raise DatasetError(f"the embedding gave {inputs.dtype} of shape {inputs.shape}; expected floats, n x k")
    ids = np.full(len(inputs), UNLABELLED, np.int64) if labels is None else labels
    return features_of(inputs, spec).astype(np.float64), ids


def sign_embedded(features: NDArray[np.float64], ids: NDArray[np.int64], spec: SignatureSpec) -> Signature:
    """Return the signature of samples whose features and classes `embed_samples` gave."""
    labelled = not len(ids) or bool((ids != UNLABELLED).any())
    found, counts = np.unique(ids, return_counts=True)
    kept = found[counts >= spec.min_count][:MAX_CLASSES]
    means = np.zeros((len(kept), spec.dimension))
    traces, squares, noise = np.zeros(len(kept)), np.zeros(len(kept)), np.zeros(len(kept))
    rng = np.random.default_rng()
    for row, label in enumerate(kept):
        own = features[ids == label]
        if spec.noise:
            means[row], traces[row], squares[row], noise[row] = _noisy(own, spec.noise, rng)
        else:
            means[row], traces[row], squares[row] = _moments(own)
    return Signature(
        identity=spec.identity,
        labelled=labelled,
        classes=kept.astype(np.int64),
        counts=counts[counts >= spec.min_count][:MAX_CLASSES].astype(np.int64),
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

    Counts, means and tr Σ are those of the pooled samples, exactly. tr Σ² cannot be had from sums: √tr Σ² is the mean
    of the edges' own, which is exact for edges that are alike, as those of a group are.

    Raises
    ------
    ValueError
        If there are none, or they were made after different specs, or only some have labels.
    """
    if not signatures:
        raise ValueError("there are no signatures to merge; expected at least one")
    first = signatures[0]
    if any(
        (s.identity, s.dimension, s.labelled) != (first.identity, first.dimension, first.labelled) for s in signatures
    ):
        raise ValueError("signatures of different specs, or with and without labels, cannot be merged; sign anew")
    total = Sums.of(signatures).totals(np.zeros(len(signatures), np.intp), 1)
    return total.signatures(first.identity, labelled=first.labelled)[0]
