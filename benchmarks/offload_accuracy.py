# SPDX-License-Identifier: Apache-2.0
"""What each offload algorithm's uploads bring: accuracy at every share of uploads, beside chance and an oracle.

Two sets, a shallow model of under 60 KB and a deep one of over 2 MB each. A curve uploads the samples in the order of
an algorithm's confidence; chance is the straight line between the two models, and the oracle knows both models' errors.
`learned` learns from the samples that neither model was trained on. Beside the curves, the algorithms themselves
decide, sample by sample, at upload ratios. An area is compared on resamples of the test set, so that what is within
chance is seen as such.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from solar_corona.joint_inference import IBT, Entropy, Learned, Margin, Threshold
from solar_corona.joint_inference.curves import accuracy_curve, area_under_curve, oracle_hardness
from solar_corona.joint_inference.offload import OffloadAlgorithm
from solar_corona.lib.scores import Scores

from . import _report
from ._cascade import SETS, Cascade, Seen, load_cascade
from ._data import add_data_option
from ._report import Figure

_RESAMPLES = 200
_RATIOS = (0.02, 0.05, 0.1, 0.2, 0.5)
_SHARES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
_NAMES = {"threshold": "max_probability"}
Hardness = NDArray[np.float64]


class _Scored(Protocol):
    def confidence(self, scores: Scores) -> float:
        """Return how sure the shallow model is."""


def learned(cascade: Cascade) -> Learned:
    """Return the algorithm with a head that the held samples taught."""
    held, found = cascade.held, Learned(0.1)
    found.fit(held.scores, held.shallow_right, held.deep_right)
    return found


def hardness_of(cascade: Cascade, head: Learned) -> dict[str, Hardness]:
    """Return each algorithm's ranking of the test samples; larger is harder."""
    scored: Mapping[str, _Scored] = {
        "margin": Margin(threshold=0.5),
        "threshold": Threshold(0.5),
        "entropy": Entropy(0.5),
    }
    scores = cascade.test.scores
    found = {name: np.array([-each.confidence(s) for s in scores]) for name, each in scored.items()}
    return {**found, "learned": np.array([head.hardness(s) for s in scores])}


def in_use(algorithm: OffloadAlgorithm, seen: Seen) -> dict[str, float]:
    """Return the share of uploads and the accuracy when an algorithm decides on the test set, sample by sample."""
    uploads = np.array([algorithm.decide(scores).upload for scores in seen.scores])
    right = np.where(uploads, seen.deep_right, seen.shallow_right)
    return {"uploads": round(float(uploads.mean()), 4), "accuracy": round(float(right.mean()), 4)}


def uploads_for(curve: NDArray[np.float64], accuracy: float) -> float:
    """Return the smallest share of uploads that reaches an accuracy."""
    return float(np.flatnonzero(curve >= accuracy)[0] / (len(curve) - 1))


def measure(name: str, cascade: Cascade) -> tuple[list[Figure], dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Return the figures of one set, what a reader may want beside them, and the curves to draw."""
    test, head = cascade.test, learned(cascade)
    shallow, deep = test.shallow_right, test.deep_right
    hardness = hardness_of(cascade, head)
    curves = {each: accuracy_curve(rank, shallow, deep) for each, rank in hardness.items()}
    curves["oracle"] = accuracy_curve(oracle_hardness(shallow, deep), shallow, deep)
    curves["random"] = np.linspace(shallow.mean(), deep.mean(), len(test.truth) + 1)
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, len(deep), len(deep)) for _ in range(_RESAMPLES)]
    areas = {
        each: np.array([area_under_curve(rank[i], shallow[i], deep[i]) for i in rows])
        for each, rank in {**hardness, "oracle": oracle_hardness(shallow, deep)}.items()
    }
    areas["random"] = np.array([(shallow[i].mean() + deep[i].mean()) / 2 for i in rows])
    area = {each: float((curve[:-1] + curve[1:]).mean() / 2) for each, curve in curves.items()}
    figures = []
    for other in ("threshold", "entropy"):
        gains = 100 * (areas["margin"] - areas[other])
        value = 100 * (area["margin"] - area[other])
        # Not below, by more than resampling the test set moves it.
        goal = -float(1.96 * gains.std())
        figures.append(
            Figure(f"{name}_margin_over_{_NAMES.get(other, other)}", value, "points of area", goal, _few(gains))
        )
    for each in ("margin", "learned"):
        closed = (areas[each] - areas["random"]) / (areas["oracle"] - areas["random"])
        value = (area[each] - area["random"]) / (area["oracle"] - area["random"])
        figures.append(Figure(f"{name}_gap_closed_{each}", value, "of random to oracle", 0.35, _few(closed)))
    for percent in (99, 100):
        needed = uploads_for(curves["margin"], percent / 100 * float(deep.mean()))
        goal = 0.05 if (name, percent) == ("fashion", 99) else None
        figures.append(Figure(f"{name}_uploads_{percent}", needed, "of samples", goal, better="low"))
    with tempfile.TemporaryDirectory() as folder:
        head.save(Path(folder) / "head.json")
        makers: Mapping[str, Callable[..., OffloadAlgorithm]] = {
            "margin": Margin,
            "threshold": Threshold,
            "entropy": Entropy,
            "ibt": IBT,
            "learned": partial(Learned, file=Path(folder) / "head.json"),
        }
        used = {
            each: {f"{ratio:g}": in_use(make(upload_ratio=ratio), test) for ratio in _RATIOS}
            for each, make in makers.items()
        }
    last = len(test.truth)
    extra = {
        "bytes of the models": cascade.bytes,
        "learned is adopted": head.describe()["ranks_by"] == "head",
        "accuracy at shares of uploads": {
            each: {f"{share:g}": round(float(curve[round(share * last)]), 4) for share in _SHARES}
            for each, curve in curves.items()
        },
        "area under the curve": {each: round(value, 4) for each, value in area.items()},
        "in use, at upload ratios": used,
    }
    return figures, extra, curves


def _few(values: NDArray[np.float64]) -> Sequence[float]:
    """Return the 2.5 %, 50 % and 97.5 % quantiles of resamples."""
    return [float(each) for each in np.quantile(values, (0.025, 0.5, 0.975))]


def draw(curves: Mapping[str, Mapping[str, NDArray[np.float64]]], axes: Any) -> None:
    """Draw accuracy over uploads, a panel for each set."""
    figure = axes.figure
    axes.remove()
    looks = {
        "oracle": ("#212529", "--"),
        "margin": ("#e8590c", "-"),
        "learned": ("#9c36b5", "-"),
        "threshold": ("#1971c2", ":"),
        "entropy": ("#2f9e44", ":"),
        "random": ("#adb5bd", "--"),
    }
    for panel, (name, by) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for each, (colour, style) in looks.items():
            panel.plot(np.linspace(0, 100, len(by[each])), 100 * by[each], style, color=colour, label=each)
        panel.set_title(name, loc="left", fontsize=10)
        panel.set_xlabel("samples uploaded, %")
    figure.axes[0].set_ylabel("accuracy, %")
    figure.axes[0].legend(fontsize=8)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    arguments = parser.parse_args()
    figures, extra, curves = list[Figure](), dict[str, Any](), dict[str, Mapping[str, NDArray[np.float64]]]()
    for name in arguments.sets:
        found, more, drawn = measure(name, load_cascade(name, arguments.data))
        figures += found
        extra[name], curves[name] = more, drawn
    figures.sort(key=lambda figure: figure.goal is None)
    _report.write("offload_accuracy", figures, extra=extra, picture=lambda axes: draw(curves, axes))


if __name__ == "__main__":
    main()
