# SPDX-License-Identifier: Apache-2.0
"""The server's process: `python -m solar_corona.fl_server`."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from types import FrameType

from ..core.errors import ContextError, ExitCode, InterruptedJobError, SolarCoronaError
from ..core.memory import keep_freed_memory
from ..core.run_folder import RunFolder, WorkerFailure
from ..core.settings import CONTEXT_VARIABLE
from ..lib import context

log = logging.getLogger(__name__)


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_IGN)
    raise InterruptedJobError("the server was asked to stop")


def main() -> int:
    """Run the server of the job that the environment names."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "httpcore", "flwr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("stamina").setLevel(logging.ERROR)  # what is tried again is logged by who tries
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    document = context.current()
    if document is None or document.role != "server":
        raise ContextError(f"{CONTEXT_VARIABLE} does not name a server's context document")
    sys.path.insert(0, str(Path.cwd()))  # a strategy of the user's own stands beside the job file
    try:
        from .job import ServerJob

        ServerJob(document).run()
    except InterruptedJobError:
        return ExitCode.INTERRUPTED
    except SolarCoronaError as error:
        log.error("%s", error, exc_info=error.__cause__)  # noqa: TRY400 - the cause alone has a useful traceback
        failure = WorkerFailure(error=str(error), exit_code=int(error.exit_code))
        RunFolder(Path(document.run_folder)).write_failure("server", failure)
        return error.exit_code
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
