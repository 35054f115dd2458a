# SPDX-License-Identifier: Apache-2.0
"""The gate: whether a candidate may go to edges, judged beside the serving model on the same labelled samples.

With b samples that only the candidate has right and c that only the serving model has right, of n, the gain is
(b − c)/n and its standard error √(b + c − (b − c)²/n)/n. What is asked of both is in `judge`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from ..core.errors import DatasetError
from ..core.incremental_spec import Gate

__all__ = ["Check", "Costs", "Gain", "GateVerdict", "Needs", "Paired", "judge"]

_SURE = 2.65  # one-sided 99.6 %: counts are whole, and .5 % shall hold for them, too
_FAIRLY_SURE = 1.645  # one-sided 95 %
_SPARED = 3.2  # a candidate that is two margins better fails by chance in .1 %
_CLASS_ALPHA, _CLASS_FALL, _CLASS_LABELS = 0.05, 0.05, 30
_CONFIDENCE_GAP, _WORSE_NLL, _SMALLEST = 0.10, 0.10, 1e-6
_NAMED = 5


@dataclass(frozen=True)
class Paired:
    """What two models say of the same labelled samples.

    Parameters
    ----------
    truth, serving, candidate
        Classes: n whole numbers each. An answer that is no class (the model raised, or gave no numbers) is -1.
    serving_probabilities, candidate_probabilities
        Of each class: n x K each; the candidate may have more classes. None where they are not known.

    Raises
    ------
    DatasetError
        If they are not of one length.
    """

    truth: NDArray[np.int64]
    serving: NDArray[np.int64]
    candidate: NDArray[np.int64]
    serving_probabilities: NDArray[np.floating[Any]] | None = None
    candidate_probabilities: NDArray[np.floating[Any]] | None = None

    def __post_init__(self) -> None:
        for name in ("truth", "serving", "candidate"):
            value = np.asarray(getattr(self, name), np.int64)
            if value.ndim != 1:
                raise DatasetError(f"{name} has the shape {value.shape}, expected one class for each sample: (n,)")
            object.__setattr__(self, name, value)
        lengths = {name: len(value) for name, value in self._parts()}
        if len(set(lengths.values())) > 1:
            raise DatasetError(
                f"the gate was given {', '.join(f'{n} of {name}' for name, n in lengths.items())}; "
                f"expected answers of both models to the same samples, in one order"
            )

    def _parts(self) -> Iterator[tuple[str, NDArray[Any]]]:
        names = ("truth", "serving", "candidate", "serving_probabilities", "candidate_probabilities")
        return ((name, value) for name in names if (value := getattr(self, name)) is not None)

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def gained(self) -> NDArray[np.bool_]:
        """Samples that only the candidate has right."""
        rows: NDArray[np.bool_] = (self.candidate == self.truth) & (self.serving != self.truth)
        return rows

    @property
    def lost(self) -> NDArray[np.bool_]:
        """Samples that only the serving model has right."""
        rows: NDArray[np.bool_] = (self.candidate != self.truth) & (self.serving == self.truth)
        return rows

    def where(self, rows: NDArray[np.bool_]) -> Paired:
        """Return the samples of some rows."""
        parts = {name: value[rows] for name, value in self._parts()}
        return replace(self, **parts)

    @classmethod
    def none(cls) -> Paired:
        """Return no samples: what there is of the old distribution where a job names none."""
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, empty)


@dataclass(frozen=True)
class Gain:
    """How much better the candidate is on some samples.

    Parameters
    ----------
    n, gained, lost
        Samples; those that only the candidate has right; those that only the serving model has right.
    """

    n: int
    gained: int
    lost: int

    @classmethod
    def on(cls, pairs: Paired) -> Gain:
        """Return the gain on samples."""
        return cls(len(pairs), int(pairs.gained.sum()), int(pairs.lost.sum()))

    @property
    def value(self) -> float:
        """Difference of the accuracies, candidate minus serving."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def error(self) -> float:
        """Standard error of `value`; half a sample is added to each side, so that it is never 0."""
        if not self.n:
            return 0.0
        difference = self.gained - self.lost
        return math.sqrt(max(self.gained + self.lost + 1 - difference**2 / self.n, 0.0)) / self.n


@dataclass(frozen=True)
class Costs:
    """What the candidate costs beside the serving model, as ratios; None where it was not measured."""

    latency: float | None = None
    size: float | None = None


