# SPDX-License-Identifier: Apache-2.0
"""The contract that every drift detector keeps, ours and yours: `check_drift_detector(MyDetector)`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from ..core.errors import SpecError
from ..lib.contract import Contract
from .drift import DriftDetector, Kind

__all__ = ["check_drift_detector"]

_MOST_STATE = 1 << 20
_require = Contract("drift detector", SpecError).require


def check_drift_detector(make: Callable[[], DriftDetector]) -> None:
    """Check that a detector keeps what `DriftDetector` promises.

    Parameters
    ----------
    make
        Makes a new one, such as the class itself.

    Raises
    ------
    SpecError
        If it does not: the message says which promise is broken.
    """
    detector = make()
    kind = type(detector).__name__
    _require(
        isinstance(detector, DriftDetector),
        f"{kind} has not reads, why, update(value, kind), state_dict() and load_state_dict(state)",
    )
    reads = list(detector.reads)
    _require(
        reads and set(reads) <= {"confidence", "error"},
        f"reads is {reads}; expected 'confidence', 'error' or both",
    )
    found = _fed(detector, reads)
    _require(
        _fed(make(), reads) == found, "two new ones find other drifts in one stream; let no chance or clock decide"
    )
    _require(any(found), "it finds no drift where confidence falls from .9 to .3 and all answers become wrong")
    _require(
        bool(detector.why) and isinstance(detector.why, str), "why is empty after a drift; say in words what it was"
    )
    _resumes(make, reads, found)
    _keeps_a_small_state(detector)


def _values(reads: list[Kind]) -> Iterator[tuple[float, Kind]]:
    """Yield 6,000 samples of a model that is right in 90 %, and 4,000 after a drift; every tenth has a label."""
    rng = random.Random(0)  # noqa: S311
    for i in range(10_000):
        drifted = i >= 6_000
        if "confidence" in reads:
            yield min(max(rng.gauss(0.3 if drifted else 0.9, 0.1), 0.0), 1.0), "confidence"
        if "error" in reads and i % 10 == 0:
            yield float(drifted or rng.random() < 0.1), "error"


def _fed(detector: DriftDetector, reads: list[Kind]) -> list[bool]:
    found = []
    for value, kind in _values(reads):
        told = detector.update(value, kind)
        _require(type(told) is bool, f"update() returned {told!r}, expected True or False")
        found.append(told)
    return found


def _resumes(make: Callable[[], DriftDetector], reads: list[Kind], found: list[bool]) -> None:
    """Check that one which is stopped on the way finds the first drift where one does that was not."""
    detector, first = make(), found.index(True)
    stops = {first // 3, first // 2, max(first - 1, 0)}
    for i, (value, kind) in enumerate(_values(reads)):
        if i in stops:
            state = _json(detector)
            detector = make()
            detector.load_state_dict(json.loads(state))
        if detector.update(value, kind):
            near = abs(i - first) <= len(found) // 100
            _require(near, f"after restarts it finds the first drift at value {i}, without at {first}; keep all state")
            return
    _require(False, "after restarts it finds no drift that it finds without; keep all state in state_dict()")


def _json(detector: DriftDetector) -> str:
    try:
        return json.dumps(detector.state_dict(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(f"the drift detector breaks its contract: state_dict() gives no JSON ({error})") from error


def _keeps_a_small_state(detector: DriftDetector) -> None:
    size = len(_json(detector))
    _require(size <= _MOST_STATE, f"its state has {size} bytes after 10,000 samples, expected at most {_MOST_STATE}")
