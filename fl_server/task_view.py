# SPDX-License-Identifier: Apache-2.0
"""Which tasks of which edges are similar, as a person reads it: who is in which group, why, and what changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from ..core.events import Event, JobStarted, TaskPlace, TasksGrouped, TransferChosen, Warned
from .plain_text import few, one_line

__all__ = ["APART", "GroupView", "TaskView", "by_name", "choice_in_words", "format_distance", "label", "short_name"]

APART = 0.1
"""The distance above which two tasks whose difference is no chance belong apart."""

_ALL = "all"
_SIGNATURES = ("gave no signature", "has no labels", "do not fit")
_GROUPING = ("similarity-grouping", "ifca", "cfl", "pacfl", "fl-hc")
_MOST_MOVES, _MOST_SHORT_NAMES = 4, 3

_CHOICES = {
    "none": "a model of its own",
    "one": "trained together, as it gains nothing apart",
    "shared-layers": "shares its early layers with groups of like inputs",
    "borrow": "borrows from the other groups",
}


class GroupView(BaseModel):
    """One group: its tasks as `EDGE` or `EDGE/TASK`, their samples, and what it takes from others.

    `furthest` is the distance of the task that fits it least, `nearest` that of the task that is nearest to another
    group; None where nothing was compared.
    """

    name: str
    members: list[str]
    samples: int
    transfer: str | None = None
    reason: str | None = None
    furthest: float | None = None
    nearest: float | None = None

    @property
    def distances(self) -> str:
        """How sure the group is, in words; nothing where nothing was compared."""
        if self.furthest is not None:
            apart = f", at least {format_distance(self.nearest)} from the next" if self.nearest is not None else ""
            return f"each at most {format_distance(self.furthest)} from the rest{apart}"
        return f"alone, {format_distance(self.nearest)} from the next" if self.nearest is not None else ""


@dataclass
class TaskView:
    """What a run's events say of tasks and groups."""

    told: list[TasksGrouped] = field(default_factory=list)
    chosen: dict[str, TransferChosen] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    algorithm: str | None = None
    _by_edge: dict[str, list[TaskPlace]] | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, events: Iterable[Event]) -> TaskView:
        """Return the view of a run's events."""
        view = cls()
        for event in events:
            view.take(event)
        return view

    def take(self, event: Event) -> None:
        """Take in one more event."""
        match event:
            case JobStarted():
                self.algorithm = event.algorithm
            case TasksGrouped():
                self.changes.append(_change(self.told[-1] if self.told else None, event))
                self.told.append(event)
                self._by_edge = None
            case TransferChosen():
                self.chosen[event.group] = event
            case Warned() if any(text in event.message for text in _SIGNATURES):
                self.notes.append(event.message)

    @property
    def places(self) -> list[TaskPlace]:
        """The tasks as they were last grouped."""
        return self.told[-1].tasks if self.told else []

    @property
    def compared(self) -> bool:
        """Whether the groups were found by signatures of the data, so that distances say something."""
        return bool(self.told) and self.told[-1].signature_bytes > 0

    def knows(self, place: TaskPlace) -> bool:
        """Tell whether a task's distances say something: it was compared, by a signature."""
        return self.compared and place.signed and place.samples > 0

    def of_edge(self, edge: str) -> list[TaskPlace]:
        """Return an edge's tasks."""
        if self._by_edge is None:
            self._by_edge = {}
            for place in self.places:
                self._by_edge.setdefault(place.edge, []).append(place)
        return self._by_edge.get(edge, [])

    def group_of(self, edge: str) -> str | None:
        """Return the group of an edge, or of its tasks, in words; None where there are no groups."""
        found = sorted({place.group for place in self.of_edge(edge)}, key=by_name)
        if len(found) > _MOST_SHORT_NAMES:
            return f"{len(found):,} groups"
        return ", ".join(short_name(name) for name in found) if found else None

    @property
    def members(self) -> dict[str, list[TaskPlace]]:
        """The tasks of each group, in the order of the groups' names."""
        found: dict[str, list[TaskPlace]] = {}
        for place in self.places:
            found.setdefault(place.group, []).append(place)
        return dict(sorted(found.items(), key=lambda item: by_name(item[0])))

    @property
    def groups(self) -> list[GroupView]:
        """The groups, in the order of their names."""
        return [self._group(name, places) for name, places in self.members.items()]

    def _group(self, name: str, places: list[TaskPlace]) -> GroupView:
        known = [place for place in places if self.knows(place)]
        return GroupView(
            name=name,
            members=[label(place) for place in places],
            samples=sum(place.samples for place in places),
            transfer=self.chosen[name].choice if name in self.chosen else None,
            reason=self.chosen[name].reason if name in self.chosen else None,
            furthest=max((p.own for p in known if math.isfinite(p.own)), default=None) if len(places) > 1 else None,
            nearest=min((p.next for p in known if p.next is not None and math.isfinite(p.next)), default=None),
        )

    @property
    def headline(self) -> str:
        """How many edges and groups there are."""
        edges = len({place.edge for place in self.places})
        count = len({place.group for place in self.places})
        tasks = "" if len(self.places) == edges else f" with {len(self.places):,} tasks"
        return f"{edges:,} edge{'s' * (edges != 1)}{tasks}, {count:,} group{'s' * (count != 1)} found"

    @property
    def bytes_each(self) -> float:
        """How many bytes an edge sent to be compared, on average."""
        if not self.told:
            return 0.0
        return self.told[-1].signature_bytes / max(len({place.edge for place in self.places}), 1)

    def why(self, place: TaskPlace, members: int) -> str:
        """Say how near a task is to its group of so many, beside the next; nothing where nothing was compared."""
        if not self.compared:
            return ""
        if not self.knows(place):
            return "no signature: goes by its updates, at first with the largest group"
        own = f"{format_distance(place.own)} from its group" if members > 1 else "alone in its group"
        if place.next is None:
            return f"{own}, no class in common with another" if members < len(self.places) else own
        return f"{own}, {format_distance(place.next)} from the next"

    def nothing(self, *, ended: bool) -> str:
        """Say why there are no groups."""
        if self.algorithm in _GROUPING and not ended:
            return "no groups yet: they are found when the first edges have come"
        if self.algorithm in _GROUPING:
            return "no groups: the run ended before edges were grouped"
        return (
            f"this run has no groups of tasks{f': it aggregates with {self.algorithm}' if self.algorithm else ''}; "
            f"they are made by aggregation.algorithm: similarity-grouping, and by ifca, cfl, pacfl and fl-hc"
        )


