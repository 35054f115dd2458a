# SPDX-License-Identifier: Apache-2.0
"""A model of the edge's own, pulled towards the common one (Ditto, Li et al. 2021); it never leaves the edge."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from ..core.errors import ModelError, SolarCoronaError
from ..lib import exchange
from ..lib.exchange import Weights
from ..lib.records import arrays_in
from ..lib.sealed import load_sealed, write_sealed
from ..lib.trainable import Scalar, Trainable

__all__ = ["PersonalModel", "Pullable"]

log = logging.getLogger(__name__)
_KEY = "personal"


@runtime_checkable
class Pullable(Protocol):
    """A `Trainable` that can be pulled towards other weights than its first; ours for Keras and torch can."""

    def pull_towards(self, anchor: Mapping[str, NDArray[np.generic]] | None) -> None:
        """Let `proximal-mu` pull towards `anchor` in the next `train`; None: towards the weights at its start."""


class PersonalModel:
    """Trains and keeps v, the solution of min F(v) + λ/2·‖v − w‖², beside the common model w.

    Parameters
    ----------
    trainable
        Trains it; its weights are replaced.
    lives
        Whether this object lives for the whole job, so that a file is only for a restart.
    """

    def __init__(self, trainable: Trainable, *, lives: bool = True) -> None:
        self._trainable, self._lives = trainable, lives
        self._file: Path | None = None
        self._weights: Weights | None = None
        self._looked = False

    def settle(self, file: Path | None) -> None:
        """Begin anew, or where a process before this one was.

        Parameters
        ----------
        file
            Where the model lies for the process that comes next: after a restart, or for the next message where each
            has a process of its own. None keeps it in memory.
        """
        self._file, self._weights, self._looked = file, None, False

    @property
    def weights(self) -> Weights | None:
        """The model, or None before it was trained for the first time."""
        if self._weights is None and not self._looked:
            self._looked = True
            self._weights = self._load()
        return self._weights

    def train(self, common: Weights, strength: float, config: Mapping[str, Scalar]) -> None:
        """Go on from the last personal model, or from the common one, for as long as a round trains.

        Raises
        ------
        ModelError
            If the model's object cannot be pulled, or nothing would keep the result for the next message.
        """
        trainable = self._trainable
        if not isinstance(trainable, Pullable):
            raise ModelError(
                f"the job trains a personal model on each edge, and {type(trainable).__name__} has no method "
                f"pull_towards(anchor), towards which proximal-mu then pulls; add it, pass fit() a Keras or torch "
                f"model, or choose another strategy than ditto"
            )
        if self._file is None and not self._lives:
            raise ModelError(
                "the job trains a personal model on each edge, and this process answers a single message and has no "
                "run folder to keep it in; start the edge with `solar-corona` or choose another strategy than ditto"
            )
        trainable.set_weights(common if self.weights is None else self.weights)
        trainable.pull_towards(common)
        try:
            trainable.train({**config, "proximal-mu": strength})
        finally:
            trainable.pull_towards(None)
        found = exchange.to_weights(exchange.to_arrays(trainable.get_weights()))
        self._weights = {name: value.copy() for name, value in found.items()}
        self._save()

    def forget(self) -> None:
        """Remove the file: the job is done."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _save(self) -> None:
        if self._file is None or self._weights is None:
            return
        try:
            write_sealed(self._file, RecordDict({_KEY: exchange.to_arrays(self._weights)}))
        except SolarCoronaError as error:
            if not self._lives:
                raise
            log.warning("the personal model is not kept for after a restart: %s", error)

    def _load(self) -> Weights | None:
        record = load_sealed(self._file, "the personal model")
        kept = None if record is None else arrays_in(record).get(_KEY)
        return None if kept is None else exchange.to_weights(kept)
