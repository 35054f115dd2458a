# SPDX-License-Identifier: Apache-2.0
"""Hours of the day in which nothing is uploaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import SpecError

__all__ = ["QuietHours"]

_FORM = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_DAY = 86_400


@dataclass(frozen=True)
class QuietHours:
    """A span of each day, in UTC; it may pass midnight.

    Parameters
    ----------
    begin, end
        Seconds since midnight.
    """

    begin: int
    end: int

    @classmethod
    def parse(cls, text: str) -> QuietHours:
        """Read such as `08:00-18:00`.

        Raises
        ------
        SpecError
            If it is no span of hours.

        Examples
        --------
        >>> night = QuietHours.parse("22:00-06:30")
        >>> night.left(23 * 3600.0), night.left(12 * 3600.0)
        (27000.0, 0.0)
        """
        found = _FORM.fullmatch(text)
        begin, end = (0, 0) if found is None else (_seconds(found[1], found[2]), _seconds(found[3], found[4]))
        if begin == end:
            raise SpecError(
                f"quiet hours are {text[:40]!r}, expected a begin and another end in UTC, such as 08:00-18:00"
            )
        return cls(begin, end)

    def left(self, now: float) -> float:
        """Return how many seconds of them are left at `now` (seconds since 1970); 0 outside them."""
        second = now % _DAY
        if (second - self.begin) % _DAY >= (self.end - self.begin) % _DAY:
            return 0.0
        return (self.end - second) % _DAY


def _seconds(hours: str, minutes: str) -> int:
    return 3600 * int(hours) + 60 * int(minutes)
