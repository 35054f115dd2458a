# SPDX-License-Identifier: Apache-2.0
"""The group tree: which tasks and groups were merged, and at what distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.events import TasksGrouped
from .plain_text import few, one_line
from .task_pictures import NO_GROUP, Label, Mark, Marks, fitting, tenth
from .task_view import APART, TaskView, label

__all__ = ["TaskTree", "task_tree"]

_MOST_ROWS = 40
_ROW = 20.0
_LONGEST_NAME = 24
_ROUND_NUMBERS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
# The longest line ends here, in percent; ticks stand at least so far from each other.
_END, _APART_BY = 96.0, 13.0


@dataclass(frozen=True)
class Line:
    """A straight line: across in percent, down in pixels; `kind` is its class in the style sheet."""

    x1: str
    x2: str
    y1: str
    y2: str
    kind: str
    text: str = ""


@dataclass(frozen=True)
class Row:
    """A leaf of what is drawn: a task, or a set of them."""

    y: str
    mark: Mark
    text: str
    title: str


@dataclass(frozen=True)
class TaskTree:
    """The tree with its words; `threshold` is where tasks begin to belong apart."""

    rows: list[Row]
    lines: list[Line]
    ticks: list[Label]
    threshold: str
    height: str
    description: str
    note: str


@dataclass
class _Node:
    """A task, or what became one at `height`; `group` is None where its tasks are of several."""

    leaves: list[int]
    group: str | None
    height: float = 0.0
    children: tuple[int, int] | None = None


def task_tree(view: TaskView, marks: Marks) -> TaskTree | None:
    """Draw how the groups came about; None where the record has no tree."""
    event = view.told[-1] if view.told else None
    nodes = _nodes(event) if event is not None else None
    if event is None or not nodes:
        return None
    inner = {child for node in nodes.values() for child in node.children or ()}
    roots = sorted((i for i, n in nodes.items() if n.children and i not in inner), key=lambda i: -len(nodes[i].leaves))
    shown, rest = roots[:_MOST_ROWS], roots[_MOST_ROWS:]
    drawing = _Drawing(event, nodes, marks)
    drawing.draw(shown, _opened(nodes, shown))
    merged = {leaf for root in roots for leaf in nodes[root].leaves}
    outside = [label(place) for i, place in enumerate(event.tasks) if i not in merged]
    return TaskTree(
        rows=drawing.rows,
        lines=drawing.lines,
        ticks=drawing.ticks(),
        threshold=tenth(drawing.x(APART)),
        height=tenth(_ROW * len(drawing.rows)),
        description=f"Tree of how {len(merged):,} tasks became {_count(len({p.group for p in event.tasks}), 'group')}: "
        f"two branches meet at the distance between them; those that meet beyond {APART} belong apart. The table of "
        f"tasks below has each one’s distances.",
        note=_note(outside, len(rest)),
    )


def _note(outside: Sequence[str], hidden: int) -> str:
    notes = [f"{_count(hidden, 'smaller tree')} left out"] if hidden else []
    if outside:
        notes.append(
            f"not in the tree: {few(outside, 6)} (no signature, too few samples to found a group, or no class in "
            f"common with another)"
        )
    return "; ".join(notes)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _nodes(event: TasksGrouped) -> dict[int, _Node] | None:
    """Return the tree's nodes by number; None if the event's merges are no tree over its tasks."""
    count = len(event.tasks)
    known = [height for _, _, height in event.tree if math.isfinite(height)]
    beyond = 1.2 * max([APART, *known])
    nodes = {i: _Node([i], place.group) for i, place in enumerate(event.tasks)}
    used: set[int] = set()
    for step, (left, right, height) in enumerate(event.tree):
        if left == right or {left, right} & used or left not in nodes or right not in nodes:
            return None
        used |= {left, right}
        one, other = nodes[left], nodes[right]
        # What was merged later is drawn no nearer than what it was made of.
        tall = max(height if math.isfinite(height) else beyond, one.height, other.height, 0.0)
        group = one.group if one.group == other.group else None
        nodes[count + step] = _Node([*one.leaves, *other.leaves], group, tall, (left, right))
    return nodes if event.tree else None


def _opened(nodes: dict[int, _Node], roots: Sequence[int]) -> set[int]:
    """Return the nodes whose branches are drawn: all if there is room, else the highest, and no group's inside."""
    everything = sum(len(nodes[root].leaves) for root in roots) <= _MOST_ROWS
    rows, opened, closed = len(roots), set[int](), list(roots)
    while closed and rows < _MOST_ROWS:
        able = [i for i in closed if nodes[i].children and (everything or nodes[i].group is None)]
        if not able:
            break
        highest = max(able, key=lambda i: (nodes[i].group is None, nodes[i].height))
        closed.remove(highest)
        closed += nodes[highest].children or ()
        opened.add(highest)
        rows += 1
    return opened


