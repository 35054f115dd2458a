# SPDX-License-Identifier: Apache-2.0
"""Work that is started when it is needed and ends by itself, such as a training: what a launcher does for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from .workers import Worker

__all__ = ["TaskLauncher", "TaskState"]


@dataclass(frozen=True)
class TaskState:
    """How a task stands.

    Parameters
    ----------
    phase
        `unknown` where no task of that name was ever started, or nothing is left of it.
    error
        Why it failed: what the script raised, a signal, or what the platform says.
    killed
        Whether it failed by no fault of the script's own, so that another attempt may succeed.
    """

    phase: Literal["unknown", "running", "succeeded", "failed"]
    error: str = ""
    killed: bool = False


class TaskLauncher(Protocol):
    """Starts workers that end by themselves.

    It may be made anew at any time: a process that was killed and came back asks by name what it started before.
    """

    def start(self, worker: Worker) -> None:
        """Start a worker; one of that name that runs, or has ended, is left as it is."""

    def state(self, name: str) -> TaskState:
        """Return how the worker of that name stands."""

    def stop(self, name: str) -> None:
        """End it, if it runs; nothing is left of it."""
