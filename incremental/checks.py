# SPDX-License-Identifier: Apache-2.0
"""The contract that every detector of hard samples keeps, ours and yours: `check_hard_sample_detector(MyDetector)`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError
from ..lib.contract import Contract
from ..lib.hard_samples.detector import HardSampleDetector, Seen, Verdict
from ..lib.hard_samples.embedding import Embedding
from ..lib.scores import Scores

__all__ = ["check_hard_sample_detector"]

_STREAM = 2_000
_EMBEDDING = 16
_contract = Contract("hard-sample detector", ModelError)
_require = _contract.require


def check_hard_sample_detector(make: Callable[[], HardSampleDetector]) -> None:
    """Check that a detector keeps what `HardSampleDetector` promises.

    Parameters
    ----------
    make
        Makes a new one, such as the class itself or `lambda: MyDetector(limit=0.1)`.

    Raises
    ------
    ModelError
        If it does not: the message says which promise is broken.
    """
    detector = make()
    kind = type(detector).__name__
    _require(isinstance(detector, HardSampleDetector), f"{kind} has not judge(seen) and describe()")
    _contract.require_description(detector)
    for seen in _seen():
        _judged(detector, seen)
    _contract.require_description(detector)
    _is_its_own(make)
    _stays_within_the_rate_by_chance(make())
    _random_ones_are_drawn_evenly(make())


def _judged(detector: HardSampleDetector, seen: Seen) -> Verdict:
    before = [scores.values.copy() for scores in (seen.scores, seen.deep) if scores is not None]
    verdict = detector.judge(seen)
    _require(isinstance(verdict, Verdict), f"judge() returned a {type(verdict).__name__}, expected a Verdict")
    _require(type(verdict.keep) is bool, f"keep is {verdict.keep!r}, expected True or False")
    _require(verdict.reason in ("hard", "random"), f"reason is {verdict.reason!r}, expected 'hard' or 'random'")
    hardness = verdict.hardness
    fits = hardness is None or (isinstance(hardness, numbers.Real) and math.isfinite(float(hardness)))
    _require(fits, f"hardness is {hardness!r}, expected a finite number or None")
    after = [scores.values for scores in (seen.scores, seen.deep) if scores is not None]
    same = all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    _require(same, "judge() changed the scores that it was given")
    return verdict


def _seen() -> Iterator[Seen]:
    """Yield what models give: classes of 2 to 10, boxes, none of both, with and without a deep model."""
    rng = np.random.default_rng(0)
    for rate in (0.0, 0.1, 1.0):
        yield _one(rng, None, rate)
        yield _one(rng, Scores(np.array([1.0, 0.0])), rate)
        yield _one(rng, Scores(np.full(10, 0.1)), rate, deep=Scores(np.eye(10)[3]))
        yield _one(rng, Scores(np.full(10, 0.1)), rate, deep=Scores(np.eye(3)[1]))
        yield _one(rng, Scores(np.zeros(0), boxes=True), rate, deep=Scores(np.array([0.5]), boxes=True))
        yield Seen(Scores(np.array([0.5, 0.5])), rate)
        for _ in range(100):
            yield _one(rng, Scores(rng.dirichlet(np.full(int(rng.integers(2, 11)), 0.5))), rate)
            yield _one(rng, Scores(rng.random(int(rng.integers(0, 20))), boxes=True), rate)


def _one(rng: np.random.Generator, scores: Scores | None, rate: float, *, deep: Scores | None = None) -> Seen:
    values: NDArray[np.float32] = rng.normal(size=_EMBEDDING).astype(np.float32)
    return Seen(scores, rate, deep=deep, embed=lambda: Embedding(values, -1.0))


def _is_its_own(make: Callable[[], HardSampleDetector]) -> None:
    """Two detectors share nothing, and say the same of a sample's hardness."""
    fresh, other = make(), make()
    for one, two in zip(_seen(), _seen(), strict=True):
        _require(
            fresh.judge(one).hardness == other.judge(two).hardness,
            "two new ones give one sample two hardnesses; let no chance, clock or shared state decide on it",
        )


def _stays_within_the_rate_by_chance(detector: HardSampleDetector) -> None:
    rng, rate = np.random.default_rng(1), 0.1
    drawn = sum(
        verdict.keep and verdict.reason == "random"
        for verdict in (detector.judge(_one(rng, Scores(rng.dirichlet(np.ones(5))), rate)) for _ in range(_STREAM))
    )
    most = _STREAM * rate + 6 * math.sqrt(_STREAM * rate)
    _require(
        drawn <= most,
        f"of {_STREAM} samples it kept {drawn} by chance at the rate {rate}; expected at most {most:.0f}, for more "
        f"leave no budget for hard ones",
    )


def _random_ones_are_drawn_evenly(detector: HardSampleDetector) -> None:
    rng = np.random.default_rng(2)
    sure, torn = Scores(np.array([0.98, 0.01, 0.01])), Scores(np.array([0.35, 0.33, 0.32]))
    drawn = [0, 0]
    for number in range(2 * _STREAM):
        verdict = detector.judge(_one(rng, (sure, torn)[number % 2], 0.5))
        drawn[number % 2] += verdict.keep and verdict.reason == "random"
    apart = abs(drawn[0] - drawn[1])
    _require(
        apart <= 6 * math.sqrt(sum(drawn) + 1),
        f"of as many easy and hard samples it kept {drawn[0]} and {drawn[1]} by chance; draw before you look, or say "
        f"'hard', for audits count the random ones",
    )
