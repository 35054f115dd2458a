# SPDX-License-Identifier: Apache-2.0
"""How an incremental learning job stands: its loop, and the processes of its last run."""

from __future__ import annotations

from rich.console import Console

from ..core.run_folder import RunFolder
from ..core.run_status import ProcessStatus, print_end, print_head, print_workers, process_status
from .local_run import status_of as loop_status_of
from .loop.display import page
from .loop.status import LoopStatus

__all__ = ["IncrementalStatus", "describe", "status_of"]


class IncrementalStatus(ProcessStatus):
    """A job as `status --json` prints it."""

    loop: LoopStatus | None


def status_of(folder: RunFolder) -> IncrementalStatus:
    """Read a job's status."""
    return IncrementalStatus(**dict(process_status(folder)), loop=loop_status_of(folder))


def describe(status: IncrementalStatus, console: Console) -> None:
    """Print a status for a person."""
    print_head(status, console)
    if status.loop is not None:
        console.print(page(status.loop))
    print_workers(status, console)
    print_end(status, console)
