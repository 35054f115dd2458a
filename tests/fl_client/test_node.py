# SPDX-License-Identifier: Apache-2.0
"""One edge's work, message by message."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from solar_corona.core.errors import JobFailedError, WireError
from solar_corona.fl_client.node import Node
from solar_corona.lib import exchange
from solar_corona.lib.exchange import Instruction, Verb


class Counter:
    """A model that counts: training adds one."""

    def __init__(self, as_list=False):
        self.value, self.trained, self.configs, self.loss = np.zeros(2), 0, [], 0.5
        self.as_list = as_list

    def get_weights(self):
        return [self.value] if self.as_list else {"w": self.value}

    def set_weights(self, weights):
        (self.value,) = (np.array(v) for v in weights.values())

    def train(self, config):
        self.configs.append(dict(config))
        self.trained += 1
        self.value = self.value + 1
        return 7, {"loss": 1.0}

    def evaluate(self):
        return 4, {"loss": self.loss, "accuracy": float(self.value[0])}


def _node(model=None, **more):
    return Node("edge-0", model or Counter(), **{"samples": 7, "eval_samples": 4, **more})


def _message(verb, value=None, **more):
    content = RecordDict()
    if value is not None:
        content["arrays"] = exchange.to_arrays({"w": np.full(2, float(value))})
    config = more.pop("config", None)
    if config is not None:
        content["config"] = ConfigRecord(config)
    return exchange.attach(content, Instruction(verb=verb, **more))


def test_a_greeting_tells_the_edge_its_samples_and_its_models_form():
    answer = exchange.read_answer(_node(algorithm="krum").answer(_message(Verb.HELLO)))
    assert (answer.edge, answer.samples, answer.eval_samples, answer.algorithm) == ("edge-0", 7, 4, "krum")
    assert [str(spec) for spec in answer.arrays] == ["w float64[2]"]


def test_the_first_model_stays_the_first_also_after_training():
    node = _node()
    node.answer(_message(Verb.TRAIN, 5, round=1))
    first = node.answer(_message(Verb.INITIAL))["arrays"]
    assert first["w"].numpy().tolist() == [0, 0]


def test_training_evaluates_what_came_and_returns_what_was_made_of_it():
    node = _node()
    reply = node.answer(_message(Verb.TRAIN, 5, round=3, evaluate=True, config={"server-round": 3, "raw": b"x"}))
    assert reply["arrays"]["w"].numpy().tolist() == [6, 6]
    assert dict(reply["metrics"]) == {"num-examples": 7, "loss": 1.0}
    assert dict(reply[exchange.EVALUATION]) == {"num-examples": 4, "loss": 0.5, "accuracy": 5.0}
    assert node.round == 3
    assert node.metrics == {"loss": 0.5, "accuracy": 5.0}


def test_the_strategys_configuration_reaches_the_model_and_ours_does_not():
    model = Counter()
    _node(model).answer(_message(Verb.TRAIN, 5, config={"proximal-mu": 0.1, "server-round": 2, "raw": b"x", "l": [1]}))
    assert model.configs == [{"proximal-mu": 0.1, "server-round": 2}]


def test_nothing_is_evaluated_that_was_not_asked_for_or_cannot_be():
    assert exchange.EVALUATION not in _node().answer(_message(Verb.TRAIN, 1))
    assert exchange.EVALUATION not in _node(eval_samples=0).answer(_message(Verb.TRAIN, 1, evaluate=True))


def test_an_evaluation_trains_nothing():
    model = Counter()
    reply = _node(model).answer(_message(Verb.EVALUATE, 5))
    assert reply["metrics"]["accuracy"] == 5.0
    assert model.trained == 0


def test_the_last_message_leaves_the_final_model_and_ends_the_work():
    model = Counter()
    node = _node(model)
    assert not node.finished
    reply = node.answer(_message(Verb.FINISH, 9, round=5))
    assert node.finished
    assert model.value.tolist() == [9, 9]
    assert (node.round, node.metrics["accuracy"]) == (5, 9.0)
    assert exchange.read_answer(reply).alone == {}


def test_training_alone_starts_from_the_edges_own_first_model_and_leaves_the_final_one():
    model = Counter()
    reply = _node(model).answer(_message(Verb.FINISH, 9, alone_epochs=3))
    assert exchange.read_answer(reply).alone == {"loss": 0.5, "accuracy": 3.0}
    assert model.value.tolist() == [9, 9]


def test_an_edge_without_test_samples_finishes_without_metrics():
    reply = _node(eval_samples=0).answer(_message(Verb.FINISH, 9, alone_epochs=3))
    assert "metrics" not in reply


def test_a_loss_that_is_no_number_is_said_as_it_is():
    model = Counter()
    model.loss = math.nan
    reply = _node(model).answer(_message(Verb.FINISH, 9, alone_epochs=1))
    assert math.isnan(reply["metrics"]["loss"])
    assert math.isnan(exchange.read_answer(reply).alone["loss"])


def test_weights_given_as_a_list_travel_under_their_places():
    node = _node(Counter(as_list=True))
    answer = exchange.read_answer(node.answer(_message(Verb.HELLO)))
    assert [spec.name for spec in answer.arrays] == ["0"]


def test_the_model_is_exported_as_the_file_that_was_saved():
    def export(folder, weights, content):
        path = folder / "m.keras"
        path.write_bytes(b"saved")
        return path

    reply = _node(export=export).answer(_message(Verb.EXPORT, 9))
    assert reply["model"]["data"] == b"saved"
    assert exchange.read_answer(reply).suffix == ".keras"
    assert "model" not in _node().answer(_message(Verb.EXPORT, 9))


def test_a_request_to_stop_raises_with_the_reason():
    with pytest.raises(JobFailedError, match="edge-1's script failed"):
        _node().answer(_message(Verb.STOP, reason="edge-1's script failed"))
    with pytest.raises(JobFailedError, match="the server stopped the job"):
        _node().answer(_message(Verb.STOP))


@pytest.mark.parametrize("verb", [Verb.TRAIN, Verb.EVALUATE, Verb.FINISH, Verb.EXPORT])
def test_a_message_that_should_carry_a_model_and_does_not_is_refused(verb):
    node = _node()
    with pytest.raises(WireError, match="carries none"):
        node.answer(_message(verb))
    assert not node.finished


def test_a_message_without_an_instruction_is_refused():
    with pytest.raises(WireError):
        _node().answer(RecordDict())


def test_what_the_script_raised_is_told_with_its_traceback():
    try:
        raise ValueError("no column \udcff")
    except ValueError as error:
        answer = exchange.read_answer(_node().failure(error))
    assert answer.error == "ValueError: no column \\udcff"
    assert "test_node.py" in str(answer.failed)


def test_a_traceback_beyond_bounds_is_told_by_its_end():
    answer = exchange.read_answer(_node().failure(ValueError("x" * 100_000 + "the end")))
    assert str(answer.failed).rstrip().endswith("the end")
    assert len(str(answer.error)) == 2000


def test_each_start_of_an_edge_is_told_from_the_one_before():
    assert _node().about.process != _node().about.process
