# SPDX-License-Identifier: Apache-2.0
"""Eight ways in which data drift away from what a model was trained on, made of public data.

`rot`: all images are turned by a quarter. `mix`: 30 % are noisy, blurred, dark or partly covered. `junk`: as `mix`, and
15 % more show nothing that could be labelled. `noisy`: as `mix`, and labellers err on the samples that the model is
least sure of. `new2`: two of ten classes are new. `har`: a watch instead of a phone. `writers`: students instead of
employees. `elec2`: the electricity market, later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ._data import open_data
from ._small_net import SmallNet, batches_of

__all__ = ["DRIFTS", "SCENARIOS", "Drift", "drift_of"]

SCENARIOS = ("rot", "mix", "junk", "noisy", "new2", "har", "writers", "elec2")
DRIFTS = ("rot", "mix", "new2", "har", "writers", "elec2")
_BASE, _POOL, _TEST = 1_500, 3_000, 2_000

Samples = NDArray[np.generic]
Classes = NDArray[np.int64]
Part = tuple[Samples, Classes]


@dataclass(frozen=True)
class Drift:
    """A scenario.

    Parameters
    ----------
    base, old_test
        What the model was trained on, and held-out samples like it.
    pool, test
        Samples of the new distribution, to choose from, and held-out ones to measure on.
    classes
        How many there are in all.
    usable
        Which of the pool can be labelled.
    wrong_if_unsure
        How often labellers err on the fifth of the pool that the model is least sure of.
    """

    name: str
    base: Part
    old_test: Part
    pool: Part
    test: Part
    classes: int
    usable: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, np.bool_))
    wrong_if_unsure: float = 0.0

    def trained(self, seed: int, *, convolutions: bool = True) -> SmallNet:
        """Return a model trained on the base."""
        x, y = self.base
        net = SmallNet(x.shape[1:], self.classes, seed, convolutions=convolutions)
        net.fit(net.seen(x), y, batches_of(len(y), (800, 32), np.random.default_rng(seed)), rate=2e-3)
        return net


@lru_cache(maxsize=4)
def _arrays(folder: Path, name: str) -> dict[str, NDArray[np.generic]]:
    with np.load(open_data(folder, name), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def drift_of(name: str, folder: Path, seed: int, *, corrupted: float = 0.3) -> Drift:
    """Return a scenario, its samples drawn by `seed`; of `mix` and its kin, this share of the images is corrupted."""
    rng = np.random.default_rng([seed, SCENARIOS.index(name)])
    makers = {"har": _har, "writers": _writers, "elec2": _elec2}
    return makers[name](folder, rng) if name in makers else _fashion(name, folder, rng, corrupted)


def _cut(rng: np.random.Generator, x: Samples, y: NDArray[np.generic], *sizes: int) -> list[Part]:
    rows, parts, begin = rng.permutation(len(x)), [], 0
    for size in sizes:
        part = rows[begin : begin + size]
        parts.append((x[part], y[part].astype(np.int64)))
        begin += size
    return parts


def _fashion(name: str, folder: Path, rng: np.random.Generator, corrupted: float) -> Drift:
    data = _arrays(folder, "fashion_mnist.npz")
    base, pool = _cut(rng, data["x_train"], data["y_train"], _BASE, _POOL)
    old, test = _cut(rng, data["x_test"], data["y_test"], _TEST, _TEST)
    usable = np.ones(len(pool[0]), np.bool_)
    if name == "new2":
        fresh = rng.choice(10, 2, replace=False)
        base, old = (tuple(a[~np.isin(part[1], fresh)] for a in part) for part in (base, old))  # type: ignore[misc]
    elif name == "rot":
        pool, test = ((np.rot90(part[0], axes=(1, 2)).copy(), part[1]) for part in (pool, test))
    else:
        pool, test = ((_corrupted(part[0], rng, corrupted), part[1]) for part in (pool, test))
    if name == "junk":
        junk = rng.random(len(pool[0])) < 0.15
        usable &= ~junk
        pool[0][junk] = _junk(int(junk.sum()), rng)
    return Drift(name, base, old, pool, test, 10, usable, 0.3 if name == "noisy" else 0.0)


def _corrupted(x: Samples, rng: np.random.Generator, share: float) -> Samples:
    from scipy.ndimage import uniform_filter

    found = x.astype(np.float32)
    kind = np.where(rng.random(len(x)) < share, rng.integers(0, 4, len(x)), -1)
    found[kind == 0] += rng.normal(0, 70, found[kind == 0].shape)
    found[kind == 1] = uniform_filter(found[kind == 1], (0, 7, 7))
    found[kind == 2] *= 0.25
    for i in np.flatnonzero(kind == 3):
        top, left = rng.integers(0, 14, 2)
        found[i, top : top + 14, left : left + 14] = 0
    clipped: Samples = np.clip(found, 0, 255).astype(np.uint8)
    return clipped


def _junk(count: int, rng: np.random.Generator) -> Samples:
    """Return images of noise in blocks, each with another grain and brightness."""
    images = np.zeros((count, 28, 28))
    for i in range(count):
        grain = int(rng.choice([1, 2, 4, 7, 14]))
        blocks = rng.random((28 // grain, 28 // grain)) * rng.uniform(20, 255)
        images[i] = np.kron(blocks, np.ones((grain, grain)))
    return images.astype(np.uint8)


def _har(folder: Path, rng: np.random.Generator) -> Drift:
    data = _arrays(folder, "har_phone_watch.npz")
    subjects = rng.permutation(np.unique(data["subject"]))
    known, others = np.isin(data["subject"], subjects[:10]), np.isin(data["subject"], subjects[10:17])
    last = np.isin(data["subject"], subjects[17:])
    phone, watch = (_windows(data[key]) for key in ("x_phone", "x_watch"))
    y = data["y"]
    mean, spread = phone[known].mean(0), phone[known].std(0) + 1e-3
    phone, watch = (phone - mean) / spread, np.clip((watch - mean) / spread, -8, 8)
    return Drift(
        "har",
        *_cut(rng, phone[known], y[known], _BASE),
        *_cut(rng, phone[last], y[last], _TEST),
        *_cut(rng, watch[others], y[others], _POOL),
        *_cut(rng, watch[last], y[last], _TEST),
        classes=5,
        usable=np.ones(min(_POOL, int(others.sum())), np.bool_),
    )


def _windows(x: Samples) -> NDArray[np.float32]:
    """Return mean, spread and range of each channel in each quarter of a window: what a small model can tell."""
    parts = np.asarray(x, np.float32).reshape(len(x), 4, 16, 6)
    step = np.abs(np.diff(parts, axis=2)).mean(2)
    found = np.concatenate([parts.mean(2), parts.std(2), step], axis=1)
    return found.reshape(len(x), -1)


def _writers(folder: Path, rng: np.random.Generator) -> Drift:
    data = _arrays(folder, "mnist_writers.npz")
    employee, student = data["series_train"] == 0, data["series_train"] == 4
    pool_writers = rng.permutation(np.unique(data["writer_train"][student]))
    cut = len(pool_writers) // 2
    pool, test = (student & np.isin(data["writer_train"], part) for part in (pool_writers[:cut], pool_writers[cut:]))
    held = np.isin(data["writer_train"], rng.permutation(np.unique(data["writer_train"][employee]))[:30])
    x, y = data["x_train"], data["y_train"]
    return Drift(
        "writers",
        *_cut(rng, x[employee & ~held], y[employee & ~held], 1_000),
        *_cut(rng, x[employee & held], y[employee & held], _TEST),
        *_cut(rng, x[pool], y[pool], _POOL),
        *_cut(rng, x[test], y[test], _TEST),
        classes=10,
        usable=np.ones(min(_POOL, int(pool.sum())), np.bool_),
    )


def _elec2(folder: Path, rng: np.random.Generator) -> Drift:
    data = _arrays(folder, "elec2.npz")
    keep = [i for i, name in enumerate(data["feature_names"]) if str(name) not in ("date", "nswprice")]
    x, y = np.asarray(data["x"], np.float32)[:, keep], data["y"]
    # Before row 17,760 three of the features are constant.
    begin = 17_800 + int(rng.integers(0, 1_000))
    later = slice(begin + 11_000, begin + 17_000)
    first = slice(begin, begin + 6_000)
    x = (x - x[first].mean(0)) / x[first].std(0)
    base, old = _cut(rng, x[first], y[first], _BASE, _TEST)
    pool, test = _cut(rng, x[later], y[later], _POOL, _TEST)
    return Drift("elec2", base, old, pool, test, 2, np.ones(_POOL, np.bool_))
