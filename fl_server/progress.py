# SPDX-License-Identifier: Apache-2.0
"""A run as a person sees it: one table that fills itself in from the run's events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.events import (
    EdgeFinished,
    EdgeJoined,
    EdgeLeftOut,
    Event,
    JobFailed,
    JobFinished,
    JobStarted,
    RoundEvaluated,
    RoundFinished,
    RoundStarted,
    TasksGrouped,
    TransferChosen,
    Warned,
)
from .plain_text import one_line
from .task_view import TaskView, choice_in_words

__all__ = ["RoundRow", "RunView", "accuracy_name", "format_bytes"]


def accuracy_name(metrics: Iterable[str]) -> str | None:
    """Return the metric to show as accuracy: the first with `acc` in its name, else the first that is no loss."""
    names = list(metrics)
    return next((n for n in names if "acc" in n), next((n for n in names if "loss" not in n), None))


def format_bytes(size: float) -> str:
    """Write a size in bytes with a unit that fits.

    >>> format_bytes(2048)
    '2.0 KiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@dataclass
class RoundRow:
    """One line of the table."""

    number: int
    asked: int = 0
    replied: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    edges: dict[str, dict[str, float]] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class RunView:
    """What events tell of a run so far."""

    started: JobStarted | None = None
    rows: dict[int, RoundRow] = field(default_factory=dict)
    joined: dict[str, EdgeJoined] = field(default_factory=dict)
    finished_edges: dict[str, EdgeFinished] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tasks: TaskView = field(default_factory=TaskView)
    finished: JobFinished | None = None
    failed: JobFailed | None = None

    @property
    def round(self) -> int:
        """The last round whose models are aggregated; 0 before the first."""
        return max((row.number for row in self.rows.values() if row.replied is not None), default=0)

    def take(self, events: Iterable[Event]) -> None:
        """Take in more events."""
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        self.tasks.take(event)
        note = self._note(event)
        if note is not None:
            self.notes.append(note)
        match event:
            case JobStarted():
                self.started, self.failed = event, None
            case EdgeJoined():
                self.joined[event.edge] = event
            case RoundStarted():
                self.rows[event.round] = RoundRow(event.round, asked=event.edges)
            case RoundFinished():
                row = self.rows.setdefault(event.round, RoundRow(event.round))
                row.asked, row.replied, row.metrics = event.asked, event.replied, event.metrics
                row.bytes, row.seconds = event.bytes_down + event.bytes_up, event.seconds
            case RoundEvaluated():
                row = self.rows.setdefault(event.round, RoundRow(event.round))
                row.evaluation, row.edges = event.metrics, event.edges
            case EdgeFinished():
                self.finished_edges[event.edge] = event
            case JobFinished():
                self.finished = event
            case JobFailed():
                self.failed = event

    def _note(self, event: Event) -> str | None:
        """Return the line that an event adds under the table; most add none."""
        match event:
            case TasksGrouped():
                return self.tasks.changes[-1]
            case TransferChosen():
                what = f"{one_line(event.group)}: {choice_in_words(event.choice)}"
                return f"round {event.round}: {what} ({one_line(event.reason)})"
            case EdgeJoined(back=True):
                return f"{event.edge} is back"
            case EdgeLeftOut():
                return f"round {event.round}: {event.edge} left out: {event.reason}"
            case Warned():
                return event.message
        return None

    def table(self) -> RenderableType:
        """Return the live view: a line a round, and the last notes under it."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, justify in (
            ("round", "right"),
            ("edges", "right"),
            ("loss", "right"),
            ("accuracy", "right"),
            ("bytes", "right"),
            ("seconds", "right"),
        ):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        total = self.started.rounds if self.started else 0
        rows = [self.rows[n] for n in sorted(self.rows)]
        for row in rows[-12:]:
            if row.number:
                table.add_row(*self._cells(row, total))
            else:
                loss, accuracy = self._scores(row.evaluation)
                table.add_row("start", "", loss, accuracy, "", "", style="dim")
        parts: list[RenderableType] = [table]
        if not any(row.number for row in rows):
            parts = [Text(self._waiting(), style="dim"), *([table] if rows else [])]
        if self.tasks.told:
            parts.append(Text(f"  {self.tasks.headline}", style="bold"))
        notes = [Text(note, style="yellow", overflow="fold") for note in self.notes[-3:]]
        parts += [Padding(note, (0, 0, 0, 2)) for note in notes]
        return Group(*parts)

    def _waiting(self) -> str:
        if self.started is None:
            return "starting the SuperLink and the edges…"
        return f"{len(self.joined)} of {len(self.started.edges)} edges are here…"

    def _cells(self, row: RoundRow, total: int) -> tuple[str, ...]:
        loss, accuracy = self._scores(row.evaluation)
        replied = "…" if row.replied is None else str(row.replied)
        done = row.replied is not None
        return (
            f"{row.number}/{total}",
            f"{replied}/{row.asked}",
            loss,
            accuracy,
            format_bytes(row.bytes) if done else "",
            f"{row.seconds:.1f}" if done else "",
        )

    @staticmethod
    def _scores(metrics: dict[str, float]) -> tuple[str, str]:
        name = accuracy_name(n for n in metrics if n != "num-examples")
        loss = f"{metrics['loss']:.4f}" if "loss" in metrics else ""
        return loss, f"{metrics[name]:.4f}" if name is not None else ""
