# SPDX-License-Identifier: Apache-2.0
"""Splits scikit-learn's digits into what the first model learns from and two desks' forms, and trains that model."""

from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

SEED = 7


def prepare(folder: Path) -> None:
    if (folder / "digits.keras").exists():
        return
    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(SEED).permutation(len(y))
    x, y = (x[rows].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8), y[rows]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in {
        "base": slice(0, 700),
        "old": slice(700, 1000),
        "stream-1": slice(1000, 1400),
        "stream-2": slice(1400, None),
    }.items():
        np.savez_compressed(folder / f"{name}.npz", x=x[part], y=y[part])
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Rescaling(1 / 255),  # in the model, so that every script gives it images as they are
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="sparse_categorical_crossentropy")
    model.fit(x[:700], y[:700], batch_size=32, epochs=20, verbose=0)
    model.save(folder / "digits.keras")


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
