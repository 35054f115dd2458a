# SPDX-License-Identifier: Apache-2.0
"""Keeps uploads within what the link to the cloud carries."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core.errors import ModelError

__all__ = ["LinkBudget"]

# The rest is headers, acknowledgements, answers, and whatever else the link carries (the measured study's share).
_SHARE = 0.7


class LinkBudget:
    """A token bucket of bytes: a second's worth at most, filled at 0.7 of the link's rate.

    Parameters
    ----------
    megabits
        The link's rate up, in Mbit/s.
    clock
        Seconds, monotonic.
    """

    def __init__(self, megabits: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0 < megabits < float("inf"):
            raise ModelError(f"the link's rate is {megabits} Mbit/s, expected a number above 0")
        self._rate = _SHARE * megabits * 1e6 / 8
        self._clock = clock
        self._bytes, self._at = self._rate, clock()

    def take(self, size: int) -> bool:
        """Take `size` bytes if they are there; an upload larger than a second's worth goes when the bucket is full."""
        now = self._clock()
        self._bytes = min(self._rate, self._bytes + (now - self._at) * self._rate)
        self._at = now
        if self._bytes < min(size, self._rate):
            return False
        self._bytes -= size
        return True
