# SPDX-License-Identifier: Apache-2.0
"""Which tasks of which edges are similar, as a person reads it: who is in which group, why, and what changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.events import Event, TaskPlace, TasksGrouped, TransferChosen, Warned

__all__ = ["GroupView", "TaskView", "print_tasks"]

_ALL = "all"
_MOST_ROWS = 40
_SIGNATURES = ("gave no signature", "has no labels", "do not fit")


class GroupView(BaseModel):
    """One group: its tasks as `EDGE` or `EDGE/TASK`, their samples, and what it takes from others."""

    name: str
    members: list[str]
    samples: int
    transfer: str | None = None
    reason: str | None = None


@dataclass
class TaskView:
    """What a run's events say of tasks and groups."""

    told: list[TasksGrouped] = field(default_factory=list)
    chosen: dict[str, TransferChosen] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event]) -> TaskView:
        """Return the view of a run's events."""
        view = cls()
        for event in events:
            view.take(event)
        return view

    def take(self, event: Event) -> None:
        """Take in one more event."""
        if isinstance(event, TasksGrouped):
            self.told.append(event)
        elif isinstance(event, TransferChosen):
            self.chosen[event.group] = event
        elif isinstance(event, Warned) and any(text in event.message for text in _SIGNATURES):
            self.notes.append(event.message)

    @property
    def places(self) -> list[TaskPlace]:
        """The tasks as they were last grouped."""
        return self.told[-1].tasks if self.told else []

    def group_of(self, edge: str) -> str | None:
        """Return the group of an edge, or of its tasks, in words; None where there are no groups."""
        found = list(dict.fromkeys(place.group for place in self.places if place.edge == edge))
        return ", ".join(name.removeprefix("group-") for name in found) if found else None

    @property
    def groups(self) -> list[GroupView]:
        """The groups, in the order of their names."""
        by_name: dict[str, list[TaskPlace]] = {}
        for place in self.places:
            by_name.setdefault(place.group, []).append(place)
        return [
            GroupView(
                name=name,
                members=[label(place) for place in places],
                samples=sum(place.samples for place in places),
                transfer=self.chosen[name].choice if name in self.chosen else None,
                reason=self.chosen[name].reason if name in self.chosen else None,
            )
            for name, places in sorted(by_name.items(), key=lambda item: (len(item[0]), item[0]))
        ]

    @property
    def headline(self) -> str:
        """How many edges and groups there are."""
        edges = len({place.edge for place in self.places})
        count = len(self.groups)
        tasks = "" if len(self.places) == edges else f" with {len(self.places)} tasks"
        return f"{edges} edge{'s' * (edges != 1)}{tasks}, {count} group{'s' * (count != 1)} found"

    @property
    def changes(self) -> list[str]:
        """What happened to the groups, a line for each time."""
        found, before = list[str](), dict[str, str]()
        for event in self.told:
            now = {label(place): place.group for place in event.tasks}
            moved = [
                f"{name} {before[name]} → {group}" for name, group in now.items() if before.get(name, group) != group
            ]
            came = [name for name in now if name not in before]
            count = len(set(now.values()))
            what = [f"{count} group{'s' * (count != 1)}"]
            what += [f"{len(came)} new" if len(came) > 3 else f"new: {', '.join(came)}"] if before and came else []
            what += moved if len(moved) <= 4 else [f"{len(moved)} moved"]
            found.append(f"round {event.round}: {event.reason}: {'; '.join(what)}")
            before = now
        return found


def label(place: TaskPlace) -> str:
    """Return a task's name: the edge's, and the task's where it has several."""
    return place.edge if place.task == _ALL else f"{place.edge}/{place.task}"


def why(place: TaskPlace) -> str:
    """Say how near a task is to its group, beside the next."""
    own = f"{max(place.own, 0):.2f} from its group"
    return own if place.next is None else f"{own}, {max(place.next, 0):.2f} from the next"


_WORDS = {
    "none": "a model of its own",
    "one": "gains nothing apart: trained together",
    "shared-layers": "shares its early layers with like groups",
    "borrow": "borrows from like groups",
}


def print_tasks(view: TaskView, console: Console) -> None:
    """Print the groups, who is in them and why, and how they came about."""
    if not view.told:
        console.print(
            "this run has no groups of tasks; they are made by aggregation.algorithm: similarity-grouping, and by "
            "ifca, cfl, pacfl and fl-hc"
        )
        return
    console.print(Text(view.headline, style="bold"))
    for group in view.groups:
        console.print(
            Text.assemble((f"\n{group.name}", "bold"), f"  {len(group.members)} of them, {group.samples:,} samples")
        )
        if group.transfer is not None:
            console.print(Text(f"  {_WORDS.get(group.transfer, group.transfer)}: {group.reason}", style="dim"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        mine = [place for place in view.places if place.group == group.name]
        for place in mine[:_MOST_ROWS]:
            table.add_row(f"  {label(place)}", f"{place.samples:,}", why(place), "" if place.labelled else "no labels")
        console.print(table)
        if len(mine) > _MOST_ROWS:
            console.print(Text(f"  and {len(mine) - _MOST_ROWS} more", style="dim"))
    console.print(Text("\nhow they came about", style="bold"))
    for line in view.changes:
        console.print(Text(f"  {line}"))
    for note in view.notes:
        console.print(Text(f"  {note}", style="yellow"))
    last = view.told[-1]
    if last.signature_bytes:
        each = last.signature_bytes / max(len({place.edge for place in last.tasks}), 1)
        console.print(Text(f"signatures: {each:,.0f} bytes an edge; below 0.1 two tasks count as alike", style="dim"))
