# SPDX-License-Identifier: Apache-2.0
"""What the round loop stands on: who is here, what has come from them, and waiting for either."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from ..core.errors import JobFailedError, SolarCoronaError, StrategyError
from ..core.events import (
    EdgeLeftOut,
    Event,
    Warned,
)
from ..lib import exchange
from ..lib.exchange import ArraySpec, Instruction, Verb, read_order
from ..lib.records import arrays_in, with_content
from ..strategies.nodes import ReadyNodes
from .mail import Mail, Outgoing, Reply, Sent
from .roster import Member, Roster
from .screening import evaluation_fault, train_fault

__all__ = [
    "LOOK_EVERY_WAITING",
    "Floor",
    "Limits",
    "Progress",
    "Round",
    "WaitsForMoreError",
    "model_of",
    "models_of",
    "numbers",
]

_LOOK_EVERY = 1.0
LOOK_EVERY_WAITING = 0.1
_ASKED_AT_ONCE = 5  # so often a strategy may ask who is there before it is taken to wait for more
_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """How many rounds and edges, and how long to wait, in seconds; `patience` is for edges that are about to come."""

    rounds: int
    min_edges: int
    round_deadline: float
    start_deadline: float
    alone_epochs: int = 0
    patience: float = 2.0


class WaitsForMoreError(StrategyError):
    """The strategy waits for more edges than there are."""


@dataclass
class Progress:
    """What survives when the connection is lost and the loop is entered again."""

    round: int = 0
    arrays: ArrayRecord | None = None
    slowest: float = 0.0
    last: float = 0.0

    def took(self, seconds: float) -> None:
        """Note how long the slowest edge trained.

        What edges are told is the shorter of the last two rounds: in the first one a framework compiles, and an edge
        that believed that time would sleep through the beginning of the third.
        """
        self.slowest, self.last = min(self.last, seconds), seconds


@dataclass
class Round:
    """One round's bookkeeping."""

    number: int
    asked: dict[str, Outgoing] = field(default_factory=dict)
    replied: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    evaluations: list[tuple[str, Message]] = field(default_factory=list)
    metrics: MetricRecord | None = None
    seconds: float = 0.0


