# SPDX-License-Identifier: Apache-2.0
"""Federated learning for edges whose data are of several tasks, without saying which or how many."""

from __future__ import annotations

from collections import Counter
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
from ..lib.signatures import InputMoments, Signature, SignatureSpec
from ..lib.survey import SurveyAnswer, SurveyQuestion, TaskNames
from .funnel import Funnel
from .task_groups import TaskGroups
from .tracks import Track, TrainPart
from .trials import ONE, Trials, mean_model
from .update_fit import UpdateFit

__all__ = ["SimilarityGrouping"]

_WEIGHT = "num-examples"
_OWN = "groups"
_REFINEMENTS = 4
# Groups of less than this share of all samples are what is left over, not tasks.
_SHARE = 0.02


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
    use_labels
        Whether signatures go by class; without, only inputs are compared.
    compare_global
        Train one model for all to the end, to show what groups gained.
    discover
        Edges find out their tasks themselves, as the job's `tasks.division: discovery` says: what they found is
        grouped, and given back to all of them to divide their samples by, some times over.
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
        self._own = Track(_OWN, partial(create, base, base_options, fraction=fraction_train))
        self._own.make_base()  # a wrong option is said now, not after the edges have come
        self._base, self._finetune = base, finetune
        self._groups = TaskGroups(SignatureSpec(dimension=dimension, seed=seed, noise=noise, use_labels=use_labels))
        trial_rounds = guard_rounds if rounds is None else min(guard_rounds, max(1, rounds - 2))
        self._trials = Trials(
            partial(create, base, base_options), transfer=transfer, rounds=trial_rounds, keep_one=compare_global
        )
        self._fit = UpdateFit()
        self._events: list[Event] = []
        self._edges: dict[int, str] = {}
        self._asked: dict[int, dict[str, TrainPart]] = {}
        self._evaluated: dict[int, dict[str, TrainPart]] = {}
        self._discover, self._refined, self._untold = discover, 0, False
        self._questioned: tuple[int, set[str]] = (0, set())
        self._again: set[str] = set()
        self._notices: dict[str, str] = {}

    def summary(self) -> None:
        """Log what is inside."""
        flower_log(INFO, "\t├──> similar tasks are grouped; in each group: %s", self._base)

    def configure_query(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> Iterable[Message]:
        """Ask the edges that are new, or whose updates do not fit, for their signatures: each once a round."""
        del arrays
        here = self._here(grid)
        asked = self._questioned[1] if self._questioned[0] == server_round else set()
        due = {n: e for n, e in here.items() if e not in asked and (e in self._again or e not in self._groups.tasks)}
        self._questioned = server_round, asked | set(due.values())
        question = SurveyQuestion(spec=self._groups.spec).to_question(self._found()).to_content()
        return [Message(question, dst_node_id=node, message_type="query") for node in due]

    def aggregate_query(self, server_round: int, replies: Sequence[Message]) -> None:
        """Group the tasks that edges named with those known before."""
        if self._agree_on_scale(replies):
            return
        came = [self._take_survey(reply) for reply in replies]
        self._again -= set(came)
        if came and self._discover and self._refined < _REFINEMENTS:
            # What each edge found by itself was rough: it is given what all found together, and divides anew.
            self._refined += 1
            self._untold = bool(self._groups.regroup()) or self._untold
            self._questioned = (0, set())
            self._again = set(self._groups.tasks) - set(self._groups.refused)
            return
        if came:
            self._regroup(server_round, f"signatures of {_several(came)} came")

    def _found(self) -> list[Signature]:
        """Return the tasks that edges which mix them may tell their samples by."""
        if not self._discover:
            return []
        sums = self._groups.sums()
        least = _SHARE * sum(signature.total for signature in sums)
        return [signature for signature in sums if signature.total >= least]

    def _agree_on_scale(self, replies: Sequence[Message]) -> bool:
        """If most edges sent moments of their inputs, make them everybody's scale; have all asked anew.

        Those who come later go by what the first ones did: one of them is no reason to sign everything anew.
        """
        spec = self._groups.spec
        if spec.centre or spec.shared_scale is False:
            return False
        found, answered = _moments_in(replies)
        if spec.shared_scale is None and answered and len(found) < answered:
            spec = spec.model_copy(update={"shared_scale": 2 * len(found) > answered})
            if not found:
                self._groups.spec = spec
                return False
        elif not found:
            return False
        else:
            usual = Counter(len(moments.means) for moments in found).most_common(1)[0][0]
            spec = spec.standardised([m for m in found if len(m.means) == usual])
        self._groups.restart(spec)
        self._questioned = (0, set())
        return True

    def _take_survey(self, reply: Message) -> str:
        edge = self._edges.get(reply.metadata.src_node_id, str(reply.metadata.src_node_id))
        try:
            response = Response.from_content(reply.content)
            if response.refused:
                raise WireError(response.refused)
            answer = SurveyAnswer.of(response)
            if answer.moments:
                raise WireError("it sent moments where a signature was asked for")
            self._groups.take(edge, answer, response.parts)
        except WireError as error:
            self._groups.refuse(edge, str(error))
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
        if moved or self._untold:
            self._tell_groups(server_round, reason)
            self._untold = False

    def _tell_groups(self, server_round: int, reason: str) -> None:
        self._events.append(self._groups.event(server_round, reason, self._trials.merged))

    def _here(self, grid: Grid) -> dict[int, str]:
        edge_of = getattr(grid, "edge_of", str)
        here = {node: edge_of(node) for node in grid.get_node_ids()}
        self._edges.update(here)
        return here

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each edge the models of its tasks' groups, and those that are tried beside them."""
        del config  # each base strategy makes its own
        here = self._here(grid)
        members = self._members(here, arrays)
        chosen = self._own.configure(server_round, members, self._edges.__getitem__)
        for track in self._trials.begin(self._own, self._groups, arrays):
            together = {name: [n for n in nodes if n in chosen] for name, nodes in members.items()}
            beside = {ONE: list(chosen)} if track.name == ONE else together
            for node, parts in track.configure(server_round, beside, self._edges.__getitem__).items():
                chosen[node].extend(parts)
        self._asked = {}
        return [self._message(node, parts, self._asked, "train") for node, parts in chosen.items()]

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

    def _message(
        self, node: int, parts: Sequence[TrainPart], asked: dict[int, dict[str, TrainPart]], kind: str
    ) -> Message:
        edge = self._edges[node]
        notice = self._notices.pop(edge, "") if kind == "train" else ""
        if len(parts) == 1 and len(self._tasks_of(edge)) == 1 and not notice:
            asked[node] = {"arrays": parts[0]}
            config = parts[0].config
            content = RecordDict({"arrays": parts[0].arrays, "config": config})
        else:
            asked[node] = {f"arrays/{part.track}/{part.group}": part for part in parts}
            content = self._ordered(edge, asked[node], notice=notice)
        return Message(content, dst_node_id=node, message_type=kind)

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
        funnel = Funnel({key: tracks[key[0]].aggregate(key[1], server_round) for key in parts})
        samples: dict[tuple[str, str], float] = {}
        metrics, changed = list[RecordDict](), list[str]()
        for reply in replies:
            asked = self._asked.get(reply.metadata.src_node_id, {})
            if reply.has_error():
                continue
            for key, arrays in arrays_in(reply.content).items():
                part, measured = asked.get(key), metrics_in(reply.content).get(exchange.metrics_key(key))
                if part is None or measured is None:
                    continue
                where = part.track, part.group
                samples[where] = samples.get(where, 0.0) + _number(measured.get(_WEIGHT))
                if part.track == _OWN:
                    self._fit.add(self._edges[reply.metadata.src_node_id], part.group, part.arrays, arrays)
                    metrics.append(RecordDict({"metrics": measured}))
                funnel.put(where, with_content(reply, {"arrays": arrays, "metrics": measured}))
                del arrays
            if _has_survey(reply):
                changed.append(self._take_survey(reply))
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
        here = self._here(grid)
        self._members(here, arrays)
        self._evaluated = {}
        return [self._message(node, self._parts_of(edge), self._evaluated, "evaluate") for node, edge in here.items()]

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
            edge = self._edges.get(reply.metadata.src_node_id, "")
            measured = metrics_in(reply.content)
            for key, part in self._evaluated.get(reply.metadata.src_node_id, {}).items():
                metrics = measured.get(exchange.evaluation_key(key))
                if metrics is not None:
                    self._trials.measured(edge, part, metrics)
            if "metrics" in measured:
                found.append(RecordDict({"metrics": measured["metrics"]}))
        decisions = self._trials.decide(server_round, self._own, self._groups)
        self._events.extend(decisions)
        if decisions:
            self._tell_groups(server_round, "held-out samples were compared")
        return aggregate_metricrecords(found, _WEIGHT) if found else None

    def content_for(self, edge: str) -> RecordDict:
        """Return the models of an edge's groups, to be fine-tuned there, and the one model to compare with."""
        names = list(self._tasks_of(edge))
        parts = {f"arrays/{p.track}/{p.group}": p for p in self._parts_of(edge) if p.track == _OWN or p.group == ONE}
        assert names
        return self._ordered(edge, parts, finetune=self._finetune)

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
        return {**self._groups.state(), **self._own.state(), **self._trials.state(), "refined": self._refined}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._groups.restore(state)
        self._refined = int(state["refined"])
        self._own.restore(state)
        self._trials.restore(state, self._groups, self._own)


def _moments_in(replies: Sequence[Message]) -> tuple[list[InputMoments], int]:
    """Return the moments that edges sent in place of signatures, and how many sent one or the other."""
    found, answered = list[InputMoments](), 0
    for reply in replies:
        try:
            response = Response.from_content(reply.content)
            if response.refused:
                continue
            if SurveyAnswer.of(response).moments:
                found.append(InputMoments.from_bytes(response.parts[0]))
            answered += 1
        except WireError:
            continue
    return found, answered


def _has_survey(reply: Message) -> bool:
    return Response.is_in(reply.content)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _several(edges: Sequence[str]) -> str:
    return ", ".join(edges) if len(edges) <= 3 else f"{len(edges)} edges"
