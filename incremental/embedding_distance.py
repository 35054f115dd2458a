# SPDX-License-Identifier: Apache-2.0
"""Embedding distance: how far a sample is from all that came before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError
from ..lib.hard_samples.detector import Seen
from .scored import RANDOM, ScoredDetector

__all__ = ["EmbeddingDistance"]

_MOST = 256
# A place moves with each sample that comes near it, and goes on doing so: streams change.
_LEAST_STEP = 0.01


class EmbeddingDistance(ScoredDetector):
    """Keeps samples whose embedding is far from the nearest of some places, which follow the stream.

    Sequential k-means (MacQueen 1967). It finds what is new whatever the model makes of it, and of all that were
    measured it picks the most samples that nobody can label: for streams that are clean. Each sample's embedding is
    made, which costs some tens of microseconds.

    Parameters
    ----------
    places
        How many, 1 to 256.
    random, seed
        See `ScoredDetector`.

    Raises
    ------
    ModelError
        If there are fewer or more places, or `random` is no share.
    """

    name = "embedding"

    def __init__(self, places: int = 16, *, random: float = RANDOM, seed: int | None = None) -> None:
        if isinstance(places, bool) or not isinstance(places, int) or not 1 <= places <= _MOST:
            raise ModelError(f"places is {places!r}, expected a whole number from 1 to {_MOST}")
        super().__init__(random=random, seed=seed)
        self._places: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._visits = np.zeros(places, np.int64)
        self._count = places

    def hardness(self, seen: Seen) -> float | None:
        """Return the distance from the nearest place."""
        values = seen.embedding
        if not values.size:
            return None
        if self._places.shape[1] != values.size:
            self._places = np.zeros((0, values.size), np.float32)
            self._visits[:] = 0
        if len(self._places) < self._count:
            self._visits[len(self._places)] = 1
            self._places = np.vstack([self._places, values])
            return 0.0
        apart = np.linalg.norm(self._places - values, axis=1)
        nearest = int(apart.argmin())
        self._visits[nearest] += 1
        step = max(1.0 / float(self._visits[nearest]), _LEAST_STEP)
        self._places[nearest] += step * (values - self._places[nearest])
        return float(apart[nearest])

    def _parameters(self) -> dict[str, Any]:
        return {"places": self._count}
