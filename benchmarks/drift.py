# SPDX-License-Identifier: Apache-2.0
"""How soon detectors find six real drifts, and how often they find one where there is none.

Streams are drawn from what a model says of held-out samples: 12,000 without a drift, one after another or in runs of
one class; and 4,000 before a drift and 2,000 after it. Every twentieth sample is an audit: its label comes 500 samples
late. Of images, 60 % are corrupted in `mix`, so that each of the drifts costs about ten points or more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solar_corona.incremental.drift import DriftDetector, create

from . import _report
from ._data import add_data_option
from ._drifts import DRIFTS, drift_of
from ._report import Figure

_QUIET, _BEFORE, _AFTER, _LATE, _AUDIT = 12_000, 4_000, 2_000, 500, 0.05
_RUN, _SOON = 30, 1_000
_NEVER = 10_000


@dataclass(frozen=True)
class Said:
    """What a model says of samples: confidence, whether it is wrong, and their classes."""

    confidence: NDArray[np.float64]
    wrong: NDArray[np.float64]
    classes: NDArray[np.int64]


class PageHinkley:
    """river's, on falling confidence: a peer."""

    reads = ("confidence",)
    why = "confidence fell"

    def __init__(self) -> None:
        from river.drift import PageHinkley as Theirs

        self._theirs = Theirs(mode="down")

    def update(self, value: float, kind: str) -> bool:  # noqa: ARG002
        """Take in a confidence."""
        self._theirs.update(value)
        return bool(self._theirs.drift_detected)


_DETECTORS: dict[str, Callable[[], Any]] = {
    "both": lambda: create("both"),
    "ranks": lambda: create("ranks"),
    "cusum": lambda: create("cusum"),
    "adwin": lambda: create("adwin"),
    "page_hinkley": PageHinkley,
}


def streams(name: str, folder: Path, seed: int) -> tuple[Said, Said]:
    """Return what a model says of samples like those it was trained on, and of those of a drift."""
    drift = drift_of(name, folder, seed, corrupted=0.6)
    net = drift.trained(seed)

    def said(x: NDArray[Any], y: NDArray[np.int64]) -> Said:
        p = net.answers(x)[0].astype(np.float64)
        return Said(np.clip(p.max(1), 0, 1), (p.argmax(1) != y).astype(np.float64), y)

    return said(*drift.old_test), said(*(np.concatenate(both) for both in zip(drift.pool, drift.test, strict=True)))


def in_runs(classes: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return rows in runs of one class, 30 long on average."""
    rows: list[NDArray[np.int64]] = []
    while sum(map(len, rows)) < count:
        members = np.flatnonzero(classes == rng.choice(classes))
        rows.append(rng.choice(members, rng.geometric(1 / _RUN)))
    return np.concatenate(rows)[:count]


def alarms(detector: DriftDetector, said: Said, audited: NDArray[np.bool_]) -> list[int]:
    """Return after which samples a detector finds a drift."""
    found = []
    for t, confidence in enumerate(said.confidence):
        told = "confidence" in detector.reads and detector.update(float(confidence), "confidence")
        late = t - _LATE
        if late >= 0 and audited[late] and "error" in detector.reads:
            told |= detector.update(float(said.wrong[late]), "error")
        if told:
            found.append(t)
    return found


def _part(said: Said, rows: NDArray[np.int64]) -> Said:
    return Said(said.confidence[rows], said.wrong[rows], said.classes[rows])


@dataclass
class Outcome:
    """Of one detector: false alarms in streams of either kind, and delays by drift."""

    independent: list[int]
    bursty: list[int]
    delays: dict[str, list[int]]


def outcomes(folder: Path, seeds: int, repeats: int) -> tuple[dict[str, Outcome], dict[str, list[float]]]:
    """Return what each detector does, and how many points each drift costs."""
    found = {name: Outcome([], [], {drift: [] for drift in DRIFTS}) for name in _DETECTORS}
    losses: dict[str, list[float]] = {}
    for number, drift in enumerate(DRIFTS):
        for seed in range(seeds):
            old, new = streams(drift, folder, seed)
            losses.setdefault(drift, []).append(100 * float(new.wrong.mean() - old.wrong.mean()))
            for repeat in range(repeats):
                rng = np.random.default_rng([seed, repeat, number])
                audited = rng.random(_QUIET) < _AUDIT
                quiet = _part(old, rng.integers(0, len(old.wrong), _QUIET))
                bursts = _part(old, in_runs(old.classes, _QUIET, rng))
                before = _part(old, rng.integers(0, len(old.wrong), _BEFORE))
                after = _part(new, rng.integers(0, len(new.wrong), _AFTER))
                both = Said(
                    np.append(before.confidence, after.confidence), np.append(before.wrong, after.wrong), old.classes
                )
                for name, make in _DETECTORS.items():
                    found[name].independent.append(len(alarms(make(), quiet, audited)))
                    found[name].bursty.append(len(alarms(make(), bursts, audited)))
                    later = [t - _BEFORE for t in alarms(make(), both, audited) if t >= _BEFORE]
                    found[name].delays[drift].append(later[0] if later else _NEVER)
    return found, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    found, losses = outcomes(options.data, options.seeds, options.repeats)
    figures = []
    for name, outcome in found.items():
        goal = 0.5 if name == "both" else None
        for kind, counts in (("independent", outcome.independent), ("bursty", outcome.bursty)):
            rate = sum(counts) * 10_000 / (_QUIET * len(counts))
            figures.append(Figure(f"false_alarms_{kind}_{name}", rate, "per 10,000", goal, better="low"))
        medians = {drift: float(np.median(delays)) for drift, delays in outcome.delays.items()}
        goal = float(len(DRIFTS)) if name == "both" else None
        figures.append(Figure(f"found_soon_{name}", float(sum(m <= _SOON for m in medians.values())), "drifts", goal))
        if name == "both":
            figures += [Figure(f"delay_{drift}", m, "samples", _SOON, better="low") for drift, m in medians.items()]
    shares = {
        name: {drift: float(np.mean(np.array(d) <= _SOON)) for drift, d in outcome.delays.items()}
        for name, outcome in found.items()
    }
    figures += [Figure(f"found_share_{drift}", share, "share") for drift, share in shares["both"].items()]
    extra = {
        "points_lost": {drift: float(np.mean(values)) for drift, values in losses.items()},
        "found_within_1000": shares,
        "delays": {name: outcome.delays for name, outcome in found.items()},
    }

    def picture(axes: Any) -> None:
        for i, (name, outcome) in enumerate(found.items()):
            at = np.arange(len(DRIFTS)) + 0.8 * i / len(found)
            axes.bar(
                at, [min(float(np.median(outcome.delays[d])), 2_000) for d in DRIFTS], 0.8 / len(found), label=name
            )
        axes.axhline(_SOON, color="black", linewidth=0.8)
        axes.set_xticks(np.arange(len(DRIFTS)) + 0.4, list(DRIFTS))
        axes.set_ylabel("samples until found (2,000: not)")
        axes.legend(fontsize=8)

    _report.write("drift", figures, extra=extra, picture=picture)


if __name__ == "__main__":
    main()
