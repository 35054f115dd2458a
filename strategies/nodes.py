# SPDX-License-Identifier: Apache-2.0
"""The grid as a strategy sees it: who can be asked now and which edge that is, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn

from flwr.serverapp import Grid

__all__ = ["EdgeNames", "ReadyNodes"]


class ReadyNodes(Grid):
    """A `Grid` for strategies' `configure_…` methods, which only ask it who is there.

    Sending is the round loop's: a strategy returns messages and gets replies.

    Parameters
    ----------
    ready
        Gives the ids of the nodes that can be asked now.
    edge_of
        Gives the name of the edge that a node is: it stays the same when the edge comes back as another node.
    """

    def __init__(self, ready: Callable[[], list[int]], *, edge_of: Callable[[int], str] = str) -> None:
        self._ready = ready
        self.edge_of = edge_of

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that can be asked now."""
        return self._ready()

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        del args, kwargs
        raise NotImplementedError(
            "a strategy returns messages from configure_train and configure_evaluate, and replies come to "
            "aggregate_train and aggregate_evaluate; the round loop does the sending"
        )

    set_run = create_message = push_messages = pull_messages = send_and_receive = _refuse
    run = property(_refuse)


class EdgeNames:
    """Which edge each node is, also one that came back as another node since it was asked.

    `back` are the edges that were another node before; who makes use of it empties it.
    """

    def __init__(self) -> None:
        self.back: set[str] = set()
        self._names: dict[int, str] = {}
        self._nodes: dict[str, int] = {}
        self._ask: Callable[[int], str] = str

    def here(self, grid: Grid) -> dict[int, str]:
        """Return the edge that each node is that can be asked now."""
        self._ask = getattr(grid, "edge_of", str)
        found = {node: self._ask(node) for node in grid.get_node_ids()}
        self.back.update(edge for node, edge in found.items() if self._nodes.get(edge, node) != node)
        self._names.update(found)
        self._nodes.update({edge: node for node, edge in found.items()})
        return found

    def of(self, node: int) -> str:
        """Return the name of the edge that a node is."""
        return self._names.get(node) or self._ask(node)
