# SPDX-License-Identifier: Apache-2.0
"""Groups of similar tasks on a terminal, and for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.events import TaskPlace
from ..core.run_folder import Phase
from .outcomes import EdgeOutcome, Outcomes, format_score
from .plain_text import few, one_line
from .progress import RunView
from .task_view import APART, GroupView, TaskView, choice_in_words, format_distance, label

__all__ = ["TasksStatus", "print_groups", "print_tasks", "tasks_status"]

_MOST_GROUPS = 12
_MOST_TASKS = 40
_MOST_MEMBERS = 8
_MOST_CHANGES = 12
_INDENT = (0, 0, 0, 2)
# Terminals of fewer columns get their columns closer together.
_WIDE = 72


class TaskStatus(BaseModel):
    """One task as `tasks --json` prints it; a number that is not known, or is none, is null."""

    edge: str
    task: str
    group: str
    samples: int
    own: float | None
    next: float | None
    map: tuple[float, float] | None
    labelled: bool
    signed: bool
    why: str


class EdgeStatus(BaseModel):
    """What an edge reaches: with the model that it has, with one model for all, and alone; null if not measured."""

    edge: str
    groups: list[str]
    model: float | None
    group_model: float | None
    one_model: float | None
    alone: float | None


class TasksStatus(BaseModel):
    """The groups of a run as `tasks --json` prints them."""

    job: str
    run: str
    phase: Phase
    round: int
    rounds: int
    headline: str | None
    metric: str | None
    groups: list[GroupView]
    tasks: list[TaskStatus]
    edges: list[EdgeStatus]
    changes: list[str]
    notes: list[str]
    signature_bytes: int
    nothing: str | None = None


def tasks_status(view: RunView, *, job: str, run: str, phase: Phase) -> TasksStatus:
    """Return what is known of a run's groups."""
    tasks, outcomes = view.tasks, Outcomes.of(view)
    members = tasks.members
    return TasksStatus(
        job=job,
        run=run,
        phase=phase,
        round=view.round,
        rounds=view.started.rounds if view.started is not None else 0,
        headline=tasks.headline if tasks.told else None,
        metric=outcomes.metric,
        groups=[_finite_group(group) for group in tasks.groups],
        tasks=[
            TaskStatus(
                edge=place.edge,
                task=place.task,
                group=place.group,
                samples=place.samples,
                own=_finite(place.own) if tasks.knows(place) else None,
                next=_finite(place.next) if tasks.knows(place) else None,
                map=place.map if tasks.knows(place) and all(map(math.isfinite, place.map)) else None,
                labelled=place.labelled,
                signed=tasks.knows(place),
                why=tasks.why(place, len(members[place.group])),
            )
            for place in tasks.places
        ],
        edges=[
            EdgeStatus(
                edge=edge.edge,
                groups=sorted({place.group for place in tasks.of_edge(edge.edge)}),
                model=_finite(edge.after),
                group_model=_finite(edge.group_model),
                one_model=_finite(edge.one_model),
                alone=_finite(edge.alone),
            )
            for edge in outcomes.edges
        ],
        changes=tasks.changes,
        notes=tasks.notes,
        signature_bytes=tasks.told[-1].signature_bytes if tasks.told else 0,
        nothing=None if tasks.told else tasks.nothing(ended=phase not in ("starting", "running")),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _finite_group(group: GroupView) -> GroupView:
    return group.model_copy(update={"furthest": _finite(group.furthest), "nearest": _finite(group.nearest)})


def print_groups(view: TaskView, console: Console) -> None:
    """Print how many groups there are, who is in which, and why."""
    console.print(Text(view.headline, style="bold"))
    groups = view.groups
    shown = _largest(groups)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2 if console.width >= _WIDE else 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group in shown:
        told = [few(group.members, _MOST_MEMBERS), *_reasons(group)]
        table.add_row(Text(f"  {one_line(group.name, 24)}"), Text("\n").join(map(Text, told)))
    console.print(table)
    _print_rest(groups, shown, console)


def _reasons(group: GroupView) -> list[str]:
    """Say why a group is one, and what it takes from others."""
    found = [group.distances] if group.distances else []
    if group.transfer is not None:
        found.append(f"{choice_in_words(group.transfer)}: {one_line(group.reason or '')}")
    return found


def _largest(groups: Sequence[GroupView]) -> list[GroupView]:
    if len(groups) <= _MOST_GROUPS:
        return list(groups)
    kept = sorted(range(len(groups)), key=lambda i: -len(groups[i].members))[:_MOST_GROUPS]
    return [groups[i] for i in sorted(kept)]


def _print_rest(groups: Sequence[GroupView], shown: Sequence[GroupView], console: Console) -> None:
    names = {group.name for group in shown}
    rest = [group for group in groups if group.name not in names]
    if rest:
        tasks = sum(len(group.members) for group in rest)
        most = max(len(group.members) for group in rest)
        each = f"each of {most}" if most == 1 else f"none of more than {most:,}"
        console.print(Text(f"  and {len(rest):,} groups with {tasks:,} tasks, {each}", style="dim"))


def print_tasks(view: RunView, console: Console, *, run: str, phase: Phase) -> None:
    """Print the groups, who is in them and why, what each edge reaches, and how the groups came about."""
    tasks = view.tasks
    rounds = view.started.rounds if view.started is not None else 0
    console.print(Text(f"{run} · {phase}{f', round {view.round} of {rounds}' if rounds else ''}", style="dim"))
    if not tasks.told:
        console.print(Text(tasks.nothing(ended=phase not in ("starting", "running"))))
        return
    outcomes = Outcomes.of(view)
    console.print(Text(tasks.headline, style="bold"))
    members, groups = tasks.members, tasks.groups
    shown = _largest(groups)
    printer = _Places(tasks, outcomes, [place for group in shown for place in members[group.name]], console)
    for group in shown:
        count = len(group.members)
        console.print(
            Text.assemble(
                (f"\n{one_line(group.name)}", "bold"),
                f"  {count:,} task{'s' * (count != 1)}, {group.samples:,} samples",
            )
        )
        if group.transfer is not None:
            console.print(Text(f"{choice_in_words(group.transfer)}: {one_line(group.reason or '')}", style="dim"))
        printer.show(members[group.name])
    _print_rest(groups, shown, console)
    console.print()
    for line in printer.legend():
        console.print(Text(line, style="dim"))
    console.print(Text("\nhow the groups came about", style="bold"))
    left = len(tasks.changes) - _MOST_CHANGES
    if left > 0:
        console.print(Text(f"  {left:,} earlier times are left out here; --json has them", style="dim"))
    for line in tasks.changes[-_MOST_CHANGES:]:
        console.print(Padding(Text(line), _INDENT))
    for note in tasks.notes[-_MOST_CHANGES:]:
        console.print(Padding(Text(one_line(note, 500), style="yellow"), _INDENT))


class _Places:
    """Prints the tasks of each group as tables whose columns stand under each other."""

    def __init__(self, tasks: TaskView, outcomes: Outcomes, places: Sequence[TaskPlace], console: Console) -> None:
        self._tasks, self._outcomes, self._console = tasks, outcomes, console
        self._edges = {edge.edge: edge for edge in outcomes.edges}
        self._sizes = Counter(place.group for place in places)
        self._scores = outcomes.metric is not None and any(e.after is not None for e in outcomes.edges)
        self._several = any(len(tasks.of_edge(place.edge)) > 1 for place in places)
        self._named = any(label(place) != one_line(place.edge) for place in places)
        self._gap = 2 if console.width >= _WIDE else 1
        taken = sum(width + self._gap for _, width in self._columns())
        longest = max((len(label(place)) for place in places), default=0)
        self._name = max(8, min(longest, console.width - taken))

    def _columns(self) -> list[tuple[str, int]]:
        columns = [("samples", 7)]
        columns += [("to its\ngroup", 6), ("to the\nnext", 6)] if self._tasks.compared else []
        if self._scores:
            columns.append(("group's\nmodel" if self._outcomes.has_groups else "model", 7))
            columns += [("one\nmodel", 6)] if self._outcomes.has_one_model else []
            columns += [("alone", 6)] if self._outcomes.has_alone else []
        return columns

    def show(self, places: Sequence[TaskPlace]) -> None:
        """Print one group's."""
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, self._gap, 0, 0))
        table.add_column("task" if self._named else "edge", width=self._name, overflow="fold")
        for name, width in self._columns():
            table.add_column(name, justify="right", width=width, no_wrap=True)
        for place in places[:_MOST_TASKS]:
            table.add_row(*map(Text, self._cells(place)))
        self._console.print(table)
        if len(places) > _MOST_TASKS:
            self._console.print(Text(f"and {len(places) - _MOST_TASKS:,} more; --json has them all", style="dim"))

    def _cells(self, place: TaskPlace) -> list[str]:
        cells = [label(place), f"{place.samples:,}" if place.samples else "–"]
        if self._tasks.compared:
            known = self._tasks.knows(place)
            alone = self._sizes[place.group] == 1
            cells.append(format_distance(place.own) if known and not alone else "–")
            cells.append(format_distance(place.next) if known else "–")
        if self._scores:
            cells += self._measured(place)
        return cells

    def _measured(self, place: TaskPlace) -> list[str]:
        edge, metric = self._edges.get(place.edge, EdgeOutcome(place.edge)), self._outcomes.metric
        each = {task.task: task.after for task in edge.tasks}
        own, mark = (each.get(place.task), "*") if each else (edge.group_model, "")
        cells = [format_score(own, metric)]
        cells += [format_score(edge.one_model, metric) + mark] if self._outcomes.has_one_model else []
        cells += [format_score(edge.alone, metric) + mark] if self._outcomes.has_alone else []
        return cells

    def legend(self) -> list[str]:
        """Return what the columns mean."""
        found = []
        if self._tasks.compared:
            found.append(
                f"distances between data: 0 where alike; above {APART} tasks belong apart, unless it may be chance; "
                f"signatures: {self._tasks.bytes_each:,.0f} bytes an edge"
            )
        if self._scores:
            name = (self._outcomes.metric or "").replace("_", " ")
            after = self._outcomes.after_round
            when = "" if after is None else f" after round {after}"
            one = "; one model: trained by all edges together" if self._outcomes.has_one_model else ""
            alone = "; alone: the edge trained without the others" if self._outcomes.has_alone else ""
            star = "; *: over all tasks of the edge" if self._several and (one or alone) else ""
            went_on = f"; {self._outcomes.went_on}" if self._outcomes.went_on else ""
            found.append(f"{name} on each edge's evaluation data{when}{one}{alone}{star}{went_on}")
        return found