class _Drawing:
    """Draws the opened nodes, roots below each other."""

    def __init__(self, event: TasksGrouped, nodes: dict[int, _Node], marks: Marks) -> None:
        self._event, self._nodes, self._marks = event, nodes, marks
        self._highest = max(2 * APART, *(node.height for node in nodes.values()))
        self.rows: list[Row] = []
        self.lines: list[Line] = []

    def x(self, height: float) -> float:
        """Return where a distance is, in percent; on the scale of its root, so that small ones are seen too."""
        return _END * math.sqrt(height / self._highest)

    def draw(self, roots: Sequence[int], opened: set[int]) -> None:
        """Draw each root and what is below it."""
        for root in roots:
            y = self._branch(root, opened)
            if len(roots) > 1:
                # What shares no class with the others is nowhere merged with them.
                self._line(self._nodes[root].height, None, y, y, "open", "shares no class with the others")

    def _branch(self, root: int, opened: set[int]) -> float:
        at: dict[int, float] = {}
        stack = [(root, False)]
        while stack:
            number, done = stack.pop()
            node = self._nodes[number]
            if number not in opened or node.children is None:
                at[number] = self._leaf(node)
            elif done:
                at[number] = self._join(node, at)
            else:
                left, right = node.children
                stack += [(number, True), (right, False), (left, False)]
        return at[root]

    def _leaf(self, node: _Node) -> float:
        y = _ROW * (len(self.rows) + 0.5)
        count = len(node.leaves)
        if count == 1:
            title = label(self._event.tasks[node.leaves[0]])
        else:
            groups = {self._event.tasks[leaf].group for leaf in node.leaves}
            of = one_line(node.group) if node.group is not None else _count(len(groups), "group")
            title = f"{of}: {_count(count, 'task')}"
            self._line(0.0, node.height, y, y, f"bundle {self._colour(node)}", title)
        mark = self._marks[node.group] if node.group is not None else NO_GROUP
        self.rows.append(Row(tenth(y), mark, fitting(title, _LONGEST_NAME), title))
        return y

    def _join(self, node: _Node, at: dict[int, float]) -> float:
        assert node.children is not None
        ys = [at[child] for child in node.children]
        for child, y in zip(node.children, ys, strict=True):
            below = self._nodes[child]
            self._line(below.height, node.height, y, y, self._colour(below if below.group else node))
        text = f"{_count(len(node.leaves), 'task')}, {node.height:.3g} apart"
        self._line(node.height, node.height, ys[0], ys[1], self._colour(node), text)
        return sum(ys) / 2

    def _colour(self, node: _Node) -> str:
        return self._marks[node.group].colour if node.group is not None else "above"

    def _line(self, low: float, high: float | None, y1: float, y2: float, kind: str, text: str = "") -> None:
        end = 100.0 if high is None else self.x(high)
        self.lines.append(Line(tenth(self.x(low)), tenth(end), tenth(y1), tenth(y2), kind, text))

    def ticks(self) -> list[Label]:
        """Return round numbers along the distance, with the threshold among them."""
        found = [(self.x(APART), f"{APART:g}")]
        if self.x(APART) >= _APART_BY / 2:
            found.append((0.0, "0"))
        for value in _ROUND_NUMBERS:
            at = self.x(value)
            if value <= self._highest and min(abs(at - other) for other, _ in found) >= _APART_BY:
                found.append((at, f"{value:g}"))
        return [Label(tenth(at), "0", text) for at, text in found]
