# SPDX-License-Identifier: Apache-2.0
"""The contract that every labelling source keeps, ours and yours: `check_labelling_source(make, label)`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence

from ...core.errors import DatasetError
from ...lib.contract import Contract
from .source import Finished, LabellingSource, Offer, SourceStatus

__all__ = ["check_labelling_source"]

_COUNT = 4
_require = Contract("labelling source", DatasetError).require


def check_labelling_source(
    make: Callable[[], LabellingSource], label: Callable[[str, int], None] | None = None
) -> None:
    """Check that a labelling source keeps what `LabellingSource` promises.

    Parameters
    ----------
    make
        Makes it, in a setting whose labels are at least two classes; called again for what a restart leaves.
    label
        Plays the person: gives a task a class's number there. None for a source that never has tasks, or that labels
        by itself.

    Raises
    ------
    DatasetError
        If it does not: the message says which promise is broken.
    """
    source = make()
    try:
        _require(isinstance(source, LabellingSource), f"{type(source).__name__} has not all methods and `machine`")
        _require(isinstance(source.room(), int) and source.room() >= 0, "room() is no count from 0")
        _tells(source)
        _require(not list(source.poll({})), "poll() tells of labels before anything was offered")
        _require(not dict(source.offer([])), "offer() of nothing makes tasks")
        source.withdraw(["no-such-task"])
        offers = [_offer(number) for number in range(_COUNT)]
        tasks = _offered(source, offers)
        again = _offered(source, offers) if label is not None else tasks
        _require(set(again) == set(tasks), "a repeated offer takes other samples")
        if label is not None and tasks:
            _labels_come_back(source, make, tasks, label)
        source.withdraw(list(tasks.values()))
        source.withdraw(list(tasks.values()))
        _tells(source)
    finally:
        source.close()


def _labels_come_back(
    source: LabellingSource,
    make: Callable[[], LabellingSource],
    tasks: Mapping[str, str],
    label: Callable[[str, int], None],
) -> None:
    _require(not _said(source, tasks), "poll() tells of labels that nobody gave")
    (first, task), (second, other), *_ = tasks.items()
    label(task, 1)
    _require(_values(_said(source, tasks)).get(first) is not None, "poll() does not tell of a label that was given")
    label(other, 0)
    restarted = make()
    try:
        again = _offered(restarted, [_offer(number) for number in range(_COUNT)])
        _require(again == dict(tasks), "after a restart, samples that it has get new tasks")
        found = _values(_said(restarted, tasks))
        _require(found.get(second) is not None, "after a restart, labels that were given meanwhile are lost")
        _require(len({repr(found[each]) for each in (first, second) if each in found}) != 1, "labels are mixed up")
        restarted.withdraw([other])
        left = {sample: name for sample, name in tasks.items() if name != other}
        _require(second not in _values(_said(restarted, left)), "poll() tells of a task that was withdrawn")
    finally:
        restarted.close()


def _tells(source: LabellingSource) -> None:
    told = source.status()
    _require(isinstance(told, SourceStatus) and bool(told.message), "status() says nothing")


def _offered(source: LabellingSource, offers: Sequence[Offer]) -> dict[str, str]:
    tasks = dict(source.offer(offers))
    known = {each.sample for each in offers}
    _require(set(tasks) <= known, "offer() names samples that it was not given")
    _require(len(set(tasks.values())) == len(tasks), "two samples have one task")
    sized = all(isinstance(task, str) and 0 < len(task) <= 200 for task in tasks.values())
    _require(sized, "a task's name is no text of 1 to 200 characters")
    return tasks


def _said(source: LabellingSource, tasks: Mapping[str, str]) -> list[Finished]:
    found = list(source.poll({task: sample for sample, task in tasks.items()}))
    _require(all(isinstance(each, Finished) for each in found), "poll() gives something that is no Finished")
    return found


def _values(found: Sequence[Finished]) -> dict[str, object]:
    return {each.sample: each.value for each in found if not each.skipped}


def _offer(number: int) -> Offer:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (8, 8), 10 * number).save(file, "PNG")
    content = file.getvalue()
    return Offer(
        sample=hashlib.sha256(content).hexdigest(),
        media_type="image/png",
        content=lambda: content,
        guess=number % 2,
        confidence=0.6,
        model=1,
    )
