# SPDX-License-Identifier: Apache-2.0
"""The map of task signatures: tasks whose data are alike lie near each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.events import TaskPlace
from .plain_text import few, one_line
from .task_pictures import Label, Mark, Marks, tenth
from .task_view import TaskView, label

__all__ = ["TaskMap", "task_map"]

_MOST_POINTS = 1_000
_MOST_NAMES = 40
_MOST_GROUP_NAMES = 12
_MANY = 150
# Beyond this, or where it is no number, a place is no place.
_LARGEST = 1e100
# The plot's proportions, and the width on which labels are laid out: that of a narrow window, so that they are clear of
# each other on wider ones too. On a phone only the groups' names are shown.
_WIDE, _LOW, _TALL = 480.0, 320.0, 480.0
_LETTER, _LINE = 7.2, 15.0
_LONGEST_LIST = 38
# Tasks of one group are drawn close together, as they are alike; what the map's scale is, nobody says.
_ONE_GROUP = 0.35
_EDGE, _INSET = 40.0, 6.0


@dataclass(frozen=True)
class Point:
    """One task: its place in percent, its group's mark, and what a reader who points at it is told."""

    x: str
    y: str
    mark: Mark
    text: str


@dataclass(frozen=True)
class TaskMap:
    """The map with its words."""

    points: list[Point]
    labels: list[Label]
    dense: bool
    tall: bool
    description: str
    note: str


_Box = tuple[float, float, float, float]


def task_map(view: TaskView, marks: Marks, *, tall: bool = False) -> TaskMap | None:
    """Draw the tasks' signatures where they lie, on a plot that may be tall; None if there are not two to compare."""
    known = [p for p in view.places if view.knows(p) and all(abs(value) < _LARGEST for value in p.map)]
    if len(known) < 2:
        return None
    shown = _thinned(known)
    members = {name: len(places) for name, places in view.members.items()}
    high = _TALL if tall else _LOW
    alone = len({place.group for place in known}) == 1
    at = _positions(shown, high, share=_ONE_GROUP if alone else 1.0)
    points = [
        Point(
            tenth(100 * x / _WIDE),
            tenth(100 * y / high),
            marks[place.group],
            f"{label(place)}: {one_line(place.group)}, {place.samples:,} samples, "
            f"{view.why(place, members[place.group])}",
        )
        for place, (x, y) in zip(shown, at, strict=True)
    ]
    notes = [f"{len(shown):,} of {len(known):,} tasks are drawn"] if len(shown) < len(known) else []
    left = len(view.places) - len(known)
    if left:
        notes.append(f"{left:,} task{' is' if left == 1 else 's are'} left out, without a signature")
    count = len({place.group for place in known})
    return TaskMap(
        points=points,
        labels=_Labels(at, high).lay_out(shown),
        dense=len(shown) > _MANY,
        tall=tall,
        description=f"Map of {len(known):,} task signatures in {count:,} group{'s' * (count != 1)}: the nearer two "
        f"points, the more alike are the tasks’ data. The table of tasks below has the distances in numbers.",
        note="; ".join(notes),
    )


def _thinned(places: Sequence[TaskPlace]) -> list[TaskPlace]:
    """Return at most so many as can be told apart, evenly over all groups."""
    if len(places) <= _MOST_POINTS:
        return list(places)
    by_group = sorted(range(len(places)), key=lambda i: places[i].group)
    kept = {by_group[round(k * (len(places) - 1) / (_MOST_POINTS - 1))] for k in range(_MOST_POINTS)}
    return [place for i, place in enumerate(places) if i in kept]


def _positions(places: Sequence[TaskPlace], tall: float, *, share: float) -> list[tuple[float, float]]:
    """Return each place in the plot: in the middle of it, on one scale for both directions, filling a share of it."""
    xs, ys = [p.map[0] for p in places], [p.map[1] for p in places]
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    scale = (1 / share) * max((right - left) / (_WIDE - 2 * _EDGE), (high - low) / (tall - 2 * _EDGE), 1e-12)
    across, down = (left + right) / 2, (low + high) / 2
    return [(_WIDE / 2 + (x - across) / scale, tall / 2 - (y - down) / scale) for x, y in zip(xs, ys, strict=True)]


