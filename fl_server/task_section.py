# SPDX-License-Identifier: Apache-2.0
"""The report's section on similar tasks: its pictures, tables and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.events import TaskPlace
from .outcomes import EdgeOutcome, Outcomes, format_score, is_share
from .plain_text import few, one_line, plain
from .progress import RunView
from .task_flows import TaskFlows, task_flows
from .task_map import TaskMap, task_map
from .task_pictures import Mark, Marks, tenth
from .task_tree import TaskTree, task_tree
from .task_view import APART, GroupView, TaskView, choice_in_words, format_distance, label

__all__ = ["TaskSection", "task_section"]

_MOST_GROUPS = 12
_MOST_TASKS = 500
_MOST_CHANGES = 100
_MOST_NOTES = 50
_MOST_MEMBERS = 6
_MANY_ROWS = 18
_ONE, _ALONE = "One model", "Alone"


@dataclass(frozen=True)
class GroupCard:
    """One group: who is in it, how sure that is, what its edges reach, and what it takes from others.

    `scores` are a name, a value and, of shares, how many percent of a bar that is.
    """

    name: str
    mark: Mark
    size: str
    members: str
    scores: list[tuple[str, str, str | None]]
    distances: str
    choice: str
    reason: str


@dataclass(frozen=True)
class TaskRow:
    """One task: its group, and why."""

    name: str
    group: str
    mark: Mark
    samples: str
    own: str
    next: str
    scores: list[str]
    note: str


@dataclass(frozen=True)
class TaskSection:
    """All that the template needs; `scores` are the names of the columns of what edges reach."""

    headline: str
    lead: str
    compared: bool
    scores: list[str]
    groups: list[GroupCard]
    groups_left: int
    tasks: list[TaskRow]
    tasks_left: int
    starred: bool
    metric: str
    when: str
    map: TaskMap | None
    tree: TaskTree | None
    flows: TaskFlows | None
    changes: list[str]
    changes_left: int
    notes: list[str]
    threshold: str = f"{APART:g}"

    @property
    def chosen(self) -> bool:
        """Whether groups chose what to take from others."""
        return any(group.choice for group in self.groups)

    @property
    def one_model(self) -> bool:
        """Whether one model for all was measured."""
        return _ONE in self.scores

    @property
    def alone(self) -> bool:
        """Whether training alone was measured."""
        return _ALONE in self.scores


def task_section(view: RunView, outcomes: Outcomes) -> TaskSection | None:
    """Return the section of a run that has groups; None of others."""
    tasks = view.tasks
    if not tasks.told:
        return None
    marks = Marks(place.group for event in tasks.told for place in event.tasks)
    rows = _Rows(tasks, outcomes, marks)
    groups, places = tasks.groups, _least_sure(tasks)
    shown = sorted(range(len(groups)), key=lambda i: -len(groups[i].members))[:_MOST_GROUPS]
    changes = [plain(line) for line in tasks.changes]
    tree = task_tree(tasks, marks)
    return TaskSection(
        headline=tasks.headline,
        lead=_lead(tasks, len(groups)),
        compared=tasks.compared,
        scores=rows.names,
        groups=[rows.group(groups[i]) for i in sorted(shown)],
        groups_left=len(groups) - len(shown),
        tasks=[rows.task(place) for place in places],
        tasks_left=len(tasks.places) - len(places),
        starred=len(rows.names) > 1 and any(len(tasks.of_edge(place.edge)) > 1 for place in places),
        metric=(outcomes.metric or "").replace("_", " "),
        when="" if outcomes.after_round is None else f" after round {outcomes.after_round}",
        map=task_map(tasks, marks, tall=tree is not None and len(tree.rows) > _MANY_ROWS),
        tree=tree,
        flows=task_flows(tasks, marks),
        changes=changes[-_MOST_CHANGES:],
        changes_left=max(0, len(changes) - _MOST_CHANGES),
        notes=[plain(note) for note in tasks.notes[-_MOST_NOTES:]],
    )


def _lead(tasks: TaskView, count: int) -> str:
    how = "Edges are grouped by the models they train, as this strategy does; there are no signatures to compare"
    if tasks.compared:
        how = (
            f"Each edge sent a signature of its data, {tasks.bytes_each:,.0f} bytes, and tasks whose data are alike "
            f"are one group"
        )
    if count > 1:
        return f"{how}. Each group trains a model of its own."
    if any(choice.choice == "one" for choice in tasks.chosen.values()):
        return f"{how}. Held-out samples were no better off with groups apart, so one model serves all."
    return f"{how}. All of them are alike here, so one model serves all."


def _least_sure(tasks: TaskView) -> list[TaskPlace]:
    """Return the tasks by group; of too many those nearest to another group."""
    if len(tasks.places) <= _MOST_TASKS:
        return [place for places in tasks.members.values() for place in places]
    margin = {id(p): (p.next - p.own if p.next is not None else float("inf")) for p in tasks.places}
    kept = {id(place) for place in sorted(tasks.places, key=lambda p: margin[id(p)])[:_MOST_TASKS]}
    return [place for places in tasks.members.values() for place in places if id(place) in kept]


def _percent(value: float | None, metric: str | None) -> str | None:
    if value is None or not is_share(metric) or not math.isfinite(value):
        return None
    return tenth(100 * min(max(value, 0.0), 1.0))


class _Rows:
    """Writes the tables' rows."""

    def __init__(self, tasks: TaskView, outcomes: Outcomes, marks: Marks) -> None:
        self._tasks, self._outcomes, self._marks = tasks, outcomes, marks
        self._edges = {edge.edge: edge for edge in outcomes.edges}
        self._members = tasks.members
        measured = outcomes.metric is not None and any(edge.after is not None for edge in outcomes.edges)
        self.names = [
            *(["Its group’s model" if outcomes.has_groups else "Its model"] if measured else []),
            *([_ONE] if measured and outcomes.has_one_model else []),
            *([_ALONE] if measured and outcomes.has_alone else []),
        ]

    def group(self, group: GroupView) -> GroupCard:
        """Return a group's card."""
        places, metric = self._members[group.name], self._outcomes.metric
        means = self._means(places) if self.names else []
        return GroupCard(
            name=one_line(group.name),
            mark=self._marks[group.name],
            size=f"{len(places):,} task{'s' * (len(places) != 1)}, {group.samples:,} samples",
            members=few(group.members, _MOST_MEMBERS),
            scores=[
                (name, format_score(mean, metric), _percent(mean, metric))
                for name, mean in zip(self.names, means, strict=True)
            ],
            distances=group.distances,
            choice=choice_in_words(group.transfer) if group.transfer is not None else "",
            reason=plain(group.reason or ""),
        )

    def _means(self, places: Sequence[TaskPlace]) -> list[float | None]:
        """Return the means over a group's tasks, each weighted by its part of its edge's evaluation samples."""
        weights = []
        for place in places:
            edge = self._edges.get(place.edge, EdgeOutcome(place.edge))
            whole = sum(other.samples for other in self._tasks.of_edge(place.edge))
            weights.append((edge.eval_samples or 0) * (place.samples / whole if whole else 1.0))
        found: list[float | None] = []
        for column in zip(*(self._values(place) for place in places), strict=True):
            pairs = [(value, weight) for value, weight in zip(column, weights, strict=True) if value is not None]
            total = sum(weight for _, weight in pairs)
            found.append(sum(value * weight for value, weight in pairs) / total if total else None)
        return found

    def _values(self, place: TaskPlace) -> list[float | None]:
        if not self.names:
            return []
        edge = self._edges.get(place.edge, EdgeOutcome(place.edge))
        each = {task.task: task.after for task in edge.tasks}
        return [
            each.get(place.task) if each else edge.group_model,
            *([edge.one_model] if self._outcomes.has_one_model else []),
            *([edge.alone] if self._outcomes.has_alone else []),
        ]

    def task(self, place: TaskPlace) -> TaskRow:
        """Return a task's row."""
        known, several = self._tasks.knows(place), len(self._tasks.of_edge(place.edge)) > 1
        alone = len(self._members[place.group]) == 1
        scores = [format_score(value, self._outcomes.metric) for value in self._values(place)]
        notes = [] if place.labelled else ["no labels: only inputs are compared"]
        if self._tasks.compared and not known:
            notes.append("no signature: goes by its updates")
        return TaskRow(
            name=label(place),
            group=one_line(place.group),
            mark=self._marks[place.group],
            samples=f"{place.samples:,}" if place.samples else "–",
            own=format_distance(place.own if known and not alone else None),
            next=format_distance(place.next if known else None),
            scores=[*scores[:1], *(f"{score}*" if several else score for score in scores[1:])],
            note="; ".join(notes),
        )
