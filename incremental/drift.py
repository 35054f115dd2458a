# SPDX-License-Identifier: Apache-2.0
"""Whether what edges see has drifted: detectors of values that come one by one, with a state of plain JSON.

Detectors read one of two streams, or both: the confidence of each answer (of samples that are no near-duplicates of
the one before), which needs no label, and whether the answer was wrong, for the labels of random samples, which come
late.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

from ..core.errors import SpecError, WireError
from ..core.named import known_or_imported

__all__ = ["DETECTORS", "Adwin", "Both", "Cusum", "DriftDetector", "Kind", "Ranks", "create"]

_LOSSES = (0.05, 0.15, 0.35, 0.70)

Kind = Literal["confidence", "error"]
"""What a value is: how sure an answer was, 0 to 1; or 1 for a wrong answer to a labelled random sample, else 0."""


@runtime_checkable
class DriftDetector(Protocol):
    """Tells a drift from values that come one by one.

    Run `check_drift_detector` on your own.
    """

    @property
    def reads(self) -> Collection[Kind]:
        """The kinds of values that it wants; it is given no others."""
        ...

    @property
    def why(self) -> str:
        """In words, what it found last; empty if nothing yet."""
        ...

    def update(self, value: float, kind: Kind) -> bool:
        """Take in a value from 0 to 1; return True where a drift is found, which begins a new reference."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON, of bounded size."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        ...


def _checked(value: float) -> float:
    value = float(value)
    if not 0 <= value <= 1:
        raise ValueError(f"a drift detector was given {value}, expected a number from 0 to 1")
    return value


@contextmanager
def _whole() -> Iterator[None]:
    try:
        yield
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise WireError(f"the state of a drift detector is not whole ({error}); begin it anew") from error


