# SPDX-License-Identifier: Apache-2.0
"""What a strategy may have beside Flower's four methods; the round loop uses what is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from ..core.events import Event

__all__ = ["AsksEdges", "PerEdge", "TellsEvents"]


@runtime_checkable
class AsksEdges(Protocol):
    """A strategy that asks edges about their data before they train."""

    def configure_query(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> Iterable[Message]:
        """Return questions (`lib.questions.Question`), or nothing once all is known.

        It is called before each round, and again after each `aggregate_query`, until it returns nothing.
        """

    def aggregate_query(self, server_round: int, replies: Sequence[Message]) -> None:
        """Take the answers (`lib.questions.Response`); of some edges none may have come."""


@runtime_checkable
class PerEdge(Protocol):
    """A strategy whose edges end with different models."""

    def content_for(self, edge: str) -> RecordDict:
        """Return what an edge gets at the end: its models, and a `WorkOrder` where there are several."""

    def content_to_save(self) -> RecordDict:
        """Return the models that the job leaves behind, from which one edge makes the file."""


@runtime_checkable
class TellsEvents(Protocol):
    """A strategy that has something to tell the user."""

    def take_events(self) -> Sequence[Event]:
        """Return what has happened since the last call."""
