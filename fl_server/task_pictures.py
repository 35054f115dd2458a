# SPDX-License-Identifier: Apache-2.0
"""What the report's pictures of tasks have in common: each group's mark, and how positions are written.

A group is told by shape as well as by colour, and by its name, so that no picture needs colours to be read. Places
across are in percent of a plot that is as wide as its page, so that marks and text keep their size on a phone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .plain_text import one_line
from .task_view import by_name

__all__ = ["NO_GROUP", "Label", "Mark", "Marks", "fitting", "tenth"]

# One for each class c0, c1, … of the style sheet: far apart also for eyes that see two of the three colours.
_COLOURS = 6
_SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6L5.6,4.2H-5.6z",
    "M0,-6.4L6.4,0L0,6.4L-6.4,0z",
    "M-1.9,-5.8h3.8v3.9h3.9v3.8h-3.9v3.9h-3.8v-3.9h-3.9v-3.8h3.9z",
    "M0,6L5.6,-4.2H-5.6z",
)


@dataclass(frozen=True)
class Mark:
    """How a group is drawn: its colour's class in the style sheet, and its shape around the origin."""

    colour: str
    path: str


NO_GROUP = Mark("c-none", "M-3.6,-5L0,-1.4L3.6,-5L5,-3.6L1.4,0L5,3.6L3.6,5L0,1.4L-3.6,5L-5,3.6L-1.4,0L-5,-3.6z")


class Marks:
    """A mark for each group, the same in all pictures; 36 groups have one that no other has."""

    def __init__(self, groups: Iterable[str]) -> None:
        self._place = {name: i for i, name in enumerate(sorted(set(groups), key=by_name))}

    def __getitem__(self, group: str) -> Mark:
        place = self._place.get(group)
        if place is None:
            return NO_GROUP
        return Mark(f"c{place % _COLOURS}", _SHAPES[(place + place // _COLOURS) % len(_SHAPES)])


@dataclass(frozen=True)
class Label:
    """Text at a place: x in percent, y in percent or pixels, as its picture says."""

    x: str
    y: str
    text: str
    kind: str = ""
    anchor: str = "start"


def fitting(text: str, most: int) -> str:
    """Return a name in at most so many characters, without its middle: names often differ at their ends.

    >>> fitting("camera-harbour-north/summer", 16)
    'camera-…h/summer'
    """
    text = one_line(text)
    if len(text) <= most:
        return text
    head = most // 2 - 1
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def tenth(value: float) -> str:
    """Write a number to a tenth, without a sign of zero."""
    return f"{round(value, 1) + 0.0:g}"
