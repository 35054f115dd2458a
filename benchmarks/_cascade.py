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
_EPOCHS = {"cifar10": (24, 10), "fashion": (30, 12)}
_SHIFT = {"cifar10": 4, "fashion": 2}  # pixels by which training images are moved at most
_MODELS = ("shallow", "deep")
_RATES = (5e-3, 3e-3)
_WEIGHT_DECAY, _BATCH = 1e-3, 128
_TEMPERATURE = 4.0
_RECIPE = 2  # a new number trains anew
# Channels of the 3 x 3 convolutions of each stage of the deep model; a stage ends with a pooling.
_DEEP = ((32,), (64, 64), (128, 128), (256,))
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
    targets = np.eye(10, dtype=np.float32)[y]
    shift, (shallow_epochs, deep_epochs) = _SHIFT[name], _EPOCHS[name]
    # The deep model comes first: the shallow one learns from its answers as well, as one that stands before it would.
    deep = deep_model(x.shape[1:])
    _fit(deep, x, targets, epochs=deep_epochs, rate=_RATES[1], shift=shift, loss="categorical_crossentropy")
    soft = np.clip(deep.predict(x, batch_size=256, verbose=0), 1e-7, 1) ** (1 / _TEMPERATURE)
    both = np.concatenate([targets, soft / soft.sum(1, keepdims=True)], 1)
    logits = _shallow_logits(x.shape[1:])
    _fit(logits, x, both, epochs=shallow_epochs, rate=_RATES[0], shift=shift, loss=_distillation)
    shallow = keras.Sequential([*logits.layers, keras.layers.Softmax()])
    shallow.build((None, *x.shape[1:]))
    for each, model in zip(_MODELS, (shallow, deep), strict=True):
        model.save(folder / f"{each}.keras")
        outputs[f"{each}_parameters"] = np.array(model.count_params())
        for part, (samples, _) in parts.items():
            outputs[f"{part}_{each}"] = model.predict(samples, batch_size=256, verbose=0)
    np.savez(folder / "outputs.npz", **outputs)


def _distillation(targets: Any, logits: Any) -> Any:
    """Half of it from labels, half from the deep model's answers at a temperature (Hinton et al. 2015)."""
    from keras import ops

    hard, soft = targets[:, :10], targets[:, 10:]
    by_label = ops.categorical_crossentropy(hard, logits, from_logits=True)
    by_deep = ops.categorical_crossentropy(soft, logits / _TEMPERATURE, from_logits=True)
    return 0.5 * by_label + 0.5 * _TEMPERATURE * by_deep


def _fit(
    model: Any, x: NDArray[np.uint8], targets: NDArray[np.float32], *, epochs: int, rate: float, shift: int, loss: Any
) -> None:
    import keras

    steps = epochs * -(-len(x) // _BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=rate, warmup_steps=steps // 10)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=_WEIGHT_DECAY), loss=loss)
    padded = np.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    rng, side = np.random.default_rng(len(x)), np.arange(x.shape[1])
    for epoch in range(epochs):
        # Each epoch moves every image by some pixels.
        dy, dx = rng.integers(0, 2 * shift + 1, (2, len(x), 1))
        moved = padded[np.arange(len(x))[:, None, None], (dy + side)[:, :, None], (dx + side)[:, None, :]]
        model.fit(moved, targets, batch_size=_BATCH, initial_epoch=epoch, epochs=epoch + 1, verbose=2)


def shallow_model(shape: tuple[int, ...]) -> Any:
    """Return an untrained Keras model of the shallow form, 49 KB of parameters; images are 0 to 255."""
    from keras import Sequential, layers

    model = Sequential([*_shallow_logits(shape).layers, layers.Softmax()])
    model.build((None, *shape))
    return model


def _shallow_logits(shape: tuple[int, ...]) -> Any:
    """Return a small network of depthwise separable convolutions (Howard et al. 2017)."""
    from keras import Sequential, layers

    def normalised(*convolutions: Any) -> list[Any]:
        return [*convolutions, layers.BatchNormalization(), layers.ReLU()]

    def separable(width: int) -> list[Any]:
        depthwise = layers.DepthwiseConv2D(3, padding="same", use_bias=False)
        return normalised(depthwise, layers.Conv2D(width, 1, use_bias=False))

    return Sequential(
        [
            layers.Input(shape),
            layers.Rescaling(1 / 255),
            layers.RandomFlip("horizontal"),
            *normalised(layers.Conv2D(16, 3, padding="same", use_bias=False)),
            *separable(32),
            layers.MaxPooling2D(padding="same"),
            *separable(48),
            layers.MaxPooling2D(padding="same"),
            *separable(64),
            *separable(64),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def deep_model(shape: tuple[int, ...]) -> Any:
    """Return an untrained Keras model of the deep form, 2.3 MB of parameters."""
    from keras import Sequential, layers

    parts: list[Any] = [layers.Input(shape), layers.Rescaling(1 / 255), layers.RandomFlip("horizontal")]
    for stage in _DEEP:
        for width in stage:
            parts += [layers.Conv2D(width, 3, padding="same", use_bias=False), layers.BatchNormalization()]
            parts.append(layers.ReLU())
        parts.append(layers.MaxPooling2D(padding="same"))
    return Sequential([*parts, layers.GlobalAveragePooling2D(), layers.Dropout(0.3), layers.Dense(10, "softmax")])
