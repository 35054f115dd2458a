# SPDX-License-Identifier: Apache-2.0
"""Models and data of the app. Our side of a comparison imports this module too: same model, same training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = tuple[NDArray[np.float32], NDArray[np.int64]]

__all__ = ["MODELS", "fix_seed", "load_edge", "load_model", "load_test", "train"]

# Width and number of the hidden layers, and number of outputs, of the models that only weigh something.
_DENSE = {"dense-4kb": (32, [24], 8), "dense-4mb": (256, [256] * 15, 256)}
MODELS = (*_DENSE, "cnn-cifar10", "mlp-fashion")


def fix_seed(seed: int) -> None:
    """Make what follows in this process repeatable: weights, order of samples, TensorFlow's kernels."""
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def load_model(name: str, *, learning_rate: float = 0.01) -> keras.Model:
    """Build and compile a model.

    `dense-4kb` has 992 float32 in 4 arrays, `dense-4mb` has 1,052,672 in 32 arrays; both classify vectors.
    `cnn-cifar10` and `mlp-fashion` classify images of 0 to 255 into 10 classes.
    """
    layers = keras.layers
    if name in _DENSE:
        width, hidden, outputs = _DENSE[name]
        body = [layers.Dense(units, activation="relu") for units in hidden]
        stack = [keras.Input((width,)), *body, layers.Dense(outputs)]
    elif name == "cnn-cifar10":
        stack = [
            keras.Input((32, 32, 3)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    elif name == "mlp-fashion":
        stack = [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ]
    else:
        raise ValueError(f"there is no model {name!r}; expected one of {', '.join(MODELS)}")
    model = keras.Sequential(stack)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load_edge(folder: str, *, edge: int, model: str) -> tuple[Samples, Samples]:
    """Return an edge's training and evaluation samples; a synthetic batch for the dense models."""
    if model in _DENSE:
        width, _, outputs = _DENSE[model]
        rng = np.random.default_rng(edge)
        batch = rng.random((32, width), dtype=np.float32), rng.integers(0, outputs, 32)
        return batch, batch
    with np.load(Path(folder) / f"edge_{edge}.npz") as file:
        return (
            (file["x_train"].astype(np.float32), file["y_train"]),
            (file["x_eval"].astype(np.float32), file["y_eval"]),
        )


def load_test(folder: str) -> Samples:
    """Return the global test set."""
    with np.load(Path(folder) / "test.npz") as file:
        return file["x"].astype(np.float32), file["y"]


def train(model: keras.Model, samples: Samples, *, epochs: int, batch_size: int, seed: int) -> float:
    """Train `model` in place and return the last epoch's loss."""
    keras.utils.set_random_seed(seed)
    history = model.fit(*samples, epochs=epochs, batch_size=batch_size, verbose=0)
    return float(history.history["loss"][-1])
