# SPDX-License-Identifier: Apache-2.0
"""The seam between an edge's work and what carries its messages.

An edge's end of a link is one of two: a `FleetConnection` to a real SuperLink, or a queue in this process
(`solar-corona run --in-process`). `fit()` asks `current_link` first, so that a caller can put its own in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flwr.app import Message

__all__ = ["NodeLink", "current_link", "using_link"]


class NodeLink(Protocol):
    """An edge's end of a link; one message at a time."""

    @property
    def warm(self) -> bool:
        """Whether the node stays for the whole job; a stock SuperNode starts anew for each message."""

    def connect(self) -> None:
        """Make the node known; raise `TemporaryError` if it may work later."""

    def receive(self) -> Message | None:
        """Return the next message, or None if there is none yet."""

    def reply(self, message: Message) -> None:
        """Send a reply."""

    def wait(self, seconds: float) -> None:
        """Wait until a message may be there, at most so long."""

    def close(self) -> None:
        """Leave."""


_current: ContextVar[NodeLink | None] = ContextVar("solar_corona_link", default=None)


def current_link() -> NodeLink | None:
    """Return the link that was put in place for this thread, or None."""
    return _current.get()


@contextmanager
def using_link(link: NodeLink) -> Iterator[None]:
    """Put `link` in place for the code inside, in this thread alone."""
    token = _current.set(link)
    try:
        yield
    finally:
        _current.reset(token)
