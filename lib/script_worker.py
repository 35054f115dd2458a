# SPDX-License-Identifier: Apache-2.0
"""Runs a user's script as an edge's worker: `python -m solar_corona.lib.script_worker train.py`.

The script runs as with plain python. What this adds is a report of how it ended, so that the launcher can tell a
script that raised from a process that was killed.
"""

from __future__ import annotations

import logging
import runpy
import sys
import traceback
from pathlib import Path

from ..core.errors import ExitCode, JobFailedError, SolarCoronaError
from ..core.run_folder import RunFolder, WorkerFailure
from ..lib import context

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the script named by the first argument; the rest are its own."""
    if not arguments:
        sys.stderr.write("usage: python -m solar_corona.lib.script_worker SCRIPT [ARGUMENT…]\n")
        return ExitCode.BAD_JOB
    script = Path(arguments[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "httpcore", "flwr", "stamina"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not script.is_file():
        return _report(FileNotFoundError(f"the script {script} does not exist"), ExitCode.BAD_INPUT, "")
    sys.argv = [str(script), *arguments[1:]]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as exit_request:
        code = exit_request.code
        if code in (None, 0):
            return ExitCode.OK
        return _report(exit_request, ExitCode.JOB_FAILED, f"the script ended itself with exit status {code}")
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except SolarCoronaError as error:
        return _report(error, error.exit_code, "")
    except BaseException as error:  # noqa: BLE001 - whatever the user's script raises is reported, not handled
        return _report(error, ExitCode.JOB_FAILED, "")
    return ExitCode.OK


def _report(error: BaseException, code: ExitCode, message: str) -> ExitCode:
    """Print the traceback without our own frames and leave a report in the run folder."""
    text = _traceback_of(error)
    ours = isinstance(error, SolarCoronaError)
    sys.stderr.write(f"{error}\n" if ours else message + "\n" if message else text)
    try:
        document = context.current()
    except SolarCoronaError:  # it is what the script failed of, and no folder can be told from it
        document = None
    if document is not None:
        summary = str(error) if ours else message or f"{type(error).__name__}: {error}"
        failure = WorkerFailure(
            error=_writable(summary),
            traceback="" if ours else _writable(text),
            exit_code=int(code),
            told=isinstance(error, JobFailedError),
        )
        try:
            RunFolder(Path(document.run_folder)).write_failure(document.worker, failure)
        except OSError as unwritable:
            sys.stderr.write(f"{unwritable}\n")
    return code


def _traceback_of(error: BaseException) -> str:
    """Return the traceback of `error` and of what caused it, without the frames that only started the script."""
    whole = traceback.TracebackException.from_exception(error)
    pending, seen = [whole], set[int]()
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list(
            [
                f
                for f in part.stack
                if f.filename not in (__file__, runpy.__file__) and not f.filename.startswith("<frozen")
            ]
        )
        pending += [p for p in (part.__cause__, part.__context__, *(part.exceptions or ())) if p is not None]
    lines = list(whole.format())
    return "".join(lines[1:] if not whole.stack and lines[0].startswith("Traceback") else lines)


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
