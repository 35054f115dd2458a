# SPDX-License-Identifier: Apache-2.0
"""How a user's script failed: in its own words, with the frames that are its own."""

from __future__ import annotations

import os
import runpy
import traceback
from pathlib import Path

from .errors import ExitCode, JobFailedError, SolarCoronaError
from .run_folder import WorkerFailure

__all__ = ["error_of", "failure_of"]

_ROOT = Path(__file__).resolve().parents[1]
# By room, since the root holds the examples as well, whose scripts are a user's.
_OURS = tuple(f"{_ROOT / room}{os.sep}" for room in ("core", "fl_client", "fl_server", "lib", "strategies"))


def failure_of(error: BaseException) -> WorkerFailure:
    """Return what is told of an error that a script ended with."""
    if isinstance(error, SolarCoronaError):
        told = isinstance(error, JobFailedError)
        return WorkerFailure(error=_writable(str(error)), exit_code=int(error.exit_code), told=told)
    if isinstance(error, SystemExit):
        return WorkerFailure(error=_writable(f"the script ended itself with exit status {error.code}"))
    summary = f"{type(error).__name__}: {error}"
    return WorkerFailure(error=_writable(summary), traceback=_writable(_traceback_of(error)))


def error_of(worker: str, failure: WorkerFailure, log: Path) -> JobFailedError:
    """Return the error with which a job ends that fails of one worker's script."""
    known = failure.exit_code in list(ExitCode)
    return JobFailedError(
        f"{worker}'s script failed: {failure.error} (log: {log})",
        exit_code=ExitCode(failure.exit_code) if known else ExitCode.JOB_FAILED,
        traceback=failure.traceback,
    )


def _traceback_of(error: BaseException) -> str:
    """Return the traceback of `error` and of what caused it, without the frames that only carry the script."""
    whole = traceback.TracebackException.from_exception(error)
    pending, seen = [whole], set[int]()
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list(_shown(list(part.stack)))
        pending += [p for p in (part.__cause__, part.__context__, *(part.exceptions or ())) if p is not None]
    lines = list(whole.format())
    return "".join(lines[1:] if not whole.stack and lines[0].startswith("Traceback") else lines)


def _shown(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    theirs = [f for f in frames if f.filename != runpy.__file__ and not f.filename.startswith(("<frozen", *_OURS))]
    # What was raised in our own code was not only passed through it: then our frames tell where.
    raised_here = bool(theirs) and frames[-1].filename.startswith(_OURS)
    if not raised_here:
        return theirs
    first = frames.index(theirs[0])
    return frames[first:]


def _writable(text: str) -> str:
    """Return `text` without the halves of characters that a file's name may hold and JSON cannot."""
    return text.encode("utf-8", "backslashreplace").decode()
