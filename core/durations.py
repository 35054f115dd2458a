# SPDX-License-Identifier: Apache-2.0
"""Durations as Kubernetes writes them: `90s`, `1m30s`, `2h`, or a number of seconds."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

__all__ = ["Duration", "format_duration", "parse_duration"]

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|h|m|s)")
_WHOLE = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|h|m|s))+")
_LONGEST = 366 * 24 * 3600.0  # what is longer is a slip of the pen, and beyond what a system can wait for


def parse_duration(value: Any) -> float:
    """Return `value` in seconds, to the millisecond.

    >>> parse_duration("1m30s"), parse_duration(2)
    (90.0, 2.0)

    Raises
    ------
    ValueError
        If `value` is neither a number from 0 nor written like `1m30s`, or is longer than a year.
    """
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        seconds = value
    elif isinstance(value, str) and _WHOLE.fullmatch(value):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    if seconds is not None and seconds > _LONGEST:
        raise ValueError("a duration is at most a year; write it like 30s, 5m or 1h30m")
    if seconds is not None:
        return round(seconds * 1000) / 1000
    raise ValueError(f"{value!r} is not a duration; write it like 30s, 5m or 1h30m")


def format_duration(seconds: float) -> str:
    """Write `seconds` so that `parse_duration` reads the same back.

    >>> format_duration(90)
    '1m30s'
    """
    whole, rest = divmod(round(seconds * 1000), 1000)
    hours, minutes, left = whole // 3600, whole % 3600 // 60, whole % 60
    parts = [(hours, "h"), (minutes, "m"), (left, "s"), (rest, "ms")]
    return "".join(f"{n}{unit}" for n, unit in parts if n) or "0s"


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_WHOLE.pattern}$", "examples": ["30s", "5m", "1h30m"]}),
]
