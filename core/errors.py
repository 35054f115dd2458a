# SPDX-License-Identifier: Apache-2.0
"""Every error that Solar Corona raises on purpose, and the exit code each one gives the command line.

A message says what happened, what was expected, and what to do.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ContextError",
    "DatasetError",
    "ExitCode",
    "InterruptedJobError",
    "JobFailedError",
    "ModelError",
    "NotAskedError",
    "PlatformError",
    "RefusedRequestError",
    "SolarCoronaError",
    "SpecError",
    "StrategyError",
    "StrategySpecError",
    "TemporaryError",
    "WireError",
]


class ExitCode(IntEnum):
    """Exit codes of the command `solar-corona`."""

    OK = 0
    JOB_FAILED = 1
    BAD_JOB = 2
    BAD_INPUT = 3
    PLATFORM = 4
    INTERNAL = 70
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One sentence for the documentation."""
        return {
            ExitCode.OK: "The job succeeded, or the command did what it was asked.",
            ExitCode.JOB_FAILED: "The job ran and failed: a script raised, too few edges replied, a strategy raised.",
            ExitCode.BAD_JOB: "The command line or the job file is wrong; nothing was started.",
            ExitCode.BAD_INPUT: "A script, dataset or model that the job names is missing or cannot be used.",
            ExitCode.PLATFORM: "This machine or network is in the way: a port in use, a full disk, no connection.",
            ExitCode.INTERNAL: "An error in Solar Corona itself; `--debug` shows the traceback.",
            ExitCode.INTERRUPTED: "Ctrl-C, or a request to stop.",
        }[self]


class SolarCoronaError(Exception):
    """Root of all errors that Solar Corona raises on purpose."""

    exit_code: ExitCode = ExitCode.JOB_FAILED


class SpecError(SolarCoronaError, ValueError):
    """A job file, or a value given on the command line, is wrong."""

    exit_code = ExitCode.BAD_JOB


class ContextError(SolarCoronaError, LookupError):
    """A worker asked its context for something that is not there."""

    exit_code = ExitCode.BAD_INPUT


class DatasetError(SolarCoronaError, ValueError):
    """A dataset is missing, unreadable, or not of the form that was expected."""

    exit_code = ExitCode.BAD_INPUT


class ModelError(SolarCoronaError, ValueError):
    """A model cannot be trained, saved or loaded as it is."""

    exit_code = ExitCode.BAD_INPUT


class StrategyError(SolarCoronaError, ValueError):
    """A strategy cannot be found, does not take an option, or raised."""

    exit_code = ExitCode.JOB_FAILED


class StrategySpecError(StrategyError, SpecError):
    """A job names a strategy that there is not, or gives it options that it does not take."""

    exit_code = ExitCode.BAD_JOB


class WireError(SolarCoronaError, ValueError):
    """A message does not follow the wire format."""


class PlatformError(SolarCoronaError, OSError):
    """The machine or the network is in the way: a port in use, a full disk, no connection."""

    exit_code = ExitCode.PLATFORM


class TemporaryError(SolarCoronaError, ConnectionError):
    """Something failed that may work when it is tried again."""

    exit_code = ExitCode.PLATFORM


class NotAskedError(TemporaryError):
    """A deep model was not asked at all: it is left alone for a while, or the link is full."""


class JobFailedError(SolarCoronaError, RuntimeError):
    """The job ran and cannot go on.

    Parameters
    ----------
    message
        As for every error.
    exit_code
        The failed script's own.
    traceback
        Where in the user's script it failed, where that is known.
    """

    def __init__(self, message: str, *, exit_code: ExitCode = ExitCode.JOB_FAILED, traceback: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.traceback = traceback


class InterruptedJobError(SolarCoronaError, RuntimeError):
    """The job was asked to stop before it was done."""

    exit_code = ExitCode.INTERRUPTED


class RefusedRequestError(SolarCoronaError, ValueError):
    """A request to a service that is answered with an HTTP status other than 200.

    Parameters
    ----------
    status
        The HTTP status.
    message
        What was wrong and what was expected; the client reads it.
    retry_after
        Seconds after which it may be asked again; None where that is useless.
    """

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