class Floor:
    """Takes in what edges say, between rounds and in them.

    Parameters
    ----------
    mail, roster
        The exchange with the nodes, and who they are.
    strategy
        Configures and aggregates.
    limits
        Rounds, edges and deadlines.
    progress
        Where to begin; kept up to date.
    emit
        Takes events.
    """

    def __init__(
        self,
        mail: Mail,
        roster: Roster,
        strategy: Strategy,
        *,
        limits: Limits,
        progress: Progress,
        emit: Callable[[Event], None],
    ) -> None:
        self._mail, self._roster, self._strategy = mail, roster, strategy
        self._limits, self._progress, self._emit = limits, progress, emit
        self._specs: list[ArraySpec] = []

    def _model(self) -> ArrayRecord:
        assert self._progress.arrays is not None
        return self._progress.arrays

    def _step(self, state: Round | None = None, *, look_every: float = _LOOK_EVERY) -> Iterator[Reply]:
        """Take in what has come: greetings go to the roster, all else is yielded, to be taken whole."""
        number = state.number if state is not None else self._progress.round
        # Asked before replies are taken in: an edge that answers and leaves at once has not left without a word.
        online = self._roster.online(look_every)
        for reply in self._mail.poll():
            if reply.answer is not None and reply.answer.failed is not None:
                raise JobFailedError(f"{reply.answer.edge}'s script failed: {reply.answer.error}")
            if reply.answer is None and reply.error and "ClientApp" in reply.error:
                raise JobFailedError(f"a stock SuperNode's ClientApp failed: {reply.error}")
            if reply.sent.instruction.verb is Verb.HELLO:
                self._came(state, *self._roster.greeted(reply, number))
            else:
                yield reply
            del reply
        self._came(state, *self._roster.update(online))

    def _came(self, state: Round | None, events: list[Event], owed: list[tuple[str, Sent]]) -> None:
        for event in events:
            self._emit(event)
        number = state.number if state is not None else self._progress.round
        for edge, sent in owed:
            if sent.instruction.verb in (Verb.TRAIN, Verb.EVALUATE):
                self._emit(EdgeLeftOut(edge=edge, round=sent.instruction.round or number, reason="its process ended"))
        if state is None:
            return
        # An edge that comes back while its round is on gets its message again.
        idle = {m.edge: m for m in self._roster.idle()}
        for edge, out in list(state.asked.items()):
            member = idle.get(edge)
            if edge not in state.replied and member is not None and member.node_id != out.node_id and member.can_train:
                state.asked[edge] = Outgoing(member.node_id, out.content, out.instruction)
                self._mail.send([state.asked[edge]])

    def _wait_for_edges(self, what: str, *, all_of_them: bool = False, at_least: int | None = None) -> None:
        """Wait until enough edges are idle and can train.

        With `all_of_them`, edges that are about to come are waited for a little longer, half as long as the first ones
        took: so that none misses the first round by a second.
        """
        start, wanted = time.monotonic(), at_least or self._limits.min_edges
        end = start + self._limits.start_deadline
        patience: float | None = None
        while True:
            now = time.monotonic()
            ready = [m for m in self._roster.idle() if m.can_train]
            if len(ready) >= wanted:
                patience = patience or min(end, now + max(self._limits.patience, 0.5 * (now - start)))
                if not all_of_them or not self._roster.missing() or now > patience:
                    return
            if time.monotonic() > end:
                raise JobFailedError(self._why_not_enough(what, ready, wanted))
            for reply in self._step(look_every=LOOK_EVERY_WAITING):
                self._take(Round(self._progress.round + 1), reply)
            time.sleep(LOOK_EVERY_WAITING / 2)

    def _why_not_enough(self, what: str, ready: list[Member], wanted: int) -> str:
        unfit = [f"{m.edge} ({m.unfit or 'no samples'})" for m in self._roster.members() if not m.can_train]
        busy = [m.edge for m in self._roster.members() if m.can_train and m not in ready]
        return (
            f"after {self._limits.start_deadline:.0f} s only {len(ready)} of the {wanted} edges that are needed are "
            f"ready, before {what}; "
            + (f"not here: {', '.join(self._roster.missing())}; " if self._roster.missing() else "")
            + (f"left out: {', '.join(unfit)}; " if unfit else "")
            + (f"still busy: {', '.join(busy)}; " if busy else "")
            + "see the edges' logs, or lower aggregation.minEdges"
        )

    def _ask(self, member: Member, content: RecordDict, verb: Verb, within: float) -> Reply | None:
        """Ask one edge and wait for its answer; None if it does not come."""
        self._mail.send([Outgoing(member.node_id, content, Instruction(verb=verb, round=self._progress.round))])
        end = time.monotonic() + within
        while time.monotonic() < end and self._owes(member.node_id):
            for reply in list(self._step()):
                if reply.sent.node_id == member.node_id and reply.sent.instruction.verb is verb:
                    return reply if reply.error is None else None
            self._mail.wait(end - time.monotonic())
        self._mail.forget(member.node_id)
        return None

    def _owes(self, node_id: int) -> bool:
        return any(sent.node_id == node_id for sent in self._mail.outstanding())

    def _take(self, state: Round, reply: Reply) -> Message | None:
        """Return a reply as the strategy may see it, or None where it does not count."""
        instruction = reply.sent.instruction
        member = self._roster.member_of(reply.sent.node_id)
        edge = member.edge if member is not None else "an edge"
        if instruction.verb is Verb.EVALUATE:
            self._keep_evaluation(state, edge, reply, reply.content.get("metrics"))
            return None
        if instruction.verb is not Verb.TRAIN:
            return None
        if instruction.round != state.number:
            self._emit(EdgeLeftOut(edge=edge, round=instruction.round, reason="its reply came after the round's end"))
            return None
        out = state.asked.get(edge)
        fault = train_fault(reply, self._specs, read_order(out.content) if out is not None else None)
        if fault is not None:
            self._emit(EdgeLeftOut(edge=edge, round=state.number, reason=fault))
            state.refused.add(edge)
            return None
        state.replied.add(edge)
        state.seconds = max(state.seconds, reply.answer.seconds if reply.answer else 0.0)
        self._keep_evaluation(state, edge, reply, reply.content.get(exchange.EVALUATION))
        seen = {
            k: v for k, v in reply.content.items() if k != exchange.CONTROL and not k.startswith(exchange.EVALUATION)
        }
        return with_content(reply.message, seen | self._metrics_alike(state, edge, seen))

    def _metrics_alike(self, state: Round, edge: str, seen: dict[str, Any]) -> dict[str, MetricRecord]:
        """Return a reply's metrics under the names of the round's first, as strategies average no others."""
        alike: dict[str, MetricRecord] = {}
        for key, metrics in seen.items():
            if not isinstance(metrics, MetricRecord):
                continue
            usual = state.metrics = state.metrics if state.metrics is not None else metrics
            alike[key] = metrics
            if set(metrics) != set(usual):
                self._emit(
                    Warned(
                        message=f"{edge} reports {', '.join(sorted(metrics))} in round {state.number}, where another "
                        f"edge reports {', '.join(sorted(usual))}; its model counts, its other metrics do not"
                    )
                )
                alike[key] = MetricRecord({name: metrics.get(name, value) for name, value in usual.items()})
        return alike

    def _keep_evaluation(self, state: Round, edge: str, reply: Reply, metrics: Any) -> None:
        if not isinstance(metrics, MetricRecord):
            return
        fault = evaluation_fault(metrics)
        if fault is not None:
            self._emit(EdgeLeftOut(edge=edge, round=state.number - 1, reason=fault))
            return
        each = {k: v for k, v in reply.content.items() if k.startswith(f"{exchange.EVALUATION}/")}
        state.evaluations.append((edge, with_content(reply.message, {"metrics": metrics, **each})))

    def _view(self, fits: Callable[[Member], bool], *, patience: float) -> ReadyNodes:
        """Return who can be asked, to a strategy that may wait until they are enough for it, but not for ever."""
        end, asked = time.monotonic() + patience, 0

        def ready() -> list[int]:
            nonlocal asked
            asked += 1
            if asked > _ASKED_AT_ONCE:
                for reply in self._step():
                    self._take(Round(self._progress.round + 1), reply)
            found = [m.node_id for m in self._roster.idle() if fits(m)]
            if asked > _ASKED_AT_ONCE and time.monotonic() > end:
                raise WaitsForMoreError(
                    f"the strategy waits for more edges than the {len(found)} that are ready; lower its options "
                    f"min_available_nodes, min_train_nodes and min_evaluate_nodes"
                )
            return found

        return ReadyNodes(ready, edge_of=self._edge_of)

    def _edge_of(self, node_id: int) -> str:
        member = self._roster.member_of(node_id)
        return member.edge if member is not None else str(node_id)

    def _call(self, step: str, call: Callable[[Strategy], _T]) -> _T:
        """Call the strategy; what it raises is reported as its own."""
        try:
            return call(self._strategy)
        except SolarCoronaError:
            raise
        except Exception as error:
            raise StrategyError(
                f"strategy {type(self._strategy).__name__} raised in {step}: {type(error).__name__}: {error}"
            ) from error


def model_of(content: RecordDict) -> ArrayRecord | None:
    """Return a message's model, or None."""
    return next(iter(arrays_in(content).values()), None)


def models_of(content: RecordDict) -> list[int]:
    """Return what tells a message's models from other objects: the same numbers, so the very same models."""
    return [id(arrays) for arrays in arrays_in(content).values()]


def numbers(metrics: Any) -> dict[str, float]:
    """Return the metrics of a record that are numbers."""
    if not isinstance(metrics, MetricRecord):
        return {}
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
