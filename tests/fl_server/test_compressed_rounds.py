# SPDX-License-Identifier: Apache-2.0
"""Compressed rounds, server and edges together: whatever restarts, no edge ever has a model that nobody sent."""

from __future__ import annotations

import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from solar_corona.core.events import EdgeFinished, EdgeLeftOut, RoundFinished
from solar_corona.core.spec import Aggregation, Compression
from solar_corona.fl_client import warm_node
from solar_corona.fl_client.model_coding import EdgeCoding
from solar_corona.fl_client.node import Node
from solar_corona.fl_server.mail import Mail, Outgoing
from solar_corona.fl_server.model_coding import ServerCoding
from solar_corona.fl_server.roster import Roster
from solar_corona.fl_server.round_loop import Limits, Progress, RoundLoop
from solar_corona.lib import exchange, wire
from solar_corona.lib.coded_records import CodedModel, Label, read_coded
from solar_corona.lib.compression import digest
from solar_corona.lib.exchange import Answer, Instruction, Verb
from solar_corona.strategies import FedAvg

METHODS = ["fp16", "int8", "topk"]
SIZE = 2000
TRAIN = Instruction(verb=Verb.TRAIN, round=1)


class Model:
    """Moves towards its own target."""

    def __init__(self, seed: int, goes_wrong: bool = False) -> None:
        self.target = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)
        self.weights = {"w": np.zeros(SIZE, np.float32), "n": np.asarray(0, np.int64)}
        self.goes_wrong = goes_wrong
        self.received: list[np.ndarray] = []

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = {name: np.array(value) for name, value in weights.items()}
        self.received.append(self.weights["w"])

    def train(self, config):
        w = self.weights["w"]
        w = np.full_like(w, np.nan) if self.goes_wrong else (w + np.float32(0.3) * (self.target - w))
        self.weights = {"w": w.astype(np.float32), "n": self.weights["n"] + 1}
        return 5, {"loss": 1.0}

    def evaluate(self):
        return 5, {"loss": float(np.square(self.weights["w"] - self.target).mean())}


class Edge:
    """A node with its own real coding, without a process around it."""

    def __init__(self, name: str, seed: int, **more) -> None:
        self.model = Model(seed, **more)
        self.node = Node(name, self.model, samples=5, eval_samples=5)
        self.coding = EdgeCoding()
        self.asked_for_whole = 0

    def answer(self, message: Message) -> Message:
        replies: list[Message] = []
        link = type("Link", (), {"reply": staticmethod(replies.append)})
        warm_node._answer(self.node, link, message, warm_node._Poller(), self.coding)
        self.asked_for_whole += replies[-1].has_error()
        return replies[-1]


class EdgeGrid(Grid):
    """Delivers and answers at once."""

    def __init__(self, edges) -> None:
        self.nodes = {uuid.uuid4().int >> 65: edge for edge in edges}
        self.payloads: list[bytes] = []
        self.records: list[RecordDict] = []
        self._replies: dict[str, Message] = {}

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            edge = self.nodes.get(message.metadata.dst_node_id)
            if edge is None:
                ids.append("")
                continue
            message_id = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = message_id
            self.records.append(message.content)
            self.payloads.append(b"".join(part["data"] for part in message.content.values()))
            self._replies[message_id] = edge.answer(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids):
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def wait(self, seconds):
        time.sleep(0)

    def _refuse(self, *args, **kwargs):
        raise AssertionError("the round loop has no need of this")

    set_run = create_message = send_and_receive = _refuse
    run = property(_refuse)


