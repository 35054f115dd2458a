# SPDX-License-Identifier: Apache-2.0
"""The warm node over a link that breaks in every way."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata

from solar_corona.core.errors import JobFailedError, PlatformError, TemporaryError, WireError
from solar_corona.fl_client import warm_node
from solar_corona.fl_client.node import Node
from solar_corona.fl_client.warm_node import serve
from solar_corona.lib import exchange, wire
from solar_corona.lib.exchange import Instruction, Verb
from solar_corona.lib.flower_objects import LinkLostError, RunOverError, identify_as_server


class Model:
    """Trains nothing, and raises when it is told to."""

    def __init__(self, error=None):
        self.error, self.weights = error, {"w": np.zeros(2)}

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = {name: np.array(value) for name, value in weights.items()}

    def train(self, config):
        if self.error is not None:
            raise self.error
        return 5, {"loss": 1.0}

    def evaluate(self):
        return 5, {"loss": 1.0}


def message(verb, **more):
    content = RecordDict({"arrays": exchange.to_arrays({"w": np.ones(2)})})
    return raw(wire.pack(exchange.attach(content, Instruction(verb=verb, **more))), name=verb)


def raw(content, name="raw"):
    identify_as_server(1)
    return make_message(metadata=Metadata(1, f"{name}", 1, 2, "", "1", 0.0, 60.0, "train"), content=content)


class ScriptedLink:
    """Gives what it is told to; an exception in the script is raised."""

    warm = True

    def __init__(self, *script, replies=(), connects=()):
        self.script, self.on_reply, self.on_connect = list(script), list(replies), list(connects)
        self.calls: list[str] = []
        self.sent: list[Message] = []
        self.waits: list[float] = []

    def connect(self):
        self.calls.append("connect")
        error = self.on_connect.pop(0) if self.on_connect else None
        if error is not None:
            raise error

    def receive(self):
        assert self.script, "the node asked for more than there is"
        step = self.script.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    def reply(self, reply):
        error = self.on_reply.pop(0) if self.on_reply else None
        if error is not None:
            raise error
        self.sent.append(reply)

    def wait(self, seconds):
        self.waits.append(seconds)

    def close(self):
        self.calls.append("close")

    def answers(self):
        return [exchange.read_answer(wire.unpack(m.content)) for m in self.sent if not m.has_error()]


FINISH = message(Verb.FINISH)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    import stamina

    stamina.set_testing(True, attempts=5)
    yield
    stamina.set_testing(False)


def node(error=None):
    return Node("edge-0", Model(error), samples=5, eval_samples=5)


def test_messages_are_answered_until_the_last():
    link = ScriptedLink(message(Verb.HELLO), None, message(Verb.TRAIN, round=1), None, message(Verb.FINISH))
    worker = node()
    serve(worker, link)
    assert worker.finished
    assert [a.edge for a in link.answers()] == ["edge-0"] * 3
    assert link.calls == ["connect", "close"]
    assert len(link.waits) == 2


@pytest.mark.parametrize("error", [LinkLostError("restarted"), TemporaryError("no answer")])
def test_a_lost_link_is_connected_again(error):
    link = ScriptedLink(error, message(Verb.TRAIN, round=1), error, message(Verb.FINISH))
    serve(node(), link)
    assert link.calls == ["connect", "connect", "connect", "close"]
    assert len(link.answers()) == 2


def test_connecting_is_tried_again_while_the_server_is_away():
    link = ScriptedLink(message(Verb.FINISH), connects=[TemporaryError("no answer")] * 3)
    serve(node(), link)
    assert link.calls == ["connect"] * 4 + ["close"]


def test_an_edge_that_waits_for_its_server_says_why_and_not_with_each_try(monkeypatch, caplog):
    monkeypatch.setattr(warm_node, "_TELL_AFTER", 0.0)
    link = ScriptedLink(message(Verb.FINISH, round=3), connects=[TemporaryError("port 9092 does not answer")] * 3)
    with caplog.at_level("INFO"):
        serve(node(), link)
    told = [r.getMessage() for r in caplog.records if r.name == warm_node.__name__]
    assert ["port 9092 does not answer" in text and "--ca" in text for text in told] == [True, False, False]
    assert told[1:] == ["connected; waiting for the server", "the job is done after round 3"]


def test_each_round_leaves_a_line_in_the_edges_log(caplog):
    link = ScriptedLink(message(Verb.TRAIN, round=1), message(Verb.TRAIN, round=2), message(Verb.FINISH, round=2))
    with caplog.at_level("INFO"):
        serve(node(), link)
    assert [t for t in caplog.messages if t.startswith("round ")] == [
        "round 1: trained on 5 samples, 0.0 s",
        "round 2: trained on 5 samples, 0.0 s",
    ]


def test_a_link_that_stays_lost_is_given_up():
    link = ScriptedLink(connects=[TemporaryError("no answer")] * 50)
    with pytest.raises(TemporaryError, match="no answer"):
        serve(node(), link)


def test_what_will_never_work_is_not_tried_again():
    link = ScriptedLink(connects=[PlatformError("no trust")])
    with pytest.raises(PlatformError, match="no trust"):
        serve(node(), link)
    assert link.calls.count("connect") == 1


def test_a_message_of_a_run_that_is_over_is_dropped():
    link = ScriptedLink(
        message(Verb.TRAIN, round=1), RunOverError("over"), message(Verb.FINISH), replies=[RunOverError("over")]
    )
    serve(node(), link)
    assert link.calls == ["connect", "close"]
    assert len(link.answers()) == 1


def test_a_message_that_cannot_be_fetched_costs_nothing_more():
    link = ScriptedLink(WireError("a part is missing"), message(Verb.FINISH))
    serve(node(), link)
    assert len(link.answers()) == 1


def test_a_short_outage_does_not_lose_a_rounds_work():
    link = ScriptedLink(
        message(Verb.TRAIN, round=1), message(Verb.FINISH), replies=[TemporaryError("busy"), TemporaryError("busy")]
    )
    serve(node(), link)
    assert len(link.answers()) == 2
    assert link.calls == ["connect", "close"]


@pytest.mark.parametrize("error", [RunOverError("over"), LinkLostError("gone"), TemporaryError("no answer")])
def test_a_server_that_is_gone_with_the_job_does_not_keep_an_edge_that_has_its_model(error):
    link = ScriptedLink(message(Verb.FINISH), replies=[error] * 50)
    worker = node()
    serve(worker, link)
    assert worker.finished
    assert link.calls == ["connect", "close"]


def test_a_message_of_another_kind_is_answered_with_an_error_and_the_work_goes_on():
    link = ScriptedLink(raw(RecordDict({"c": ConfigRecord({"a": 1})})), message(Verb.FINISH))
    serve(node(), link)
    assert [m.has_error() for m in link.sent] == [True, False]
    assert link.sent[0].error.code == 400


def test_a_script_that_raises_tells_the_server_and_raises():
    link = ScriptedLink(message(Verb.TRAIN, round=1))
    with pytest.raises(ValueError, match="no such column"):
        serve(node(ValueError("no such column")), link)
    (answer,) = link.answers()
    assert answer.error == "ValueError: no such column"
    assert "Traceback" in str(answer.failed)
    assert link.calls[-1] == "close"


def test_a_script_that_ends_itself_tells_the_server_too():
    link = ScriptedLink(message(Verb.TRAIN, round=1))
    with pytest.raises(SystemExit):
        serve(node(SystemExit(3)), link)
    assert link.answers()[0].error == "SystemExit: 3"


def test_a_script_that_raises_while_the_server_is_away_raises_all_the_same():
    link = ScriptedLink(message(Verb.TRAIN, round=1), replies=[TemporaryError("no answer")])
    with pytest.raises(ValueError, match="no such column"):
        serve(node(ValueError("no such column")), link)


@pytest.mark.parametrize("error", [None, RunOverError("over"), LinkLostError("gone"), TemporaryError("no answer")])
def test_a_request_to_stop_is_obeyed_whether_or_not_it_can_be_confirmed(error):
    link = ScriptedLink(message(Verb.STOP, reason="edge-1's script failed"), replies=[error])
    with pytest.raises(JobFailedError, match="edge-1's script failed"):
        serve(node(), link)
    assert len(link.answers()) == (1 if error is None else 0)
    assert link.calls[-1] == "close"


def test_ctrl_c_is_passed_on_and_told_to_nobody():
    link = ScriptedLink(message(Verb.TRAIN, round=1))
    with pytest.raises(KeyboardInterrupt):
        serve(node(KeyboardInterrupt()), link)
    assert link.sent == []
    assert link.calls[-1] == "close"


def test_questions_are_rare_while_nothing_can_come_and_frequent_when_it_is_due(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(warm_node.time, "monotonic", lambda: now[0])
    poller = warm_node._Poller()
    poller.after_reply(Instruction(verb=Verb.TRAIN, slowest=10.0, poll=0.05), seconds=4.0)
    assert poller.next_wait() == 2.0  # the slowest edge works for six more seconds
    now[0] += 5.0
    assert 0 < poller.next_wait() < 0.5
    now[0] += 1.0
    waits = [poller.next_wait() for _ in range(40)]
    assert waits[0] == 0.05
    assert waits == sorted(waits)
    assert waits[-1] == 2.0
    poller.after_reply(Instruction(verb=Verb.TRAIN, poll=0.0), seconds=1.0)
    assert poller.next_wait() == 0.005
