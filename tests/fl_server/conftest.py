# SPDX-License-Identifier: Apache-2.0
"""A network of scripted edges: Flower's `Grid` with nodes that answer as they are told."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from solar_corona.fl_server import floor, round_loop
from solar_corona.fl_server.mail import Mail
from solar_corona.fl_server.roster import Roster
from solar_corona.fl_server.round_loop import Limits, Progress, RoundLoop
from solar_corona.lib import exchange, wire
from solar_corona.lib.exchange import Answer, Instruction, Verb
from solar_corona.lib.flower_objects import identify_as_server
from solar_corona.strategies import FedAvg

EXPORTED: dict[str, Any] = {"suffix": ".keras", "versions": {"keras": "3"}}
LATE = 0.6  # seconds; beyond the round's deadline of most tests


@dataclass
class ScriptedEdge:
    """One edge; `script` says what it does in which round, and by default it does its work."""

    name: str
    script: dict[int, str] = field(default_factory=dict)
    samples: int = 10
    eval_samples: int = 5
    size: int = 3
    initial: str = "good"
    final: str = "good"
    says: str | None = None
    bit: int | None = None  # whether its update was within the norm that a strategy allows
    hello: int | None = None  # an error's code in place of an answer to the greeting
    took: dict[int, float] = field(default_factory=dict)  # seconds that a round's training is said to take
    told: dict[int, float] = field(default_factory=dict)  # how long the server says that the slowest edge takes
    seen: list[tuple[Verb, int]] = field(default_factory=list)
    model: float = 0.0

    def arrays(self, value: float, *, size: int | None = None) -> ArrayRecord:
        return exchange.to_arrays({"w": np.full(size or self.size, value, np.float32), "n": np.asarray(7, np.int64)})

    def about(self) -> Answer:
        return Answer(edge=self.says or self.name, samples=self.samples, eval_samples=self.eval_samples)

    def said(self, records: dict[str, Any], **more: Any) -> RecordDict:
        return wire.pack(exchange.attach(RecordDict(records), self.about().model_copy(update=more)))

    def metrics(self, **more: float) -> MetricRecord:
        return exchange.to_metrics(self.eval_samples, {"loss": 10 - self.model, **more})

    def answer(self, instruction: Instruction, content: RecordDict) -> tuple[str, RecordDict | Error | None]:
        """Return what happens to the node (stay, die, back, or a delay), and the reply."""
        self.seen.append((instruction.verb, instruction.round))
        if content.array_records:
            self.model = float(next(iter(content.array_records.values()))["w"].numpy()[0])
        match instruction.verb:
            case Verb.HELLO if self.hello is not None:
                return "stay", Error(code=self.hello, reason="no answer")
            case Verb.HELLO:
                return "stay", self.said({}, arrays=exchange.array_specs(self.arrays(0.0)))
            case Verb.INITIAL:
                return self._first()
            case Verb.TRAIN:
                return self._train(instruction)
            case Verb.EVALUATE:
                return "stay", self.said({"metrics": self.metrics()})
            case Verb.EXPORT:
                return "stay", self.said({"model": ConfigRecord({"data": f"{self.model}".encode()})}, **EXPORTED)
            case Verb.FINISH:
                if self.final == "silent":
                    return "stay", None
                what = "leave" if self.final == "leaves" else "stay"
                return what, self.said({"metrics": self.metrics()})
        return "stay", self.said({})

    def _first(self) -> tuple[str, RecordDict | Error | None]:
        if self.initial == "good":
            return "stay", self.said({"arrays": self.arrays(0.0)})
        if self.initial == "nan":
            return "stay", self.said({"arrays": self.arrays(float("nan"))})
        return "stay", self.said({})

    def _train(self, instruction: Instruction) -> tuple[str, RecordDict | Error | None]:  # noqa: C901 - a table
        records: dict[str, Any] = {}
        if instruction.evaluate and self.eval_samples:
            records[exchange.EVALUATION] = self.metrics()
        records["arrays"] = self.arrays(self.model + 1)
        bit = {} if self.bit is None else {"norm_bit": float(self.bit)}
        records["metrics"] = exchange.to_metrics(self.samples, {"loss": 1.0, **bit})
        self.told[instruction.round] = instruction.slowest
        action = self.script.get(instruction.round, "good")
        match action:
            case "nan":
                records["arrays"] = self.arrays(float("nan"))
            case "inf":
                records["arrays"] = self.arrays(float("inf"))
            case "shape":
                records["arrays"] = self.arrays(1.0, size=9)
            case "label":
                good = records["arrays"]["w"]
                records["arrays"]["w"] = Array(dtype="float32", shape=(3,), stype=good.stype, data=good.data[:-9])
            case "no-model":
                del records["arrays"]
            case "no-metrics":
                del records["metrics"]
            case "no-samples":
                records["metrics"] = exchange.to_metrics(0, {"loss": 1.0})
            case "other-metrics":
                records["metrics"] = exchange.to_metrics(self.samples, {"mae": 1.0})
            case "other-evaluation":
                records[exchange.EVALUATION] = exchange.to_metrics(self.eval_samples, {"mae": 1.0})
            case "bad-evaluation":
                records[exchange.EVALUATION] = MetricRecord({"loss": 1.0})
            case "more-evaluations":
                records[exchange.evaluation_key("arrays/one/one")] = self.metrics()
            case "raise":
                return "stay", self.said({}, failed="Traceback …", error="ValueError: no such column")
            case "error":
                return "stay", Error(code=3, reason="the node had an error")
            case "garbage":
                return "stay", RecordDict({"x": ConfigRecord({"y": b"\0"})})
            case "silent":
                return "stay", None
            case "die":
                del self.script[instruction.round]
                return "die", None
            case "back":
                del self.script[instruction.round]
                return "back", None
            case "late":
                return "late", self.said(records)
        return "stay", self.said(records, seconds=self.took.get(instruction.round, 0.0))


class ScriptedGrid(Grid):
    """A network without threads: a reply is made when its message is sent, and lies ready when it is due."""

    def __init__(self, edges: Iterable[ScriptedEdge] = ()) -> None:
        self.nodes: dict[int, ScriptedEdge] = {}
        self.sent: list[tuple[str, Verb, int]] = []
        self.joins: list[tuple[float, ScriptedEdge]] = []
        self._replies: dict[str, tuple[float, int, Message]] = {}
        self._leaving: list[tuple[str, int, Message]] = []
        for edge in edges:
            self.join(edge)

    def join(self, edge: ScriptedEdge) -> int:
        node_id = uuid.uuid4().int >> 65
        self.nodes[node_id] = edge
        return node_id

    def get_node_ids(self) -> Iterable[int]:
        now = time.monotonic()
        for due, edge in [j for j in self.joins if j[0] <= now]:
            self.joins.remove((due, edge))
            self.join(edge)
        for message_id, node_id, reply in self._leaving:
            del self.nodes[node_id]
            self._replies[message_id] = (now, node_id, reply)
        self._leaving.clear()
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def _deliver(self, message: Message) -> str:
        node_id = message.metadata.dst_node_id
        edge = self.nodes.get(node_id)
        if edge is None:
            return ""
        message_id = uuid.uuid4().hex
        message.metadata.__dict__["_message_id"] = message_id
        content = wire.unpack(message.content)
        instruction = exchange.read_instruction(content)
        self.sent.append((edge.name, instruction.verb, instruction.round))
        what, reply = edge.answer(instruction, content)
        due = time.monotonic() + (LATE if what == "late" else 0.0)
        if what in ("die", "back"):
            del self.nodes[node_id]
            if what == "back":
                self.joins.append((time.monotonic() + 0.02, edge))
        elif reply is not None and what == "leave":  # both at once, just before the server looks who is there
            self._leaving.append((message_id, node_id, Message(reply, reply_to=message)))
        elif reply is not None:
            self._replies[message_id] = (due, node_id, Message(reply, reply_to=message))
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        now = time.monotonic()
        for message_id in message_ids:
            if message_id in self._replies and self._replies[message_id][0] <= now:
                yield self._replies.pop(message_id)[2]

    def wait(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.005))

    def _refuse(self, *args: object, **kwargs: object) -> Any:
        raise AssertionError("the round loop has no need of this")

    set_run = create_message = send_and_receive = _refuse
    run = property(_refuse)


@dataclass
class Ran:
    """What a job did."""

    grid: ScriptedGrid
    progress: Progress
    events: list[Any] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    exported: Any = None
    error: BaseException | None = None

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def sent(self, verb: Verb, number: int | None = None) -> list[str]:
        return sorted(n for n, v, r in self.grid.sent if v is verb and number in (None, r))

    @property
    def model(self) -> float:
        assert self.progress.arrays is not None
        return float(self.progress.arrays["w"].numpy()[0])


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    identify_as_server(1)
    monkeypatch.setattr(floor, "_LOOK_EVERY", 0.005)
    for module in (floor, round_loop):
        monkeypatch.setattr(module, "LOOK_EVERY_WAITING", 0.002)
    monkeypatch.setattr(round_loop, "_EXPORT_WITHIN", 0.5)
    monkeypatch.setattr(round_loop, "_STILL_WAITING", 0.1)


@pytest.fixture
def run_job() -> Callable[..., Ran]:
    """Run a job over scripted edges to its end; what it raises is kept."""

    def run(
        *edges: ScriptedEdge,
        strategy: Any = None,
        rounds: int = 2,
        min_edges: int = 1,
        deadline: float = 0.2,
        start: float = 1.0,
        owners: dict[str, str] | None = None,
        listed: Iterable[str] | None = None,
        after_round: Callable[[int], None] | None = None,
        progress: Progress | None = None,
        saved: bool = False,
    ) -> Ran:
        grid = ScriptedGrid(edges)
        ran = Ran(grid, progress or Progress())
        keys = {n: owners[edge.name] for n, edge in grid.nodes.items() if edge.name in owners} if owners else None
        mail = Mail(grid, ttl=60.0)
        names = list(listed) if listed is not None else list(dict.fromkeys(edge.name for edge in edges))

        def after(number: int) -> None:
            ran.rounds.append(number)
            if after_round is not None:
                after_round(number)

        loop = RoundLoop(
            mail,
            Roster(mail, names, algorithm="fedavg", owners=keys),
            strategy or FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1),
            limits=Limits(
                rounds=rounds, min_edges=min_edges, round_deadline=deadline, start_deadline=start, patience=0.05
            ),
            progress=ran.progress,
            emit=ran.events.append,
            after_round=after,
            on_export=lambda exported: setattr(ran, "exported", exported),
        )
        try:
            loop.let_go() if saved else loop.run()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            ran.error = error
        return ran

    return run


@pytest.fixture
def edge() -> type[ScriptedEdge]:
    """Make a scripted edge."""
    return ScriptedEdge


@pytest.fixture
def network() -> type[ScriptedGrid]:
    """Make a network of scripted edges."""
    return ScriptedGrid
