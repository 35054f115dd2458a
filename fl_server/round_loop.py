# SPDX-License-Identifier: Apache-2.0
"""The round loop: asks edges, hands replies to the strategy one by one as they arrive, evaluates, and goes on.

The strategy is an ordinary `flwr.serverapp.strategy.Strategy`. The global model of a round is evaluated inside the
next round's train exchange, so that a round costs one exchange and not two.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from ..core.errors import JobFailedError, StrategyError
from ..core.events import (
    EdgeFinished,
    EdgeLeftOut,
    Event,
    RoundEvaluated,
    RoundFinished,
    RoundStarted,
    Warned,
)
from ..lib import exchange
from ..lib.exchange import Instruction, Verb
from ..lib.records import arrays_in, with_content
from ..strategies.extensions import AsksEdges, PerEdge, TellsEvents
from ..strategies.model_form import model_fault, of_form
from .floor import (
    LOOK_EVERY_WAITING,
    Floor,
    Limits,
    Progress,
    Round,
    WaitsForMoreError,
    model_of,
    models_of,
    numbers,
)
from .mail import Mail, Outgoing, Sent
from .roster import Member, Roster

__all__ = ["ExportedModel", "Limits", "Progress", "RoundLoop"]

_EXPORT_WITHIN = 120.0
_STILL_WAITING = 6.0  # longer than an edge takes to connect again; most have been let go and do not come


@dataclass(frozen=True)
class ExportedModel:
    """A saved model as an edge made it: the file's bytes and ending, and the versions of what wrote it.

    `groups` has the bytes where each group has a model of its own.
    """

    data: bytes
    suffix: str
    edge: str
    groups: Mapping[str, bytes] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class RoundLoop(Floor):
    """Runs a job's rounds over one grid.

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
    after_round
        Called after each round with its number; it checkpoints.
    on_export
        Takes the model as an edge saved it (None if none could), before the edges are let go.
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
        after_round: Callable[[int], None],
        on_export: Callable[[ExportedModel | None], None],
    ) -> None:
        super().__init__(mail, roster, strategy, limits=limits, progress=progress, emit=emit)
        self._after_round, self._on_export = after_round, on_export
        self._entered_at = progress.round + 1
        self._to_evaluate: list[Message] = []

    def run(self) -> None:
        """Run all rounds that are left, have the model saved, and hand every edge the final one."""
        self._wait_for_edges("the job can start", all_of_them=True)
        if self._progress.arrays is None:
            self._progress.arrays = self._first_model()
        self._specs = exchange.array_specs(self._progress.arrays)
        for event in self._roster.set_reference(self._specs, self._progress.round):
            self._emit(event)
        for number in range(self._progress.round + 1, self._limits.rounds + 1):
            self._round(number)
            self._progress.round = number
            self._after_round(number)
        self._query(self._limits.rounds + 1)  # an edge that came last gets a model for its own data too
        self._on_export(self._export())
        self._finish()

    def let_go(self) -> None:
        """Hand the final model to the edges that still wait for it; all rounds are done, and the model is saved."""
        self._specs = exchange.array_specs(self._model())
        self._roster.set_reference(self._specs, self._progress.round)
        end = time.monotonic() + _STILL_WAITING
        while self._roster.missing() and time.monotonic() < end:
            for _ in self._step(look_every=LOOK_EVERY_WAITING):
                pass
            time.sleep(LOOK_EVERY_WAITING / 2)
        self._finish()

    def _round(self, number: int) -> None:
        self._wait_for_edges(f"round {number} can start")
        down, up = self._mail.bytes_down, self._mail.bytes_up
        self._query(number)
        arrays, started = self._model(), time.monotonic()
        state = Round(number)
        view = self._view(lambda m: m.can_train, patience=self._limits.start_deadline)
        messages = self._call(
            "configure_train", lambda s: list(s.configure_train(number, arrays, ConfigRecord(), view))
        )
        if not messages:
            raise StrategyError(f"the strategy asked no edge to train in round {number}; check its fractions")
        self._emit(RoundStarted(round=number, edges=len(messages)))
        self._mail.send([*self._train_messages(state, messages), *self._evaluate_messages(state, messages)])
        replies = self._train_replies(state)
        result, metrics = self._call("aggregate_train", lambda s: s.aggregate_train(number, self._as_taken(replies)))
        for _ in replies:  # A strategy may stop early; what is on its way is still screened.
            pass
        if result is None:
            self._emit(Warned(message=f"the strategy made no model of round {number}'s replies; the last one stays"))
        else:
            self._progress.arrays = self._of_form(result)
        self._progress.took(state.seconds)
        self._emit(
            RoundFinished(
                round=number,
                asked=len(state.asked),
                replied=len(state.replied),
                metrics=numbers(metrics),
                seconds=time.monotonic() - started,
                training_seconds=state.seconds,
                bytes_down=self._mail.bytes_down - down,
                bytes_up=self._mail.bytes_up - up,
            )
        )
        self._report_evaluation(number - 1, state.evaluations)
        self._to_evaluate = self._evaluation(number)
        self._emit_told()

    def _as_taken(self, replies: Iterator[Message]) -> Iterable[Message]:
        """Return replies one by one, or all at once for Flower's own: they keep all, and some look at them twice."""
        flowers = type(self._strategy).aggregate_train.__module__.partition(".")[0] == "flwr"
        return list(replies) if flowers else replies

    def _query(self, number: int) -> None:
        """Let a strategy that asks edges before they train do so, as often as it has questions."""
        strategy = self._strategy
        if not isinstance(strategy, AsksEdges):
            return
        for reply in self._step():  # who has just come is asked as well
            self._take(Round(self._progress.round + 1), reply)
        while True:
            view, arrays = self._view(lambda m: m.can_train, patience=self._limits.patience), self._model()
            messages = self._call("configure_query", lambda _: list(strategy.configure_query(number, arrays, view)))  # noqa: B023
            if not messages:
                return
            # No `slowest`: that is of training, and what follows an answer may come at once.
            instruction = Instruction(verb=Verb.QUERY, round=number)
            self._mail.send([Outgoing(m.metadata.dst_node_id, m.content, instruction) for m in messages])
            replies = self._query_replies({m.metadata.dst_node_id for m in messages})
            self._call("aggregate_query", lambda _: strategy.aggregate_query(number, replies))  # noqa: B023
            self._emit_told()

    def _query_replies(self, asked: set[int]) -> list[Message]:
        replies: list[Message] = []
        end = time.monotonic() + self._limits.round_deadline
        while time.monotonic() < end and any(self._owes(node_id) for node_id in asked):
            replies += [
                with_content(reply.message, dict(reply.content.items()))
                for reply in self._step()
                if reply.sent.instruction.verb is Verb.QUERY and reply.error is None
            ]
            self._mail.wait(max(end - time.monotonic(), 0.01))
        for node_id in asked:
            self._mail.forget(node_id)  # who is late is asked anew in the next round
        return replies

    def _emit_told(self) -> None:
        """Pass on what a strategy has to tell."""
        if isinstance(self._strategy, TellsEvents):
            for event in self._strategy.take_events():
                self._emit(event)

    def _evaluation(self, number: int) -> list[Message]:
        """Return whom the strategy lets evaluate the round's model."""
        view, arrays = self._view(lambda m: m.can_evaluate, patience=self._limits.patience), self._model()
        if not view.get_node_ids():
            return []
        try:
            return self._call(
                "configure_evaluate", lambda s: list(s.configure_evaluate(number, arrays, ConfigRecord(), view))
            )
        except WaitsForMoreError as error:
            self._emit(Warned(message=f"round {number} is not evaluated: {error}"))
            return []

    def _of_form(self, result: ArrayRecord) -> ArrayRecord:
        try:
            return of_form(result, self._specs)
        except (TypeError, ValueError) as error:
            raise StrategyError(
                f"strategy {type(self._strategy).__name__} made a model that no edge can take: {error}"
            ) from error

    def _train_messages(self, state: Round, messages: list[Message]) -> Iterator[Outgoing]:
        evaluate = {m.metadata.dst_node_id: models_of(m.content) for m in self._to_evaluate}
        # Before the first round, and after a resume, nobody has been asked to evaluate the model that is at hand.
        first = state.number == self._entered_at
        for message in messages:
            node_id = message.metadata.dst_node_id
            member = self._roster.member_of(node_id)
            if member is None:
                continue
            # The same objects, so the same models: what was to be evaluated is what is trained on.
            same = first or evaluate.get(node_id) == models_of(message.content)
            instruction = Instruction(
                verb=Verb.TRAIN,
                round=state.number,
                evaluate=same,
                slowest=self._progress.slowest,
                poll=min(max(0.015 * len(messages), 0.02), 2.0),
            )
            state.asked[member.edge] = Outgoing(node_id, message.content, instruction)
            yield state.asked[member.edge]

    def _evaluate_messages(self, state: Round, train: list[Message]) -> Iterator[Outgoing]:
        """Yield the evaluations that no train message does along the way."""
        trained = {m.metadata.dst_node_id: models_of(m.content) for m in train}
        for message in self._to_evaluate:
            node_id = message.metadata.dst_node_id
            member = self._roster.member_of(node_id)
            if member is not None and trained.get(node_id) != models_of(message.content):
                yield Outgoing(node_id, message.content, Instruction(verb=Verb.EVALUATE, round=state.number - 1))

    def _train_replies(self, state: Round) -> Iterator[Message]:
        """Yield the replies that count, as they arrive; end when all are in, or at the deadline."""
        start = time.monotonic()
        deadline = start + self._limits.round_deadline
        last = start + max(self._limits.round_deadline, self._limits.start_deadline)
        while True:
            now = time.monotonic()
            enough = len(state.replied) >= self._limits.min_edges
            waiting = self._owed(state)
            lost = state.asked.keys() - state.replied - state.refused
            if (enough and (not waiting or now >= deadline)) or not (waiting or lost) or now >= last:
                break
            for reply in self._step(state):
                message = self._take(state, reply)
                del reply
                if message is not None:
                    yield message
                del message
            if self._owed(state):
                self._mail.wait(max(deadline - time.monotonic(), 0.01))
            elif len(state.replied) < self._limits.min_edges:
                time.sleep(LOOK_EVERY_WAITING)
        self._close(state, time.monotonic() - start)

    def _owed(self, state: Round) -> list[Sent]:
        return [
            s
            for s in self._mail.outstanding()
            if s.instruction.round in (state.number, state.number - 1)
            and (
                (s.instruction.verb is Verb.TRAIN and s.instruction.round == state.number)
                or (s.instruction.verb is Verb.EVALUATE and s.instruction.round == state.number - 1)
            )
        ]

    def _close(self, state: Round, seconds: float) -> None:
        late = [edge for edge, out in state.asked.items() if edge not in state.replied and self._owes(out.node_id)]
        for edge in late:
            self._emit(
                EdgeLeftOut(edge=edge, round=state.number, reason=f"no reply within {seconds:.0f} s; its work goes on")
            )
        if len(state.replied) < self._limits.min_edges:
            missing = [edge for edge in state.asked if edge not in state.replied]
            raise JobFailedError(
                f"round {state.number}: {len(state.replied)} of {len(state.asked)} edges replied in {seconds:.0f} s, "
                f"and minEdges is {self._limits.min_edges}; no good reply came from {', '.join(missing)} "
                f"(see the logs). Lower aggregation.minEdges, or raise roundDeadline"
            )

    def _report_evaluation(self, number: int, evaluations: list[tuple[str, Message]]) -> None:
        if not evaluations:
            return
        evaluations = self._of_most(number, evaluations)
        messages = [message for _, message in evaluations]
        if number >= 1:
            metrics = self._call("aggregate_evaluate", lambda s: s.aggregate_evaluate(number, messages))
        else:  # Flower has no evaluation before the first round, so no strategy expects one.
            # What an edge measured of other models beside its own is no part of the mean.
            own = [RecordDict({"metrics": m.content["metrics"]}) for m in messages]
            metrics = aggregate_metricrecords(own, "num-examples")
        self._emit(
            RoundEvaluated(
                round=number,
                metrics=numbers(metrics),
                edges={edge: numbers(m.content["metrics"]) for edge, m in evaluations},
            )
        )

    def _of_most(self, number: int, evaluations: list[tuple[str, Message]]) -> list[tuple[str, Message]]:
        """Return the evaluations that report the same metrics as most do."""
        usual = Counter(frozenset(m.content["metrics"]) for _, m in evaluations).most_common(1)[0][0]
        for edge, message in evaluations:
            names = sorted(message.content["metrics"])
            if set(names) != usual:
                reason = f"its evaluation reports {', '.join(names)}, where most report {', '.join(sorted(usual))}"
                self._emit(EdgeLeftOut(edge=edge, round=number, reason=reason))
        return [(edge, m) for edge, m in evaluations if set(m.content["metrics"]) == usual]

    def _first_model(self) -> ArrayRecord:
        """Return the model to start from: the first ready edge's own."""
        asked: list[str] = []
        while member := next((m for m in self._roster.idle() if m.can_train and m.edge not in asked), None):
            asked.append(member.edge)
            reply = self._ask(member, RecordDict(), Verb.INITIAL, self._limits.round_deadline)
            arrays = model_of(reply.content) if reply is not None else None
            fault = "no model came" if arrays is None else model_fault(arrays, exchange.array_specs(arrays))
            if arrays is not None and fault is None:
                return arrays
            self._emit(Warned(message=f"the first model cannot be {member.edge}'s: {fault}"))
        raise JobFailedError(
            f"none of the edges that were asked has a first model ({', '.join(asked)}); see their logs"
        )

    def _export(self) -> ExportedModel | None:
        """Have the model saved by an edge: of several groups in one file, or where that cannot be, each in its own."""
        strategy = self._strategy
        self._wait_for_edges("the final model can be saved", at_least=1)
        content = RecordDict({"arrays": self._model()})
        if isinstance(strategy, PerEdge):
            content = self._call("content_to_save", lambda _: strategy.content_to_save())
        saved = self._saved(content)
        models = arrays_in(content)
        if saved is not None or len(models) < 2:
            return saved
        self._emit(Warned(message=f"no edge can save the {len(models)} groups' models in one file; each gets its own"))
        each = {key.rpartition("/")[2]: self._saved(RecordDict({"arrays": arrays})) for key, arrays in models.items()}
        whole = {name: one for name, one in each.items() if one is not None}
        if not whole:
            return None
        first = next(iter(whole.values()))
        groups = {name: one.data for name, one in whole.items()}
        return ExportedModel(first.data, first.suffix, first.edge, groups, first.versions)

    def _saved(self, content: RecordDict) -> ExportedModel | None:
        tried: set[str] = set()
        while member := next((m for m in self._roster.idle() if m.unfit is None and m.edge not in tried), None):
            tried.add(member.edge)
            reply = self._ask(member, content, Verb.EXPORT, _EXPORT_WITHIN)
            record = reply.content.get("model") if reply is not None else None
            data = record.get("data") if isinstance(record, ConfigRecord) else None
            if isinstance(data, bytes) and reply is not None and reply.answer is not None:
                return ExportedModel(data, reply.answer.suffix, member.edge, versions=reply.answer.versions)
            if len(arrays_in(content)) > 1:
                return None  # what one edge's model cannot do, the same model cannot on another
        return None

    def _final_contents(self) -> Callable[[Member], RecordDict]:
        """Return what gives each edge its final model: the same for all, or the strategy's choice."""
        same, strategy = RecordDict({"arrays": self._model()}), self._strategy
        if not isinstance(strategy, PerEdge):
            return lambda _: same
        return lambda member: self._call("content_for", lambda _: strategy.content_for(member.edge))

    def _finish(self) -> None:
        """Hand the final model to every edge, also to one that is late, and take its last evaluation."""
        content = self._final_contents()
        finish = Instruction(
            verb=Verb.FINISH,
            round=self._progress.round,
            evaluate=True,
            alone_epochs=self._limits.alone_epochs,
        )
        names: dict[int, str] = {}
        state = Round(self._progress.round + 1)
        end = time.monotonic() + self._limits.round_deadline * max(1, self._limits.alone_epochs)
        while time.monotonic() < end:
            fresh = [m for m in self._roster.idle() if m.unfit is None and m.node_id not in names]
            self._mail.send([Outgoing(m.node_id, content(m), finish) for m in fresh])
            names.update({m.node_id: m.edge for m in fresh})
            late = [m for m in self._roster.members() if m.unfit is None and m.node_id not in names]
            if not late and not any(self._owes(node_id) for node_id in names):
                break
            for reply in self._step():
                if reply.sent.instruction.verb is not Verb.FINISH:
                    continue
                edge = names[reply.sent.node_id]
                if reply.error is not None:
                    self._emit(Warned(message=f"{edge} did not confirm the final model: {reply.error}"))
                    continue
                metrics = reply.content.get("metrics")
                self._keep_evaluation(state, edge, reply, metrics)
                said = reply.answer
                self._emit(
                    EdgeFinished(
                        edge=edge,
                        metrics=numbers(metrics),
                        alone=said.alone if said is not None else {},
                        one_model=said.one_model if said is not None else {},
                        before_finetune=said.before_finetune if said is not None else {},
                        tasks=said.tasks if said is not None else {},
                    )
                )
            self._mail.wait(max(end - time.monotonic(), 0.01))
        self._report_evaluation(self._progress.round, state.evaluations)
        for member in self._roster.idle():
            if member.unfit is not None:
                self._mail.tell([member.node_id], f"the job is done without this edge: {member.unfit}")