@dataclass(frozen=True)
class Check:
    """One thing that was asked of the candidate."""

    name: str
    passed: bool
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """Labels of random samples that the gate lacks: of new samples, or of either."""

    labels: int
    new: int
    why: str


@dataclass(frozen=True)
class GateVerdict:
    """What the gate says of a candidate.

    Parameters
    ----------
    passed
        Whether it may go to edges. False also where there are too few labels to say.
    checks
        What was asked, one by one.
    needs
        The labels without which the gate does not judge; None where it judged.
    would_settle
        Where the candidate failed only for want of certainty: how many labels in all would probably settle it.
    unknown_classes
        Classes of which there are too few labels to tell whether they fell.
    """

    passed: bool
    checks: Sequence[Check]
    needs: Needs | None = None
    would_settle: int | None = None
    unknown_classes: Sequence[int] = ()

    @property
    def reasons(self) -> list[str]:
        """Why it did not pass, in words; what was found where it did."""
        if self.needs is not None:
            return [self.needs.why]
        return [check.why for check in self.checks if check.passed == self.passed]

    @property
    def figures(self) -> dict[str, float]:
        """All figures, by `check.figure`."""
        return {f"{check.name}.{name}": value for check in self.checks for name, value in check.figures.items()}

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, for the database and the page."""
        return {**asdict(self), "reasons": self.reasons}


def judge(
    new: Paired,
    old: Paired,
    gate: Gate,
    *,
    costs: Costs | None = None,
    known: Collection[int] | None = None,
    class_names: Sequence[str] = (),
) -> GateVerdict:
    """Judge a candidate.

    It passes if, Δ being its gain and se the standard error:

    * over all samples, new and old counting the same, Δ ≥ 0 and Δ - 2.65 se > -2 · margin: a candidate that is two
      margins worse passes in .5 %, whatever share of the answers differs;
    * on new samples Δ ≥ minGain; where labels are few, less by 3.2 se - 2 · margin, at most by the margin, so that
      one that is two margins better passes all the same;
    * on old samples, and on new ones of classes that the serving model knows if others are among them,
      Δ ≥ -oldMargin, and with 95 % confidence Δ > -2 · oldMargin;
    * no class with 30 labels or more falls by over 5 points with an exact one-sided McNemar test at .05 over the
      number of such classes;
    * its mean confidence is not further from its accuracy than the serving model's, by more than .10; its mean
      negative log-likelihood is not worse by more than .10, at 99.5 %, on samples of classes that both know;
    * it changes no more than `maxDisagreement` of the old answers to something wrong, and of the new ones that were
      right; and latency and size are within their limits.

    Parameters
    ----------
    new, old
        Random samples of what edges see now, and held-out ones of the old distribution (`Paired.none()` if none).
    gate
        What the job asks for.
    costs
        Latency and size beside the serving model's.
    known
        Classes that the serving model knows; by default those it answers with and those of the old samples.
    class_names
        What the classes are called, for the reasons.

    Returns
    -------
    GateVerdict
        The verdict, with `needs` and no checks if there are fewer than `gate.min_labels` samples, half of them new.

    Notes
    -----
    McNemar 1947 (Psychometrika 12) for the test of classes; the rule itself is measured in `benchmarks/gate.py`.
    """
    needs = _lacks(len(new), len(old), gate.min_labels)
    if needs is not None:
        return GateVerdict(False, (), needs=needs)
    if known is None:
        known = set(np.unique(np.concatenate([new.serving, old.serving, old.truth])).tolist())
    familiar = new.where(np.isin(new.truth, list(known)))
    checks = [_overall(new, old, gate), _on_new(new, gate)]
    checks += [_not_forgotten("old", "old samples", old, gate)] if len(old) else []
    if 0 < len(familiar) < len(new):
        checks.append(_not_forgotten("known", "new samples of known classes", familiar, gate))
    unknown: list[int] = []
    if gate.per_class == "mcnemar":
        check, unknown = _classes(new, old, known, class_names)
        checks.append(check)
    checks += [*_calibration(familiar, old), *_disagreement(familiar, old, gate), *_cost(costs or Costs(), gate)]
    failed = [check for check in checks if not check.passed]
    settle = _settles(new, old, gate) if [check.name for check in failed] == ["overall"] else None
    return GateVerdict(not failed, checks, would_settle=settle, unknown_classes=unknown)


def _lacks(new: int, old: int, fewest: int) -> Needs | None:
    """Return the labels that are missing: half have to be new, and new ones stand in for old ones."""
    half = (fewest + 1) // 2
    of_new = max(half - new, 0)
    missing = max(of_new, fewest - new - old)
    if missing <= 0:
        return None
    return Needs(
        missing,
        of_new,
        f"there are {new} labels of random new samples and {old} of old ones, expected {fewest}, at least {half} of "
        f"them new; label {missing} more random samples, or lower gate.minLabels",
    )


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"


def _mean(new: Paired, old: Paired) -> tuple[float, float]:
    """Return gain and standard error over both, each counting the same however many there are."""
    gains = [Gain.on(pairs) for pairs in (new, old) if len(pairs)]
    count = len(gains)
    return sum(gain.value for gain in gains) / count, math.sqrt(sum(gain.error**2 for gain in gains)) / count


def _overall(new: Paired, old: Paired, gate: Gate) -> Check:
    value, error = _mean(new, old)
    low, limit = value - _SURE * error, -2 * gate.margin
    figures = {"gain": value, "error": error, "low": low, "limit": limit}
    if value < 0:
        why = f"over all samples it loses {-100 * value:.1f} points"
    elif low <= limit:
        why = (
            f"over all samples it gains {_points(value)}, but these are too few to exclude a loss of "
            f"{abs(100 * limit):.1f} points (99.5 %: {_points(low)})"
        )
    else:
        why = f"over all samples it gains {_points(value)}, with 99.5 % confidence more than {_points(low)}"
    return Check("overall", value >= 0 and low > limit, why, figures)


def _settles(new: Paired, old: Paired, gate: Gate) -> int | None:
    """Return how many labels would settle the gain over all, if it stays what it is."""
    value, error = _mean(new, old)
    if value < 0:
        return None
    return math.ceil((len(new) + len(old)) * (_SURE * error / (value + 2 * gate.margin)) ** 2)


def _on_new(new: Paired, gate: Gate) -> Check:
    gain = Gain.on(new)
    allowance = min(max(_SPARED * gain.error - 2 * gate.margin, 0.0), gate.margin)
    least = gate.min_gain - allowance
    passed = gain.value >= least - 1e-12
    asked = f"expected {_points(least)} or more" + (
        f", of which chance explains {_points(-allowance)}" * (allowance > 0)
    )
    why = f"on {gain.n} new samples it gains {_points(gain.value)} ({gain.gained} gained, {gain.lost} lost); {asked}"
    return Check("new", passed, why, {"gain": gain.value, "error": gain.error, "least": least, "labels": gain.n})


def _not_forgotten(name: str, what: str, pairs: Paired, gate: Gate) -> Check:
    gain = Gain.on(pairs)
    low = gain.value - _FAIRLY_SURE * gain.error
    passed = gain.value >= -gate.old_margin - 1e-12 and low > -2 * gate.old_margin
    why = (
        f"on {gain.n} {what} it gains {_points(gain.value)} (95 %: more than {_points(low)}); expected "
        f"{_points(-gate.old_margin)} or more, and surely more than {_points(-2 * gate.old_margin)}"
    )
    return Check(name, passed, why, {"gain": gain.value, "error": gain.error, "low": low, "labels": gain.n})


def _classes(new: Paired, old: Paired, known: Collection[int], names: Sequence[str]) -> tuple[Check, list[int]]:
    """Return whether a known class fell, and of which classes nothing can be said."""
    truth = np.concatenate([new.truth, old.truth])
    gained = np.concatenate([new.gained, old.gained])
    lost = np.concatenate([new.lost, old.lost])
    classes, counts = np.unique(truth, return_counts=True)
    judged = [int(c) for c, n in zip(classes, counts, strict=True) if c in known and n >= _CLASS_LABELS]
    unknown = [int(c) for c in known if c >= 0 and c not in set(judged)]
    fallen, worst = [], 0.0
    for each in judged:
        rows = truth == each
        b, c, n = int(gained[rows].sum()), int(lost[rows].sum()), int(rows.sum())
        fall = (c - b) / n
        worst = max(worst, fall)
        p = float(binom.cdf(b, b + c, 0.5))
        if fall > _CLASS_FALL and p <= _CLASS_ALPHA / len(judged):
            fallen.append((fall, each, p))
    fallen.sort(reverse=True)
    figures = {"judged": len(judged), "unknown": len(unknown), "worst_fall": worst}
    if not fallen:
        return Check("classes", True, f"of {len(judged)} classes none fell beyond chance", figures), unknown
    told = ", ".join(
        f"{names[each] if each < len(names) else f'class {each}'} by {100 * fall:.0f} points (p = {p:.1g})"
        for fall, each, p in fallen[:_NAMED]
    )
    more = f" and {len(fallen) - _NAMED} more" if len(fallen) > _NAMED else ""
    return Check("classes", False, f"of {len(judged)} classes these fell: {told}{more}", figures), unknown


def _calibration(familiar: Paired, old: Paired) -> list[Check]:
    """Return checks of the probabilities, for each set that has them."""
    checks = []
    for name, pairs in (("new", familiar), ("old", old)):
        serving, candidate = pairs.serving_probabilities, pairs.candidate_probabilities
        if not len(pairs) or serving is None or candidate is None:
            continue
        gaps = [
            abs(float(_largest(p).mean()) - float((answers == pairs.truth).mean()))
            for p, answers in ((serving, pairs.serving), (candidate, pairs.candidate))
        ]
        worse = gaps[1] - gaps[0]
        why = (
            f"on {name} samples its mean confidence is {100 * gaps[1]:.1f} points from its accuracy, the serving "
            f"model's {100 * gaps[0]:.1f}; at most {100 * _CONFIDENCE_GAP:.0f} more are allowed"
        )
        checks.append(
            Check(f"confidence-{name}", worse <= _CONFIDENCE_GAP, why, {"gap": gaps[1], "serving_gap": gaps[0]})
        )
        loss = _nll(candidate, pairs.truth) - _nll(serving, pairs.truth)
        mean, error = float(loss.mean()), float(loss.std()) / math.sqrt(len(loss))
        why = (
            f"on {name} samples its mean negative log-likelihood changes by {mean:+.3f} (standard error {error:.3f}); "
        )
        why += f"at most {_WORSE_NLL:+.2f} is allowed"
        checks.append(Check(f"nll-{name}", mean - _SURE * error <= _WORSE_NLL, why, {"change": mean, "error": error}))
    return checks


def _largest(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.nan_to_num(np.asarray(probabilities, np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    largest: NDArray[np.float64] = values.max(axis=1)
    return largest


def _nll(probabilities: NDArray[Any], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return -log p of the truth; a class that the model has no output for has the smallest probability."""
    there = (truth >= 0) & (truth < probabilities.shape[1])
    rows = np.arange(len(truth))
    p = np.where(there, probabilities[rows, np.where(there, truth, 0)], 0.0)
    clipped: NDArray[np.float64] = -np.log(np.clip(np.nan_to_num(p, nan=0.0), _SMALLEST, 1.0))
    return clipped


