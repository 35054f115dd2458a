# SPDX-License-Identifier: Apache-2.0
"""Sends one kind of thing in order, so that one that the hub does not take holds up no other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Generic, Protocol, TypeVar

from ..core.errors import RefusedRequestError, TemporaryError
from ..core.hub_messages import Receipt
from .clock import Clock
from .patience import is_refused_for_good

__all__ = ["IDLE_SECONDS", "Channel"]

_log = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
"""How long a channel with nothing to send is left alone, unless something arrives."""

_LATER_SECONDS, _LONGEST_PAUSE = 30.0, 480.0


class _Queued(Protocol):
    @property
    def seq(self) -> int: ...


_Item = TypeVar("_Item", bound=_Queued)


class Channel(Generic[_Item]):
    """Goes through a queue in order, and again after a while where something was put off.

    A whole request that is refused is halved until it is known what is at fault. Even that is given up only when the
    hub took another one since: a hub that refuses everything is set up wrongly, and loses nothing.

    Parameters
    ----------
    what
        What is sent, for messages: a sample, a label.
    clock
        Tells the time.
    fetch
        Gives what comes after a number in the queue.
    send
        Sends some and returns what became of each; None where it was interrupted and has to go on.
    name
        The id that an item's receipt has to have.
    settle
        Strikes off what was taken, and what never will be.
    first
        The number before the first one.
    """

    def __init__(
        self,
        what: str,
        *,
        clock: Clock,
        fetch: Callable[[int], Sequence[_Item]],
        send: Callable[[Sequence[_Item]], Sequence[Receipt] | None],
        name: Callable[[_Item], str],
        settle: Callable[[Sequence[_Item], Sequence[_Item]], None],
        first: int = 0,
    ) -> None:
        self._what, self._clock, self._first = what, clock, first
        self._fetch, self._send, self._name, self._settle = fetch, send, name, settle
        self._after, self._again_at = first, 0.0
        self._paused_until, self._pause = 0.0, _LATER_SECONDS
        self._taken, self._doubtful = 0, dict[int, int]()
        self.trouble = ""

    def step(self) -> float:
        """Send the next ones; return how long there is nothing to do."""
        now = self._clock.monotonic()
        if now < self._paused_until:
            return self._paused_until - now
        items = self._fetch(self._after)
        if not items and self.trouble and now >= self._again_at:
            self._after, self.trouble = self._first, ""
            items = self._fetch(self._after)
        if not items:
            return self._at_the_end()
        if self._deliver(items):
            self._after = items[-1].seq
        return 0.0

    def _at_the_end(self) -> float:
        if self.trouble:
            return max(0.1, self._again_at - self._clock.monotonic())
        again, self._after = self._after > self._first, self._first  # numbers may begin anew once the queue was empty
        return 0.0 if again else IDLE_SECONDS

    def _deliver(self, items: Sequence[_Item]) -> bool:
        try:
            receipts = self._send(items)
        except RefusedRequestError as error:
            if len(items) == 1 and error.status == HTTPStatus.INSUFFICIENT_STORAGE:
                self._put_off(str(error))  # a smaller one may still find room
                return True
            if not is_refused_for_good(error):
                raise
            half = len(items) // 2
            if half:
                return self._deliver(items[:half]) and self._deliver(items[half:])
            self._doubt(items[0], error)
            return True
        if receipts is None:
            return False
        self._take(items, receipts)
        return True

    def _take(self, items: Sequence[_Item], receipts: Sequence[Receipt]) -> None:
        if [each.id for each in receipts] != [self._name(each) for each in items]:
            raise TemporaryError(
                f"the hub answers with {len(receipts)} receipts that are not those of the {len(items)} sent; expected "
                f"one for each, in order"
            )
        of_outcome: dict[str, list[_Item]] = {"stored": [], "known": [], "refused": [], "later": []}
        for item, receipt in zip(items, receipts, strict=True):
            of_outcome[receipt.outcome].append(item)
            if receipt.outcome == "later":
                self._put_off(receipt.reason)
        refused = [receipt for receipt in receipts if receipt.outcome == "refused"]
        if refused:  # one line for all: a script that makes odd samples makes many
            more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
            _log.warning("the hub will not take %s %s%s: %s", self._what, refused[0].id, more, refused[0].reason)
        taken = of_outcome["stored"] + of_outcome["known"]
        self._taken += len(taken)
        if len(of_outcome["later"]) == len(items) > 1:  # a quota is reached; sending all the others tells no more
            self._paused_until = self._clock.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        else:
            self._pause = _LATER_SECONDS
        if taken or of_outcome["refused"]:
            self._settle(taken, of_outcome["refused"])

    def _put_off(self, reason: str) -> None:
        if not self.trouble:
            self._again_at = self._clock.monotonic() + _LATER_SECONDS
        self.trouble = f"the hub takes some later: {reason or 'it does not say why'}"

    def _doubt(self, item: _Item, error: RefusedRequestError) -> None:
        taken = self._doubtful.setdefault(item.seq, self._taken)
        if self._taken == taken:
            self._put_off(str(error))
            return
        _log.warning("the hub will not take %s %s: %s", self._what, self._name(item), error)
        del self._doubtful[item.seq]
        self._settle([], [item])
