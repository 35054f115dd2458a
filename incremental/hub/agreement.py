# SPDX-License-Identifier: Apache-2.0
"""What the people who looked at a sample agree on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Agreement", "Vote", "agree"]


@dataclass(frozen=True)
class Vote:
    """What one labeller says of one sample.

    Parameters
    ----------
    person
        Who; one vote each.
    value
        The label; what it is does not matter where `skipped`.
    skipped
        Whether they cannot tell.
    machine
        Whether it is a model's. A model's word counts only where no person said anything.
    source
        Through which labelling source it came.
    at
        Seconds since 1970; of a person's votes the latest counts.
    """

    person: str
    value: Any = None
    skipped: bool = False
    machine: bool = False
    source: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class Agreement:
    """How a sample stands.

    Parameters
    ----------
    state
        `open`: more people have to look at it.
    value
        The label, where `labelled`.
    source
        Where the label came from.
    """

    state: Literal["open", "labelled", "conflict", "skipped"]
    value: Any = None
    source: str | None = None


def agree(votes: Sequence[Vote], needed: int) -> Agreement:
    """Return what the votes come to; their order does not matter.

    A label is the one that at least `needed` people gave, and more than gave any other; where people differ it takes
    two at least, so that a third person settles a conflict. `needed` people who all skip it make a sample `skipped`.

    Examples
    --------
    >>> agree([Vote("ann", 3), Vote("bob", 5)], needed=2).state
    'conflict'
    >>> agree([Vote("ann", 3), Vote("bob", 5), Vote("eve", 3)], needed=2)
    Agreement(state='labelled', value=3, source='')
    """
    people = _latest([vote for vote in votes if not vote.machine])
    said = [vote for vote in people if not vote.skipped]
    if not said:
        if len(people) >= needed:
            return Agreement("skipped")
        machines = [vote for vote in _latest([vote for vote in votes if vote.machine]) if not vote.skipped]
        if machines and not people:
            last = max(machines, key=lambda vote: (vote.at, vote.person))
            return Agreement("labelled", last.value, last.source)
        return Agreement("open")
    counts = Counter(_key(vote.value) for vote in said)
    (top, most), *others = counts.most_common()
    second = others[0][1] if others else 0
    if most == second:
        return Agreement("conflict")
    if most < needed:
        return Agreement("open")
    winners = [vote for vote in said if _key(vote.value) == top]
    last = max(winners, key=lambda vote: (vote.at, vote.person))
    return Agreement("labelled", last.value, last.source)


def _latest(votes: Sequence[Vote]) -> list[Vote]:
    """Return each person's latest vote; of two at one time, one that is the same whatever their order."""
    latest: dict[str, Vote] = {}
    for vote in sorted(votes, key=lambda vote: (vote.at, vote.source, _key(vote.value), vote.skipped)):
        latest[vote.person] = vote
    return list(latest.values())


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
