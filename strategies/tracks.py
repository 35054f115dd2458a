# SPDX-License-Identifier: Apache-2.0
"""One way of dividing tasks among models: each group's model with a base strategy of its own.

Grouping runs several tracks side by side for some rounds: the groups' own models, one model for all, groups that share
layers. The edges' held-out samples then say which is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from ..lib.records import arrays_in, configs_in
from .nodes import ReadyNodes
from .state import restore

__all__ = ["Couple", "Group", "Track", "TrainPart"]

Couple = Callable[[Mapping[str, tuple[ArrayRecord, float]]], dict[str, ArrayRecord]]
"""Makes the groups' models anew after a round, from all of them with their samples."""


@dataclass
class Group:
    """One group's model, its base strategy, and how many samples its last round counted."""

    base: Strategy
    arrays: ArrayRecord
    samples: float = 0.0


@dataclass(frozen=True)
class TrainPart:
    """One group's model on the way to one node, with what the base strategy says beside it."""

    track: str
    group: str
    arrays: ArrayRecord
    config: ConfigRecord = field(default_factory=ConfigRecord)


@dataclass
class Track:
    """A way of dividing tasks among models.

    Parameters
    ----------
    name
        Name in keys, events and checkpoints.
    make_base
        Makes a base strategy for a new group.
    couple
        What is done to the groups' models after each round.
    """

    name: str
    make_base: Callable[[], Strategy]
    couple: Couple | None = None
    groups: dict[str, Group] = field(default_factory=dict)

    def ensure(self, group: str, arrays: ArrayRecord) -> Group:
        """Return a group; a new one starts with the model `arrays`."""
        if group not in self.groups:
            self.groups[group] = Group(self.make_base(), arrays)
        return self.groups[group]

    def configure(
        self, server_round: int, members: Mapping[str, list[int]], edge_of: Callable[[int], str]
    ) -> dict[int, list[TrainPart]]:
        """Return what each node trains in this track.

        Parameters
        ----------
        members
            The nodes of each group that are there.
        """
        found: dict[int, list[TrainPart]] = {}
        for name, nodes in members.items():
            group = self.groups[name]
            view = ReadyNodes(lambda nodes=nodes: list(nodes), edge_of=edge_of)  # type: ignore[misc]
            for message in group.base.configure_train(server_round, group.arrays, ConfigRecord(), view):
                arrays = next(iter(arrays_in(message.content).values()), group.arrays)
                config = next(iter(configs_in(message.content).values()), ConfigRecord())
                found.setdefault(message.metadata.dst_node_id, []).append(TrainPart(self.name, name, arrays, config))
        return found

    def aggregate(self, group: str, server_round: int) -> Callable[[Iterable[Message]], Any]:
        """Return what takes the replies of one group."""
        return lambda replies: self.groups[group].base.aggregate_train(server_round, replies)

    def take(self, results: Mapping[str, ArrayRecord | None], samples: Mapping[str, float]) -> None:
        """Take over a round's models; a group without one keeps its last."""
        for name, arrays in results.items():
            if arrays is not None:
                self.groups[name].arrays = arrays
                self.groups[name].samples = samples.get(name, 0.0)
        if self.couple is not None and len(self.groups) > 1:
            for name, arrays in self.couple({n: (g.arrays, g.samples) for n, g in self.groups.items()}).items():
                self.groups[name].arrays = arrays

    def drop(self, keep: Iterable[str]) -> None:
        """Forget all groups but some."""
        wanted = set(keep)
        self.groups = {name: group for name, group in self.groups.items() if name in wanted}

    def state(self) -> dict[str, Any]:
        """Return the models and the base strategies' state."""
        found: dict[str, Any] = {f"samples:{self.name}": {n: g.samples for n, g in self.groups.items()}}
        for name, group in self.groups.items():
            found[f"model:{self.name}:{name}"] = group.arrays
            found[f"base:{self.name}:{name}"] = group.base
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        samples = state.get(f"samples:{self.name}", {})
        prefix = f"model:{self.name}:"
        for key, arrays in state.items():
            if not key.startswith(prefix):
                continue
            name = key.removeprefix(prefix)
            group = self.groups[name] = Group(self.make_base(), arrays, samples.get(name, 0.0))
            part = state.get(f"base:{self.name}:{name}")
            if isinstance(part, RecordDict):
                restore(group.base, part)
