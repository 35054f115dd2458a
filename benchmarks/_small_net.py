# SPDX-License-Identifier: Apache-2.0
"""A small classifier in NumPy, trained by Adam with a cosine: hundreds of warm starts take minutes on one core."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._cnn import _rows, _spread, patches
from ._simulation import Floats, _softmax

__all__ = ["SmallNet", "batches_of"]

_FIRST, _SECOND, _HIDDEN, _AREA = 8, 16, 64, 9


class SmallNet:
    """For images two convolutions of 3 x 3 with stride 2, if asked for; then a dense layer of 64, then classes.

    Parameters
    ----------
    shape
        Of one sample: height x width (multiples of 4), or the length of a vector.
    classes
        How many outputs.
    seed
        What the first weights are drawn by.
    convolutions
        Whether images go through convolutions; without, a step takes a fifth of the time.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, seed: int, *, convolutions: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.images = len(shape) == 2 and convolutions

        def drawn(*size: int) -> Floats:
            return (rng.normal(size=size) * np.sqrt(2 / size[0])).astype(np.float32)

        width = int(np.prod(shape))
        self.weights: dict[str, Floats] = {}
        if self.images:
            width = (shape[0] // 4) * (shape[1] // 4) * _SECOND
            self.weights |= {"a": drawn(_AREA, _FIRST), "a+": np.zeros(_FIRST, np.float32)}
            self.weights |= {"b": drawn(_AREA * _FIRST, _SECOND), "b+": np.zeros(_SECOND, np.float32)}
        self.weights |= {"c": drawn(width, _HIDDEN), "c+": np.zeros(_HIDDEN, np.float32)}
        self.weights |= {"d": drawn(_HIDDEN, classes) / 4, "d+": np.zeros(classes, np.float32)}

    def copy(self) -> SmallNet:
        """Return another with the same weights."""
        other = object.__new__(SmallNet)
        other.images = self.images
        other.weights = {name: value.copy() for name, value in self.weights.items()}
        return other

    def seen(self, x: NDArray[np.generic]) -> Floats:
        """Return what the first layer sees of samples (uint8 images, or vectors); lay it out once for many steps."""
        if not self.images:
            flat = np.asarray(x, np.float32).reshape(len(x), -1)
            return flat / 255 if x.ndim == 3 else flat
        return patches(np.asarray(x, np.float32)[..., None] / 255)

    def _forward(self, seen: Floats) -> dict[str, Floats]:
        w, found = self.weights, {"in": seen}
        flat = seen
        if self.images:
            found["a"] = np.maximum(seen @ w["a"] + w["a+"], 0)
            found["wide"] = patches(found["a"])
            found["b"] = np.maximum(found["wide"] @ w["b"] + w["b+"], 0)
            flat = found["b"].reshape(len(seen), -1)
        found["flat"] = flat
        found["c"] = np.maximum(flat @ w["c"] + w["c+"], 0)
        found["d"] = found["c"] @ w["d"] + w["d+"]
        return found

    def answers(self, x: NDArray[np.generic], batch: int = 1_000) -> tuple[Floats, Floats]:
        """Return probabilities (n x K) and embeddings (n x 64) of samples."""
        parts = [self._forward(self.seen(x[i : i + batch])) for i in range(0, len(x), batch)]
        return (
            np.concatenate([_softmax(part["d"]) for part in parts]),
            np.concatenate([part["c"] for part in parts]),
        )

    def accuracy(self, x: NDArray[np.generic], y: NDArray[np.int64]) -> float:
        """Return the share of right answers."""
        return float((self.answers(x)[0].argmax(1) == y).mean())

    def _slopes(self, seen: Floats, y: NDArray[np.int64]) -> dict[str, Floats]:
        w, f = self.weights, self._forward(seen)
        p = _softmax(f["d"])
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        hidden = (p @ w["d"].T) * (f["c"] > 0)
        slopes = {"d": f["c"].T @ p, "d+": p.sum(0), "c": f["flat"].T @ hidden, "c+": hidden.sum(0)}
        if self.images:
            back = (hidden @ w["c"].T).reshape(f["b"].shape) * (f["b"] > 0)
            slopes |= {"b": _rows(f["wide"]).T @ _rows(back), "b+": back.sum((0, 1, 2))}
            lower = _spread(back @ w["b"].T, f["a"].shape) * (f["a"] > 0)
            slopes |= {"a": _rows(seen).T @ _rows(lower), "a+": lower.sum((0, 1, 2))}
        return slopes

    def fit(self, seen: Floats, y: NDArray[np.int64], batches: NDArray[np.int64], *, rate: float = 1e-3) -> None:
        """Train by Adam on batches of rows (steps x batch), the rate falling along a cosine."""
        first = {name: np.zeros_like(value) for name, value in self.weights.items()}
        second = {name: np.zeros_like(value) for name, value in self.weights.items()}
        steps = len(batches)
        for step, rows in enumerate(batches):
            now = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
            now *= np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            for name, slope in self._slopes(seen[rows], y[rows]).items():
                first[name] += 0.1 * (slope - first[name])
                second[name] += 0.001 * (slope * slope - second[name])
                self.weights[name] -= np.float32(now) * first[name] / (np.sqrt(second[name]) + 1e-8)


def batches_of(count: int, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return rows 0 to count - 1 in epochs, each in an order of its own, cut into batches: steps x batch."""
    wanted = shape[0] * shape[1]
    rows = np.concatenate([rng.permutation(count) for _ in range(wanted // count + 1)])
    return rows[:wanted].reshape(shape)
