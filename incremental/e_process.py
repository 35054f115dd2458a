# SPDX-License-Identifier: Apache-2.0
"""Evidence against a candidate while canaries answer with it, which may be looked at after every sample.

An e-process bets against "the mean is at most m": with values x from 0 to 1, E is the mean over c of
Π (1 + (c/m)(x - m)). If that is true, E ever reaches 1/α with a probability of at most α, however often one looks and
whatever the values depend on (Ville's inequality; Waudby-Smith & Ramdas 2023, JRSS B 86). E is kept as logarithms, and
its state is plain JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DatasetError, WireError
from ..core.hub_messages import Observation

__all__ = ["Alarm", "CanaryReference", "CanaryWatch", "EProcess", "LabelWatch"]

_BETS = np.array([0.1, 0.25, 0.5, 0.75])
_LARGEST_MEAN = 0.98
_CLASSES = 64
_ERRORS = 3.0  # of the reference's own standard errors, where it is of few samples

# Together 1 %.
_ALPHA = {
    "disagreement": 0.002,
    "low-confidence": 0.002,
    "paired-confidence": 0.002,
    "class-shares": 0.002,
    "errors": 0.001,
    "latency": 0.001,
}
_DISAGREEMENT, _LOW_CONFIDENCE, _PAIRED_CONFIDENCE, _SHARES = 0.04, 0.03, 0.03, 0.03
_CLIP = 0.25
_ERROR_RATE, _SLOW_SHARE, _LOW_QUANTILE = 0.01, 0.5, 0.10


class EProcess:
    """Evidence that the means of values are above what they may be: one e-value over several means.

    With several, E is the mean of theirs, which is an e-value again.

    Parameters
    ----------
    means
        The largest mean that is allowed, of each; over 0 and under 1.

    Examples
    --------
    >>> process = EProcess([0.1])
    >>> for _ in range(6):
    ...     process.update([1.0])
    >>> process.e_value > 400
    True
    >>> EProcess.from_state(process.state_dict()).e_value == process.e_value
    True
    """

    def __init__(self, means: Sequence[float]) -> None:
        self._means = np.asarray(means, np.float64)
        if self._means.ndim != 1 or not len(means) or not ((self._means > 0) & (self._means < 1)).all():
            raise ValueError(f"the means are {list(means)}; expected one or more, each over 0 and under 1")
        self._logs = np.zeros((len(means), len(_BETS)))
        self.count = 0

    def update(self, values: Sequence[float] | NDArray[np.float64]) -> None:
        """Take in one value for each mean.

        Raises
        ------
        ValueError
            If there are more or fewer, or one is not from 0 to 1: the bets are fair for such values only.
        """
        x = np.asarray(values, np.float64)
        if x.shape != self._means.shape or not ((x >= 0) & (x <= 1)).all():
            raise ValueError(f"the values are {x.tolist()}; expected {len(self._means)} from 0 to 1")
        self._logs += np.log1p(_BETS * (x / self._means - 1)[:, None])
        self.count += 1

    @property
    def log_e(self) -> float:
        """Natural logarithm of E."""
        highest = float(self._logs.max())
        return highest + math.log(float(np.exp(self._logs - highest).mean()))

    @property
    def e_value(self) -> float:
        """E; infinite where it is too large for a float."""
        return math.exp(self.log_e) if self.log_e < 700 else math.inf

    @property
    def strongest(self) -> int:
        """Which of the means has the most evidence against it."""
        return int(self._logs.max(axis=1).argmax())

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {"means": self._means.tolist(), "logs": self._logs.tolist(), "count": self.count}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EProcess:
        """Return the process whose state it is.

        Raises
        ------
        WireError
            If it is none.
        """
        try:
            process = cls(state["means"])
            logs = np.asarray(state["logs"], np.float64)
            count = int(state["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"the state of an e-process is not whole ({error}); begin the watch anew") from error
        if logs.shape != process._logs.shape or not np.isfinite(logs).all() or count < 0:
            raise WireError(
                f"the state of an e-process has logarithms of the shape {logs.shape}, expected finite ones of "
                f"{process._logs.shape}; begin the watch anew"
            )
        process._logs, process.count = logs, count
        return process


@dataclass(frozen=True)
class Alarm:
    """Why a candidate has to go back.

    Parameters
    ----------
    kind
        What was watched, such as `disagreement`.
    why
        In words, with figures.
    samples
        How many had been seen.
    """

    kind: str
    why: str
    samples: int


@dataclass(frozen=True)
class CanaryReference:
    """How a candidate stood to the serving model when the gate judged it; what canaries see is compared with this.

    Parameters
    ----------
    samples
        Of how many samples it is.
    disagreement
        Share of them with another answer than the serving model's.
    low, serving_low
        Confidence under which a tenth of the answers of each model were.
    low_excess
        Share of answers below `low` minus that of the serving model's below `serving_low`.
    confidence_change
        Mean of the confidence minus the serving model's, where differences over .25 count as .25: whatever is usual
        stays below, and bets on what is not may be four times as high.
    confidence_spread
        Standard deviation of that difference.
    share_changes
        Of the classes with the most answers, the share that the candidate gives minus that of the serving model.
    max_latency
        How many times the serving model's time an inference may take.
    """

    samples: int
    disagreement: float
    low: float
    serving_low: float
    low_excess: float
    confidence_change: float
    confidence_spread: float
    share_changes: Mapping[int, float] = field(default_factory=dict)
    max_latency: float = 1.5

    @classmethod
    def of(
        cls,
        answers: NDArray[np.integer[Any]],
        serving_answers: NDArray[np.integer[Any]],
        confidences: NDArray[np.floating[Any]],
        serving_confidences: NDArray[np.floating[Any]],
        *,
        max_latency: float = 1.5,
    ) -> CanaryReference:
        """Return the reference of what both models say of the same unlabelled samples, n of each.

        Samples of the canary edges themselves are the best reference, where there are 200 or more: another edge may
        see more of what the models differ in.

        Raises
        ------
        DatasetError
            If there are none, or they are not of one length.
        """
        lengths = {len(part) for part in (answers, serving_answers, confidences, serving_confidences)}
        n = len(answers)
        if lengths != {n} or n == 0:
            raise DatasetError(
                f"a canary's reference was given answers and confidences of {sorted(lengths)} samples; expected "
                f"those of both models to the same samples, one or more"
            )
        low, serving_low = (float(np.quantile(c, _LOW_QUANTILE)) for c in (confidences, serving_confidences))
        excess = (confidences < low).mean() - (serving_confidences < serving_low).mean()
        change = np.clip(np.asarray(confidences, np.float64) - serving_confidences, -_CLIP, _CLIP)
        classes, counts = np.unique(np.concatenate([answers, serving_answers]), return_counts=True)
        most = classes[np.argsort(-counts, kind="stable")[:_CLASSES]]
        return cls(
            samples=n,
            disagreement=float((answers != serving_answers).mean()),
            low=low,
            serving_low=serving_low,
            low_excess=float(excess),
            confidence_change=float(change.mean()),
            confidence_spread=float(change.std()),
            share_changes={
                int(each): float((answers == each).mean() - (serving_answers == each).mean()) for each in sorted(most)
            },
            max_latency=max_latency,
        )

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {**asdict(self), "share_changes": {str(key): value for key, value in self.share_changes.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CanaryReference:
        """Return the reference that `as_json` gave.

        Raises
        ------
        WireError
            If it is none.
        """
        try:
            changes = {int(key): float(share) for key, share in value["share_changes"].items()}
            return cls(**{**value, "share_changes": changes})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise WireError(f"a canary's reference is not whole ({error}); judge the candidate anew") from error


def _half(difference: float) -> float:
    """Return a difference from -1 to 1 as a number from 0 to 1."""
    return min(max((1 + difference) / 2, 0.0), 1.0)


class CanaryWatch:
    """Compares what canaries observe with the candidate's reference, one sample after another.

    Each of these may raise an alarm, and all together do so by chance in 1 % of the candidates at most, if canaries
    see what the gate saw: disagreement 4 points above the reference's, low confidence 3 points more frequent beside
    the serving model's, confidence .03 away from where it was beside the serving model's, a class given 3 points more
    or less frequently beside the serving model's answers, errors in over 1 % of the samples, and most inferences
    slower than is allowed. Where the reference is of few samples, three of its standard errors stand for these
    tolerances if they are more. As all but errors compare both models on the same sample, an edge that merely sees
    harder samples or other classes raises no alarm, unless the models differ more on these.

    Parameters
    ----------
    reference
        The candidate's.
    """

    def __init__(self, reference: CanaryReference) -> None:
        self.reference = reference
        self.count = 0
        self.alarm: Alarm | None = None
        self._disagreed = 0
        self._processes = {name: EProcess(means) for name, means in _means(reference).items()}

    def observe(self, one: Observation) -> Alarm | None:
        """Take in a sample; return the alarm, from the sample on that raises one."""
        if self.alarm is not None:
            return self.alarm
        self.count += 1
        self._disagreed += not one.agrees
        for name, values in self._values(one).items():
            process = self._processes.get(name)
            if process is None:
                continue
            process.update(values)
            if self.alarm is None and process.log_e >= -math.log(_ALPHA[name]):
                self.alarm = Alarm(name, self._why(name), self.count)
        return self.alarm

    def _values(self, one: Observation) -> dict[str, Sequence[float] | NDArray[np.float64]]:
        """Return what each process is told of a sample; a candidate that raised has no answer to compare."""
        values: dict[str, Sequence[float] | NDArray[np.float64]] = {"errors": [float(one.error)]}
        if one.error:
            return values
        reference = self.reference
        values["disagreement"] = [float(not one.agrees)]
        low = float(one.confidence < reference.low) - float(one.reference_confidence < reference.serving_low)
        values["low-confidence"] = [_half(low)]
        change = one.confidence - one.reference_confidence
        values["paired-confidence"] = [_half(change / _CLIP), _half(-change / _CLIP)]
        if one.answer is not None and reference.share_changes:
            values["class-shares"] = self._shares(one)
        if one.milliseconds > 0 and one.reference_milliseconds > 0:
            values["latency"] = [float(one.milliseconds > reference.max_latency * one.reference_milliseconds)]
        return values

    def _shares(self, one: Observation) -> NDArray[np.float64]:
        classes = np.array(list(self.reference.share_changes))
        change = np.zeros(len(classes))
        if not one.agrees:
            change += classes == one.answer
            if one.reference_answer is not None:
                change -= classes == one.reference_answer
        return np.concatenate([(1 + change) / 2, (1 - change) / 2])

    def _why(self, name: str) -> str:
        reference, process = self.reference, self._processes[name]
        end = f"after {self.count} samples (evidence {process.e_value:.3g} : 1)"
        if name == "disagreement":
            return (
                f"{100 * self._disagreed / self.count:.0f} % of the answers differ from the serving model's, "
                f"{100 * reference.disagreement:.0f} % did when the gate judged it, {end}"
            )
        if name == "class-shares":
            classes = list(reference.share_changes)
            way = "more" if process.strongest < len(classes) else "less"
            return (
                f"class {classes[process.strongest % len(classes)]} is answered {way} often beside the serving model "
                f"than when the gate judged it, {end}"
            )
        return {
            "low-confidence": f"low confidence is more frequent than when the gate judged it, {end}",
            "paired-confidence": (
                f"the confidence is {'higher' if process.strongest == 0 else 'lower'} beside the serving model's than "
                f"when the gate judged it, {end}"
            ),
            "errors": f"the candidate raised, or gave no numbers, in over 1 % of the samples, {end}",
            "latency": f"most inferences take over {reference.max_latency:g} times the serving model's time, {end}",
        }[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {
            "reference": self.reference.as_json(),
            "count": self.count,
            "disagreed": self._disagreed,
            "alarm": None if self.alarm is None else asdict(self.alarm),
            "processes": {name: process.state_dict() for name, process in self._processes.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CanaryWatch:
        """Return the watch whose state it is.

        Raises
        ------
        WireError
            If it is none.
        """
        try:
            watch = cls(CanaryReference.from_json(state["reference"]))
            watch.count, watch._disagreed = int(state["count"]), int(state["disagreed"])
            watch.alarm = None if state["alarm"] is None else Alarm(**state["alarm"])
            watch._processes = {name: EProcess.from_state(state["processes"][name]) for name in watch._processes}
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"the state of a canary's watch is not whole ({error}); begin the canary anew") from error
        return watch


def _means(reference: CanaryReference) -> dict[str, list[float]]:
    """Return the means that each process takes for allowed; those that could never be exceeded are left out."""
    n = max(reference.samples, 1)

    def allowed(tolerance: float, variance: float) -> float:
        # A share of 0 of n samples may be one of 1/n.
        return max(tolerance, _ERRORS * math.sqrt(max(variance, 1 / n) / n))

    p, changes = reference.disagreement, list(reference.share_changes.values())
    low = allowed(_LOW_CONFIDENCE, 2 * _LOW_QUANTILE * (1 - _LOW_QUANTILE))
    paired = allowed(_PAIRED_CONFIDENCE, reference.confidence_spread**2)
    shares = [allowed(_SHARES, max(p - change**2, 0.0) / 2) for change in changes]
    means = {
        "errors": [_ERROR_RATE],
        "latency": [_SLOW_SHARE],
        "disagreement": [p + allowed(_DISAGREEMENT, p * (1 - p))],
        "low-confidence": [(1 + reference.low_excess + low) / 2],
        "paired-confidence": [(1 + (sign * reference.confidence_change + paired) / _CLIP) / 2 for sign in (1, -1)],
        "class-shares": [(1 + s * d + t) / 2 for s in (1, -1) for d, t in zip(changes, shares, strict=True)],
    }
    return {
        name: [min(mean, _LARGEST_MEAN) for mean in of_one]
        for name, of_one in means.items()
        if of_one and min(of_one) < _LARGEST_MEAN
    }


class LabelWatch:
    """Compares both models on labels of canary samples, which may come late.

    Parameters
    ----------
    max_regression
        Loss of accuracy beside the serving model that is allowed, 0 to 1.
    alpha
        How rarely a candidate that loses no more may raise an alarm.
    """

    def __init__(self, max_regression: float, *, alpha: float = 0.0025) -> None:
        if not (0 < max_regression < 1 and 0 < alpha < 1):
            raise ValueError(f"max_regression is {max_regression} and alpha {alpha}; expected both over 0 and under 1")
        self.max_regression, self.alpha = max_regression, alpha
        self.lost = self.gained = 0
        self._process = EProcess([min((1 + max_regression) / 2, _LARGEST_MEAN)])

    @property
    def count(self) -> int:
        """Labels that were taken in."""
        return self._process.count

    def observe(self, *, candidate_right: bool, serving_right: bool) -> Alarm | None:
        """Take in a label; return the alarm while the evidence for one is there."""
        self.lost += serving_right and not candidate_right
        self.gained += candidate_right and not serving_right
        self._process.update([_half(float(serving_right) - float(candidate_right))])
        if self._process.log_e < -math.log(self.alpha):
            return None
        return Alarm(
            "labels",
            f"of {self.count} labels of canary samples it lost {self.lost} and gained {self.gained}, more than the "
            f"loss of {100 * self.max_regression:g} points that is allowed (evidence {self._process.e_value:.3g} : 1)",
            self.count,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {
            "max_regression": self.max_regression,
            "alpha": self.alpha,
            "lost": self.lost,
            "gained": self.gained,
            "process": self._process.state_dict(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LabelWatch:
        """Return the watch whose state it is.

        Raises
        ------
        WireError
            If it is none.
        """
        try:
            watch = cls(float(state["max_regression"]), alpha=float(state["alpha"]))
            watch.lost, watch.gained = int(state["lost"]), int(state["gained"])
            watch._process = EProcess.from_state(state["process"])
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"the state of a watch of labels is not whole ({error}); begin it anew") from error
        return watch
