# SPDX-License-Identifier: Apache-2.0
"""How many samples an edge may keep, spread evenly over the hour."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ...core.errors import ModelError

__all__ = ["Budget", "Spent"]

_HOUR = 3600.0
# Arrivals are counted over about this long, and the rest of an hour never counts as shorter.
_MEMORY = 60.0
_LEAST_BUCKET, _BUCKET = 4.0, 0.05
_FOR_RANDOM = 0.3
# Samples after which the rate is reckoned anew, and until which it is for each.
_OFTEN, _FIRST = 8, 20


@dataclass(frozen=True)
class Spent:
    """How an hour's budget stands: samples kept, what is left in the bucket, and seconds since the hour began."""

    used: int
    tokens: float
    seconds: float


class Budget:
    """Allows at most so many samples in each hour since it was made.

    Two rules together (a measured study of ours, see `docs/explanation/incremental-learning.md`): the share
    r = (b − used)/(N − t) of the samples that are still to come, where N − t is foretold from how fast they come; and
    a bucket of max(4, 0.05 b) samples, refilled evenly, which holds back bursts. Hard samples leave 30 % of the bucket
    to random ones, or a stream of nothing but hard samples would have no audit.

    Parameters
    ----------
    per_hour
        Samples in an hour, b.
    clock
        Seconds that never go back; a clock that is set anew changes nothing.
    spent
        What an earlier budget of this hour was left as; a script that starts anew gets no second hour.

    Raises
    ------
    ModelError
        If `per_hour` is below 1.
    """

    def __init__(
        self, per_hour: int, *, clock: Callable[[], float] = time.monotonic, spent: Spent | None = None
    ) -> None:
        if per_hour < 1:
            raise ModelError(f"max_per_hour is {per_hour}, expected a whole number from 1")
        self.per_hour = per_hour
        self._clock = clock
        self._capacity = min(max(_LEAST_BUCKET, _BUCKET * per_hour), float(per_hour))
        self._reserve = _FOR_RANDOM * self._capacity if self._capacity >= _LEAST_BUCKET else 0.0
        self._begin = self._hour = self._last = clock()
        self._used, self._tokens, self._flow = 0, self._capacity, 0.0
        self._counted = 0
        self._rate = 0.0
        if spent is not None and 0 <= spent.seconds < _HOUR:
            self._hour -= spent.seconds
            self._used = max(spent.used, 0)
            self._tokens = min(max(spent.tokens, 0.0), self._capacity)

    @property
    def spent(self) -> Spent:
        """How the hour stands."""
        # Nothing is reckoned here: another thread asks than the one that spends.
        return Spent(self._used, self._tokens, self._clock() - self._hour)

    def rate(self, came: int) -> float:
        """Return the share of the samples that may be kept now, 0 to 1.

        Parameters
        ----------
        came
            Samples that came so far.
        """
        # From one sample to the next little changes, and the sums are not for each.
        if came - self._counted >= _OFTEN or came <= _FIRST:
            self._rate = self._share(came)
        return self._rate

    def _share(self, came: int) -> float:
        now = self._clock()
        self._flow += (came - self._counted) / _MEMORY
        self._counted = came
        self._refill(now)
        since = now - self._begin
        arrivals = self._flow / (1 - math.exp(-max(since, 1.0) / _MEMORY))
        to_come = arrivals * max(self._hour + _HOUR - now, _MEMORY)
        return min(max((self.per_hour - self._used) / to_come, 0.0), 1.0)

    def has(self, *, random: bool = False) -> bool:
        """Tell whether one more sample may be kept, by chance or because it is hard."""
        self._refill(self._clock())
        return self._used < self.per_hour and self._tokens >= 1.0 + (0.0 if random else self._reserve)

    def take(self) -> None:
        """Count a sample that was kept."""
        self._tokens -= 1.0
        self._used += 1

    def _refill(self, now: float) -> None:
        past = max(now - self._last, 0.0)
        self._last = now
        if now - self._hour >= _HOUR:
            self._hour += _HOUR * ((now - self._hour) // _HOUR)
            self._used = 0
        self._tokens = min(self._tokens + past * self.per_hour / _HOUR, self._capacity)
        self._flow *= math.exp(-past / _MEMORY)
