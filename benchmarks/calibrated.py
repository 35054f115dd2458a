# SPDX-License-Identifier: Apache-2.0
"""How often promises of calibrated thresholds are broken, and how many uploads beyond the fewest they cost.

The labelled samples of a set, with what both models make of them, stand for all samples there are. Each resample
draws n of them, with replacement, finds the threshold that promises something at 95 %, and looks whether it holds for
all. What a plug-in threshold does, which takes the drawn samples for the truth, stands beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solar_corona.core.errors import ModelError
from solar_corona.joint_inference.margin import Margin
from solar_corona.joint_inference.promises import (
    Labelled,
    Promise,
    at_least_accuracy,
    at_most_loss,
    at_most_upload,
)

from . import _report
from ._cascade import SETS, Cascade, load_cascade
from ._data import add_data_option
from ._report import Figure, median

_LOSS, _UPLOAD = 0.01, 0.05


@dataclass
class Resamples:
    """What came of the resamples of one promise."""

    broken: int = 0
    refused: int = 0
    uploads: list[float] = field(default_factory=list)
    plug_in_broken: int = 0

    @property
    def count(self) -> int:
        """How many there were."""
        return self.refused + len(self.uploads)


@dataclass(frozen=True)
class Case:
    """A promise: how its threshold is found, whether a threshold keeps it, and what the plug-in takes."""

    find: Callable[[Labelled], Promise]
    keeps: Callable[[Labelled, float], bool]
    plug_in: bool = True


def everything(cascade: Cascade) -> Labelled:
    """Return all samples that neither model was trained on."""
    margin = Margin(threshold=0.5)
    parts = (cascade.held, cascade.test)
    return Labelled(
        np.array([margin.confidence(scores) for part in parts for scores in part.scores]),
        np.concatenate([part.shallow_right for part in parts]),
        np.concatenate([part.deep_right for part in parts]),
    )


def cases(all_: Labelled) -> dict[str, Case]:
    """Return the promises."""
    deep, shallow = float(all_.deep_right.mean()), float(all_.shallow_right.mean())
    accuracy = (shallow + deep) / 2
    return {
        "max_loss": Case(
            lambda data: at_most_loss(data, _LOSS),
            lambda data, threshold: data.accuracy_at(threshold) >= float(data.deep_right.mean()) - _LOSS,
        ),
        "target_accuracy": Case(
            lambda data: at_least_accuracy(data, accuracy),
            lambda data, threshold: data.accuracy_at(threshold) >= accuracy,
        ),
        "max_upload": Case(
            lambda data: at_most_upload(data.confidence, _UPLOAD),
            lambda data, threshold: data.uploads_at(threshold) <= _UPLOAD,
            plug_in=False,
        ),
    }


def fewest_uploads(data: Labelled, keeps: Callable[[Labelled, float], bool]) -> tuple[float, float]:
    """Return the lowest threshold that keeps a promise on the data themselves, and its uploads."""
    # A few hundred thresholds are as good as all of them: 0.3 points of uploads lie between two.
    for threshold in np.quantile(data.confidence, np.linspace(0, 1, 401)).tolist():
        if keeps(data, threshold):
            return threshold, data.uploads_at(threshold)
    return float(np.nextafter(1.0, 2.0)), 1.0


def resample(all_: Labelled, case: Case, n: int, count: int, plug_ins: int) -> Resamples:
    """Draw n samples `count` times; the plug-in, which is slow, is tried on the first `plug_ins` draws."""
    rng, found = np.random.default_rng(n), Resamples()
    for number in range(count):
        rows = rng.integers(0, len(all_), n)
        data = Labelled(all_.confidence[rows], all_.shallow_right[rows], all_.deep_right[rows])
        if case.plug_in and number < plug_ins:
            found.plug_in_broken += not case.keeps(all_, fewest_uploads(data, case.keeps)[0])
        try:
            promise = case.find(data)
        except ModelError:
            found.refused += 1
            continue
        found.broken += not case.keeps(all_, promise.threshold)
        found.uploads.append(all_.uploads_at(promise.threshold))
    return found


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--resamples", type=int, default=5000, help="of each promise (default: %(default)s)")
    parser.add_argument("--plug-ins", type=int, default=300, help="of them for the plug-in (default: %(default)s)")
    arguments = parser.parse_args()
    table: dict[str, dict[str, float]] = {}
    broken, excess = dict[str, float](), dict[str, tuple[float, float]]()
    for name in arguments.sets:
        all_ = everything(load_cascade(name, arguments.data))
        for promise, case in cases(all_).items():
            best = fewest_uploads(all_, case.keeps)[1] if case.plug_in else _UPLOAD
            for n in (500, 2000):
                found = resample(all_, case, n, arguments.resamples, arguments.plug_ins)
                row = f"{name}, {promise}, n = {n}"
                broken[row] = found.broken / found.count
                table[row] = {
                    "broken": broken[row],
                    "refused": found.refused / found.count,
                    "uploads": median(found.uploads) if found.uploads else 1.0,
                    "fewest uploads": best,
                }
                if case.plug_in:
                    table[row]["plug-in broken"] = found.plug_in_broken / arguments.plug_ins
                if (promise, n) == ("max_loss", 2000):
                    excess[name] = (table[row]["uploads"], best)
    figures = [Figure("broken_share", max(broken.values()), "of resamples", 0.05, list(broken.values()), "low")]
    if "cifar10" in excess:
        uploads, best = excess["cifar10"]
        figures.append(Figure("cifar10_uploads_over_fewest", uploads / best, "x", 1.2, better="low"))
    if "fashion" in excess:
        uploads, best = excess["fashion"]
        figures.append(Figure("fashion_uploads_beyond_points", 100 * (uploads - best), "points", 11.0, better="low"))
    plug_in = [row["plug-in broken"] for row in table.values() if "plug-in broken" in row]
    figures.append(Figure("broken_share_plug_in", max(plug_in), "of resamples", None, plug_in))

    def picture(axes: Any) -> None:
        rows = list(table)
        axes.barh(rows, [100 * table[row]["broken"] for row in rows], 0.6, color="#e8590c", label="ours")
        axes.plot(
            [100 * table[row].get("plug-in broken", float("nan")) for row in rows], rows, "k|", label="plug-in", ms=12
        )
        axes.axvline(5, color="#868e96", linestyle="--")
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=5)
        axes.set_xlabel("promises broken, % of resamples")
        axes.legend(fontsize=8)

    rounded = {row: {what: round(value, 4) for what, value in values.items()} for row, values in table.items()}
    _report.write("calibrated", figures, extra=rounded, picture=picture)


if __name__ == "__main__":
    main()
