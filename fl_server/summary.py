# SPDX-License-Identifier: Apache-2.0
"""The words that end `solar-corona run`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .outcomes import EdgeOutcome, Outcomes, TaskOutcome, format_gain, format_score, is_share
from .plain_text import one_line
from .progress import RunView
from .task_text import print_groups
from .task_view import short_name

__all__ = ["print_summary"]

# More rows than this would push the next commands out of sight.
_MOST_ROWS = 30
_ROWS_OF_MANY = 10
# Terminals of fewer columns get their columns closer together.
_WIDE = 72
# An edge's name needs so much, or columns that others tell as well are left out.
_LEAST_NAME = 12
_BEFORE, _OVER_ALONE = "before", "over\nalone"


def print_summary(
    view: RunView, *, console: Console, model: str | None, report: Path | None, next_commands: list[str]
) -> None:
    """Print what a job that succeeded has done, where its results are, and what to try next.

    Parameters
    ----------
    view
        The run, to its end.
    console
        Where to print; without a terminal there are no colours and no rules.
    model, report
        Where the model and the HTML report are, if there are any.
    next_commands
        Commands worth trying next.
    """
    outcomes = Outcomes.of(view)
    console.print()
    if view.tasks.told:
        print_groups(view.tasks, console)
        console.print()
    if outcomes.edges:
        _print_edges(outcomes, console)
    for name, place in (("model", model), ("report", report)):
        if place is not None:
            # Not wrapped, so that the path can be copied in one piece.
            console.print(Text.assemble((f"{name:<8}", "bold"), str(place)), soft_wrap=True)
    if next_commands:
        console.print(Text("\nnext", style="bold"))
        for command in next_commands:
            console.print(Text(f"  {command}"), soft_wrap=True)


@dataclass(frozen=True)
class _Column:
    """A column after that of the edges' names: of an edge, and of one of its tasks where that has such a value."""

    header: str
    cell: Callable[[EdgeOutcome], Text]
    of_task: Callable[[TaskOutcome], Text] = lambda _: Text()

    def width(self, edges: Sequence[EdgeOutcome]) -> int:
        """Return the width of its longest line."""
        lines = [*self.header.split("\n"), *(self.cell(edge).plain for edge in edges)]
        return max(map(len, lines))


def _print_edges(outcomes: Outcomes, console: Console) -> None:
    metric = outcomes.metric
    shown = outcomes.edges if len(outcomes.edges) <= _MOST_ROWS else outcomes.weakest(_ROWS_OF_MANY)
    gap = 2 if console.width >= _WIDE else 1
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        header_style="bold",
        pad_edge=False,
        padding=(0, gap, 0, 0),
        show_edge=False,
        show_footer=False,
    )
    # On a terminal rich puts a space of its own between columns.
    columns = _fitting(_columns(outcomes), [*shown, outcomes.overall], console.width, gap + console.is_terminal)
    table.add_column("edge", overflow="fold")
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
    for edge in shown:
        table.add_row(Text(edge.edge), *(column.cell(edge) for column in columns))
        for task in edge.tasks if metric is not None else ():
            cells = [column.of_task(task) for column in columns]
            table.add_row(Text(f"  {one_line(task.task)}"), *cells, style="dim")
    if len(outcomes.edges) > 1:
        table.add_section()
        table.add_row(Text(outcomes.overall.edge), *(c.cell(outcomes.overall) for c in columns), style="bold")
    console.print(table)
    left = len(outcomes.edges) - len(shown)
    if left:
        console.print(Text(f"the {len(shown)} weakest edges; {left} more are in the report", style="dim"))
    if metric is not None:
        console.print(Text(_key_to(outcomes), style="dim"))
    console.print()


def _columns(outcomes: Outcomes) -> list[_Column]:
    metric = outcomes.metric

    def count(value: int | None) -> Text:
        return Text("–" if value is None else f"{value:,}")

    def score(value: float | None) -> Text:
        return Text(format_score(value, metric))

    found = [_Column("samples", lambda e: count(e.samples), lambda t: count(t.samples))]
    if outcomes.has_groups:
        group = _Column("group", lambda e: Text(e.group or ""), lambda t: Text(short_name(t.group or "")))
        found.insert(0, group)
    if metric is None:
        return found
    gain = "gain" if is_share(metric) else "change"
    found += [
        _Column(_BEFORE, lambda e: score(e.before)),
        _Column("after", lambda e: score(e.after), lambda t: score(t.after)),
        _Column(gain, lambda e: _gain(e.gain, metric)),
    ]
    if outcomes.has_one_model:
        found.append(_Column("one\nmodel", lambda e: score(e.one_model)))
    if outcomes.has_alone:
        found += [
            _Column("alone", lambda e: score(e.alone)),
            _Column(_OVER_ALONE, lambda e: _gain(e.over_alone, metric)),
        ]
    return found


def _fitting(columns: list[_Column], edges: Sequence[EdgeOutcome], width: int, gap: int) -> list[_Column]:
    """Return the columns that leave enough room for the names; what others tell as well goes first."""
    needed = min(_LEAST_NAME, max(len(edge.edge) for edge in edges)) + gap
    for header in (_BEFORE, _OVER_ALONE, "gain", "change", "samples"):
        if needed + sum(column.width(edges) + gap for column in columns) <= width:
            break
        columns = [column for column in columns if column.header != header]
    return columns


def _gain(value: float | None, metric: str) -> Text:
    text = format_gain(value, metric)
    # Of other metrics nobody knows here whether more is better.
    judged = is_share(metric) and value is not None and text not in ("+0.0", "–")
    return Text(text, style=("green" if text.startswith("+") else "red") if judged else "")


def _key_to(outcomes: Outcomes) -> str:
    name = (outcomes.metric or "").replace("_", " ")
    unit = "; gains in points" if is_share(outcomes.metric) else ""
    alone = "; alone: the edge trained without the others" if outcomes.has_alone else ""
    one = "; one model: trained by all edges together" if outcomes.has_one_model else ""
    went_on = f"; {outcomes.went_on}" if outcomes.went_on else ""
    return f"{name} of {outcomes.whose} on each edge's evaluation data{unit}{one}{alone}{went_on}"
