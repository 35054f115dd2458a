# SPDX-License-Identifier: Apache-2.0
"""Upload ratios over any window of any stream; the bounded credit beside a threshold, a quantile, and a token bucket.

Seven kinds of streams of 24,000 samples, whose hardness is that of a classifier's margins, and two adversaries. Each
window of 1,000 samples counts; the figure is the worst of all. On held scenes, where hard frames come in long runs,
the share of an offline top-k's advantage that is kept says what a ratio without look-ahead costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from solar_corona.joint_inference.credit import BoundedCredit
from solar_corona.joint_inference.ranks import Ranks

from . import _report
from ._report import Figure, median

RATIOS = (0.02, 0.05, 0.1, 0.3, 0.5)
LENGTH, WINDOW, SEEDS = 24_000, 1_000, 5
Stream = NDArray[np.float64]


class Controller(Protocol):
    """Says of each hardness, as it comes, whether the sample is uploaded."""

    def take(self, hardness: float) -> bool:
        """Decide on the next sample."""


class Credit:
    """Ours: a place among the samples before, held to the ratio by the bounded credit."""

    def __init__(self, ratio: float, hold: str = "default") -> None:
        self._ranks, self._credit = Ranks(), BoundedCredit(ratio, hold=hold)  # type: ignore[arg-type]

    def take(self, hardness: float) -> bool:
        """Decide on the next sample."""
        return self._credit.take(self._ranks.place(hardness))


class Threshold:
    """A threshold that fits the stream's first 2,000 samples."""

    def __init__(self, ratio: float, first: Stream) -> None:
        self._threshold = float(np.quantile(first, 1 - ratio))

    def take(self, hardness: float) -> bool:
        """Decide on the next sample."""
        return hardness > self._threshold


class Quantile:
    """The quantile of the last 1,000 samples."""

    def __init__(self, ratio: float) -> None:
        self._ratio, self._last, self._count = ratio, np.zeros(1000), 0

    def take(self, hardness: float) -> bool:
        """Decide on the next sample."""
        known = self._last[: min(self._count, 1000)]
        upload = bool(hardness > np.quantile(known, 1 - self._ratio)) if len(known) > 20 else False
        self._last[self._count % 1000] = hardness
        self._count += 1
        return upload


class Bucket(Threshold):
    """The threshold, and a token bucket of 10 uploads that it may not exceed."""

    def __init__(self, ratio: float, first: Stream) -> None:
        super().__init__(ratio, first)
        self._ratio, self._tokens = ratio, 10.0

    def take(self, hardness: float) -> bool:
        """Decide on the next sample."""
        self._tokens = min(self._tokens + self._ratio, 10.0)
        upload = super().take(hardness) and self._tokens >= 1
        self._tokens -= upload
        return upload


