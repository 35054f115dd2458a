# SPDX-License-Identifier: Apache-2.0
"""Softmax regression in NumPy: any object with four methods can be trained by a federation."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import solar_corona

CLASSES = 10


class SoftmaxRegression:
    """A linear classifier with its data."""

    def __init__(self, train: tuple, test: tuple, *, epochs: int, learning_rate: float) -> None:
        self.x, self.y = train
        self.x_test, self.y_test = test
        self.epochs, self.learning_rate = epochs, learning_rate
        self.kernel = np.zeros((self.x_test.shape[1], CLASSES), np.float32)
        self.bias = np.zeros(CLASSES, np.float32)

    # The four methods.

    def get_weights(self) -> dict[str, np.ndarray]:
        return {"kernel": self.kernel.copy(), "bias": self.bias.copy()}

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        self.kernel, self.bias = weights["kernel"].copy(), weights["bias"].copy()

    def train(self, config: Mapping) -> tuple[int, dict[str, float]]:  # noqa: ARG002 - what the strategy sends
        for _ in range(self.epochs):
            error = self._probabilities(self.x) - np.eye(CLASSES, dtype=np.float32)[self.y]
            self.kernel -= self.learning_rate * self.x.T @ error / len(self.y)
            self.bias -= self.learning_rate * error.mean(axis=0)
        return len(self.y), {"loss": self._loss(self.x, self.y)}

    def evaluate(self) -> tuple[int, dict[str, float]]:
        right = self._probabilities(self.x_test).argmax(axis=1) == self.y_test
        return len(self.y_test), {"loss": self._loss(self.x_test, self.y_test), "accuracy": float(right.mean())}

    # Optional: with this one the job's output.model is written.

    def save(self, path: Path) -> None:
        with Path(path).open("wb") as file:
            np.savez(file, **self.get_weights())

    def _probabilities(self, x: np.ndarray) -> np.ndarray:
        scores = x @ self.kernel + self.bias
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def _loss(self, x: np.ndarray, y: np.ndarray) -> float:
        return float(-np.log(self._probabilities(x)[np.arange(len(y)), y] + 1e-9).mean())


train = solar_corona.load_train_dataset()
test = solar_corona.load_eval_dataset()
model = SoftmaxRegression(
    train,
    test,
    epochs=solar_corona.context.get_parameters("epochs"),
    learning_rate=solar_corona.context.get_parameters("learning_rate"),
)
# The loaders tell how many samples there are; such a model has its data already.
model = solar_corona.collaborative_training.fit(train_loader=train, test_loader=test, model=model)
solar_corona.save_model(model)