class Watching(FedAvg):
    """Keeps what a strategy sees."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen: list[ArrayRecord] = []

    def aggregate_train(self, server_round, replies):
        kept = list(replies)
        self.seen += [next(iter(m.content.array_records.values())) for m in kept]
        assert all(set(m.content) == {"arrays", "metrics"} for m in kept)
        return super().aggregate_train(server_round, kept)


def fedavg(kind=FedAvg):
    return kind(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)


def run(edges, method, *, rounds=6, strategy=None, after_round=lambda number, grid: None):
    grid, events, progress = EdgeGrid(edges), [], Progress()
    names = [edge.node.edge for edge in edges]
    mail = Mail(grid, ttl=60.0, compression=Compression(method=method))
    RoundLoop(
        mail,
        Roster(mail, names, algorithm="fedavg"),
        strategy or fedavg(),
        limits=Limits(rounds=rounds, min_edges=1, round_deadline=5.0, start_deadline=5.0),
        progress=progress,
        emit=events.append,
        after_round=lambda number: after_round(number, grid),
        on_export=lambda exported: None,
    ).run()
    return progress, events, grid


def edges(count=3):
    return [Edge(f"edge-{i}", i) for i in range(count)]


def mean_loss(progress, of):
    w = progress.arrays["w"].numpy()
    return float(np.mean([np.square(w - e.model.target).mean() for e in of]))


@pytest.mark.parametrize("method", METHODS)
def test_a_compressed_job_learns_as_much_in_fewer_bytes_and_ends_with_equal_models(method):
    plain, plain_events, _ = run(edges(), "none")
    fleet = edges()
    progress, events, _ = run(fleet, method)
    final = progress.arrays["w"].numpy()
    assert all(np.array_equal(edge.model.weights["w"], final) for edge in fleet)
    assert len([e for e in events if isinstance(e, EdgeFinished)]) == 3
    start = float(np.mean([np.square(e.model.target).mean() for e in fleet]))
    learnt = [start - mean_loss(p, fleet) for p in (plain, progress)]
    assert learnt[1] > {"fp16": 0.999, "int8": 0.98, "topk": 0.5}[method] * learnt[0]
    least = {"fp16": 1.9, "int8": 6.0, "topk": 7.0}[method]
    for direction in ("bytes_down", "bytes_up"):
        sums = [sum(getattr(e, direction) for e in of[1:]) for of in map(_rounds, (plain_events, events))]
        assert sums[0] > least * sums[1]


def _rounds(events):
    return [e for e in events if isinstance(e, RoundFinished)]


@pytest.mark.parametrize("method", ["fp16", "int8"])
def test_what_rounding_loses_does_not_add_up_over_rounds(method):
    """Each round's change is known, so the model without any rounding is their sum."""
    [edge], rng, true = edges(1), np.random.default_rng(0), np.zeros(SIZE)

    def train(config):
        change = rng.standard_normal(SIZE).astype(np.float32)
        nonlocal true
        true = true + change
        edge.model.weights = {"w": edge.model.weights["w"] + change, "n": edge.model.weights["n"]}
        return 5, {"loss": 1.0}

    edge.model.train = train
    progress, _, _ = run([edge], method, rounds=150)
    error = np.abs(progress.arrays["w"].numpy() - true)
    # Half a step of int8 is 0.29 on average; were each round's loss final, it would be 0.6 by now, and grow.
    assert np.sqrt((error**2).mean()) < {"fp16": 0.001, "int8": 0.4}[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_strategy_sees_ordinary_models_of_the_jobs_form(method):
    strategy = fedavg(Watching)
    run(edges(), method, strategy=strategy, rounds=2)
    assert len(strategy.seen) == 6
    specs = exchange.array_specs(exchange.to_arrays(Model(0).weights))
    assert all(exchange.array_specs(arrays) == specs for arrays in strategy.seen)
    assert [int(arrays["n"].numpy()) for arrays in strategy.seen] == [1, 1, 1, 2, 2, 2]


def test_strategies_of_flower_work_unchanged():
    fleet = edges()
    strategy = FedAdam(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1, eta=0.1)
    # Its own model leaves out what is no float.
    for edge in fleet:
        del edge.model.weights["n"]
        edge.model.train = lambda config, m=edge.model: (
            setattr(m, "weights", {"w": (0.7 * m.weights["w"] + 0.3 * m.target).astype(np.float32)}),
            (5, {"loss": 1.0}),
        )[1]
        edge.node = Node(edge.node.edge, edge.model, samples=5, eval_samples=5)
    progress, events, _ = run(fleet, "int8", strategy=strategy)
    assert not [e for e in events if isinstance(e, EdgeLeftOut)]
    assert mean_loss(progress, fleet) < 0.95 * float(np.mean([np.square(e.model.target).mean() for e in fleet]))


def test_without_compression_the_bytes_on_the_wire_are_those_of_the_plain_codec():
    class Plain(Mail):
        def send(self, messages):
            kept = list(messages)
            for m in kept:
                record = wire.pack(exchange.attach(m.content, m.instruction))
                expected.append(b"".join(part["data"] for part in record.values()))
            return super().send(kept)

    for compression in (None, Compression(), Aggregation().model_coding):
        expected: list[bytes] = []
        fleet = edges(2)
        grid = EdgeGrid(fleet)
        mail = Plain(grid, ttl=60.0, compression=compression)
        content = RecordDict({"arrays": exchange.to_arrays(fleet[0].model.weights)})
        mail.send([Outgoing(node_id, content, TRAIN) for node_id in grid.nodes])
        assert grid.payloads == expected
        replies = [reply for reply in mail.poll() if reply.error is None]
        assert [reply.size for reply in replies] == [
            wire.packed_size(wire.pack(exchange.attach(reply.content, reply.answer))) for reply in replies
        ]
        assert len(replies) == 2


def test_the_short_form_and_the_long_form_of_the_job_file_say_the_same():
    assert Aggregation.model_validate({"compression": "topk"}).model_coding == Compression(method="topk")
    long = Aggregation.model_validate({"compression": {"method": "topk", "fraction": 0.2}})
    assert long.model_coding == Compression(method="topk", fraction=0.2)
    assert Aggregation().model_coding.method == "none"
    for wrong in ("zip", {"method": "topk", "fraction": 0}, {"fraction": 2}, 3):
        with pytest.raises(ValueError, match="compression"):
            Aggregation.model_validate({"compression": wrong})


@pytest.mark.parametrize("method", METHODS)
def test_an_edge_that_forgets_gets_the_whole_model_and_is_not_left_out(method):
    fleet = edges()

    def forget(number, grid):
        if number == 3:
            fleet[1].coding = EdgeCoding()

    _, events, _ = run(fleet, method, after_round=forget)
    assert not [e for e in events if isinstance(e, EdgeLeftOut)]
    assert [e.replied for e in _rounds(events)] == [3] * 6
    assert [edge.asked_for_whole for edge in fleet] == [0, 1, 0]
    for a, b in zip(fleet[0].model.received, fleet[1].model.received, strict=True):
        assert np.array_equal(a, b)


def test_an_edge_that_comes_back_as_another_node_walks_along_with_the_others():
    fleet = edges()

    def replace(number, grid):
        if number == 3:
            old = next(node_id for node_id, edge in grid.nodes.items() if edge is fleet[1])
            fleet[1].coding = EdgeCoding()
            grid.nodes[old + 1] = grid.nodes.pop(old)
            time.sleep(1.1)  # the server looks once a second who is there

    _, events, _ = run(fleet, "int8", after_round=replace, rounds=12)
    assert len(fleet[1].model.received) > 8
    assert fleet[1].asked_for_whole == 0
    assert np.array_equal(fleet[0].model.received[-2], fleet[1].model.received[-2])
    assert _rounds(events)[-1].bytes_down < _rounds(events)[1].bytes_down * 1.5


def test_a_model_that_went_wrong_is_screened_and_named():
    fleet = [*edges(2), Edge("edge-2", 2, goes_wrong=True)]
    _, events, _ = run(fleet, "topk", rounds=2)
    left_out = [e for e in events if isinstance(e, EdgeLeftOut)]
    assert {e.edge for e in left_out} == {"edge-2"}
    assert all("NaN or infinite" in e.reason for e in left_out)


def outgoing(node_id, weights, verb=Verb.TRAIN, **others):
    records = {"arrays": exchange.to_arrays(weights)} | {k: exchange.to_arrays(v) for k, v in others.items()}
    return Outgoing(node_id, RecordDict(records), Instruction(verb=verb, round=1))


def random_model(seed, scale=1.0):
    return {"w": (scale * np.random.default_rng(seed).standard_normal(SIZE)).astype(np.float32)}


def size_of(dispatch):
    return wire.packed_size(wire.pack(dispatch.content))


def test_a_model_for_many_edges_is_coded_and_packed_once():
    server = ServerCoding("int8", 1.0)
    content = outgoing(0, random_model(0)).content
    for _ in range(2):
        sent = server.dispatch([Outgoing(i, content, TRAIN) for i in range(50)], ())
        assert len({id(d.content) for d in sent}) == 1
        for i, dispatch in enumerate(sent):
            server.arrived(i, dispatch, RecordDict())
    assert size_of(sent[0]) < 500  # the same model again: nothing but its name


def test_an_edge_that_missed_rounds_gets_the_steps_that_it_missed():
    server, often, rarely = ServerCoding("int8", 1.0), EdgeCoding(), EdgeCoding()
    weights = random_model(0)
    for i in range(5):
        weights = {"w": weights["w"] + random_model(i + 1, 0.01)["w"]}
        nodes = {1: often} if 0 < i < 4 else {1: often, 2: rarely}
        sent = server.dispatch([outgoing(n, weights) for n in nodes], ())
        for (node_id, edge), dispatch in zip(nodes.items(), sent, strict=True):
            found = edge.decode(dispatch.content)
            assert np.array_equal(found["arrays"]["w"].numpy(), dispatch.models["arrays"].weights["w"])
            server.arrived(node_id, dispatch, edge.encode(RecordDict()))
    assert size_of(sent[0]) < size_of(sent[1]) < 4 * SIZE / 1.5


def test_other_models_than_the_first_of_a_message_round_go_whole_and_exactly():
    server, coding = ServerCoding("topk", 0.1), EdgeCoding()
    shared, own = random_model(0), random_model(1)
    first, second, third = server.dispatch(
        [outgoing(1, shared), outgoing(2, own), outgoing(1, own, verb=Verb.EVALUATE)], ()
    )
    assert np.array_equal(coding.decode(second.content)["arrays"]["w"].numpy(), own["w"])
    assert np.allclose(coding.decode(first.content)["arrays"]["w"].numpy(), shared["w"], atol=0.01)
    assert np.array_equal(coding.decode(third.content)["arrays"]["w"].numpy(), own["w"])
    assert [d.models["arrays"].keep for d in (first, second, third)] == [True, False, False]
    for dispatch in (first, third):
        server.arrived(1, dispatch, RecordDict())
    [again] = server.dispatch([outgoing(1, shared)], ())
    assert coding.decode(again.content) is not None
    assert size_of(again) < 500


def test_a_record_that_a_strategy_changes_in_place_goes_out_as_it_is_now():
    server, edge = ServerCoding("fp16", 1.0), EdgeCoding()
    message = outgoing(1, random_model(0))
    server.dispatch([message], ())
    message.content["arrays"]["w"] = exchange.to_arrays(random_model(1))["w"]
    [dispatch] = server.dispatch([message], ())
    found = edge.decode(dispatch.content)["arrays"]["w"].numpy()
    assert np.allclose(found, random_model(1)["w"], atol=0.01)


def test_each_group_of_tasks_has_its_own_chain_and_only_models_of_rounds_are_coded():
    server, edge = ServerCoding("int8", 1.0), EdgeCoding()
    for i in range(3):
        a, b = random_model(i), random_model(10 + i)
        [dispatch] = server.dispatch([outgoing(1, a, **{"arrays/1": b})], ())
        found = edge.decode(dispatch.content)
        assert list(found) == ["arrays", "arrays/1"]
        trained = RecordDict({k: exchange.to_arrays({"w": v["w"] + 1}) for k, v in (("arrays", a), ("arrays/1", b))})
        decoded = server.arrived(1, dispatch, edge.encode(trained))
        for key in trained:
            assert np.allclose(decoded[key]["w"].numpy(), trained[key]["w"].numpy(), atol=2.5)
            assert read_coded(dispatch.content[key]) is not None
    for verb in (Verb.FINISH, Verb.EXPORT, Verb.INITIAL):
        message = outgoing(1, random_model(9), verb=verb)
        assert server.dispatch([message], ())[0].content is message.content


class Answering:
    """An edge that replies with what it is given."""

    def __init__(self, *records) -> None:
        self.records = list(records)

    def answer(self, message):
        record = self.records.pop(0)
        if isinstance(record, Error):
            return Message(record, reply_to=message)
        return Message(wire.pack(exchange.attach(record, Answer(edge="edge-0"))), reply_to=message)


@pytest.mark.parametrize(
    "record",
    [
        CodedModel(Label(base="f" * 32), (b"x",)).to_record(),
        CodedModel(Label(), (b"",)).to_record(),
        CodedModel(Label(base=digest(random_model(0))), ()).to_record(),
        CodedModel(Label(base=digest(random_model(0))), (b"\1\0\0\0\0" * 3,)).to_record(),
        CodedModel(Label(base=digest(random_model(0))), (b"\4\1\0\0\0x",)).to_record(),
        ConfigRecord({"solar-corona-coded": "[]"}),
    ],
)
def test_a_hostile_reply_is_an_error_and_no_model(record):
    grid = EdgeGrid([Answering(RecordDict({"arrays": record}))])
    mail = Mail(grid, ttl=60.0, compression=Compression(method="int8"))
    message = outgoing(next(iter(grid.nodes)), random_model(0))
    mail.send([message])
    [reply] = mail.poll()
    assert reply.error
    assert reply.answer is None
    assert not mail.outstanding()


def test_an_edge_that_asks_for_whole_models_without_end_is_heard_once():
    needs = Error(code=409, reason="the edge does not have the model that the message builds on")
    grid = EdgeGrid([Answering(needs, needs)])
    mail = Mail(grid, ttl=60.0, compression=Compression(method="int8"))
    mail.send([outgoing(next(iter(grid.nodes)), random_model(0))])
    assert list(mail.poll()) == []
    assert len(mail.outstanding()) == 1
    [reply] = mail.poll()
    assert reply.error == needs.reason
    assert not mail.outstanding()


class Fleet(RuleBasedStateMachine):
    """Server and edges under all that may happen between them; what edges decode is compared each time."""

    @initialize(method=st.sampled_from(METHODS), cold=st.booleans())
    def start(self, method, cold):
        self.method, self.cold = method, cold
        self.folder = Path(tempfile.mkdtemp())
        self.server = ServerCoding(method, 0.1)
        self.rng = np.random.default_rng(0)
        self.weights = {"w": self.rng.standard_normal(400).astype(np.float32)}
        self.ids = {name: i for i, name in enumerate("abc")}
        self.edges = {name: self._process(name) for name in "abc"}
        self.next_id = 10

    def _process(self, name):
        return EdgeCoding(self.folder / name, keeps_model=self.cold)

    @rule(by=st.sampled_from([0.0, 1e-3, 1.0, 1e6]))
    def the_model_moves(self, by):
        step = by * self.rng.standard_normal(400)
        self.weights = {"w": (self.weights["w"] + step).astype(np.float32)}

    @rule(
        names=st.sets(st.sampled_from("abc"), min_size=1),
        fate=st.dictionaries(st.sampled_from("abc"), st.sampled_from(["lost on the way", "reply lost", "killed"])),
        saved=st.booleans(),
    )
    def a_round(self, names, fate, saved):
        arrays = exchange.to_arrays(self.weights)
        names = sorted(names)
        messages = [Outgoing(self.ids[name], RecordDict({"arrays": arrays}), TRAIN) for name in names]
        for name, dispatch in zip(names, self.server.dispatch(messages, ()), strict=True):
            if fate.get(name) == "lost on the way":
                self.server.forget(self.ids[name])
                continue
            reply = self._answer(name, dispatch, killed=fate.get(name) == "killed", saved=saved)
            if reply is None or fate.get(name) == "reply lost":
                self.server.forget(self.ids[name])

    def _answer(self, name, dispatch, *, killed, saved):
        edge = self.edges[name]
        content = edge.decode(dispatch.content)
        if content is None:
            self.server.forget(self.ids[name])
            dispatch = self.server.again(dispatch)
            content = edge.decode(dispatch.content)
        there = dispatch.models["arrays"].weights["w"]
        decoded = content["arrays"]["w"].numpy()
        assert decoded.tobytes() == there.tobytes()
        trained = {"w": (decoded + 0.1 * self.rng.standard_normal(400)).astype(np.float32)}
        lost = edge._lost.get("arrays", {"w": np.zeros(400)})["w"].astype(np.float64)
        reply = edge.encode(RecordDict({"arrays": exchange.to_arrays(trained)}))
        if saved:
            edge.save()
        if killed:
            self.edges[name] = self._process(name)
            return None
        arrived = self.server.arrived(self.ids[name], dispatch, reply)["arrays"]["w"].numpy()
        # What arrived and what the edge keeps for later are together what it trained, over all rounds.
        kept = edge._lost["arrays"]["w"]
        change = trained["w"].astype(np.float64) - decoded + lost
        tolerance = 1e-6 * (np.abs(self.weights["w"]).max() + np.abs(decoded).max() + np.abs(change).max())
        assert np.abs(arrived - self.weights["w"].astype(np.float64) + kept - change).max() <= tolerance
        return reply

    @rule(name=st.sampled_from("abc"), as_another=st.booleans())
    def an_edge_restarts(self, name, as_another):
        self.edges[name] = self._process(name)
        if as_another:
            self.server.forget(self.ids[name])
            self.ids[name], self.next_id = self.next_id, self.next_id + 1

    @rule(name=st.sampled_from("abc"))
    def a_state_is_damaged(self, name):
        if (self.folder / name).exists():
            (self.folder / name).write_bytes((self.folder / name).read_bytes()[:-7])

    @rule()
    def the_server_restarts(self):
        self.server = ServerCoding(self.method, 0.1)

    @rule(name=st.sampled_from("abc"))
    def another_model_goes_aside(self, name):
        other = exchange.to_arrays({"w": self.rng.standard_normal(400).astype(np.float32)})
        message = Outgoing(self.ids[name], RecordDict({"arrays": other}), TRAIN)
        [dispatch] = self.server.dispatch([message], {self.ids[name]})
        content = self.edges[name].decode(dispatch.content)
        assert content["arrays"]["w"].data == other["w"].data

    @invariant()
    def what_edges_have_is_near_what_they_should_have(self):
        chain = getattr(self, "server", None) and self.server._chains.get("arrays")
        if chain and chain.version:
            assert digest(chain.weights) == chain.version
            assert len(chain.steps) <= 16


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
