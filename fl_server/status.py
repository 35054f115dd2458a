# SPDX-License-Identifier: Apache-2.0
"""How a federated run stands, from its folder alone."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field
from rich.console import Console

from ..core.run_folder import RunFolder
from ..core.run_status import ProcessStatus, print_end, print_head, print_workers, process_status
from .plain_text import few, one_line
from .progress import RunView

__all__ = ["RunStatus", "describe", "status_of"]

_MOST_GROUPS = 12
_MOST_MEMBERS = 8


class RunStatus(ProcessStatus):
    """A federated run as `status --json` prints it."""

    last_event: datetime | None = None
    round: int
    rounds: int
    edges_here: list[str]
    metrics: dict[str, float]
    model: str | None
    superlink: str | None
    notes: list[str]
    groups: dict[str, list[str]] = Field(default_factory=dict)


def status_of(folder: RunFolder) -> RunStatus:
    """Read a run's status; what says `running` but has no living process is reported as failed."""
    state, view = folder.read_state(), RunView()
    events, notes = folder.events(), list[str]()
    for event in events:
        known = len(view.notes)
        view.take([event])
        notes += [f"{_clock(event.time):%Y-%m-%d %H:%M:%S} {note}" for note in view.notes[known:]]
    basic = process_status(folder, error=view.failed.error if view.failed is not None else None)
    evaluated = [row for row in view.rows.values() if row.evaluation]
    return RunStatus(
        **dict(basic),
        last_event=_clock(events[-1].time) if events else None,
        round=view.round,
        rounds=view.started.rounds if view.started else 0,
        edges_here=sorted(view.joined),
        metrics=max(evaluated, key=lambda r: r.number).evaluation if evaluated else {},
        model=view.finished.model if view.finished else None,
        superlink=state.address if state and basic.phase == "running" else None,
        notes=notes[-10:],
        groups={group.name: group.members for group in view.tasks.groups},
    )


def describe(status: RunStatus, console: Console) -> None:
    """Print a status for a person."""
    print_head(status, console)
    console.print(f"round {status.round} of {status.rounds}, {len(status.edges_here)} edges came", highlight=False)
    if status.metrics:
        shown = ", ".join(f"{n} {v:.4f}" for n, v in status.metrics.items() if n != "num-examples")
        whose = "global model" if len(status.groups) < 2 else "each edge under its group's model"
        console.print(f"{whose}: {shown}", markup=False, soft_wrap=True)
    if status.last_event is not None:
        console.print(f"last event: {status.last_event:%Y-%m-%d %H:%M:%S}, {_ago(status.last_event)} ago")
    _describe_groups(status.groups, console)
    print_workers(status, console)
    for note in status.notes:
        console.print(f"  {note}", style="yellow", markup=False, soft_wrap=True)
    print_end(status, console, model=status.model)


def _clock(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).astimezone()


def _ago(then: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _describe_groups(groups: dict[str, list[str]], console: Console) -> None:
    for name in list(groups)[:_MOST_GROUPS]:
        members, count = groups[name], len(groups[name])
        tasks = f"{count:,} task{'s' * (count != 1)}"
        console.print(f"  {one_line(name)}: {tasks}: {few(members, _MOST_MEMBERS)}", markup=False, highlight=False)
    if len(groups) > _MOST_GROUPS:
        console.print(f"  and {len(groups) - _MOST_GROUPS:,} more groups: see `solar-corona tasks`", markup=False)
