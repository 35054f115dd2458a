# SPDX-License-Identifier: Apache-2.0
"""Samples as the model's last hidden layer sees them: what an edge signs in place of its inputs, if the job says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError
from ..lib import exchange
from ..lib.signatures import Embedding
from ..lib.trainable import Trainable

__all__ = ["Embeds", "embedding_of"]


@runtime_checkable
class Embeds(Protocol):
    """A `Trainable` that gives the output of its model's last hidden layer; ours for Keras and torch can."""

    def embed(self, x: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return the last hidden layer's output for samples x (n x …) with the current weights: n x k.

        Raises
        ------
        ModelError
            If the model has no such layer, or it cannot be told which it is.
        """


def embedding_of(trainable: Trainable, weights: Mapping[str, NDArray[np.generic]]) -> Embedding:
    """Return the embedding by a model with given weights, the same on every edge; the model keeps its own.

    Raises
    ------
    ModelError
        If the model's object cannot embed.
    """
    if not isinstance(trainable, Embeds):
        raise ModelError(
            f"the job signs samples as the model's last hidden layer sees them (aggregation.options.embedding: model), "
            f"and {type(trainable).__name__} has no method embed(x) that returns it; add it, pass fit() a Keras or "
            f"torch model, or leave the option out"
        )

    def embed(x: NDArray[Any]) -> NDArray[np.floating[Any]]:
        own = exchange.to_weights(exchange.to_arrays(trainable.get_weights()))
        own = {name: value.copy() for name, value in own.items()}
        trainable.set_weights(weights)
        try:
            return trainable.embed(x)
        finally:
            trainable.set_weights(own)

    return embed