def by_name(group: str) -> tuple[int, str]:
    """Return what groups are sorted by: `group-2` comes before `group-10`."""
    return len(group), group


def short_name(group: str) -> str:
    """Return a group's name for a narrow column: its number, where that is all that tells it from others."""
    return one_line(group.removeprefix("group-") or group)


def label(place: TaskPlace) -> str:
    """Return a task's name: the edge's, and the task's where it has several; as one line."""
    return one_line(place.edge if place.task == _ALL else f"{place.edge}/{place.task}")


def format_distance(value: float | None) -> str:
    """Write a distance; what falls below 0 by chance is 0.

    >>> format_distance(-0.003), format_distance(1.234), format_distance(None)
    ('0.00', '1.23', '–')
    """
    return f"{max(value, 0):.2f}" if value is not None and math.isfinite(value) else "–"


def choice_in_words(choice: str) -> str:
    """Say what a group takes from others."""
    return _CHOICES.get(choice, one_line(choice))


def _change(before: TasksGrouped | None, event: TasksGrouped) -> str:
    """Say in one line what happened to the groups."""
    now = {label(place): one_line(place.group) for place in event.tasks}
    count = len(set(now.values()))
    what = [f"{count:,} group{'s' * (count != 1)}"]
    if before is not None:
        old = {label(place): one_line(place.group) for place in before.tasks}
        came, gone = [name for name in now if name not in old], [name for name in old if name not in now]
        joined = _joined(old, now)
        what += [f"{group} joined {target}" for group, target in joined.items()]
        moved = [(n, old[n], g) for n, g in now.items() if n in old and old[n] != g and joined.get(old[n]) != g]
        what += _moves(moved)
        what += [f"new: {few(came, 3)}"] if came else []
        what += [f"gone: {few(gone, 3)}"] if gone else []
        if len(what) == 1:
            what.append("no task moved")
    return f"round {event.round}: {one_line(event.reason)}: {'; '.join(what)}"


def _joined(old: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return the groups that are gone, as all of their tasks went to one other that was there before."""
    targets: dict[str, set[str]] = {}
    for name, group in old.items():
        if name in now:
            targets.setdefault(group, set()).add(now[name])
    stay = set(now.values())
    there = set(old.values())
    return {
        group: next(iter(found))
        for group, found in sorted(targets.items(), key=lambda item: by_name(item[0]))
        if group not in stay and len(found) == 1 and found <= there
    }


def _moves(moved: list[tuple[str, str, str]]) -> list[str]:
    if len(moved) <= _MOST_MOVES:
        return [f"{name} {before} → {after}" for name, before, after in moved]
    ways = Counter((before, after) for _, before, after in moved).most_common()
    shown = [f"{count:,} {before} → {after}" for (before, after), count in ways[:_MOST_MOVES]]
    more = f", {len(ways) - len(shown):,} other ways" if len(ways) > len(shown) else ""
    return [f"{len(moved):,} moved ({', '.join(shown)}{more})"]
