# SPDX-License-Identifier: Apache-2.0
"""Calibrated: the fewest uploads that keep a promise about accuracy, or the most that keep one about uploads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import ModelError
from ..core.files import write_bytes_atomic
from ..lib.scores import Scores
from .drift import ConfidenceWatch
from .margin import Margin
from .offload import Decision
from .promises import Labelled, Promise, at_least_accuracy, at_most_loss, at_most_upload, check_share

__all__ = ["Calibrated", "Calibration", "calibration_file"]

_log = logging.getLogger(__name__)
_LEVEL = 0.95
_FEWEST = 100
_BINS = 10
_LARGEST_FILE = 1 << 20


class Calibration(BaseModel):
    """What a calibration found; it lies beside the model as `MODEL.offload.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    promise: dict[Literal["max_loss", "target_accuracy", "max_upload"], float]
    says: str
    exact: bool
    threshold: float = Field(ge=0)
    samples: int = Field(ge=1)
    uploads: float = Field(ge=0, le=1)
    edges: list[float] = Field(min_length=_BINS - 1, max_length=_BINS - 1)
    counts: list[int] = Field(min_length=_BINS, max_length=_BINS)
    model_sha256: str | None = None


def calibration_file(model: Path) -> Path:
    """Return where the calibration of a model lies."""
    return model.with_name(f"{model.name}.offload.json")


class Calibrated:
    """Uploads what is below a margin threshold that keeps a promise at 95 %, and watches for drift that voids it.

    =================== ================================================================== ===================
    promise             what it says                                                       needs
    =================== ================================================================== ===================
    `max_loss=0.01`     accuracy at most a point below the deep model's; exact             labels, 299 or more
    `target_accuracy`   at least this accuracy; exact                                      labels
    `max_upload=0.05`   at most this share of uploads; exact                               no labels
    =================== ================================================================== ===================

    Sources: Clopper & Pearson 1934; Bates et al. 2021 (risk-controlling prediction sets); Angelopoulos et al. 2021
    (learn-then-test). Without a promise, the one beside the model is used (`solar-corona calibrate` writes it).

    Parameters
    ----------
    max_loss, target_accuracy, max_upload
        At most one of them.

    Raises
    ------
    ModelError
        If several are given, or one is no share.
    """

    def __init__(
        self,
        *,
        max_loss: float | None = None,
        target_accuracy: float | None = None,
        max_upload: float | None = None,
    ) -> None:
        given = {"max_loss": max_loss, "target_accuracy": target_accuracy, "max_upload": max_upload}
        self._promise: dict[Any, float] = {name: float(value) for name, value in given.items() if value is not None}
        if len(self._promise) > 1:
            raise ModelError(f"Calibrated makes one promise, and got {', '.join(self._promise)}; keep one")
        for name, value in self._promise.items():
            check_share(name, value)
        self._margin = Margin(threshold=0.0)
        self._found: Calibration | None = None
        self._watch: ConfidenceWatch | None = None

    def fit(
        self, scores: Sequence[Scores], shallow_right: ArrayLike | None = None, deep_right: ArrayLike | None = None
    ) -> Calibrated:
        """Learn the threshold and return this algorithm.

        Parameters
        ----------
        scores
            Of n samples drawn as those to come will be.
        shallow_right, deep_right
            Whether each model was right: n bool; `max_upload` needs neither.

        Raises
        ------
        ModelError
            If the data cannot support the promise; the message says what would.
        """
        if not self._promise:
            raise ModelError("there is no promise to calibrate for; give Calibrated max_loss, for example 0.01")
        confidence = np.array([self._margin.confidence(each) for each in scores], np.float64)
        if len(confidence) < _FEWEST:
            raise ModelError(f"{len(confidence)} samples say nothing; calibrate with {_FEWEST} at least, better 2,000")
        found = self._keep(confidence, shallow_right, deep_right)
        cuts = np.quantile(confidence, np.arange(1, _BINS) / _BINS)
        counts = np.bincount(np.searchsorted(cuts, confidence, side="right"), minlength=_BINS)
        return self._take(
            Calibration(
                promise=self._promise,
                says=found.says,
                exact=found.exact,
                threshold=found.threshold,
                samples=len(confidence),
                uploads=found.uploads,
                edges=cuts.tolist(),
                counts=counts.tolist(),
            )
        )

    def _keep(
        self, confidence: NDArray[np.float64], shallow_right: ArrayLike | None, deep_right: ArrayLike | None
    ) -> Promise:
        ((name, value),) = self._promise.items()
        if name == "max_upload":
            return at_most_upload(confidence, value, level=_LEVEL)
        if shallow_right is None or deep_right is None:
            raise ModelError(f"{name} needs to know which model was right on each sample; pass both")
        data = Labelled(confidence, np.asarray(shallow_right, bool), np.asarray(deep_right, bool))
        return (at_most_loss if name == "max_loss" else at_least_accuracy)(data, value, level=_LEVEL)

    def _take(self, found: Calibration) -> Calibrated:
        self._found, self._promise = found, dict(found.promise)
        self._watch = ConfidenceWatch(found.edges, found.counts)
        return self

    def save(self, path: Path, *, model_sha256: str | None = None) -> None:
        """Write the calibration, whole or not at all."""
        found = self._ready().model_copy(update={"model_sha256": model_sha256})
        write_bytes_atomic(path, found.model_dump_json(indent=1).encode())

    def load(self, path: Path, *, model_sha256: str | None = None) -> Calibrated:
        """Take the calibration in a file and return this algorithm.

        Raises
        ------
        ModelError
            If there is none, it is damaged, it was made for another model, or it keeps another promise than this.
        """
        try:
            with path.open("rb") as file:
                found = Calibration.model_validate_json(file.read(_LARGEST_FILE))
        except OSError as error:
            raise ModelError(
                f"{path}: there is no calibration ({error.strerror}); make one with `solar-corona calibrate`"
            ) from error
        except ValidationError as error:
            raise ModelError(f"{path}: is no calibration ({error.error_count()} errors); calibrate anew") from error
        if model_sha256 is not None and found.model_sha256 not in (None, model_sha256):
            raise ModelError(f"{path}: was made for another model than this one; calibrate anew")
        if self._promise and self._promise != dict(found.promise):
            raise ModelError(f"{path}: promises {found.says}, and {self._promise} is asked for; calibrate anew")
        return self._take(found)

    @property
    def is_fitted(self) -> bool:
        """Whether the threshold is known."""
        return self._found is not None

    @property
    def calibration(self) -> Calibration:
        """What was found.

        Raises
        ------
        ModelError
            If nothing was calibrated yet.
        """
        return self._ready()

    def _ready(self) -> Calibration:
        if self._found is None:
            raise ModelError("Calibrated has no threshold yet; call fit, or run `solar-corona calibrate` for the model")
        return self._found

    def decide(self, scores: Scores) -> Decision:
        """Decide on the next sample."""
        found = self._ready()
        assert self._watch is not None
        confidence = self._margin.confidence(scores)
        if self._watch.take(confidence):
            _log.warning("samples are no longer like those of the calibration: %s is not promised now", found.says)
        upload = confidence < found.threshold
        reason = "less sure than the promise allows" if upload else "sure enough for the promise"
        return Decision(upload, confidence, f"{reason}, which drift has voided" if self._watch.drifted else reason)

    def describe(self) -> dict[str, Any]:
        """Return the name, the promise and whether it holds."""
        told: dict[str, Any] = {"name": "calibrated", **self._promise}
        if self._found is not None and self._watch is not None:
            told |= {
                "promise": self._found.says,
                "threshold": self._found.threshold,
                "samples": self._found.samples,
                "void": self._watch.drifted,
            }
        return told
