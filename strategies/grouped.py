# SPDX-License-Identifier: Apache-2.0
"""What strategies have in common that give each edge the model of its group, and differ in how groups are found."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log as flower_log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from ..core.errors import StrategyError, StrategySpecError
from ..core.events import Event, TaskPlace, TasksGrouped, Warned
from ..lib import exchange
from ..lib.exchange import ModelOrder, WorkOrder
from ..lib.records import arrays_in, metrics_in, with_content
from ..lib.survey import TaskNames
from .funnel import Funnel
from .nodes import EdgeNames
from .tracks import Track, TrainPart
from .trials import mean_model

__all__ = ["FIRST", "GUEST", "OWN", "GroupedStrategy", "expect", "told"]

OWN, GUEST = "groups", "guest"
FIRST = "group-1"
_WEIGHT = "num-examples"
_KEY = "arrays"


class GroupedStrategy(Strategy):
    """Trains a model for each group of edges, each with a base strategy of its own.

    Who extends it says in which group an edge is, sees every update, and may regroup after each round. An edge whose
    group is not known yet trains as a guest: its update is seen, and is no part of any group's model.

    Parameters
    ----------
    base, base_options
        The strategy inside each group: any name that a job may give, and its arguments.
    fraction_train
        As in Flower's `FedAvg`, in each group.
    finetune
        So many fits each edge goes on alone at the end, kept only if held-out samples are clearly better off.
    """

    def __init__(
        self,
        base: str = "fedavg",
        base_options: Mapping[str, Any] | None = None,
        *,
        fraction_train: float = 1.0,
        finetune: int = 0,
    ) -> None:
        from .registry import create

        expect(finetune >= 0, "finetune", finetune, "a whole number from 0")
        self.track = Track(OWN, partial(create, base, base_options, fraction=fraction_train))
        self.track.make_base()  # a wrong option is said now, not after the edges have come
        self.group_of: dict[str, str] = {}
        self._base, self.finetune = base, finetune
        self.samples: dict[str, int] = {}
        self.names = EdgeNames()
        self.asked: dict[str, dict[str, TrainPart]] = {}
        self._events: list[Event] = []

    @abstractmethod
    def place(self, edge: str, arrays: ArrayRecord) -> str | None:
        """Return the group of an edge that is there, ready to train; None makes it a guest.

        `arrays` is the model that a first group starts with.
        """

    def guest_model(self, edge: str, arrays: ArrayRecord) -> ArrayRecord:
        """Return the model that an edge without a group trains, and ends with."""
        del edge
        return mean_model(self.track) or arrays

    def see(self, edge: str, part: TrainPart, returned: ArrayRecord, samples: float) -> None:
        """Take note of one edge's trained model, before it goes into its group's."""

    def regroup(self, server_round: int) -> str | None:
        """Change the groups after a round, when their models are made; return why they have changed, else None."""

    def summary(self) -> None:
        """Log what is inside."""
        flower_log(INFO, "\t├──> edges are grouped; in each group: %s", self._base)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each edge its group's model."""
        del config  # each base strategy makes its own
        members: dict[str, list[int]] = {}
        guests: dict[int, TrainPart] = {}
        for node, edge in self.names.here(grid).items():
            group = self.place(edge, arrays)
            if group is None:
                guests[node] = TrainPart(GUEST, "", self.guest_model(edge, arrays))
            else:
                self.track.ensure(group, arrays)
                members.setdefault(group, []).append(node)
        chosen = self.track.configure(server_round, members, self.names.of)
        self._events += told(self.track, server_round, chosen or guests)
        parts = {node: found[0] for node, found in chosen.items()} | guests
        self.asked = {}
        return self._messages(parts, "train")

    def _messages(self, parts: Mapping[int, TrainPart], kind: str) -> list[Message]:
        """Return a message for each node; those that get the same share one content, which is packed once.

        Where there are several models, each has a name of its own, by which it is coded.
        """
        shared: dict[tuple[str, int, int], RecordDict] = {}
        found, several = [], len(self.track.groups) > 1 or any(part.track == GUEST for part in parts.values())
        for node, part in parts.items():
            key = f"{_KEY}/{part.group or part.track}" if several else _KEY
            if kind == "train":
                self.asked[self.names.of(node)] = {key: part}
            like = key, id(part.arrays), id(part.config)
            if like not in shared:
                content = RecordDict({key: part.arrays, "config": part.config})
                order = WorkOrder(models=(ModelOrder(key=key),))
                shared[like] = exchange.ordered(content, order) if several else content
            found.append(Message(shared[like], dst_node_id=node, message_type=kind))
        return found

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let each group's base strategy aggregate its own replies as they come; return the groups' mean model."""
        asked = {part.group for parts in self.asked.values() for part in parts.values() if part.track == OWN}
        samples: dict[str, float] = {}
        metrics: list[RecordDict] = []
        with Funnel({group: self.track.aggregate(group, server_round) for group in asked}) as funnel:
            for reply in replies:
                found = None if reply.has_error() else self._read(reply)
                if found is None:
                    continue
                part, arrays, measured = found
                edge, count = self.names.of(reply.metadata.src_node_id), measured.get(_WEIGHT)
                self.samples[edge] = int(count) if isinstance(count, int | float) else 0
                metrics.append(RecordDict({"metrics": measured}))
                self.see(edge, part, arrays, self.samples[edge])
                if part.track == OWN:
                    samples[part.group] = samples.get(part.group, 0.0) + self.samples[edge]
                    funnel.put(part.group, with_content(reply, {_KEY: arrays, "metrics": measured}))
                del arrays, found, reply
            results = funnel.results()
        self.track.take({group: made[0] for group, made in results.items()}, samples)
        reason = self.regroup(server_round)
        if reason is not None:
            self.tell(server_round, reason)
        if not metrics:
            return None, None
        return mean_model(self.track), aggregate_metricrecords(metrics, _WEIGHT)

    def _read(self, reply: Message) -> tuple[TrainPart, ArrayRecord, MetricRecord] | None:
        """Return what an edge trained: exactly one of the models that it was asked for."""
        asked = self.asked.get(self.names.of(reply.metadata.src_node_id), {})
        came = arrays_in(reply.content)
        key = next(iter(came), "")
        measured = metrics_in(reply.content).get(exchange.metrics_key(key))
        if len(came) != 1 or key not in asked or measured is None:
            return None
        return asked[key], came[key], measured

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have each edge evaluate the model that it would train next."""
        del server_round, config
        return self._messages({n: self._part_of(edge, arrays) for n, edge in self.names.here(grid).items()}, "evaluate")

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the edges' own metrics."""
        del server_round
        found = [
            RecordDict({"metrics": metrics_in(reply.content)["metrics"]})
            for reply in replies
            if not reply.has_error() and "metrics" in metrics_in(reply.content)
        ]
        return aggregate_metricrecords(found, _WEIGHT) if found else None

    def _part_of(self, edge: str, arrays: ArrayRecord) -> TrainPart:
        group = self.place(edge, arrays)
        if group is None:
            return TrainPart(GUEST, "", self.guest_model(edge, arrays))
        return TrainPart(OWN, group, self.track.ensure(group, arrays).arrays)

    def content_for(self, edge: str) -> RecordDict:
        """Return the model of an edge's group; to be fine-tuned there, where that was asked for."""
        content = RecordDict({_KEY: self._part_of(edge, self._any_model()).arrays})
        if not self.finetune:
            return content
        return exchange.ordered(content, WorkOrder(models=(ModelOrder(key=_KEY),), finetune=self.finetune))

    def _any_model(self) -> ArrayRecord:
        return next(iter(self.track.groups.values())).arrays

    def content_to_save(self) -> RecordDict:
        """Return the models of all groups that have edges, and which edge goes with which."""
        used = [name for name in self.track.groups if name in set(self.group_of.values())]
        if len(used) < 2:
            only = self.track.groups[used[0]].arrays if used else mean_model(self.track)
            return RecordDict({_KEY: only or self._any_model()})
        content = RecordDict({f"{_KEY}/{name}": self.track.groups[name].arrays for name in used})
        placed = {edge: group for edge, group in self.group_of.items() if group in used}
        return TaskNames(tuple(used), placed).attach(content)

    def tell(self, server_round: int, reason: str) -> None:
        """Tell the user of the groups as they are now."""
        tasks = [
            TaskPlace(edge=edge, task="all", group=self.group_of[edge], samples=self.samples.get(edge, 0), own=0.0)
            for edge in sorted(self.group_of, key=lambda name: (len(name), name))
        ]
        self._events.append(TasksGrouped(round=server_round, reason=reason, tasks=tasks))

    def take_events(self) -> Sequence[Event]:
        """Return what has happened since the last call."""
        events, self._events = self._events, []
        return events

    def state_dict(self) -> dict[str, Any]:
        """Return the groups, their models and base strategies."""
        return {"group_of": self.group_of, "samples": self.samples, **self.track.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.group_of, self.samples = dict(state["group_of"]), dict(state["samples"])
        self.track.restore(state)


def expect(fits: bool, option: str, value: object, expected: str) -> None:
    """Raise `StrategySpecError` if an option's value does not fit."""
    if not fits:
        raise StrategySpecError(f"{option} is {value!r}, expected {expected}; set it under aggregation.options")


def told(track: Track, server_round: int, chosen: object) -> list[Event]:
    """Return what is to be told of the groups that sit a round out; raise it if nobody trains for that."""
    if track.sat_out and not chosen:
        raise StrategyError(f"round {server_round}: nobody can train: {'; '.join(track.sat_out)}")
    return [Warned(message=f"round {server_round}: {text}") for text in track.sat_out]
