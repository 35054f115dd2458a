# SPDX-License-Identifier: Apache-2.0
"""People label on the hub's own page; see `page_routes.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...core.errors import SpecError
from .source import Finished, Offer, Setting, SourceStatus

__all__ = ["Page"]


class Page:
    """Keeps a queue in the order that samples were offered in; people's labels go straight into the database.

    Parameters
    ----------
    setting
        What it is made in.
    queue
        Samples that are ready for people at the same time; what comes meanwhile is chosen from anew after that.
    """

    machine = False

    def __init__(self, setting: Setting, queue: int = 200) -> None:
        if isinstance(queue, bool) or not isinstance(queue, int) or not 1 <= queue <= 100_000:
            raise SpecError(f"labelling.options.queue is {queue!r}, expected a whole number from 1 to 100,000")
        del setting
        self._queue, self._out, self._next = queue, 0, 0

    def room(self) -> int:
        """Return what is missing from the queue, once half of it is labelled."""
        return self._queue - self._out if self._out <= self._queue // 2 else 0

    def offer(self, samples: Sequence[Offer]) -> Mapping[str, str]:
        """Put samples at the end of the queue: a task is a sample's place in it."""
        begin, self._next = self._next, self._next + len(samples)
        self._out += len(samples)
        return {each.sample: f"{place:012d}" for place, each in enumerate(samples, begin)}

    def withdraw(self, tasks: Sequence[str]) -> None:
        """Do nothing: nothing is kept here."""

    def poll(self, tasks: Mapping[str, str]) -> Sequence[Finished]:
        """Return nothing, and count what is left in the queue."""
        self._out = len(tasks)
        self._next = max([self._next, *(int(task) + 1 for task in tasks if task.isdigit())])
        return ()

    def status(self) -> SourceStatus:
        """Tell how many samples wait for people."""
        return SourceStatus(True, f"{self._out} samples wait for people on the page", "/label")

    def close(self) -> None:
        """Do nothing."""
