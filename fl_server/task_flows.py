# SPDX-License-Identifier: Apache-2.0
"""How groups changed: a column for each time, and bands of tasks that stay or move between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .plain_text import few, one_line
from .task_pictures import Label, Marks, fitting, tenth
from .task_view import TaskView, by_name, label

__all__ = ["TaskFlows", "task_flows"]

_MOST_TIMES = 8
_MOST_BANDS = 10
_OTHERS = "other groups"
_HIGH, _GAP, _LEAST_LABEL = 240.0, 8.0, 11.0
# Across is in permille of the plot's width.
_ACROSS, _COLUMN = 1000.0, 14.0
_LONGEST_NAME = 9


@dataclass(frozen=True)
class Band:
    """A group at one time, or tasks on their way to the next; `kind` is its classes in the style sheet."""

    kind: str
    path: str
    text: str


@dataclass(frozen=True)
class TaskFlows:
    """The picture with its words: names at the left of the first column and at the right of the last."""

    bands: list[Band]
    left: list[Label]
    right: list[Label]
    times: list[Label]
    description: str
    note: str


@dataclass(frozen=True)
class _Time:
    round: int
    groups: Mapping[str, str]


def task_flows(view: TaskView, marks: Marks) -> TaskFlows | None:
    """Draw how tasks moved between groups; None if they never did."""
    times = _times(view)
    if len(times) < 2:
        return None
    shown = _most_telling(times)
    largest = Counter(group for time in shown for group in time.groups.values()).most_common(_MOST_BANDS)
    named = {name for name, _ in largest}
    lumped = [_Time(t.round, {k: g if g in named else _OTHERS for k, g in t.groups.items()}) for t in shown]
    columns = [_column(time) for time in lumped]
    pitch = (_ACROSS - _COLUMN) / (len(lumped) - 1)
    xs = [i * pitch for i in range(len(lumped))]
    bands = [
        band
        for i, (one, other) in enumerate(pairwise(lumped))
        for band in _flows(one, other, columns[i], columns[i + 1], (xs[i] + _COLUMN, xs[i + 1]), marks)
    ]
    for x, time, column in zip(xs, lumped, columns, strict=True):
        sizes = Counter(time.groups.values())
        for group, (top, high) in column.items():
            text = f"round {time.round}: {one_line(group)}, {_tasks(sizes[group])}"
            path = f"M{tenth(x)},{tenth(top)}h{tenth(_COLUMN)}v{tenth(high)}h{tenth(-_COLUMN)}z"
            bands.append(Band(f"node {marks[group].colour}", path, text))
    moved = sum(_moves(a, b) for a, b in pairwise(times))
    return TaskFlows(
        bands=bands,
        left=_names(lumped[0], columns[0], "end"),
        right=_names(lumped[-1], columns[-1], "start"),
        times=[
            Label(tenth(100 * (x + _COLUMN / 2) / _ACROSS), "0", str(t.round)) for x, t in zip(xs, shown, strict=True)
        ],
        description=f"How groups changed: {len(set(times[0].groups.values())):,} in round {times[0].round}, "
        f"{len(set(times[-1].groups.values())):,} in round {times[-1].round}, {_tasks(moved)} moved on the way. "
        f"The list below says each time what happened.",
        note=f"{len(shown)} of {len(times):,} times with changes are drawn" if len(shown) < len(times) else "",
    )


def _times(view: TaskView) -> list[_Time]:
    """Return the times at which groups were others than before; of several in one round the last."""
    found: list[_Time] = []
    for event in (event for event in view.told if event.tasks):
        groups = {label(place): place.group for place in event.tasks}
        if found and found[-1].round == event.round:
            found.pop()
        if not found or found[-1].groups != groups:
            found.append(_Time(event.round, groups))
    return found


def _moves(one: _Time, other: _Time) -> int:
    return sum(1 for name, group in other.groups.items() if one.groups.get(name, group) != group)


def _most_telling(times: Sequence[_Time]) -> list[_Time]:
    """Return the first time, the last one, and those between them in which most tasks moved."""
    if len(times) <= _MOST_TIMES:
        return list(times)
    between = range(1, len(times) - 1)
    kept = sorted(between, key=lambda i: (-_moves(times[i - 1], times[i]), i))[: _MOST_TIMES - 2]
    return [times[0], *(times[i] for i in sorted(kept)), times[-1]]


def _column(time: _Time) -> dict[str, tuple[float, float]]:
    """Return each group's top and height, in pixels: as many as it has tasks."""
    sizes = Counter(time.groups.values())
    names = sorted(sizes, key=lambda name: (name == _OTHERS, by_name(name)))
    room = _HIGH - _GAP * (len(names) - 1)
    top, found = 0.0, {}
    for name in names:
        high = room * sizes[name] / len(time.groups)
        found[name] = (top, high)
        top += high + _GAP
    return found


def _flows(
    one: _Time,
    other: _Time,
    start: Mapping[str, tuple[float, float]],
    end: Mapping[str, tuple[float, float]],
    xs: tuple[float, float],
    marks: Marks,
) -> list[Band]:
    """Draw the tasks that are there at two times, a band for each way that they went."""
    ways: dict[tuple[str, str], list[str]] = {}
    for name, group in other.groups.items():
        if name in one.groups:
            ways.setdefault((one.groups[name], group), []).append(name)
    before, after = dict.fromkeys(start, 0.0), dict.fromkeys(end, 0.0)
    a, b = len(one.groups), len(other.groups)
    rooms = (_HIGH - _GAP * (len(start) - 1)) / a, (_HIGH - _GAP * (len(end) - 1)) / b
    found = []
    for (source, target), names in sorted(
        ways.items(), key=lambda item: (_place(start, item[0][0]), _place(end, item[0][1]))
    ):
        left, right = start[source][0] + before[source], end[target][0] + after[target]
        high, tall = len(names) * rooms[0], len(names) * rooms[1]
        before[source] += high
        after[target] += tall
        verb = f"from {one_line(source)} to {one_line(target)}" if source != target else f"stay in {one_line(target)}"
        found.append(
            Band(
                f"{'flow' if source == target else 'flow moved'} {marks[source].colour}",
                _ribbon(xs, (left, high), (right, tall)),
                f"rounds {one.round} to {other.round}: {_tasks(len(names))} {verb}: {few(names, 6)}",
            )
        )
    return found


def _place(column: Mapping[str, tuple[float, float]], name: str) -> float:
    return column[name][0]


def _ribbon(xs: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> str:
    middle = (xs[0] + xs[1]) / 2
    (top, high), (up, tall) = left, right

    def curve(y: float, end: float, x: float) -> str:
        return f"C{tenth(middle)},{tenth(y)} {tenth(middle)},{tenth(end)} {tenth(x)},{tenth(end)}"

    down = f"V{tenth(up + tall)}{curve(up + tall, top + high, xs[0])}z"
    return f"M{tenth(xs[0])},{tenth(top)}{curve(top, up, xs[1])}{down}"


def _names(time: _Time, column: Mapping[str, tuple[float, float]], anchor: str) -> list[Label]:
    sizes = Counter(time.groups.values())
    return [
        Label("0", tenth(top + high / 2), f"{fitting(group, _LONGEST_NAME)} · {sizes[group]:,}", anchor=anchor)
        for group, (top, high) in column.items()
        if high >= _LEAST_LABEL
    ]


def _tasks(number: int) -> str:
    return f"{number:,} task{'' if number == 1 else 's'}"
