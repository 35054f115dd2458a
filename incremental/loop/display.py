# SPDX-License-Identifier: Apache-2.0
"""How a job's loop stands, as a person reads it: one page on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...core.live import drawn_live
from .status import LoopStatus

__all__ = ["Show", "display", "page"]

Show = Callable[[LoopStatus], None]

_BAR = 16
_MOST_EDGES = 20
_LONGEST_WHY = 220
_STATES = {"promoted": "green", "canary": "cyan", "refused": "red", "rolled-back": "red", "candidate": ""}
_TALLY = ("seen", "hard", "queued", "uploaded", "labelled", "used")


def page(status: LoopStatus) -> RenderableType:
    """Return the page: samples, triggers, trainings, versions, edges, and why the last decisions were taken."""
    sections: list[list[RenderableType]] = [
        [_head(status)],
        [_samples(status)],
        _triggers(status),
        _trainings(status),
        [_versions(status)],
        [_edges(status)],
        _decisions(status),
    ]
    return Group(*(part for section in sections if section for part in (*section, Text())))


def _head(status: LoopStatus) -> Text:
    head = Text.assemble(
        (status.job, "bold"), "  ", (status.phase, "bold cyan"), (f" for {_ago(status, status.since)}", "dim")
    )
    if not status.running:
        head.append("  not running", style="yellow")
    if status.canary is not None:
        canary = status.canary
        head.append(f"\nversion {canary.version} on {', '.join(canary.edges) or 'no edge yet'}: ")
        head.append(f"{canary.samples:,} samples compared")
    if status.labelling:
        head.append(f"\nlabels: {status.labelling}", style="yellow")
    return head


def _samples(status: LoopStatus) -> Table:
    counts = status.samples
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in _TALLY:
        table.add_column(name, justify="right")
    table.add_row(*(f"{getattr(counts, name):,}" for name in _TALLY))
    rest = [f"{getattr(counts, name):,} {what}" for name, what in _REST if getattr(counts, name)]
    if rest:
        table.caption, table.caption_justify = " · ".join(rest), "left"
    return table


_REST = (
    ("waiting", "wait for a labeller"),
    ("out", "with a labeller"),
    ("conflict", "that labellers disagree on"),
    ("skipped", "skipped"),
)


def _triggers(status: LoopStatus) -> list[RenderableType]:
    lines = []
    for trigger in status.triggers:
        full = round(_BAR * trigger.share)
        bar = ("━" * full, "green" if trigger.due else "cyan"), ("┄" * (_BAR - full), "dim")
        lines.append(Text.assemble("trigger  ", *bar, f"  {trigger.name}  ", (trigger.text, "dim")))
    return list(lines)


def _trainings(status: LoopStatus) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for run in status.trainings[:3]:
        style = {"failed": "red", "succeeded": "green"}.get(run.state, "cyan")
        took = f", {(run.ended_at or status.at) - run.started_at:.0f} s"
        again = f", attempt {run.attempt}" if run.attempt > 1 else ""
        line = Text.assemble(f"training {run.number}  ", (run.state, style), (f"{took}{again}: {run.reason}", "dim"))
        if run.error:
            line.append(f"\n    {run.error.strip().splitlines()[-1]}", style="red")
        lines.append(line)
    return lines


def _versions(status: LoopStatus) -> RenderableType:
    if not status.versions:
        return Text("no version of the model is known yet", style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name, justify in (("version", "right"), ("state", "left"), ("new", "right"), ("old", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("answers on", overflow="fold")
    for version in status.versions:
        accuracies = [version.metrics.get(name) for name in ("accuracy_new", "accuracy_old")]
        edges = version.edges
        where = ", ".join(edges[:6]) + (f" and {len(edges) - 6} more" if len(edges) > 6 else "")
        table.add_row(
            str(version.version),
            Text(version.state, style=_STATES.get(version.state, "")),
            *(f"{value:.1%}" if isinstance(value, int | float) else "–" for value in accuracies),
            where or "–",
        )
    return table


def _edges(status: LoopStatus) -> RenderableType:
    if not status.edges:
        return Text("no edge has been heard of yet", style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("edge", overflow="fold")
    for name in ("version", "seen", "hard", "queued", "sure"):
        table.add_column(name, justify="right")
    table.add_column("heard of")
    edges = sorted(status.edges, key=lambda edge: (not edge.silent, not edge.trouble))[:_MOST_EDGES]
    for edge in sorted(edges, key=lambda each: each.name):
        heard = f"{_ago(status, edge.seen_at)} ago"
        table.add_row(
            edge.name,
            str(edge.version or "–"),
            f"{edge.seen:,}",
            f"{edge.hard:,}",
            f"{edge.queued:,}" + (f" ({edge.evicted:,} lost to a full outbox)" if edge.evicted else ""),
            f"{edge.confidence:.0%}" if edge.confidence is not None else "–",
            Text(heard, style="yellow" if edge.silent else "dim"),
        )
    troubles = [Text(f"{edge.name}: {edge.trouble}", style="yellow") for edge in status.edges if edge.trouble][:5]
    return Group(table, *troubles) if troubles else table


def _decisions(status: LoopStatus) -> list[RenderableType]:
    return [
        Text.assemble((f"{_ago(status, each.at):>6} ago  ", "dim"), (each.what, "bold"), f"  {_short(each.why)}")
        for each in status.decisions[:5]
    ]


def _short(why: str) -> str:
    """Return the beginning of a reason; the version's report has all of it."""
    return why if len(why) <= _LONGEST_WHY else why[:_LONGEST_WHY].rsplit(" ", 1)[0] + " …"


def _ago(status: LoopStatus, at: float) -> str:
    seconds = max(0.0, status.at - at)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def display(console: Console, *, as_json: bool) -> Iterator[Show]:
    """Give a function that shows a status: a page on a terminal, JSON lines or the decisions elsewhere."""
    if as_json:
        yield _told_as_json()
    elif console.is_terminal:
        with drawn_live(console, Text("the hub starts …", style="dim")) as draw:
            yield lambda status: draw(lambda: page(status))
    else:
        yield _told_plainly(console)


def _told_as_json() -> Show:
    last = ""

    def show(status: LoopStatus) -> None:
        nonlocal last
        told = status.model_dump_json(exclude={"at"})
        if told != last:
            last = told
            sys.stdout.write(status.model_dump_json() + "\n")
            sys.stdout.flush()

    return show


def _told_plainly(console: Console) -> Show:
    said, begin = "", time.monotonic()

    def show(status: LoopStatus) -> None:
        nonlocal said
        newest = status.decisions[0] if status.decisions else None
        line = f"{status.phase}: {newest.what}: {_short(newest.why)}" if newest is not None else status.phase
        if line != said:
            said = line
            console.print(f"{time.monotonic() - begin:6.0f} s  {line}", markup=False, soft_wrap=True)

    return show
