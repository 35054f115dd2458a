# SPDX-License-Identifier: Apache-2.0
"""Where an hour's budget is left for the script's next process."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

from .budget import Budget, Spent
from .worker_counts import WorkerCounts

__all__ = ["BudgetFile"]

_log = logging.getLogger(__name__)
_LARGEST = 4_096


class BudgetFile:
    """Notes how the budget stands, as often as the script reports; what a crash loses is some seconds of it.

    Parameters
    ----------
    path
        The file. A budget that cannot be read or written is begun anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = False
        self.budget: Budget | None = None

    def read(self) -> Spent | None:
        """Return how an earlier process left this hour; None where there was none, or it is over."""
        try:
            with self._path.open("rb") as file:
                said = json.loads(file.read(_LARGEST))
            seconds = time.time() - float(said["at"]) + float(said["seconds"])
            # A clock that was set back makes the past the future.
            past = time.time() >= float(said["at"])
            return Spent(int(said["used"]), float(said["tokens"]), seconds) if past else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None

    def report(self, counts: WorkerCounts) -> None:  # noqa: ARG002 -- it is called as reporters are
        """Write it down."""
        if self.budget is None:
            return
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Not synced to the disk: a machine that lost its power took more than some seconds to start.
            temporary.write_text(json.dumps({**asdict(self.budget.spent), "at": time.time()}), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            if not self._told:
                self._told = True
                _log.warning("%s: the budget cannot be noted (%s); it begins anew with the script", self._path, error)
