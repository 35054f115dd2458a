# SPDX-License-Identifier: Apache-2.0
"""What all detectors share that look at one number a sample: a limit on it, or its place among the latest."""

from __future__ import annotations

import random as chance
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from ..core.errors import ModelError
from ..lib.hard_samples.detector import Seen, Verdict

__all__ = ["RANDOM", "LatestScores", "ScoredDetector", "share_of"]

RANDOM = 0.3
"""Share of the kept samples that chance picks; they are the audit, too."""

_WINDOW, _TOGETHER = 500, 20
_UNKNOWN = Verdict(False, None)


class LatestScores:
    """The latest 500 numbers in order; a full window is put in order anew with every twentieth.

    Examples
    --------
    >>> latest = LatestScores()
    >>> for number in range(999):
    ...     latest.add(number)
    >>> latest.quantile(0.0), latest.quantile(0.5), latest.quantile(1.0)
    (499, 749, 998)
    """

    __slots__ = ("_fresh", "_in_order", "_queue")

    def __init__(self) -> None:
        self._queue: deque[float] = deque(maxlen=_WINDOW)
        self._in_order: list[float] = []
        self._fresh = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, value: float) -> None:
        """Take a number in, for the oldest of 500."""
        self._queue.append(value)
        self._fresh += 1
        if self._fresh == _TOGETHER or len(self._queue) < _WINDOW:
            self._in_order = sorted(self._queue)
            self._fresh = 0

    def quantile(self, share: float) -> float:
        """Return the number that `share` of them do not exceed; there has to be one."""
        return self._in_order[round(share * (len(self._in_order) - 1))]


class ScoredDetector(ABC):
    """Keeps samples by their hardness, and some by chance.

    A sample is kept by chance where U < `random` · r, with r the share that the budget allows now and U drawn evenly;
    else where it is hard: above `limit`, or without one above the quantile 1 − (1 − `random`) · r of the latest 500.

    Parameters
    ----------
    limit
        Hardness above which a sample is hard; None for the place among the latest.
    random
        Share of what is kept that chance picks, 0 to 1. Without any there is no audit, and the gate has no labels that
        it may judge on.
    seed
        For draws that are the same each time; None for others.

    Raises
    ------
    ModelError
        If `random` is no share.
    """

    name: str

    def __init__(self, limit: float | None = None, *, random: float = RANDOM, seed: int | None = None) -> None:
        self._limit, self._random = limit, share_of("random", random)
        self._latest = LatestScores()
        self._draw = chance.Random(seed).random  # noqa: S311

    @abstractmethod
    def hardness(self, seen: Seen) -> float | None:
        """Return how hard a sample is, larger for harder; None where it cannot be told."""

    def judge(self, seen: Seen) -> Verdict:
        """Say whether the next sample is kept."""
        hardness = self.hardness(seen)
        rate, random = seen.rate, self._random
        if self._draw() < random * rate:
            found = Verdict(True, hardness, "random")
        elif hardness is None:
            found = _UNKNOWN
        elif self._limit is not None:
            found = Verdict(hardness > self._limit, hardness)
        else:
            latest = self._latest
            hard = len(latest) > 0 and hardness > latest.quantile(1.0 - (1.0 - random) * rate)
            found = Verdict(hard, hardness)
        if hardness is not None and self._limit is None:
            self._latest.add(hardness)
        return found

    def describe(self) -> dict[str, Any]:
        """Return the name and the parameters."""
        return {"name": self.name, **self._parameters(), "random": self._random}

    def _parameters(self) -> dict[str, Any]:
        return {}


def share_of(name: str, value: Any) -> float:
    """Return a number from 0 to 1.

    Raises
    ------
    ModelError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ModelError(f"{name} is {value!r}, expected a number from 0 to 1")
    return float(value)