class Ranks:
    """Two-sided CUSUM of confidences' ranks among those of a reference, in blocks.

    The first `reference` values are what later ones are compared with. Ranks know no scale, so that an overconfident
    model's drift shows as well as a careful one's. How much means of blocks vary where nothing drifts is measured in
    the reference, in blocks of several lengths, so that runs of one class or scene, whose values depend on each other,
    raise no alarm.

    Parameters
    ----------
    reference
        Values that the reference is made of.
    block
        Values of a block.
    allowance, limit
        In standard deviations of a block's mean: what is subtracted from each, and the sum that is a drift
        (Page 1954).
    """

    reads: tuple[Kind, ...] = ("confidence",)

    def __init__(self, *, reference: int = 2_000, block: int = 25, allowance: float = 0.5, limit: float = 8.0) -> None:
        if not (reference >= 20 * block > 0 and allowance >= 0 and limit > 0):
            raise ValueError(
                f"reference is {reference}, block {block}, allowance {allowance} and limit {limit}; expected a "
                f"reference of 20 blocks or more, and positive numbers"
            )
        self._size, self._block, self._allowance, self._limit = reference, block, allowance, limit
        self.why = ""
        self.begin()

    def begin(self) -> None:
        """Begin a new reference."""
        self._reference: list[float] = []  # in order of arrival, then sorted
        self._spread = 0.0  # 0 until the reference is whole
        self._sum, self._in_block = 0.0, 0
        self._up = self._down = 0.0

    @property
    def level(self) -> float:
        """How near a drift is, from 0 to 1."""
        return min(max(self._up, self._down) / self._limit, 1.0)

    def update(self, value: float, kind: Kind = "confidence") -> bool:  # noqa: ARG002
        """Take in a confidence."""
        value = _checked(value)
        if not self._spread:
            self._reference.append(value)
            if len(self._reference) == self._size:
                self._measure()
            return False
        self._sum += self._rank(value)
        self._in_block += 1
        if self._in_block < self._block:
            return False
        z = (self._sum / self._block - 0.5) / self._spread
        self._sum, self._in_block = 0.0, 0
        self._up = max(0.0, self._up + z - self._allowance)
        self._down = max(0.0, self._down - z - self._allowance)
        if max(self._up, self._down) < self._limit:
            return False
        way = "higher" if self._up >= self._down else "lower"
        self.why = f"confidence is {way} than in the {self._size} samples that it is compared with"
        self.begin()
        return True

    def _rank(self, value: float) -> float:
        ordered = self._reference
        return (bisect_left(ordered, value) + bisect_right(ordered, value)) / (2 * len(ordered))

    def _measure(self) -> None:
        """Measure the reference's own spread, in blocks of one, two, four … times the length."""
        arrived = self._reference
        self._reference = sorted(arrived)
        ranks = [self._rank(value) for value in arrived]
        variance = 0.0
        length = self._block
        while len(ranks) >= 10 * length:
            means = [sum(ranks[i : i + length]) / length for i in range(0, len(ranks) - length + 1, length)]
            scaled = length * sum((mean - 0.5) ** 2 for mean in means) / (len(means) - 1)
            variance = max(variance, scaled)
            length *= 2
        # The reference's mean is uncertain itself.
        self._spread = max(math.sqrt(variance * (1 / self._block + 1 / self._size)), 1e-3)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {
            "reference": list(self._reference),
            "spread": self._spread,
            "block": [self._sum, self._in_block],
            "sums": [self._up, self._down],
            "why": self.why,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        with _whole():
            reference = [_checked(value) for value in state["reference"]]
            spread = float(state["spread"])
            if len(reference) > self._size or (spread > 0) != (len(reference) == self._size):
                # Of other options: what it knows does not fit these.
                self.begin()
                return
            self._reference, self._spread = reference, spread
            self._sum, self._in_block = float(state["block"][0]), int(state["block"][1])
            self._up, self._down = (float(each) for each in state["sums"])
            self.why = str(state["why"])


class Cusum:
    """CUSUM of errors on labels of random samples.

    The first `reference` labels say how often the model errs; of later ones it is asked how much likelier they are if
    it errs more often, by 5, 15, 35 or 70 points. Each of these has a CUSUM of its own (Page 1954), and the mean of
    their evidences counts, so that a large loss is found in a few labels and a small one at all.

    Parameters
    ----------
    reference
        Labels that the reference is made of.
    limit
        Logarithm of the evidence that is a drift.
    """

    reads: tuple[Kind, ...] = ("error",)

    def __init__(self, *, reference: int = 100, limit: float = 7.0) -> None:
        if not (reference >= 20 and limit > 0):
            raise ValueError(f"reference is {reference} and limit {limit}; expected 20 labels or more, and a limit > 0")
        self._size, self._limit = reference, limit
        self.why = ""
        self.begin()

    def begin(self) -> None:
        """Begin a new reference."""
        self._labels, self._errors = 0, 0.0
        self._evidence = [0.0] * len(_LOSSES)

    @property
    def level(self) -> float:
        """How near a drift is, from 0 to 1."""
        highest = max(self._evidence)
        mean = highest + math.log(sum(math.exp(each - highest) for each in self._evidence) / len(self._evidence))
        return min(mean / self._limit, 1.0)

    def update(self, value: float, kind: Kind = "error") -> bool:  # noqa: ARG002
        """Take in whether an answer was wrong."""
        value = _checked(value)
        if self._labels < self._size:
            self._labels += 1
            self._errors += value
            return False
        p = (self._errors + 1) / (self._labels + 2)
        # A reference that was lucky shall not make all later labels look bad.
        p = min(p + 0.5 * math.sqrt(p * (1 - p) / self._labels), 0.95)
        for i, loss in enumerate(_LOSSES):
            q = min(p + loss, 0.99)
            step = value * math.log(q / p) + (1 - value) * math.log((1 - q) / (1 - p))
            self._evidence[i] = max(0.0, self._evidence[i] + step)
        if self.level < 1:
            return False
        self.why = f"more labels are errors than the {self._errors / self._labels:.0%} of the {self._size} before"
        self.begin()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {"labels": self._labels, "errors": self._errors, "evidence": list(self._evidence), "why": self.why}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        with _whole():
            evidence = [float(each) for each in state["evidence"]]
            if len(evidence) != len(_LOSSES):
                raise WireError(f"there are {len(evidence)} sums, expected {len(_LOSSES)}")
            self._labels, self._errors = int(state["labels"]), float(state["errors"])
            self._evidence, self.why = evidence, str(state["why"])


class Both:
    """`Ranks` of confidences and `Cusum` of errors: either finds a drift, and so do both together when each is near.

    Confidence tells most drifts within some hundred samples and needs no label; new classes that a model is sure of
    show in errors alone.

    Parameters
    ----------
    ranks, cusum
        Options of each.
    together
        Sum of both levels that is a drift.
    """

    reads: tuple[Kind, ...] = ("confidence", "error")

    def __init__(
        self,
        *,
        ranks: Mapping[str, Any] | None = None,
        cusum: Mapping[str, Any] | None = None,
        together: float = 1.25,
    ) -> None:
        if not 1 <= together <= 2:
            raise ValueError(f"together is {together}; expected a sum of two levels from 1 to 2")
        self._ranks, self._cusum, self._together = Ranks(**(ranks or {})), Cusum(**(cusum or {})), together
        self.why = ""

    @property
    def level(self) -> float:
        """How near a drift is, from 0 to 1."""
        levels = self._ranks.level, self._cusum.level
        return min(max(*levels, sum(levels) / self._together), 1.0)

    def update(self, value: float, kind: Kind) -> bool:
        """Take in a confidence or an error."""
        part: Ranks | Cusum = self._ranks if kind == "confidence" else self._cusum
        if part.update(value):
            self.why = part.why
        elif self.level >= 1:
            self.why = "confidences and errors together are not what they were"
        else:
            return False
        self._ranks.begin()
        self._cusum.begin()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {"ranks": self._ranks.state_dict(), "cusum": self._cusum.state_dict(), "why": self.why}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        with _whole():
            self._ranks.load_state_dict(state["ranks"])
            self._cusum.load_state_dict(state["cusum"])
            self.why = str(state["why"])


class Adwin:
    """ADWIN on confidence (Bifet & Gavaldà 2007), as river has it.

    A confidence that repeats the one before is a near-duplicate and passed over. Its state is the window of the latest
    `window` values, from which ADWIN is built anew after a restart: what it cut off before stays cut off, and a drift
    slower than the window may be found later than without a restart. In runs of one class or scene its alarms are
    false more often than those of `Ranks`, as `benchmarks/drift.py` shows.

    Parameters
    ----------
    delta
        How rarely a cut may be false, if values do not depend on each other.
    window
        Values that a restart brings back.
    """

    reads: tuple[Kind, ...] = ("confidence",)

    def __init__(self, *, delta: float = 0.002, window: int = 2_000) -> None:
        if not (0 < delta < 1 and window >= 100):
            raise ValueError(f"delta is {delta} and window {window}; expected over 0 and under 1, and 100 or more")
        self._delta, self._window = delta, window
        self.why = ""
        self._build([])

    def _build(self, values: list[float]) -> None:
        from river.drift import ADWIN

        self._recent = deque(values, maxlen=self._window)
        self._adwin = ADWIN(delta=self._delta)
        for value in values:
            self._adwin.update(value)

    def update(self, value: float, kind: Kind = "confidence") -> bool:  # noqa: ARG002
        """Take in a confidence."""
        value = _checked(value)
        if self._recent and value == self._recent[-1]:
            return False
        self._recent.append(value)
        before = float(self._adwin.estimation)
        self._adwin.update(value)
        if not self._adwin.drift_detected:
            return False
        # What is before the cut shall not come back by a restart.
        keep = min(max(int(self._adwin.width), 1), len(self._recent))
        self._recent = deque(list(self._recent)[-keep:], maxlen=self._window)
        self.why = f"mean confidence went from {before:.3f} to {float(self._adwin.estimation):.3f}"
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {"recent": list(self._recent), "why": self.why}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        with _whole():
            self._build([_checked(value) for value in state["recent"]][-self._window :])
            self.why = str(state["why"])


DETECTORS: Mapping[str, Callable[..., DriftDetector]] = {"adwin": Adwin, "both": Both, "cusum": Cusum, "ranks": Ranks}


def create(name: str, options: Mapping[str, Any] | None = None) -> DriftDetector:
    """Return the detector of a name, or of `module:Class`.

    Raises
    ------
    SpecError
        If there is none, or it does not take the options.
    """
    make = known_or_imported(name, DETECTORS, "drift detector", error=SpecError, beside="the job file")
    try:
        made = make(**(options or {}))
    except (TypeError, ValueError) as error:
        raise SpecError(f"drift detector {name!r} does not take these options: {error}") from error
    if not isinstance(made, DriftDetector):
        raise SpecError(
            f"{name} is no drift detector; expected reads, why, update(value, kind), state_dict() and "
            f"load_state_dict(state)"
        )
    return made
