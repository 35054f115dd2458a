# SPDX-License-Identifier: Apache-2.0
"""A small convolutional network for windows of sensor data, in JAX, with the methods of the simulation's perceptron."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ._simulation import Floats, Mlp

__all__ = ["Cnn"]

_STEPS, _CHANNELS = 64, 6


class Cnn(Mlp):
    """Two convolutions over time and a dense layer; x is n x (64 · 6)."""

    def __init__(self, *data: Any, classes: int = 5, rate: float = 0.05, **options: Any) -> None:
        super().__init__(*data, classes=classes, rate=rate, **options)
        first = np.random.default_rng(12345)  # the same on every edge

        def drawn(*shape: int) -> Floats:
            return (first.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32)

        self.weights = {
            "0/kernel": drawn(5, _CHANNELS, 16),
            "1/bias": np.zeros(16, np.float32),
            "2/kernel": drawn(5, 16, 32),
            "3/bias": np.zeros(32, np.float32),
            "4/kernel": drawn(32, classes),
            "5/bias": np.zeros(classes, np.float32),
        }

    def _fit(self, x: Floats, y: NDArray[np.int64]) -> float:
        rows = self._rng.integers(0, len(x), (self._steps, self._batch))
        weights, loss = _fit(self.weights, x[rows], y[rows], self._rate)
        self.weights = {name: np.array(value) for name, value in weights.items()}
        return float(loss)

    def _scores(self, x: Floats) -> Floats:
        # One shape for all sizes: each new one would be compiled anew.
        padded = np.zeros((-(-len(x) // 256) * 256, x.shape[1]), np.float32)
        padded[: len(x)] = x
        return np.asarray(_predict(self.weights, padded))[: len(x)]


def _forward(w: Mapping[str, Any], x: Any) -> Any:
    x = x.reshape(*x.shape[:-1], _STEPS, _CHANNELS)
    convolve = partial(
        jax.lax.conv_general_dilated, window_strides=(2,), padding="SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    x = jax.nn.relu(convolve(x, w["0/kernel"]) + w["1/bias"])
    x = jax.nn.relu(convolve(x, w["2/kernel"]) + w["3/bias"])
    return x.mean(1) @ w["4/kernel"] + w["5/bias"]


@jax.jit
def _predict(w: Any, x: Any) -> Any:
    return _forward(w, x)


@jax.jit
def _fit(w: Any, xs: Any, ys: Any, rate: float) -> Any:
    def loss(w: Any, x: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(_forward(w, x)), y[:, None], 1).mean()

    def step(w: Any, batch: Any) -> Any:
        value, slope = jax.value_and_grad(loss)(w, *batch)
        return jax.tree.map(lambda a, b: a - rate * b, w, slope), value

    w, losses = jax.lax.scan(step, w, (xs, ys))
    return w, losses.mean()
