# SPDX-License-Identifier: Apache-2.0
"""Federated learning for edges whose data are of several tasks, without saying which or how many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log as flower_log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from ..core.errors import StrategySpecError, WireError
from ..core.events import Event, Warned
from ..lib import exchange
from ..lib.exchange import ModelOrder, WorkOrder
from ..lib.questions import Response
from ..lib.records import arrays_in, metrics_in, with_content
from ..lib.survey import SurveyAnswer, TaskNames, tell_known
from .discovery import Discovery
from .funnel import Funnel
from .grouped import expect, told
from .nodes import EdgeNames
from .signing import EMBEDDINGS, Signing
from .task_groups import TaskGroups
from .tracks import Track, TrainPart
from .trials import ONE, Trials, mean_model
from .update_fit import UpdateFit

__all__ = ["SimilarityGrouping"]

_WEIGHT = "num-examples"
_OWN = "groups"


class SimilarityGrouping(Strategy):
    """Groups similar tasks of edges and gives each group a model, a base strategy and what helps of the others.

    Each edge sends a signature of a few kilobytes for each of its tasks, before it trains. Tasks whose data differ
    neither by chance nor in size are one group; groups train apart, each with a base strategy of its own. For some
    rounds one model for all is trained beside them, and a group keeps its own only if its edges' held-out samples are
    better off. An edge that comes late gets its group's model in its first message.

    The method is a study of our own over: class means of random features (Rahimi & Recht 2007), a two-sample test in
    high dimension (Chen & Qin 2010), and clustered federated learning (Sattler et al. 2019; Ghosh et al. 2020).

    Parameters
    ----------
    base
        The strategy inside each group: any name that a job may give.
    base_options
        Arguments of the base strategy.
    transfer
        What groups take from each other: `none`, `shared-layers`, `borrow` (small groups from like ones), or `auto`,
        which tries where it can help and keeps what held-out samples prefer.
    guard_rounds
        After so many rounds the groups are compared with one model for all; 0 leaves that out.
    finetune
        So many fits each edge goes on alone at the end, kept only if samples that are held out are clearly better off;
        by default two for three rounds of the job.
    dimension, seed
        Of the signatures; see `SignatureSpec`.
    noise
        Gaussian noise on signatures, for privacy; see `solar_corona.lib.signatures.noise_for`.
    min_count
        Classes with fewer samples on an edge are no part of its signature, so that neither their number nor what few
        samples give away leaves it.
    embedding
        `random`: signatures are of the samples themselves. `model`: of the output of the model's last hidden layer,
        by the weights that the job has when it asks first; Keras and torch models can, others need a method `embed`.
    warm_rounds
        So many rounds all edges train one model before they are asked: for `embedding: model`, where a job starts
        from a model that has not learned anything yet.
    use_labels
        Whether signatures go by class; without, only inputs are compared.
    compare_global
        Train one model for all to the end, to show what groups gained.
    discover
        Find the tasks that edges mix, as the job's `tasks.division: discovery` says: after their signatures all edges
        are asked for sums that tell how many tasks there are and where (see `task_search`), and each then divides its
        samples. Again once twice as many edges are there. If one task is found, all stays as it was.
    fraction_train
        As in Flower's `FedAvg`, in each group.
    rounds
        The job's rounds, where they are known: with few, groups are compared earlier.
    """

    def __init__(
        self,
        base: str = "fedavg",
        base_options: Mapping[str, Any] | None = None,
        transfer: str = "auto",
        guard_rounds: int = 6,
        finetune: int | None = None,
        dimension: int = 64,
        seed: int = 0,
        noise: float = 0.0,
        min_count: int = 3,
        embedding: str = "random",
        warm_rounds: int = 0,
        use_labels: bool = True,
        compare_global: bool = False,
        discover: bool = False,
        fraction_train: float = 1.0,
        rounds: int | None = None,
    ) -> None:
        from .registry import create

        finetune = 2 * (rounds or 0) // 3 if finetune is None else finetune
        if guard_rounds < 0 or finetune < 0:
            raise StrategySpecError(
                f"guard_rounds is {guard_rounds} and finetune {finetune}; expected whole numbers from 0"
            )
        if discover and noise:
            raise StrategySpecError(
                f"noise is {noise} and tasks.division is 'discovery': it is meant for signatures, and discovery "
                f"sends many more sums of the same samples; leave out one of the two"
            )
        self._own = Track(_OWN, partial(create, base, base_options, fraction=fraction_train))
        self._own.make_base()  # a wrong option is said now, not after the edges have come
        self._base, self._finetune = base, finetune
        expect(embedding in EMBEDDINGS, "embedding", embedding, f"one of {', '.join(EMBEDDINGS)}")
        expect(warm_rounds >= 0, "warm_rounds", warm_rounds, "a whole number from 0")
        spec = {"dimension": dimension, "seed": seed, "noise": noise, "min_count": min_count, "use_labels": use_labels}
        self._warm, self._signing = warm_rounds, Signing(embedding, **spec)
        self._groups = TaskGroups(self._signing.spec)
        trial_rounds = guard_rounds if rounds is None else min(guard_rounds, max(1, rounds - 2))
        self._trials = Trials(
            partial(create, base, base_options), transfer=transfer, rounds=trial_rounds, keep_one=compare_global
        )
        self._fit = UpdateFit()
        self._events: list[Event] = []
        self._names = EdgeNames()
        self._asked: dict[str, dict[str, TrainPart]] = {}
        self._evaluated: dict[str, dict[str, TrainPart]] = {}
        self._discovery = Discovery(enabled=discover)
        self._questioned: tuple[int, set[str]] = (0, set())
        self._again: set[str] = set()
        self._notices: dict[str, str] = {}
        self._unsure: set[str] = set()

    def summary(self) -> None:
        """Log what is inside."""
        flower_log(INFO, "\t├──> similar tasks are grouped; in each group: %s", self._base)

    def configure_query(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> Iterable[Message]:
        """Ask the edges that are new, or whose updates do not fit, for their signatures: each once a round."""
        if server_round <= self._warm:
            return []
        here = self._names.here(grid)
        search = self._discovery.question()
        if search is not None:
            members = self._discovery.asked(here)
            if members:
                return [Message(search.to_content(), dst_node_id=node, message_type="query") for node in members]
            self._discovery.give_up()
            self._regroup(server_round, "all edges that were looking for tasks have gone")
        asked = self._questioned[1] if self._questioned[0] == server_round else set()
        due = {n: e for n, e in here.items() if e not in asked and (e in self._again or e not in self._groups.tasks)}
        self._questioned = server_round, asked | set(due.values())
        if not due:
            return []
        question = self._signing.question(arrays, self._discovery.model)
        self._groups.spec = self._signing.spec
        return [Message(question, dst_node_id=node, message_type="query") for node in due]

    def aggregate_query(self, server_round: int, replies: Sequence[Message]) -> None:
        """Group the tasks that edges named with those known before."""
        if self._discovery.search is not None:
            self._discovered(server_round, replies)
            return
        replies, anew = self._signing.agree(replies, begun=bool(self._groups.tasks))
        self._groups.spec = self._signing.spec
        self._questioned[1].difference_update(self._names.of(reply.metadata.src_node_id) for reply in anew)
        came = [self._take_survey(reply) for reply in replies]
        self._again -= set(came)
        if came and self._discovery.begin(
            self._signing.plain_spec, len(self._groups.tasks) - len(self._groups.refused)
        ):
            return
        if came:
            self._regroup(server_round, f"signatures of {_several(came)} came")

    def _discovered(self, server_round: int, replies: Sequence[Message]) -> None:
        """Go on with the search; once it is done, have all edges divide their samples by what was found."""
        self._groups.signature_bytes += self._discovery.take(
            {self._names.of(reply.metadata.src_node_id): reply.content for reply in replies}
        )
        if self._discovery.search is not None:
            return
        self._events += [Warned(message=text) for text in self._discovery.warnings()]
        if self._discovery.fresh:
            self._groups.by_name = True
            self._questioned = (0, set())
            self._again = set(self._groups.tasks) - set(self._groups.refused)
        else:
            self._regroup(server_round, f"signatures of {_several(list(self._groups.tasks))} came")

    def _take_survey(self, reply: Message) -> str:
        edge, parts = self._names.of(reply.metadata.src_node_id), tuple[bytes, ...]()
        try:
            response = Response.from_content(reply.content)
            parts = response.parts
            if response.refused:
                raise WireError(response.refused)
            answer = SurveyAnswer.of(response)
            if answer.moments:
                raise WireError("it sent moments where a signature was asked for")
            if answer.lost:
                self._again.add(edge)
                return edge
            self._groups.take(edge, answer, parts)
        except WireError as error:
            self._groups.refuse(edge, str(error), parts)
            text = f"{edge} gave no signature that can be used, and goes with the largest group: {error}"
            self._notices[edge] = text
            self._events.append(Warned(message=text))
            return edge
        if not all(task.labelled for task in answer.tasks) and self._groups.spec.use_labels:
            text = f"{edge} has no labels: where it is compared, only inputs count"
            self._events.append(Warned(message=text))
        return edge

    def _regroup(self, server_round: int, reason: str) -> None:
        moved = self._groups.regroup()
        for (edge, _), (before, after) in moved.items():
            self._fit.forget(edge)
            if before is not None and after not in self._own.groups and before in self._own.groups:
                self._own.ensure(after, self._own.groups[before].arrays)
        if moved:
            self._tell_groups(server_round, reason)

    def _tell_groups(self, server_round: int, reason: str) -> None:
        self._events.append(self._groups.event(server_round, reason, self._trials.merged))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each edge the models of its tasks' groups, and those that are tried beside them."""
        del config  # each base strategy makes its own
        here = self._names.here(grid)
        members = self._members(here, arrays)
        chosen = self._own.configure(server_round, members, self._names.of)
        self._events += told(self._own, server_round, chosen)
        self._events += self._trials.told(server_round, self._own)
        for track in self._trials.begin(self._own, self._groups, arrays):
            together = {name: [n for n in nodes if n in chosen] for name, nodes in members.items()}
            beside = {ONE: list(chosen)} if track.name == ONE else together
            for node, parts in track.configure(server_round, beside, self._names.of).items():
                chosen[node].extend(parts)
        self._asked = {}
        self._unsure |= self._names.back
        self._names.back.clear()
        return self._messages(chosen, self._asked, "train")

    def _members(self, here: Mapping[int, str], arrays: ArrayRecord) -> dict[str, list[int]]:
        """Return the nodes of each group, by the names under which groups train."""
        members: dict[str, list[int]] = {}
        for node, edge in here.items():
            for name in self._tasks_of(edge):
                self._own.ensure(name, arrays)
                members.setdefault(name, []).append(node)
        return members

    def _tasks_of(self, edge: str) -> dict[str, tuple[int, ...]]:
        """Return the training groups of an edge's tasks."""
        found: dict[str, tuple[int, ...]] = {}
        for name, places in self._groups.of_edge(edge).items():
            training = self._trials.merged.get(name, name)
            found[training] = (*found.get(training, ()), *places)
        return found

    def _messages(
        self, chosen: Mapping[int, Sequence[TrainPart]], asked: dict[str, dict[str, TrainPart]], kind: str
    ) -> list[Message]:
        """Return a message for each node; those that get the same share one content, which is packed once."""
        shared: dict[tuple[object, ...], RecordDict] = {}
        found = []
        for node, parts in chosen.items():
            edge = self._names.of(node)
            tasks = self._tasks_of(edge)
            notice = self._notices.pop(edge, "") if kind == "train" else ""
            # The only model of all has the plain form; else each group's has a name of its own, by which it is coded.
            plain = len(parts) == len(tasks) == len(self._own.groups) == 1 and not notice
            named = {"arrays" if plain else f"arrays/{part.track}/{part.group}": part for part in parts}
            asked[edge] = named
            ids = tuple((key, id(part.arrays), id(part.config)) for key, part in named.items())
            like = (ids, notice, tuple(tasks.items()) if len(tasks) > 1 else ())
            if like not in shared and plain:
                shared[like] = RecordDict({"arrays": parts[0].arrays, "config": parts[0].config})
            elif like not in shared:
                shared[like] = self._ordered(edge, named, notice=notice)
            content = shared[like]
            if kind == "train" and edge in self._unsure and edge in self._groups.digests:
                content = tell_known(content, self._groups.digests[edge])
                self._unsure.discard(edge)
            found.append(Message(content, dst_node_id=node, message_type=kind))
        return found

    def _ordered(self, edge: str, parts: Mapping[str, TrainPart], *, notice: str = "", finetune: int = 0) -> RecordDict:
        tasks = self._tasks_of(edge)
        content = RecordDict({key: part.arrays for key, part in parts.items()})
        content["config"] = next(iter(parts.values())).config
        models = tuple(
            ModelOrder(
                key=key,
                tasks=tasks.get(part.group) if len(tasks) > 1 and part.track != ONE else None,
                aside=part.track != _OWN,
            )
            for key, part in parts.items()
        )
        return exchange.ordered(content, WorkOrder(models=models, notice=notice, finetune=finetune))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let each group's base strategy aggregate its own replies as they come; return the groups' mean model."""
        tracks = {track.name: track for track in (self._own, *self._trials.tracks)}
        parts = {(part.track, part.group) for asked in self._asked.values() for part in asked.values()}
        samples: dict[tuple[str, str], float] = {}
        metrics, changed = list[RecordDict](), list[str]()
        with Funnel({key: tracks[key[0]].aggregate(key[1], server_round) for key in parts}) as funnel:
            for reply in replies:
                edge = self._names.of(reply.metadata.src_node_id)
                asked = self._asked.get(edge, {})
                if reply.has_error():
                    continue
                for key, arrays in arrays_in(reply.content).items():
                    part, measured = asked.get(key), metrics_in(reply.content).get(exchange.metrics_key(key))
                    if part is None or measured is None:
                        continue
                    where = part.track, part.group
                    samples[where] = samples.get(where, 0.0) + _number(measured.get(_WEIGHT))
                    if part.track == _OWN:
                        self._fit.add(edge, part.group, part.arrays, arrays)
                        metrics.append(RecordDict({"metrics": measured}))
                    funnel.put(where, with_content(reply, {"arrays": arrays, "metrics": measured}))
                    del arrays
                if _has_survey(reply):
                    changed.append(self._take_survey(reply))
                    self._unsure.add(edge)
                del reply
            results = funnel.results()
        for track in tracks.values():
            track.take(
                {group: made[0] for (name, group), made in results.items() if name == track.name},
                {group: count for (name, group), count in samples.items() if name == track.name},
            )
        self._after_round(server_round, changed)
        if not metrics:
            return None, None
        return mean_model(self._own), aggregate_metricrecords(metrics, _WEIGHT)

    def _after_round(self, server_round: int, changed: Sequence[str]) -> None:
        for misfit in self._fit.close():
            if misfit.edge in self._groups.refused and misfit.better is not None:
                self._groups.place(misfit.edge, 0, misfit.better)
                self._fit.forget(misfit.edge)
                self._events.append(Warned(message=f"round {server_round}: {misfit.text}; it goes there"))
                self._tell_groups(server_round, f"the updates of {misfit.edge} fit another group")
                continue
            self._again.add(misfit.edge)
            why = "its data may have changed, or its signature may not be its own; it is asked for it again"
            self._events.append(Warned(message=f"round {server_round}: {misfit.text}; {why}"))
        if changed:
            self._regroup(server_round, f"the data of {_several(changed)} changed")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have each edge evaluate the models that it would train on next."""
        del server_round, config
        here = self._names.here(grid)
        self._members(here, arrays)
        self._evaluated = {}
        parts = {node: self._parts_of(edge) for node, edge in here.items()}
        return self._messages(parts, self._evaluated, "evaluate")

    def _parts_of(self, edge: str) -> list[TrainPart]:
        names = list(self._tasks_of(edge))
        parts = [TrainPart(_OWN, name, self._own.groups[name].arrays) for name in names]
        for track in self._trials.tracks:
            beside = [ONE] if track.name == ONE else names
            parts += [TrainPart(track.name, name, track.groups[name].arrays) for name in beside if name in track.groups]
        return parts

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the edges' own metrics; compare what was tried, once it has been tried for long enough."""
        found = []
        for reply in replies:
            if reply.has_error():
                continue
            edge = self._names.of(reply.metadata.src_node_id)
            measured = metrics_in(reply.content)
            for key, part in self._evaluated.get(edge, {}).items():
                for group, tasks in self._on_samples_of(edge, part).items():
                    metrics = measured.get(exchange.evaluation_key(key, tasks))
                    if metrics is not None:
                        self._trials.measured(edge, part.track, group, metrics)
            if "metrics" in measured:
                found.append(RecordDict({"metrics": measured["metrics"]}))
        decisions = self._trials.decide(server_round, self._own, self._groups)
        self._events.extend(decisions)
        if decisions:
            self._tell_groups(server_round, "held-out samples were compared")
        return aggregate_metricrecords(found, _WEIGHT) if found else None

    def _on_samples_of(self, edge: str, part: TrainPart) -> dict[str, tuple[int, ...] | None]:
        """Return the groups on whose samples an edge measures a model: one model for all on those of each group."""
        if part.track != ONE:
            return {part.group: None}
        groups = self._tasks_of(edge)
        return dict.fromkeys(groups) if len(groups) == 1 else dict(groups)

    def content_for(self, edge: str) -> RecordDict:
        """Return the models of an edge's groups, to be fine-tuned there, and the one model to compare with."""
        names = list(self._tasks_of(edge))
        parts = {f"arrays/{p.track}/{p.group}": p for p in self._parts_of(edge) if p.track == _OWN or p.group == ONE}
        assert names
        return self._ordered(edge, parts, notice=self._notices.pop(edge, ""), finetune=self._finetune)

    def content_to_save(self) -> RecordDict:
        """Return all groups' models, and which edge's task goes with which."""
        used: dict[str, list[str]] = {}
        for edge, tasks in self._groups.tasks.items():
            for name, places in self._tasks_of(edge).items():
                labels = [edge if len(tasks) == 1 else f"{edge}/{tasks[place].name}" for place in places]
                used.setdefault(name, []).extend(labels)
        groups = {name: self._own.groups[name].arrays for name in used if name in self._own.groups}
        if len(groups) < 2:
            groups = groups or {name: group.arrays for name, group in self._own.groups.items()}
            return RecordDict({"arrays": next(iter(groups.values()))})
        content = RecordDict({f"arrays/{name}": arrays for name, arrays in groups.items()})
        return TaskNames(tuple(groups), {label: name for name in groups for label in used[name]}).attach(content)

    def take_events(self) -> Sequence[Event]:
        """Return what has happened since the last call."""
        events, self._events = self._events, []
        return events

    def state_dict(self) -> dict[str, Any]:
        """Return the groups, their models and base strategies, and what is being tried."""
        kept = {**self._discovery.state(), **self._signing.state()}
        return {**kept, **self._groups.state(), **self._own.state(), **self._trials.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._signing.restore(state)
        self._groups.spec = self._signing.spec
        self._groups.restore(state)
        self._discovery.restore(state)
        self._unsure = set(self._groups.tasks)
        self._own.restore(state)
        self._trials.restore(state, self._groups, self._own)


def _has_survey(reply: Message) -> bool:
    return Response.is_in(reply.content)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _several(edges: Sequence[str]) -> str:
    return ", ".join(edges) if len(edges) <= 3 else f"{len(edges)} edges"
