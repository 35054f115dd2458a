# SPDX-License-Identifier: Apache-2.0
"""Learned: a small head that predicts where the deep model helps, taken only where it beats margin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import ModelError, PlatformError
from ..core.files import write_bytes_atomic
from ..lib.scores import Scores
from .credit import BoundedCredit, Hold
from .curves import area_under_curve
from .margin import Margin
from .offload import Decision
from .ranks import Ranks

__all__ = ["Head", "Learned"]

_FEATURES = 6
_FEWEST, _RESAMPLES, _LEVEL = 500, 500, 0.95
_RATIO = 0.1
_LARGEST_FILE = 1 << 20
_TINY = 1e-6


class Head(BaseModel):
    """A logistic head, and how its held-out curve compares with margin's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    weights: list[float] = Field(min_length=_FEATURES, max_length=_FEATURES)
    bias: float
    adopted: bool
    gain: float = Field(description="Area under the accuracy curve beyond margin's, on held-out samples.")
    gain_low: float = Field(description="Lower end of its 95 % interval.")
    samples: int = Field(ge=1)


class Learned:
    """Ranks samples by a logistic head's P(deep right and shallow wrong), at an upload ratio.

    The head sees the three highest probabilities, the margin, the entropy and the log-odds of the best class. It is
    adopted only if its curve on held-out samples beats margin's with an interval above 0; otherwise margin ranks, and
    `describe` says so. About 2,000 labelled samples were needed to tie with margin in a study of our own.

    Parameters
    ----------
    upload_ratio
        Share of the samples to upload.
    hold
        How closely it is held: `strict`, `default` or `relaxed`.
    file
        A head that `save` wrote.

    Raises
    ------
    ModelError
        If the ratio is no share, or the file holds no head.
    """

    def __init__(self, upload_ratio: float = _RATIO, *, hold: Hold = "default", file: str | Path | None = None) -> None:
        self._ratio, self._hold = upload_ratio, hold
        self._credit, self._ranks = BoundedCredit(upload_ratio, hold=hold), Ranks()
        self._margin = Margin(threshold=0.0)
        self._head: Head | None = None if file is None else _read(Path(file))

    def fit(self, scores: Sequence[Scores], shallow_right: ArrayLike, deep_right: ArrayLike, *, seed: int = 0) -> Head:
        """Learn the head from labelled samples; half of them train it, the other half judge it.

        Parameters
        ----------
        scores
            Class probabilities of n samples.
        shallow_right, deep_right
            Whether each model was right: n bool.
        seed
            Of the split and of the interval's resamples.

        Raises
        ------
        ModelError
            If there are too few samples, or the deep model never helps.
        PlatformError
            If scikit-learn is not installed.
        """
        shallow, deep = np.asarray(shallow_right, bool), np.asarray(deep_right, bool)
        if len({len(scores), len(shallow), len(deep)}) != 1 or len(scores) < _FEWEST:
            raise ModelError(
                f"there are {len(scores)} scores and {len(shallow)} and {len(deep)} truths; expected as many of each, "
                f"and {_FEWEST} at least"
            )
        x, helped = np.array([features(each) for each in scores]), deep & ~shallow
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(scores))
        train, judge = order[: len(order) // 2], order[len(order) // 2 :]
        if not helped[train].any():
            raise ModelError("the deep model is never right where the shallow one is wrong; there is nothing to learn")
        weights, bias = _fitted(x[train], helped[train])
        hardness = x[judge] @ weights + bias
        margin = -np.array([self._margin.confidence(scores[i]) for i in judge])
        gains = []
        for resample in (np.arange(len(judge)), *(rng.integers(0, len(judge), len(judge)) for _ in range(_RESAMPLES))):
            areas = [
                area_under_curve(rank[resample], shallow[judge][resample], deep[judge][resample])
                for rank in (hardness, margin)
            ]
            gains.append(areas[0] - areas[1])
        low = float(np.quantile(gains[1:], (1 - _LEVEL) / 2))
        self._head = Head(
            weights=weights.tolist(),
            bias=bias,
            adopted=low > 0,
            gain=gains[0],
            gain_low=low,
            samples=len(scores),
        )
        return self._head

    def save(self, path: Path) -> None:
        """Write the head, whole or not at all.

        Raises
        ------
        ModelError
            If there is none.
        """
        if self._head is None:
            raise ModelError("there is no head to save; call fit first")
        write_bytes_atomic(path, self._head.model_dump_json(indent=1).encode())

    def hardness(self, scores: Scores) -> float:
        """Return how hard a sample is, 0 to 1: the head's probability, or 1 − margin where no head is adopted."""
        head = self._head
        if head is None or not head.adopted or scores.boxes or len(scores.values) < 2:
            return 1 - self._margin.confidence(scores)
        logit = sum(w * f for w, f in zip(head.weights, features(scores), strict=True)) + head.bias
        return float(1 / (1 + np.exp(-np.clip(logit, -50, 50))))

    def decide(self, scores: Scores) -> Decision:
        """Decide on the next sample."""
        upload = self._credit.take(self._ranks.place(self.hardness(scores)))
        told = "the deep model may help" if upload else "the deep model hardly helps, or the ratio is spent"
        return Decision(upload, self._margin.confidence(scores), told)

    def describe(self) -> dict[str, Any]:
        """Return the name, the ratio, and whether the head ranks."""
        ranks = "head" if self._head is not None and self._head.adopted else "margin"
        return {"name": "learned", "upload_ratio": self._ratio, "hold": self._hold, "ranks_by": ranks}


def features(scores: Scores) -> list[float]:
    """Return what the head sees of class probabilities: 6 numbers."""
    values = np.sort(scores.values)[::-1]
    first, second, third = (float(values[i]) if i < len(values) else 0.0 for i in range(3))
    positive = values[values > _TINY]
    entropy = float(-(positive * np.log(positive)).sum()) / max(float(np.log(max(len(values), 2))), _TINY)
    odds = float(np.log(max(first, _TINY) / max(1 - first, _TINY)))
    return [first, second, third, first - second, entropy, odds / 10]


def _fitted(x: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise PlatformError(
            f"learning a head needs scikit-learn ({error}); pip install 'solar-corona[calibrate]'"
        ) from error
    found = LogisticRegression(C=1.0, max_iter=1000).fit(x, y)
    return np.asarray(found.coef_[0], np.float64), float(found.intercept_[0])


def _read(path: Path) -> Head:
    try:
        with path.open("rb") as file:
            return Head.model_validate_json(file.read(_LARGEST_FILE))
    except OSError as error:
        raise ModelError(f"{path}: there is no head ({error.strerror}); `Learned.fit` makes one") from error
    except ValidationError as error:
        raise ModelError(f"{path}: holds no head ({error.error_count()} errors); learn it anew") from error
