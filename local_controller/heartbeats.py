# SPDX-License-Identifier: Apache-2.0
"""Tells the hub an edge's state every few seconds, and takes its orders."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..core.errors import InterruptedJobError
from ..core.hub_messages import Heartbeat, Orders
from .clock import Clock, SystemClock
from .hub_client import HubClient
from .patience import patiently

__all__ = ["Heartbeats"]

_log = logging.getLogger(__name__)
_MOST_WAIT = 60.0
_LEAST_SECONDS = 0.1


class Heartbeats:
    """Sends heartbeats in the background.

    Parameters
    ----------
    hub
        Whom to tell.
    state
        Gives the edge's state now.
    take
        Gets the hub's orders.
    back
        Called when the hub answers again after it did not.
    clock
        Waits.
    """

    def __init__(
        self,
        hub: HubClient,
        *,
        state: Callable[[], Heartbeat],
        take: Callable[[Orders], None],
        back: Callable[[], None],
        clock: Clock | None = None,
    ) -> None:
        self._hub, self._state, self._take, self._back = hub, state, take, back
        self._clock = clock or SystemClock()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self.run, name="heartbeats", daemon=True)
        self._answered_at: float | None = None
        self.trouble = "the hub has not answered yet"

    @property
    def silence(self) -> float | None:
        """Seconds since the hub answered last; None if it never did."""
        return None if self._answered_at is None else self._clock.monotonic() - self._answered_at

    def start(self) -> None:
        """Send in a thread of its own."""
        self._thread.start()

    def stop(self, timeout: float = 3.0) -> None:
        """End, after the request that is under way if that is answered in time."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def soon(self) -> None:
        """Send one now: something has changed that the hub waits for."""
        self._wake.set()

    def run(self) -> None:
        """Send until `stop` is called."""
        while not self._stopping.is_set():
            try:
                wait = self._beat()
            except InterruptedJobError:
                return
            except Exception as error:  # noqa: BLE001 - without heartbeats nobody learns what is wrong
                _log.exception("a heartbeat failed")
                self._tell(f"{type(error).__name__}: {error}")
                wait = _MOST_WAIT
            self._clock.wait(self._wake, max(_LEAST_SECONDS, wait))
            self._wake.clear()

    def _beat(self) -> float:
        orders = patiently(
            lambda: self._hub.beat(self._state()),
            clock=self._clock,
            wake=self._wake,
            stopping=self._stopping,
            most_wait=_MOST_WAIT,
            trouble=self._tell,
        )
        self._answered_at = self._clock.monotonic()
        self._take(orders)
        return orders.next_heartbeat

    def _tell(self, trouble: str) -> None:
        before, self.trouble = self.trouble, trouble
        if trouble and trouble != before:
            _log.warning("no heartbeat reaches the hub: %s", trouble)
        elif before and not trouble:
            _log.info("the hub answers")
            self._back()