def streams(seed: int) -> dict[str, Stream]:
    """Return hardness, 0 to 1, of each kind of stream."""
    rng = np.random.default_rng(seed)
    easy, hard = rng.beta(0.6, 4, LENGTH), rng.beta(2, 2, LENGTH)
    at = np.arange(LENGTH)

    def mixed(share: NDArray[np.float64]) -> Stream:
        return np.where(rng.random(LENGTH) < share, hard, easy)

    scenes = np.repeat(rng.random(LENGTH // 200) < 0.2, 200)
    bursts = np.zeros(LENGTH)
    for begin in rng.integers(0, LENGTH - 600, 12):
        bursts[begin : begin + int(rng.integers(50, 600))] = 1
    return {
        "stationary": mixed(np.full(LENGTH, 0.2)),
        "abrupt": mixed(np.where(at < LENGTH / 2, 0.1, 0.8)),
        "gradual": mixed(at / LENGTH),
        "cyclic": mixed(0.5 + 0.5 * np.sin(2 * np.pi * at / 3000)),
        "bursts": mixed(np.maximum(bursts, 0.05)),
        "class change": np.where(at < LENGTH / 2, easy, 0.3 + 0.4 * easy),
        "held scenes": np.where(scenes, 0.55 + 0.1 * hard, easy),
        "adversary: constant": np.full(LENGTH, 0.5),
        "adversary: rising": at / LENGTH,
    }


def uploads_of(controller: Controller, stream: Stream) -> NDArray[np.bool_]:
    """Return which samples are uploaded."""
    return np.fromiter((controller.take(value) for value in stream.tolist()), bool, len(stream))


def worst_window(uploads: NDArray[np.bool_], ratio: float) -> float:
    """Return by how many points the worst window of 1,000 misses the ratio."""
    sums = np.concatenate([[0], np.cumsum(uploads)])
    counts = sums[WINDOW:] - sums[:-WINDOW]
    return float(100 * np.abs(counts / WINDOW - ratio).max())


def kept_advantage(uploads: NDArray[np.bool_], stream: Stream, ratio: float) -> float:
    """Return how much of the offline top-k's hardness beyond random choice is kept."""
    count = int(uploads.sum())
    best = np.sort(stream)[::-1][: round(ratio * len(stream))].mean()
    return float((stream[uploads].mean() - stream.mean()) / (best - stream.mean())) if count else 0.0


def main() -> None:
    """Measure, print and write the results."""
    makers: Mapping[str, Callable[[float, Stream], Controller]] = {
        "credit": lambda ratio, _: Credit(ratio),
        "credit, strict": lambda ratio, _: Credit(ratio, "strict"),
        "credit, relaxed": lambda ratio, _: Credit(ratio, "relaxed"),
        "threshold": Threshold,
        "quantile": lambda ratio, _: Quantile(ratio),
        "threshold and bucket": Bucket,
    }
    worst: dict[str, dict[float, float]] = {name: dict.fromkeys(RATIOS, 0.0) for name in makers}
    kept: dict[str, dict[float, list[float]]] = {name: {ratio: [] for ratio in RATIOS} for name in makers}
    for seed in range(SEEDS):
        for kind, stream in streams(seed).items():
            for name, make in makers.items():
                if name == "quantile" and seed:
                    continue  # a quantile a sample takes minutes; one seed shows it
                for ratio in RATIOS:
                    uploads = uploads_of(make(ratio, stream[:2000]), stream)
                    worst[name][ratio] = max(worst[name][ratio], worst_window(uploads, ratio))
                    if kind == "held scenes":
                        kept[name][ratio].append(kept_advantage(uploads, stream, ratio))
    seconds = []
    for _ in range(5):
        controller, stream = Credit(0.1), streams(0)["stationary"].tolist()
        begin = time.perf_counter()
        for value in stream:
            controller.take(value)
        seconds.append((time.perf_counter() - begin) / LENGTH * 1e6)
    state = Ranks()
    size = sum(
        part.itemsize * len(part) if hasattr(part, "itemsize") else 8
        for part in [getattr(state, name) for name in state.__slots__] + [0.0] * len(BoundedCredit.__slots__)
    )
    errors = list(worst["credit"].values())
    figures = [
        Figure("worst_error_points", max(errors), "points", 2.0, errors, "low"),
        Figure(
            "strict_error_share",
            max(worst["credit, strict"][r] / 100 / r for r in RATIOS),
            "of r",
            0.1,
            [worst["credit, strict"][r] / 100 / r for r in RATIOS],
            "low",
        ),
        Figure("microseconds", median(seconds), "us a sample", 5.0, seconds, "low"),
        Figure("state_bytes", size, "bytes", 1024, [], "low"),
        *(
            Figure(f"kept_on_held_scenes_{ratio:g}", median(kept[name][ratio]), f"of top-k's advantage, {name}")
            for name in ("credit", "credit, relaxed")
            for ratio in RATIOS
        ),
        *(
            Figure(f"worst_error_points_{name.replace(' ', '_')}", max(worst[name].values()), "points")
            for name in ("threshold", "quantile", "threshold and bucket")
        ),
    ]
    table = {name: {str(ratio): round(value, 2) for ratio, value in by.items()} for name, by in worst.items()}

    def picture(axes: Any) -> None:
        for name, by in worst.items():
            ours = name.startswith("credit")
            axes.plot(
                RATIOS,
                list(by.values()),
                marker="o",
                label=name,
                color="#e8710a" if name == "credit" else None,
                linestyle="-" if ours else ":",
            )
        axes.axhline(2, color="#1a6b3c", linewidth=1)
        axes.set_yscale("log")
        axes.set_xlabel("upload ratio")
        axes.set_ylabel("worst window of 1,000, points off")
        axes.legend(fontsize=7)

    _report.write("upload_ratio", figures, extra={"worst window, points": table}, picture=picture)


if __name__ == "__main__":
    main()
