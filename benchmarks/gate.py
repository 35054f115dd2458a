# SPDX-License-Identifier: Apache-2.0
"""How often chance lets bad candidates pass the gate and stops good ones; the same of canaries, and how fast they are.

Candidates of a known gain are drawn again and again: 1,000 labels, half new and half old, ten classes, and a share of
samples on which exactly one of the two models is right. Peers judge the same draws. For canaries two networks answer
images of clothes; a fault spoils what the candidate sees.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from solar_corona.core.hub_messages import Observation
from solar_corona.core.incremental_spec import Gate
from solar_corona.incremental.e_process import CanaryReference, CanaryWatch
from solar_corona.incremental.gate_rule import Gain, Paired, judge

from . import _report
from ._data import add_data_option, load_fashion_mnist
from ._report import Figure
from ._small_net import SmallNet, batches_of

_GAINS = (-0.02, -0.01, 0.0, 0.01, 0.02)
_ACCURACY = 0.85
_CANARY_SAMPLES = 500


def drawn(n: int, gain: float, disagreement: float, classes: int, rng: np.random.Generator) -> Paired:
    """Return answers of two models to n samples: where the two differ, one of them is right."""
    truth, u = rng.integers(0, classes, n), rng.random(n)
    wrong = (truth + rng.integers(1, classes, n)) % classes
    gained, lost = u < (disagreement + gain) / 2, u > 1 - (disagreement - gain) / 2
    both = ~gained & ~lost & (rng.random(n) > _ACCURACY)
    return Paired(truth, np.where(gained | both, wrong, truth), np.where(lost | both, wrong, truth))


def _joined(new: Paired, old: Paired) -> Paired:
    parts = ((getattr(new, name), getattr(old, name)) for name in ("truth", "serving", "candidate"))
    return Paired(*(np.concatenate(pair) for pair in parts))


def _no_loss(new: Paired, old: Paired) -> bool:
    return Gain.on(_joined(new, old)).value >= 0


def _not_significantly_worse(new: Paired, old: Paired) -> bool:
    gain = Gain.on(_joined(new, old))
    return bool(binom.cdf(gain.gained, gain.gained + gain.lost, 0.5) > 0.05)


def _no_class_falls(new: Paired, old: Paired) -> bool:
    pairs = _joined(new, old)
    change = pairs.gained.astype(float) - pairs.lost
    falls = np.bincount(pairs.truth, change) / np.maximum(np.bincount(pairs.truth), 1)
    return bool(falls.min() >= -0.05)


def _study(new: Paired, old: Paired) -> bool:
    """Return what the rule says that ours came from: each half by itself, with 80 % confidence."""
    here, before = Gain.on(new), Gain.on(old)
    return here.value >= 0 and here.value - 0.84 * here.error > -0.01 and before.value - 0.84 * before.error > -0.02


def _ours(new: Paired, old: Paired) -> bool:
    return judge(new, old, Gate()).passed


_RULES: dict[str, Callable[[Paired, Paired], bool]] = {
    "ours": _ours,
    "halves": _study,
    "no_loss": _no_loss,
    "not_significantly_worse": _not_significantly_worse,
    "no_class_falls": _no_class_falls,
}


def pass_shares(draws: int, disagreement: float, *, old_gain: float | None = None) -> dict[str, list[float]]:
    """Return for each rule the share of candidates that pass, by gain; old samples gain the same unless told."""
    passed: Counter[tuple[str, float]] = Counter()
    for gain in _GAINS:
        rng = np.random.default_rng(int(1000 + 1000 * gain))
        of_old = gain if old_gain is None else old_gain
        for _ in range(draws):
            new, old = drawn(500, gain, disagreement, 10, rng), drawn(500, of_old, disagreement, 10, rng)
            passed.update((name, gain) for name, rule in _RULES.items() if rule(new, old))
    return {name: [passed[name, gain] / draws for gain in _GAINS] for name in _RULES}


def class_alarms(draws: int, classes: int) -> dict[str, float]:
    """Return how often harmless candidates are stopped because of a class."""
    rng, found = np.random.default_rng(classes), Counter[str]()
    for _ in range(draws):
        new, old = drawn(500, 0.0, 0.06, classes, rng), drawn(500, 0.0, 0.06, classes, rng)
        check = next(check for check in judge(new, old, Gate()).checks if check.name == "classes")
        found.update({"ours": not check.passed, "plain": not _no_class_falls(new, old)})
    return {name: found[name] / draws for name in ("ours", "plain")}


_FAULTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "transposed": lambda x: x.transpose(0, 2, 1),
    "inverted": lambda x: 255.0 - x,
    "scaled_up": lambda x: x * 255.0,
    "scaled_down": lambda x: x / 255.0,
}


class Canaries:
    """A serving model, a candidate that went on from it, and what both say of held-out images."""

    def __init__(self, folder: Path, seed: int) -> None:
        images = load_fashion_mnist(folder)
        x, y = images.x_train[..., 0], images.y_train
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(y))
        self.serving = SmallNet(x.shape[1:], 10, seed)
        self._train(self.serving, x[rows[:1_500]], y[rows[:1_500]], 800, rng)
        self.candidate = self.serving.copy()
        self._train(self.candidate, x[rows[:2_500]], y[rows[:2_500]], 300, rng)
        self.x, self.y = images.x_test[..., 0], images.y_test
        self.held = rng.permutation(len(self.y))
        self.old = self._said(self.serving, self.x)
        self.new = self._said(self.candidate, self.x)
        at = self.held[:1_000]
        self.reference = CanaryReference.of(self.new[0][at], self.old[0][at], self.new[1][at], self.old[1][at])

    @staticmethod
    def _train(net: SmallNet, x: NDArray[Any], y: NDArray[np.int64], steps: int, rng: np.random.Generator) -> None:
        net.fit(net.seen(x), y, batches_of(len(y), (steps, 32), rng))

    @staticmethod
    def _said(net: SmallNet, x: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        p = net.answers(x)[0]
        return p.argmax(1), np.clip(p.max(1), 0, 1)

    def stream(
        self, rows: NDArray[np.int64], spoil: Callable[[NDArray[Any]], NDArray[Any]] | None
    ) -> Iterator[Observation]:
        """Yield what a canary observes of some images."""
        answers, sure = (part[rows] for part in self.new)
        if spoil is not None:
            answers, sure = self._said(self.candidate, spoil(self.x[rows].astype(np.float32)))
        before, before_sure = (part[rows] for part in self.old)
        for i in range(len(rows)):
            yield Observation.model_construct(
                seq=i,
                version=2,
                reference=1,
                at=0.0,
                agrees=bool(answers[i] == before[i]),
                confidence=float(sure[i]),
                reference_confidence=float(before_sure[i]),
                answer=int(answers[i]),
                reference_answer=int(before[i]),
                milliseconds=0.0,
                reference_milliseconds=0.0,
                error=False,
            )

    def alarm_after(
        self, rows: NDArray[np.int64], spoil: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    ) -> tuple[int, str] | None:
        """Return after how many samples an alarm comes, and which; None if none comes."""
        watch = CanaryWatch(self.reference)
        for one in self.stream(rows, spoil):
            if alarm := watch.observe(one):
                return alarm.samples, alarm.kind
        return None

    def false_rollbacks(self, streams: int, seed: int, *, classes: int = 10) -> float:
        """Return the share of sound candidates rolled back; canaries see so many of the classes."""
        rng, alarms = np.random.default_rng(seed), 0
        others = self.held[1_000:]
        for _ in range(streams):
            of = others[np.isin(self.y[others], rng.permutation(10)[:classes])]
            alarms += self.alarm_after(rng.choice(of, _CANARY_SAMPLES)) is not None
        return alarms / streams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_option(parser)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=200, help="of each of five pairs of models")
    options = parser.parse_args()
    shares = pass_shares(options.draws, 0.06)
    wide = pass_shares(options.draws // 4, 0.12)
    only_new = pass_shares(options.draws // 4, 0.06, old_gain=0.0)
    alarms = {k: class_alarms(options.draws // 10, k) for k in (10, 100)}
    pairs = [Canaries(options.data, seed) for seed in range(5)]
    rolled = [pair.false_rollbacks(options.streams, seed) for seed, pair in enumerate(pairs)]
    few = [pair.false_rollbacks(options.streams // 4, seed, classes=3) for seed, pair in enumerate(pairs)]
    stopped = {
        name: [pair.alarm_after(pair.held[1_000 + 300 * i :][:300], spoil) for pair in pairs for i in range(10)]
        for name, spoil in _FAULTS.items()
    }
    slowest = {name: max(found[0] if found else 300 for found in all_) for name, all_ in stopped.items()}
    figures = [
        Figure("bad_pass_share", shares["ours"][0], "share", 0.005, better="low"),
        Figure("good_pass_share", shares["ours"][-1], "share", 0.99),
        Figure("false_rollbacks", float(np.mean(rolled)), "share", 0.01, rolled, "low"),
        Figure("slowest_fault", max(slowest.values()), "samples", 100, list(slowest.values()), "low"),
        Figure("false_rollbacks_three_classes", float(np.mean(few)), "share", repeats=few),
        Figure("bad_pass_share_12_percent_differ", wide["ours"][0], "share"),
        Figure("good_pass_share_12_percent_differ", wide["ours"][-1], "share"),
        Figure("bad_pass_share_on_new_alone", only_new["ours"][0], "share"),
        Figure("good_pass_share_on_new_alone", only_new["ours"][-1], "share"),
    ]
    for name in _RULES:
        if name != "ours":
            figures.append(Figure(f"bad_pass_share_{name}", shares[name][0], "share"))
            figures.append(Figure(f"good_pass_share_{name}", shares[name][-1], "share"))
    for classes, found in alarms.items():
        figures += [Figure(f"class_alarms_{classes}_{name}", value, "share") for name, value in found.items()]

    def picture(axes: Any) -> None:
        for name, values in shares.items():
            axes.plot([100 * gain for gain in _GAINS], values, marker="o", label=name.replace("_", " "))
        axes.set_xlabel("true gain in points")
        axes.set_ylabel("share that passes (1,000 labels, 6 % differ)")
        axes.legend(fontsize=8)

    kinds = {name: Counter(found[1] if found else "none" for found in all_) for name, all_ in stopped.items()}
    extra = {"gains": _GAINS, "six": shares, "twelve": wide, "only_new": only_new, "slowest": slowest, "kinds": kinds}
    _report.write("gate", figures, extra=extra, picture=picture)


if __name__ == "__main__":
    main()
