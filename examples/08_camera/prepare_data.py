# SPDX-License-Identifier: Apache-2.0
"""Trains a small and a large model on half of the video's frames, and tells how good each is on the other half.

What is a car is told by what changed against the empty lane, so nobody had to label a frame.
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hilens
import keras
import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
CHANGED, AREA = 40, 0.01


def read_frames(path: Path) -> np.ndarray:
    camera, frames = hilens.VideoCapture(str(path)), []
    while (frame := camera.read()) is not None:
        frames.append(frame)
    return np.stack(frames)


def cars_in(frames: np.ndarray) -> np.ndarray:
    """Return 1 where more than a hundredth of the lane looks other than when it is empty."""
    change = frames - np.median(frames[::5], axis=0).astype(np.float32)
    change -= np.median(change, axis=(1, 2), keepdims=True)  # the camera's exposure
    return ((np.abs(change).max(axis=3) > CHANGED).mean(axis=(1, 2)) > AREA).astype(np.int64)


def small_model() -> keras.Model:
    return keras.Sequential(
        [
            keras.layers.Input((27, 48, 1)),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )


def large_model() -> keras.Model:
    return keras.Sequential(
        [
            keras.layers.Input((108, 192, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 5, strides=3, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(64, 3, strides=2, activation="relu"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )


def main() -> None:
    keras.utils.set_random_seed(1)
    frames = read_frames(HERE / "lane.mp4")
    cars = cars_in(frames)
    grey = frames.mean(axis=3, dtype=np.float32).reshape(-1, 27, 8, 48, 8).mean(axis=(2, 4))[..., None] / 255
    # As the service does it: bilinear, to the model's size.
    whole = np.stack(
        [np.asarray(Image.fromarray(f).resize((192, 108), Image.Resampling.BILINEAR), np.float32) for f in frames]
    )
    train = np.arange(len(frames)) % 2 == 0
    (HERE / "data").mkdir(exist_ok=True)
    for name, model, x, epochs in (("small", small_model(), grey, 60), ("large", large_model(), whole, 15)):
        optimizer = keras.optimizers.Adam(3e-3 if name == "small" else 1e-3)
        model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x[train], cars[train], epochs=epochs, batch_size=16, verbose=0)
        accuracy = model.evaluate(x[~train], cars[~train], verbose=0)[1]
        model.save(HERE / "data" / f"{name}.keras")
        print(f"{name} model: {model.count_params():,} parameters, right on {accuracy:.1%} of the other frames")


if __name__ == "__main__":
    main()
