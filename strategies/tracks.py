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

from ..core.errors import StrategyError
from ..lib.exchange import array_specs
from ..lib.records import arrays_in, configs_in
from .model_form import of_form
from .nodes import ReadyNodes
from .state import restore

__all__ = ["Couple", "Group", "Track", "TrainPart"]

Couple = Callable[[Mapping[str, tuple[ArrayRecord, float]]], dict[str, ArrayRecord]]
"""Makes the groups' models anew after a round, from all of them with their samples."""


_ASKED_AT_ONCE = 4  # so often a strategy may ask who is there before it is taken to wait for more


class _WaitsForMoreError(StrategyError):
    """A group's base strategy waits for edges that the group does not have."""


@dataclass
class Group:
    """One group's model, its base strategy, and how many samples its last round counted."""

    base: Strategy
    arrays: ArrayRecord
    samples: float = 0.0


_NOTHING = ConfigRecord()


@dataclass(frozen=True)
class TrainPart:
    """One group's model on the way to one node, with what the base strategy says beside it."""

    track: str
    group: str
    arrays: ArrayRecord
    config: ConfigRecord = field(default_factory=lambda: _NOTHING)


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
    sat_out: list[str] = field(default_factory=list)

    def ensure(self, group: str, arrays: ArrayRecord) -> Group:
        """Return a group; a new one starts with the model `arrays`."""
        if group not in self.groups:
            self.groups[group] = Group(self.make_base(), arrays)
        return self.groups[group]

    def configure(
        self, server_round: int, members: Mapping[str, list[int]], edge_of: Callable[[int], str]
    ) -> dict[int, list[TrainPart]]:
        """Return what each node trains in this track.

        A group with fewer edges than its base strategy waits for sits out; `sat_out` then says so, and why.

        Parameters
        ----------
        members
            The nodes of each group that are there.
        """
        found: dict[int, list[TrainPart]] = {}
        self.sat_out = []
        for name, nodes in members.items():
            group = self.groups[name]
            view = ReadyNodes(_only(nodes), edge_of=edge_of)
            try:
                messages = list(group.base.configure_train(server_round, group.arrays, ConfigRecord(), view))
            except _WaitsForMoreError:
                self.sat_out.append(
                    f"{name} has {len(nodes)} edge{'s' * (len(nodes) != 1)} here, fewer than its base strategy waits "
                    f"for, and does not train; lower base_options.min_available_nodes and min_train_nodes"
                )
                continue
            for message in messages:
                arrays = next(iter(arrays_in(message.content).values()), group.arrays)
                config = next(iter(configs_in(message.content).values()), ConfigRecord())
                found.setdefault(message.metadata.dst_node_id, []).append(TrainPart(self.name, name, arrays, config))
        return found

    def aggregate(self, group: str, server_round: int) -> Callable[[Iterable[Message]], Any]:
        """Return what takes the replies of one group."""
        return lambda replies: self.groups[group].base.aggregate_train(server_round, replies)

    def take(self, results: Mapping[str, ArrayRecord | None], samples: Mapping[str, float]) -> None:
        """Take over a round's models; a group without one keeps its last.

        Raises
        ------
        StrategyError
            If a base strategy made a model that is not of its group's form.
        """
        for name, arrays in results.items():
            if arrays is None:
                continue
            group = self.groups[name]
            try:
                group.arrays = of_form(arrays, array_specs(group.arrays))
            except (TypeError, ValueError) as error:
                raise StrategyError(
                    f"the base strategy of {name} made a model that no edge can take: {error}"
                ) from error
            group.samples = samples.get(name, 0.0)
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


def _only(nodes: list[int]) -> Callable[[], list[int]]:
    """Return what tells a strategy who is there: always the same, so that there is no use in asking again."""
    asked = 0

    def ready() -> list[int]:
        nonlocal asked
        asked += 1
        if asked > _ASKED_AT_ONCE:
            raise _WaitsForMoreError(f"the strategy waits for more edges than the {len(nodes)} of its group")
        return list(nodes)

    return ready
