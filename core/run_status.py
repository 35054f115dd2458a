# SPDX-License-Identifier: Apache-2.0
"""How a run of any kind stands: its phase, its workers' processes, and their logs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from .errors import ExitCode
from .run_folder import Phase, RunFolder, RunOrigin, is_alive

__all__ = ["ProcessStatus", "WorkerStatus", "follow_logs", "print_end", "print_head", "print_workers", "process_status"]

_POLL = 0.2


class WorkerStatus(BaseModel):
    """One worker's process."""

    alive: bool
    pid: int
    restarts: int
    exit_code: int | None


class ProcessStatus(BaseModel):
    """What every run has, as `status --json` prints it."""

    job: str
    run: str
    folder: str
    phase: Phase
    error: str | None
    exit_code: int | None
    workers: dict[str, WorkerStatus]


def process_status(folder: RunFolder, *, error: str | None = None) -> ProcessStatus:
    """Read a run's status; what says `running` but has no living process is reported as failed.

    Parameters
    ----------
    error
        Why it failed, where its launcher left no word.
    """
    state, phase = folder.read_state(), folder.phase()
    told = (state.error if state else None) or error
    if told is None and phase == "failed":
        origin = folder.read_origin() or RunOrigin(job_file="JOB.yaml")
        told = f"the process that ran the job is gone without a word (killed?); go on with `{origin.resume()}`"
    return ProcessStatus(
        job=folder.path.parent.name,
        run=folder.path.name,
        folder=str(folder.path),
        phase=phase,
        error=told if phase in ("failed", "stopped") else None,
        exit_code=state.exit_code if state else None,
        workers={
            name: WorkerStatus(
                alive=p.exit_code is None and is_alive(p.pid, p.process_start),
                pid=p.pid,
                restarts=p.restarts,
                exit_code=p.exit_code,
            )
            for name, p in (state.workers if state else {}).items()
        },
    )


def print_head(status: ProcessStatus, console: Console) -> None:
    """Print which run it is and its phase."""
    colour = {"succeeded": "green", "failed": "red", "stopped": "yellow"}.get(status.phase, "cyan")
    console.print(Text.assemble(f"{status.job} · run {status.run} · ", (status.phase, colour)))


def print_workers(status: ProcessStatus, console: Console) -> None:
    """Print a line for each worker."""
    for name, worker in status.workers.items():
        again = f", started again {worker.restarts}×" if worker.restarts else ""
        console.print(f"  {name:<14} {_how(worker)}, process {worker.pid}{again}", markup=False, soft_wrap=True)


def print_end(status: ProcessStatus, console: Console, *, model: str | None = None) -> None:
    """Print what failed, and where the run's files are."""
    if status.error:
        console.print(f"error: {status.error}", style="red", markup=False, soft_wrap=True)
    if model:
        console.print(f"model: {model}", markup=False, soft_wrap=True)
    console.print(f"folder: {status.folder}", style="dim", markup=False, soft_wrap=True)


def _how(worker: WorkerStatus) -> str:
    if worker.alive:
        return "running"
    if worker.exit_code is None:
        return "gone"
    if worker.exit_code < 0:
        number = -worker.exit_code
        return f"ended by {signal.Signals(number).name if number in set(signal.Signals) else f'signal {number}'}"
    if worker.exit_code == ExitCode.INTERRUPTED:
        return "stopped"
    return f"failed with exit status {worker.exit_code}" if worker.exit_code else "done"


def follow_logs(folder: RunFolder, names: list[str], *, lines: int, follow: bool) -> Iterator[tuple[str, str]]:
    """Yield `(worker, line)`: the last lines of each log, then new ones while the run goes on."""
    offsets: dict[str, int] = {}
    for name in names:
        data = _read(folder.log(name), 0)
        for line in data.splitlines()[-lines:] if lines else []:
            yield name, line.decode(errors="replace")
        offsets[name] = len(data)
    while follow:
        going = folder.phase() in ("starting", "running")
        for name in names:
            data = _read(folder.log(name), offsets[name])
            whole = data if not going else data[: data.rfind(b"\n") + 1]
            offsets[name] += len(whole)
            for line in whole.splitlines():
                yield name, line.decode(errors="replace")
        if not going:
            return
        time.sleep(_POLL)


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""
