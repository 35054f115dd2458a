# SPDX-License-Identifier: Apache-2.0
"""What `fit()` needs of a model: four methods, which any object may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scalar", "Trainable"]

Scalar = int | float | str | bool


@runtime_checkable
class Trainable(Protocol):
    """A model with its data, of any framework.

    `fit()` makes one from a Keras model or a `torch.nn.Module`; an object of yours with these four methods is taken
    as it is.
    """

    def get_weights(self) -> Mapping[str, NDArray[np.generic]] | Sequence[NDArray[np.generic]]:
        """Return the weights; the same names (or order), shapes and dtypes on every edge."""

    def set_weights(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over weights; names as `get_weights` gave them, or "0", "1", … where it gave a sequence."""

    def train(self, config: Mapping[str, Scalar]) -> tuple[int, Mapping[str, float]]:
        """Train for one round.

        `config` is what the strategy sends, such as `server-round`. Returns the number of samples trained on and
        metrics.
        """

    def evaluate(self) -> tuple[int, Mapping[str, float]]:
        """Return the number of samples evaluated on and metrics, among them `loss`."""
