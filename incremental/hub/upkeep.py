# SPDX-License-Identifier: Apache-2.0
"""What the hub does by itself from time to time: it deletes what is to be deleted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from fastapi import APIRouter

from ...core.errors import SolarCoronaError
from .hub import Hub
from .labels import LabelBook
from .retention import Retention

__all__ = ["Upkeep"]

_logger = logging.getLogger(__name__)


class Upkeep:
    """A thread that applies retention and bounds; what fails is tried again the next time.

    Parameters
    ----------
    hub
        What it works on.
    every
        Seconds between two times.
    """

    routers: Sequence[APIRouter] = ()

    def __init__(self, hub: Hub, *, every: float = 600.0) -> None:
        self._hub, self._every = hub, every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="solar-corona-upkeep", daemon=True)

    def start(self) -> None:
        """Start it."""
        self._thread.start()

    def stop(self) -> None:
        """End it; what it is at is finished."""
        self._end.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            try:
                Retention(self._hub).expire()
                LabelBook(self._hub).drop_stale()
            except SolarCoronaError as error:
                _logger.warning("deleting what is over has to wait: %s", error)
            if self._end.wait(self._every):
                return
