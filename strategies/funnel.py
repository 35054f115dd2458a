# SPDX-License-Identifier: Apache-2.0
"""Hands replies to several strategies at once, each its own, as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

from flwr.app import ArrayRecord, Message, MetricRecord

__all__ = ["Aggregated", "Funnel"]

Aggregated = tuple[ArrayRecord | None, MetricRecord | None]
_K = TypeVar("_K", bound=Hashable)


class _GivenUpError(BaseException):
    """The round is over before its replies have come; no `except Exception` of a strategy takes that for an end."""


@dataclass
class _Line:
    """One strategy's replies on their way, at most one waiting: so memory does not grow with their number."""

    replies: Queue[Message | _GivenUpError | None] = field(default_factory=lambda: Queue(1))
    result: Aggregated = (None, None)
    error: BaseException | None = None

    def arriving(self) -> Iterator[Message]:
        while (message := self.replies.get()) is not None:
            if isinstance(message, _GivenUpError):
                raise message
            yield message
            del message

    def run(self, aggregate: Callable[[Iterable[Message]], Aggregated]) -> None:
        arriving = self.arriving()
        try:
            self.result = aggregate(arriving)
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self.error = error
        with suppress(_GivenUpError):
            for _ in arriving:  # a strategy may stop early; nobody waits for it
                pass


class Funnel(Generic[_K]):
    """Several `aggregate_train`s that run side by side, each in a thread of its own.

    Flower's strategies pull their replies from an iterable; replies of several groups come mixed. A thread a group
    lets each take its own one by one. Used in a `with` statement: what is raised inside, such as a lost connection, is
    raised in the strategies too, so that none of them makes a model of half a round, and no thread is left.

    Parameters
    ----------
    aggregates
        For each key, what is called with an iterable of the replies put under that key.
    """

    def __init__(self, aggregates: Mapping[_K, Callable[[Iterable[Message]], Aggregated]]) -> None:
        self._lines = {key: _Line() for key in aggregates}
        self._threads = [
            Thread(target=line.run, args=(aggregates[key],), name=f"aggregate-{key}", daemon=True)
            for key, line in self._lines.items()
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        """Begin a round."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the round; give it up if its replies could not be had."""
        if error is not None:
            self._end(_GivenUpError())

    def put(self, key: _K, message: Message) -> None:
        """Hand a reply on; waits while the one before has not been taken."""
        self._lines[key].replies.put(message)

    def results(self) -> dict[_K, Aggregated]:
        """End all iterables and return what was made; raise what one of them raised."""
        self._end(None)
        for line in self._lines.values():
            if line.error is not None:
                raise line.error
        return {key: line.result for key, line in self._lines.items()}

    def _end(self, last: _GivenUpError | None) -> None:
        for line, thread in zip(self._lines.values(), self._threads, strict=True):
            if thread.is_alive():
                line.replies.put(last)
        for thread in self._threads:
            thread.join()