def _disagreement(familiar: Paired, old: Paired, gate: Gate) -> list[Check]:
    """Return checks of what changed for no good; answers that became right are what the candidate is for."""
    checks = []
    if len(familiar):
        share = float(familiar.lost.mean())
        why = f"of the new samples {100 * share:.1f} % were right and are now wrong"
        checks.append(_within("disagreement-new", share, gate.max_disagreement, why))
    if len(old):
        share = float(((old.candidate != old.serving) & (old.candidate != old.truth)).mean())
        why = f"of the old samples {100 * share:.1f} % have another answer that is wrong"
        checks.append(_within("disagreement-old", share, gate.max_disagreement, why))
    return checks


def _within(name: str, share: float, limit: float, why: str) -> Check:
    return Check(name, share <= limit, f"{why}; at most {100 * limit:g} % are allowed", {"share": share})


def _cost(costs: Costs, gate: Gate) -> list[Check]:
    checks = []
    for name, ratio, limit, what in (
        ("latency", costs.latency, gate.max_latency, "an inference takes"),
        ("size", costs.size, gate.max_size, "its file is"),
    ):
        if ratio is not None:
            why = f"{what} {ratio:.2f} times the serving model's; at most {limit:g} times is allowed"
            checks.append(Check(name, ratio <= limit, why, {"ratio": ratio}))
    return checks
