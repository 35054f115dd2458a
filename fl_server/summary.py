# SPDX-License-Identifier: Apache-2.0
"""The words that end `solar-corona run`."""

from __future__ import annotations

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


def _print_edges(outcomes: Outcomes, console: Console) -> None:
    metric = outcomes.metric
    shown = outcomes.edges if len(outcomes.edges) <= _MOST_ROWS else outcomes.weakest(_ROWS_OF_MANY)
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 2 if console.width >= _WIDE else 1, 0, 0),
        show_edge=False,
        show_footer=False,
    )
    table.add_column("edge", overflow="fold")
    if outcomes.has_groups:
        table.add_column("group", justify="right", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    if metric is not None:
        names = ["before", "after", "gain" if is_share(metric) else "change"]
        names += ["one\nmodel"] if outcomes.has_one_model else []
        for name in [*names, *(["alone", "over\nalone"] if outcomes.has_alone else [])]:
            table.add_column(name, justify="right", no_wrap=True)
    for edge in shown:
        table.add_row(*_cells(edge, outcomes))
        for task in edge.tasks if metric is not None else ():
            table.add_row(*_task_cells(task, outcomes), style="dim")
    if len(outcomes.edges) > 1:
        table.add_section()
        table.add_row(*_cells(outcomes.overall, outcomes), style="bold")
    console.print(table)
    left = len(outcomes.edges) - len(shown)
    if left:
        console.print(Text(f"the {len(shown)} weakest edges; {left} more are in the report", style="dim"))
    if metric is not None:
        console.print(Text(_key_to(outcomes), style="dim"))
    console.print()


def _cells(edge: EdgeOutcome, outcomes: Outcomes) -> list[Text]:
    metric = outcomes.metric
    cells = [Text(edge.edge), *([Text(edge.group or "")] if outcomes.has_groups else [])]
    cells += [Text("–" if edge.samples is None else f"{edge.samples:,}")]
    if metric is None:
        return cells
    cells += [Text(format_score(value, metric)) for value in (edge.before, edge.after)]
    cells.append(_gain(edge.gain, metric))
    if outcomes.has_one_model:
        cells.append(Text(format_score(edge.one_model, metric)))
    if outcomes.has_alone:
        cells += [Text(format_score(edge.alone, metric)), _gain(edge.over_alone, metric)]
    return cells


def _task_cells(task: TaskOutcome, outcomes: Outcomes) -> list[Text]:
    group = [Text(short_name(task.group) if task.group is not None else "")] if outcomes.has_groups else []
    samples = Text("–" if task.samples is None else f"{task.samples:,}")
    return [Text(f"  {one_line(task.task)}"), *group, samples, Text(), Text(format_score(task.after, outcomes.metric))]


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
