# SPDX-License-Identifier: Apache-2.0
"""Two clocks: one for waiting, which never jumps, and one for what is written down, which may."""

from __future__ import annotations

import threading
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What time it is, and waiting."""

    def now(self) -> float:
        """Return seconds since 1970. They may jump, forwards and back."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the event is set or the time is over; return whether it is set."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def now(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the event is set or the time is over."""
        return event.wait(seconds)
