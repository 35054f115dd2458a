# SPDX-License-Identifier: Apache-2.0
"""Thresholds with a promise: the fewest uploads that keep it, at 95 %, from labelled samples.

Confidences are sorted; keeping sample i on the edge means keeping all that are surer. Binomial bounds are exact
(Clopper & Pearson 1934), so that the promises hold for samples drawn as the labelled ones were; data that drift void
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError, PlatformError

__all__ = ["Labelled", "Promise", "at_least_accuracy", "at_most_loss", "at_most_upload", "check_share"]

_Bools = NDArray[np.bool_]
# Thresholds that are tried one after the other, from the safest; fixed before data are seen.
_STEPS = 200


@dataclass(frozen=True)
class Labelled:
    """What is known of n labelled samples.

    Parameters
    ----------
    confidence
        How sure the shallow model is: n float64, 0 to 1.
    shallow_right, deep_right
        Whether each model is right: n bool.

    Raises
    ------
    ModelError
        If there are none, or the arrays differ in length, or a confidence is no share.
    """

    confidence: NDArray[np.float64]
    shallow_right: _Bools
    deep_right: _Bools

    def __post_init__(self) -> None:
        lengths = {len(self.confidence), len(self.shallow_right), len(self.deep_right)}
        if len(lengths) != 1 or not len(self.confidence):
            raise ModelError(f"calibration has {sorted(lengths)} confidences and truths; expected as many of each")
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise ModelError("a confidence is not between 0 and 1")

    def __len__(self) -> int:
        return len(self.confidence)

    def accuracy_at(self, threshold: float) -> float:
        """Return the accuracy when samples below the threshold are uploaded."""
        kept = self.confidence >= threshold
        return float(np.where(kept, self.shallow_right, self.deep_right).mean())

    def uploads_at(self, threshold: float) -> float:
        """Return the share of samples below the threshold."""
        return float((self.confidence < threshold).mean())


@dataclass(frozen=True)
class Promise:
    """A threshold, and what it promises.

    Parameters
    ----------
    threshold
        Samples below it are uploaded.
    says
        The promise in words.
    exact
        Whether it holds at any number of samples, or only as n grows.
    uploads
        Share of the labelled samples that it uploads.
    """

    threshold: float
    says: str
    exact: bool
    uploads: float


def at_most_loss(data: Labelled, loss: float, *, level: float = 0.95) -> Promise:
    """Return the lowest threshold whose accuracy is at most `loss` below the deep model's.

    Counted are the samples that are kept though the deep model is right and the shallow one wrong. Their share bounds
    the loss, and grows as the threshold falls, so one binomial bound serves for all thresholds (Bates et al. 2021).

    Raises
    ------
    ModelError
        If the data cannot support the promise; the message says how many samples are needed at least.
    """
    check_share("max_loss", loss)
    needed = int(np.ceil(np.log(1 - level) / np.log(1 - loss)))
    if len(data) < needed:
        raise ModelError(
            f"max_loss is {loss}, and {len(data)} labelled samples cannot support it at {level:.0%}; at least {needed} "
            f"are needed, label more or promise less"
        )
    order = np.argsort(-data.confidence, kind="stable")
    harmed = np.cumsum((data.deep_right & ~data.shallow_right)[order])
    bounds = _upper(np.arange(len(data) + 1), len(data), level)
    allowed = int(np.flatnonzero(bounds <= loss).max())  # so many harmed samples may be kept
    kept = int(np.searchsorted(harmed, allowed, side="right"))
    confidences = data.confidence[order]
    # Samples of one confidence are kept together or not at all.
    threshold = float(np.nextafter(confidences[kept], 2.0)) if kept < len(data) else 0.0
    says = f"at most {loss:.2%} below the deep model's accuracy"
    return Promise(threshold, says, exact=True, uploads=data.uploads_at(threshold))


def at_least_accuracy(data: Labelled, accuracy: float, *, level: float = 0.95) -> Promise:
    """Return the lowest threshold whose accuracy is at least `accuracy`.

    Thresholds are tested one after the other from 1 down, until one cannot be certified (learn-then-test, fixed
    sequence: Angelopoulos et al. 2021).

    Raises
    ------
    ModelError
        If not even uploading everything is certified.
    """
    check_share("target_accuracy", accuracy)
    best: float | None = None
    for threshold in _ladder():
        right = round(data.accuracy_at(threshold) * len(data))
        if _lower(right, len(data), level) < accuracy:
            break
        best = threshold
    if best is None:
        certified = _lower(int(data.deep_right.sum()), len(data), level)
        raise ModelError(
            f"target_accuracy is {accuracy}, and the deep model itself is right on {data.deep_right.mean():.3f} of "
            f"{len(data)} samples, which certifies {certified:.3f} at {level:.0%}; promise less, or max_loss relative "
            f"to the deep model, or label more"
        )
    says = f"at least {accuracy:.2%} accuracy"
    return Promise(best, says, exact=True, uploads=data.uploads_at(best))


def at_most_upload(confidence: NDArray[np.float64], share: float, *, level: float = 0.95) -> Promise:
    """Return the highest threshold that uploads at most `share` of the samples; needs no labels.

    The share below the (k+1)-th least sure of n samples is Beta(k+1, n−k) distributed, whatever the confidences'
    distribution is (Wilks 1941).

    Raises
    ------
    ModelError
        If there are too few samples to promise any upload at all.
    """
    check_share("max_upload", share)
    n = len(confidence)
    counts = np.arange(n)
    fits = np.flatnonzero(_beta(level, counts + 1, n - counts) <= share)
    if not len(fits):
        needed = int(np.ceil(np.log(1 - level) / np.log(1 - share)))
        raise ModelError(f"max_upload is {share}, and {n} samples cannot support it; about {needed} are needed")
    threshold = float(np.sort(confidence)[fits.max()])
    uploads = float((confidence < threshold).mean())
    return Promise(threshold, f"at most {share:.2%} of the samples uploaded", exact=True, uploads=uploads)


def check_share(name: str, value: float) -> None:
    """Raise ModelError if what is promised is no share."""
    if not 0 < value < 1:
        raise ModelError(f"{name} is {value}, expected a share between 0 and 1, such as 0.01")


def _ladder() -> NDArray[np.float64]:
    """Return thresholds from above 1 to 0: even in their logits, as confidences crowd at both ends."""
    inner = 1 / (1 + np.exp(-np.linspace(9, -5, _STEPS)))
    return np.concatenate([[np.nextafter(1.0, 2.0)], inner, [0.0]])


def _upper(count: NDArray[np.int64], n: int, level: float) -> NDArray[np.float64]:
    """Return the Clopper–Pearson upper bound of a share of which `count` of n were seen."""
    found: NDArray[np.float64] = np.where(count < n, _beta(level, count + 1, np.maximum(n - count, 1)), 1.0)
    return found


def _lower(count: int, n: int, level: float) -> float:
    return float(_beta(1 - level, count, n - count + 1)) if count > 0 else 0.0


def _beta(level: float, a: Any, b: Any) -> Any:
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise PlatformError(f"calibration needs scipy ({error}); pip install 'solar-corona[calibrate]'") from error
    return beta.ppf(level, a, b)
