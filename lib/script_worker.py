# SPDX-License-Identifier: Apache-2.0
"""Runs a user's script as an edge's worker: `python -m solar_corona.lib.script_worker train.py`.

The script runs as with plain python. What this adds is a report of how it ended, so that the launcher can tell a
script that raised from a process that was killed.
"""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path

from ..core.errors import ContextError, ExitCode, SolarCoronaError
from ..core.run_folder import RunFolder
from ..core.script_failure import failure_of
from ..lib import context

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the script named by the first argument; the rest are its own."""
    if not arguments:
        sys.stderr.write("usage: python -m solar_corona.lib.script_worker SCRIPT [ARGUMENT…]\n")
        return ExitCode.BAD_JOB
    script = Path(arguments[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "httpcore", "flwr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("stamina").setLevel(logging.ERROR)  # what is tried again is logged by who tries
    if not script.is_file():
        return _report(ContextError(f"the script {script} does not exist; spec.script names it"))
    sys.argv = [str(script), *arguments[1:]]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as request:
        return ExitCode.OK if request.code in (None, 0) else _report(request)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - whatever the user's script raises is reported, not handled
        return _report(error)
    return ExitCode.OK


def _report(error: BaseException) -> int:
    """Print how the script failed and leave a report in the run folder."""
    failure = failure_of(error)
    sys.stderr.write(failure.traceback or f"{failure.error}\n")
    try:
        document = context.current()
    except SolarCoronaError:  # it is what the script failed of, and no folder can be told from it
        document = None
    if document is not None:
        try:
            RunFolder(Path(document.run_folder)).write_failure(document.worker, failure)
        except OSError as unwritable:
            sys.stderr.write(f"{unwritable}\n")
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
