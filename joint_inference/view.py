# SPDX-License-Identifier: Apache-2.0
"""How a joint inference service goes, as a person reads it: a line an edge."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..core.live import drawn_live
from .statistics import EdgeStatistics, statistics_file

__all__ = ["InferenceView", "display"]

Show = Callable[["InferenceView"], None]

_reader = TypeAdapter(EdgeStatistics)
_SAY_EVERY = 5.0
_MOST_ROWS = 40
_MOST_TROUBLES = 5
_COLUMNS = (
    "\nframes",
    "per\nsecond",
    "up-\nloaded",
    "\nsent",
    "edge ms\np50/p99",
    "cloud ms\np50/p99",
    "de-\ngraded",
    "\ncircuit",
)


@dataclass
class InferenceView:
    """What the edges of a run told so far.

    Parameters
    ----------
    edges
        Their names, in the job's order.
    statistics
        The last snapshot of each that told something.
    """

    edges: Sequence[str]
    statistics: dict[str, EdgeStatistics] = field(default_factory=dict)

    def read(self, run_folder: Path) -> None:
        """Take in what the edges left in the run's folder; a file that is being written is read the next time."""
        for edge in self.edges:
            try:
                text = statistics_file(run_folder, edge).read_bytes()
                self.statistics[edge] = _reader.validate_json(text)
            except (OSError, ValidationError):
                continue

    def table(self) -> RenderableType:
        """Return a line for each edge, those that are degraded most first where there are many."""
        if not self.statistics:
            return Text("no edge has answered a sample yet", style="dim")
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
        table.add_column("\nedge", overflow="fold")
        for name in _COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        rows = [self.statistics[edge] for edge in self.edges if edge in self.statistics]
        if len(rows) > _MOST_ROWS:
            rows = sorted(rows, key=lambda found: -found.degraded)[:_MOST_ROWS]
        for row in rows:
            table.add_row(*_cells(row))
        troubles = [Text(f"{row.edge}: {row.trouble}", style="yellow") for row in rows if row.trouble]
        if not troubles:
            return table
        more = [Text(f"and {len(troubles) - _MOST_TROUBLES} edges more")] if len(troubles) > _MOST_TROUBLES else []
        return Group(table, *troubles[:_MOST_TROUBLES], *more)


def _cells(found: EdgeStatistics) -> list[Text]:
    latencies = {}
    for source in ("edge", "cloud"):
        of = found.sources.get(source)
        known = of is not None and of.p50_ms is not None and of.p99_ms is not None
        latencies[source] = f"{of.p50_ms:.3g}/{of.p99_ms:.3g}" if of is not None and known else "–"
    return [
        Text(found.edge),
        Text(f"{found.frames:,}"),
        Text(f"{found.frames_per_second:.3g}"),
        Text(f"{found.upload_ratio:.1%}"),
        Text(_bytes(found.bytes_up)),
        Text(latencies["edge"]),
        Text(latencies["cloud"]),
        Text(f"{found.degraded:,}", style="yellow" if found.degraded else ""),
        Text(found.circuit, style="red" if found.circuit == "open" else ""),
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


@contextmanager
def display(console: Console, *, edges: Sequence[str], as_json: bool) -> Iterator[Show]:
    """Give a function that shows a view: a table on a terminal, JSON lines or plain lines elsewhere."""
    if as_json:
        yield _told_as_json()
    elif console.is_terminal:
        with drawn_live(console, InferenceView(edges).table()) as draw:
            yield lambda view: draw(view.table)
    else:
        yield _told_plainly(console)


def _told_as_json() -> Show:
    said: dict[str, float] = {}

    def show(view: InferenceView) -> None:
        for edge, found in view.statistics.items():
            if said.get(edge) != found.updated:
                said[edge] = found.updated
                sys.stdout.write(_reader.dump_json(found).decode() + "\n")
                sys.stdout.flush()

    return show


def _told_plainly(console: Console) -> Show:
    last = time.monotonic()

    def show(view: InferenceView) -> None:
        nonlocal last
        if time.monotonic() - last < _SAY_EVERY or not view.statistics:
            return
        last = time.monotonic()
        for found in view.statistics.values():
            console.print(
                f"{found.edge}: {found.frames} frames, {found.upload_ratio:.1%} uploaded, {found.degraded} degraded",
                markup=False,
                soft_wrap=True,
            )

    return show