class _Labels:
    """Writes names where they cover neither a point nor another name."""

    def __init__(self, at: Sequence[tuple[float, float]], high: float) -> None:
        self._at, self._high = at, high
        self._taken: list[_Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in at]
        self._labels: list[Label] = []

    def lay_out(self, places: Sequence[TaskPlace]) -> list[Label]:
        """Return the groups' names and, where tasks are few, theirs."""
        groups: dict[str, list[int]] = {}
        for i, place in enumerate(places):
            groups.setdefault(place.group, []).append(i)
        largest = sorted(groups, key=lambda name: -len(groups[name]))[:_MOST_GROUP_NAMES]
        for name in largest:
            self._name_group(name, [self._at[i] for i in groups[name]])
        if len(places) <= _MOST_NAMES:
            for name in largest:
                self._name_tasks([label(places[i]) for i in groups[name]], [self._at[i] for i in groups[name]])
        return self._labels

    def _name_group(self, name: str, at: Sequence[tuple[float, float]]) -> None:
        left, right = min(x for x, _ in at), max(x for x, _ in at)
        top, bottom = min(y for _, y in at), max(y for _, y in at)
        middle, half = (left + right) / 2, (top + bottom) / 2
        places = [
            (middle, top - 12, "middle"),
            (middle, bottom + 20, "middle"),
            (right + 12, half + 4, "start"),
            (left - 12, half + 4, "end"),
            (middle, half + 4, "middle"),
        ]
        self._put(one_line(name, 24), places, "group")

    def _name_tasks(self, names: Sequence[str], at: Sequence[tuple[float, float]]) -> None:
        """Name each point of a group or, where they lie too close, all of them in one line beside the group's name."""
        labels, taken = list(self._labels), list(self._taken)
        for name, (x, y) in zip(names, at, strict=True):
            around = [(x + 10, y + 4, "start"), (x - 10, y + 4, "end"), (x, y - 10, "middle"), (x, y + 18, "middle")]
            if not self._put(one_line(name, 18), around, "task"):
                break
        else:
            return
        self._labels, self._taken = labels, taken
        left, right = min(x for x, _ in at), max(x for x, _ in at)
        top, bottom = min(y for _, y in at), max(y for _, y in at)
        middle, half = (left + right) / 2, (top + bottom) / 2
        places = [
            (middle, bottom + 20, "middle"),
            (middle, bottom + 34, "middle"),
            (middle, top - 12, "middle"),
            (middle, top - 28, "middle"),
            (right + 12, half + 4, "start"),
            (left - 12, half + 4, "end"),
        ]
        lists = [few(list(names), most) for most in range(len(names), 0, -1)]
        text = next((line for line in lists if len(line) <= _LONGEST_LIST), None)
        if text is not None:
            self._put(text, places, "task")

    def _put(self, text: str, places: Sequence[tuple[float, float, str]], kind: str) -> bool:
        wide = _LETTER * len(text) + 4
        for x, y, anchor in places:
            left = {"start": x, "middle": x - wide / 2, "end": x - wide}[anchor]
            if anchor == "middle":
                left = min(max(left, _INSET), _WIDE - _INSET - wide)
            box = (left, y - _LINE + 4, left + wide, y + 4)
            inside = left >= _INSET and left + wide <= _WIDE - _INSET and box[1] >= 0 and box[3] <= self._high
            if inside and not any(_overlap(box, other) for other in self._taken):
                at = {"start": left, "middle": left + wide / 2, "end": left + wide}[anchor]
                self._labels.append(Label(tenth(100 * at / _WIDE), tenth(100 * y / self._high), text, kind, anchor))
                self._taken.append(box)
                return True
        return False


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
