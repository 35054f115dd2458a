# SPDX-License-Identifier: Apache-2.0
"""The edge's own model: pulled towards the common one, kept over restarts, and never sent."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import RecordDict

from benchmarks._simulation import Mlp
from solar_corona.core.errors import ModelError
from solar_corona.fl_client.node import Node
from solar_corona.fl_client.personal import PersonalModel
from solar_corona.lib import exchange
from solar_corona.lib.exchange import Instruction, ModelOrder, Verb, WorkOrder
from solar_corona.lib.records import arrays_in
from solar_corona.tests.strategies.fleets import Pulled, samples


def model(kind=Pulled):
    return kind(*samples(0, 120, 1), *samples(0, 60, 2), hidden=16, classes=4)


def weights(trainable):
    return {name: np.array(value) for name, value in trainable.get_weights().items()}


def distance(one, other):
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def test_the_stronger_the_pull_the_nearer_it_stays_to_the_common_model():
    found = []
    for strength in (0.01, 1.0, 9.0):
        trainable = model()
        common = weights(trainable)
        personal = PersonalModel(trainable)
        for _ in range(5):
            personal.train(common, strength, {})
        found.append(distance(personal.weights, common))
    assert found[0] > found[1] > found[2] > 0


def test_it_goes_on_from_its_last_state_towards_the_common_model_of_the_round():
    trainable = model()
    personal = PersonalModel(trainable)
    first = weights(trainable)
    personal.train(first, 0.1, {})
    before = {name: value.copy() for name, value in personal.weights.items()}
    other = {name: value + 5 for name, value in first.items()}
    began = []
    train = trainable.train
    trainable.train = lambda config: began.append((weights(trainable), trainable.anchor)) or train(config)
    personal.train(other, 0.1, {})
    assert distance(began[0][0], before) == 0
    assert distance(began[0][1], other) == 0
    assert trainable.anchor is None, "the next ordinary training has no anchor"


def test_a_process_that_starts_anew_goes_on_with_it(tmp_path):
    common = weights(model())
    personal = PersonalModel(model())
    personal.settle(tmp_path / "personal.bin")
    personal.train(common, 0.1, {})
    again = PersonalModel(model())
    again.settle(tmp_path / "personal.bin")
    assert distance(again.weights, personal.weights) == 0
    again.forget()
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_told_and_begins_anew(tmp_path, caplog):
    (tmp_path / "personal.bin").write_bytes(b"half of it")
    personal = PersonalModel(model())
    personal.settle(tmp_path / "personal.bin")
    assert personal.weights is None
    assert "personal.bin is damaged (its SHA-256 is another); the personal model begins anew" in caplog.text


def test_of_another_run_nothing_is_taken_up(tmp_path):
    trainable = model()
    node = Node("edge-0", trainable, samples=120, eval_samples=60, folder=tmp_path)
    content = exchange.ordered(
        RecordDict({"arrays": exchange.to_arrays(trainable.get_weights())}),
        WorkOrder(models=(ModelOrder(key="arrays"),), personal=0.1),
    )
    for run in ("first", "second", "first"):
        reply = node.answer(exchange.attach(content, Instruction(verb=Verb.TRAIN, round=1, run=run)))
        assert list(arrays_in(reply)) == ["arrays"], "the personal model is not among what is sent"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.bin")) == [
        "first/personal.bin",
        "second/personal.bin",
    ]
    first, second = (PersonalModel(model()) for _ in range(2))
    first.settle(tmp_path / "first" / "personal.bin")
    second.settle(tmp_path / "second" / "personal.bin")
    assert distance(first.weights, second.weights) > 0, "the first run trained once more"


@pytest.mark.parametrize("run", ["../elsewhere", "/etc", "..", ".hidden", "a/b"])
def test_a_runs_name_leads_nowhere_else(tmp_path, run):
    node = Node("edge-0", model(), samples=120, eval_samples=60, folder=tmp_path)
    assert node.settle(run) == tmp_path


def test_an_object_that_cannot_be_pulled_is_told_what_it_lacks():
    with pytest.raises(ModelError, match=r"Mlp has no method pull_towards\(anchor\), towards which proximal-mu then"):
        PersonalModel(model(Mlp)).train({}, 0.1, {})


def test_a_process_for_one_message_needs_somewhere_to_keep_it():
    with pytest.raises(ModelError, match="answers a single message and has no run folder to keep it in"):
        PersonalModel(model(), lives=False).train({}, 0.1, {})
