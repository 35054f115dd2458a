# SPDX-License-Identifier: Apache-2.0
"""A small convolutional network for images, in NumPy, with the methods of the simulation's perceptron."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ._simulation import Floats, Mlp, _softmax

__all__ = ["Cnn"]

_FIRST, _SECOND, _SIDE = 16, 32, 3


class Cnn(Mlp):
    """Two convolutions of 3 x 3 with stride 2 and a dense layer; x is n x height x width x channels, in multiples of 4.

    What the first convolution sees of each sample is laid out once, so that a step is five matrix products: hundreds
    of runs take minutes on one core.
    """

    def __init__(self, x: Floats, *data: Any, classes: int = 10, rate: float = 0.1, **options: Any) -> None:
        super().__init__(x, *data, classes=classes, rate=rate, **options)
        first = np.random.default_rng(12345)  # the same on every edge

        def drawn(*shape: int) -> Floats:
            return (first.normal(size=shape) * np.sqrt(2 / shape[0])).astype(np.float32)

        area = _SIDE * _SIDE
        last = (x.shape[1] // 4) * (x.shape[2] // 4) * _SECOND
        self.weights = {
            "0/kernel": drawn(area * x.shape[3], _FIRST),
            "1/bias": np.zeros(_FIRST, np.float32),
            "2/kernel": drawn(area * _FIRST, _SECOND),
            "3/bias": np.zeros(_SECOND, np.float32),
            "4/kernel": drawn(last, classes) / np.float32(np.sqrt(2)),
            "5/bias": np.zeros(classes, np.float32),
        }
        self._patches: tuple[Floats, Floats] | None = None

    def _fit(self, x: Floats, y: NDArray[np.int64]) -> float:
        if self._patches is None or self._patches[0] is not x:
            self._patches = x, patches(x)
        seen, loss = self._patches[1], 0.0
        for _ in range(self._steps):
            rows = self._rng.integers(0, len(x), min(self._batch, len(x)))
            loss += self._step(seen[rows], y[rows])
        return loss / self._steps

    def _step(self, seen: Floats, y: NDArray[np.int64]) -> float:
        w, rows = self.weights, np.arange(len(y))
        first, wide, second, scores = _forward(w, seen)
        p = _softmax(scores)
        loss = float(-np.log(p[rows, y] + 1e-9).mean())
        p[rows, y] -= 1
        p /= len(y)
        flat = second.reshape(len(y), -1)
        back = (p @ w["4/kernel"].T).reshape(second.shape) * (second > 0)
        lower = _spread(back @ w["2/kernel"].T, first.shape) * (first > 0)
        slopes = {
            "0/kernel": _rows(seen).T @ _rows(lower),
            "1/bias": lower.sum((0, 1, 2)),
            "2/kernel": _rows(wide).T @ _rows(back),
            "3/bias": back.sum((0, 1, 2)),
            "4/kernel": flat.T @ p,
            "5/bias": p.sum(0),
        }
        for name, slope in slopes.items():
            w[name] -= np.float32(self._rate) * slope
        return loss

    def _scores(self, x: Floats) -> Floats:
        return _forward(self.weights, patches(x))[-1]


def patches(x: Floats) -> Floats:
    """Return what a convolution of 3 x 3 with stride 2 sees at each place: n x h/2 x w/2 x (9 · channels)."""
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    seen = sliding_window_view(padded, (_SIDE, _SIDE), (1, 2))[:, ::2, ::2]
    n, h, w, channels = seen.shape[:4]
    return np.ascontiguousarray(seen.transpose(0, 1, 2, 4, 5, 3)).reshape(n, h, w, _SIDE * _SIDE * channels)


def _rows(x: Floats) -> Floats:
    return x.reshape(-1, x.shape[-1])


def _forward(w: dict[str, Floats], seen: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    first: Floats = np.maximum(seen @ w["0/kernel"] + w["1/bias"], 0)
    wide = patches(first)
    second: Floats = np.maximum(wide @ w["2/kernel"] + w["3/bias"], 0)
    scores: Floats = second.reshape(len(seen), -1) @ w["4/kernel"] + w["5/bias"]
    return first, wide, second, scores


def _spread(wide: Floats, shape: tuple[int, ...]) -> Floats:
    """Return the slope of what `patches` was made from, given that of the patches."""
    n, height, width, channels = shape
    parts = wide.reshape(n, *wide.shape[1:3], _SIDE, _SIDE, channels)
    out = np.zeros((n, height + 2, width + 2, channels), np.float32)
    for i in range(_SIDE):
        for j in range(_SIDE):
            out[:, i : i + height : 2, j : j + width : 2] += parts[:, :, :, i, j]
    return out[:, :height, :width]
