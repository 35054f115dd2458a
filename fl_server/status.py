# SPDX-License-Identifier: Apache-2.0
"""How a run stands, from its folder alone, and its logs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from ..core.errors import ExitCode
from ..core.run_folder import Phase, RunFolder, RunOrigin, is_alive
from .progress import RunView

__all__ = ["RunStatus", "describe", "follow_logs", "status_of"]

_POLL = 0.2


class WorkerStatus(BaseModel):
    """One worker's process."""

    alive: bool
    pid: int
    restarts: int
    exit_code: int | None


class RunStatus(BaseModel):
    """A run as `status --json` prints it."""

    job: str
    run: str
    folder: str
    phase: Phase
    last_event: datetime | None = None
    round: int
    rounds: int
    edges_here: list[str]
    metrics: dict[str, float]
    model: str | None
    error: str | None
    exit_code: int | None
    superlink: str | None
    workers: dict[str, WorkerStatus]
    notes: list[str]
    groups: dict[str, list[str]] = {}


def status_of(folder: RunFolder) -> RunStatus:
    """Read a run's status; what says `running` but has no living process is reported as failed."""
    state, view = folder.read_state(), RunView()
    events, notes = folder.events(), list[str]()
    for event in events:
        known = len(view.notes)
        view.take([event])
        notes += [f"{_clock(event.time):%Y-%m-%d %H:%M:%S} {note}" for note in view.notes[known:]]
    phase = folder.phase()
    error = state.error if state else None
    if error is None and view.failed is not None:
        error = view.failed.error
    if error is None and phase == "failed":
        origin = folder.read_origin() or RunOrigin(job_file="JOB.yaml")
        error = f"the process that ran the job is gone without a word (killed?); go on with `{origin.resume()}`"
    evaluated = [row for row in view.rows.values() if row.evaluation]
    return RunStatus(
        job=folder.path.parent.name,
        run=folder.path.name,
        folder=str(folder.path),
        phase=phase,
        last_event=_clock(events[-1].time) if events else None,
        round=max((r.number for r in view.rows.values() if r.replied is not None), default=0),
        rounds=view.started.rounds if view.started else 0,
        edges_here=sorted(view.joined),
        metrics=max(evaluated, key=lambda r: r.number).evaluation if evaluated else {},
        model=view.finished.model if view.finished else None,
        error=error if phase in ("failed", "stopped") else None,
        exit_code=state.exit_code if state else None,
        superlink=state.superlink if state and phase == "running" else None,
        workers={
            name: WorkerStatus(
                alive=p.exit_code is None and is_alive(p.pid, p.process_start),
                pid=p.pid,
                restarts=p.restarts,
                exit_code=p.exit_code,
            )
            for name, p in (state.workers if state else {}).items()
        },
        notes=notes[-10:],
        groups={group.name: group.members for group in view.tasks.groups},
    )


def describe(status: RunStatus, console: Console) -> None:
    """Print a status for a person."""
    colour = {"succeeded": "green", "failed": "red", "stopped": "yellow"}.get(status.phase, "cyan")
    console.print(Text.assemble(f"{status.job} · run {status.run} · ", (status.phase, colour)))
    console.print(f"round {status.round} of {status.rounds}, {len(status.edges_here)} edges came", highlight=False)
    if status.metrics:
        shown = ", ".join(f"{n} {v:.4f}" for n, v in status.metrics.items() if n != "num-examples")
        console.print(f"global model: {shown}", markup=False, soft_wrap=True)
    if status.last_event is not None:
        console.print(f"last event: {status.last_event:%Y-%m-%d %H:%M:%S}, {_ago(status.last_event)} ago")
    for group, members in status.groups.items():
        console.print(f"  {group}: {', '.join(members)}", markup=False, highlight=False)
    for name, worker in status.workers.items():
        again = f", started again {worker.restarts}×" if worker.restarts else ""
        console.print(f"  {name:<14} {_how(worker)}, process {worker.pid}{again}", markup=False, soft_wrap=True)
    for note in status.notes:
        console.print(f"  {note}", style="yellow", markup=False, soft_wrap=True)
    if status.error:
        console.print(f"error: {status.error}", style="red", markup=False, soft_wrap=True)
    if status.model:
        console.print(f"model: {status.model}", markup=False, soft_wrap=True)
    console.print(f"folder: {status.folder}", style="dim", markup=False, soft_wrap=True)


def _clock(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).astimezone()


def _ago(then: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


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
