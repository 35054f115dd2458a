# SPDX-License-Identifier: Apache-2.0
"""A shallow and a deep classifier of one data set, trained here, and what each makes of images it never saw.

Training takes minutes, so models and outputs are kept in the user's cache, a folder for each set and seed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solar_corona.lib.scores import Scores, class_scores

from ._data import Images, load_cifar10, load_fashion_mnist

__all__ = ["SETS", "Cascade", "Seen", "load_cascade", "load_images", "shallow_model"]

SETS = ("cifar10", "fashion")
# Images of the training set that neither model is trained on: an operator's own labelled samples.
_HELD = {"cifar10": 5_000, "fashion": 3_000}
_EPOCHS = {"cifar10": (16, 8), "fashion": (16, 12)}
_MODELS = ("shallow", "deep")
# Channels of the 3 x 3 convolutions of each stage, by model; a stage ends with a pooling.
_WIDTHS = (((16,), (24,), (32,)), ((32,), (64, 64), (128, 128), (256,)))
_RECIPE = 1  # a new number trains anew
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "solar-corona" / "cascades"


@dataclass(frozen=True)
class Seen:
    """What both models make of n images: probabilities, n x 10 each, and the true classes."""

    shallow: NDArray[np.float32]
    deep: NDArray[np.float32]
    truth: NDArray[np.int64]

    @property
    def scores(self) -> Sequence[Scores]:
        """The shallow model's scores, as an edge sees them."""
        return [class_scores(row) for row in self.shallow]

    @property
    def shallow_right(self) -> NDArray[np.bool_]:
        """Whether the shallow model is right."""
        return np.asarray(self.shallow.argmax(1) == self.truth)

    @property
    def deep_right(self) -> NDArray[np.bool_]:
        """Whether the deep model is right."""
        return np.asarray(self.deep.argmax(1) == self.truth)


@dataclass(frozen=True)
class Cascade:
    """Two models and what they see.

    Parameters
    ----------
    folder
        Holds `shallow.keras` and `deep.keras`.
    bytes
        Of the shallow and of the deep model's parameters.
    held
        Labelled samples to learn from.
    test
        What figures are of.
    """

    folder: Path
    bytes: tuple[int, int]
    held: Seen
    test: Seen


def load_cascade(name: str, data: Path, *, seed: int = 1, cache: Path = _CACHE) -> Cascade:
    """Return a set's two models, trained if they are not in the cache.

    Parameters
    ----------
    name
        One of `SETS`.
    data
        Folder of the data sets.
    seed
        Of weights and of the order of samples.
    cache
        Where models are kept.
    """
    folder = cache / f"{name}-{seed}-recipe-{_RECIPE}"
    if not (folder / "outputs.npz").is_file():
        fresh = folder.with_name(folder.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _train(name, load_images(name, data), fresh, seed)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    with np.load(folder / "outputs.npz", allow_pickle=False) as file:
        held, test = (Seen(*(file[f"{part}_{what}"] for what in (*_MODELS, "truth"))) for part in ("held", "test"))
        shallow, deep = (4 * int(file[f"{each}_parameters"]) for each in _MODELS)
    return Cascade(folder, (shallow, deep), held, test)


def load_images(name: str, data: Path) -> Images:
    """Return all images of a set."""
    return load_cifar10(data, train=50_000, test=8_000) if name == "cifar10" else load_fashion_mnist(data)


def _train(name: str, images: Images, folder: Path, seed: int) -> None:
    import keras

    keras.utils.set_random_seed(seed)
    cut = len(images.x_train) - _HELD[name]
    x, y = images.x_train[:cut], images.y_train[:cut]
    parts = {
        "held": (images.x_train[cut:], images.y_train[cut:]),
        "test": (images.x_test, images.y_test),
    }
    outputs: dict[str, NDArray[Any]] = {f"{part}_truth": truth for part, (_, truth) in parts.items()}
    for each, widths, epochs in zip(_MODELS, _WIDTHS, _EPOCHS[name], strict=True):
        model = _model(x.shape[1:], widths, normalised=each == "deep")
        steps = epochs * -(-len(x) // 128)
        rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=3e-3, warmup_steps=steps // 10)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-3)
        model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x, y, batch_size=128, epochs=epochs, verbose=2)
        model.save(folder / f"{each}.keras")
        outputs[f"{each}_parameters"] = np.array(model.count_params())
        for part, (samples, _) in parts.items():
            outputs[f"{part}_{each}"] = model.predict(samples, batch_size=256, verbose=0)
    np.savez(folder / "outputs.npz", **outputs)


def shallow_model(shape: tuple[int, ...]) -> Any:
    """Return an untrained Keras model of the shallow form, 45 KB of parameters; images are 0 to 255."""
    return _model(shape, _WIDTHS[0], normalised=False)


def _model(shape: tuple[int, ...], widths: tuple[tuple[int, ...], ...], *, normalised: bool) -> Any:
    from keras import Sequential, layers

    parts: list[Any] = [layers.Input(shape), layers.Rescaling(1 / 255), layers.RandomFlip("horizontal")]
    for stage in widths:
        for width in stage:
            parts.append(layers.Conv2D(width, 3, padding="same", use_bias=not normalised))
            parts += [layers.BatchNormalization()] if normalised else []
            parts.append(layers.ReLU())
        parts.append(layers.MaxPooling2D(padding="same"))
    parts.append(layers.GlobalAveragePooling2D())
    parts += [layers.Dropout(0.3)] if normalised else []
    return Sequential([*parts, layers.Dense(10, activation="softmax")])
