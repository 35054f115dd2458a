# SPDX-License-Identifier: Apache-2.0
"""What server and edges say to each other."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import WireError
from solar_corona.lib import exchange, wire
from solar_corona.lib.exchange import Answer, ArraySpec, Instruction, Verb

finite = st.floats(0, 1e9)
answers = st.builds(
    Answer,
    edge=st.text(max_size=63),
    warm=st.booleans(),
    samples=st.integers(0, 10**12),
    algorithm=st.none() | st.text(),
    seconds=finite,
    failed=st.none() | st.text(max_size=50),
    arrays=st.lists(
        st.builds(ArraySpec, name=st.text(), shape=st.lists(st.integers(), max_size=3), dtype=st.just("f4"))
    ),
    alone=st.dictionaries(st.text(), st.floats(allow_nan=False)),
)
instructions = st.builds(
    Instruction,
    verb=st.sampled_from(Verb),
    round=st.integers(),
    evaluate=st.booleans(),
    slowest=finite,
    reason=st.text(),
)


@given(said=answers)
def test_an_answer_is_read_as_it_was_said(said):
    assert exchange.read_answer(wire.unpack(wire.pack(exchange.attach(RecordDict(), said)))) == said


@given(said=instructions)
def test_an_instruction_is_read_as_it_was_said(said):
    assert exchange.read_instruction(exchange.attach(RecordDict(), said)) == said


def test_metrics_of_training_alone_may_be_no_numbers():
    said = Answer(edge="a", alone={"loss": math.nan, "top": math.inf})
    read = exchange.read_answer(exchange.attach(RecordDict(), said))
    assert math.isnan(read.alone["loss"])
    assert read.alone["top"] == math.inf


def test_what_is_said_stands_beside_the_content_and_leaves_it_as_it_was():
    content = RecordDict({"metrics": MetricRecord({"x": 1})})
    both = exchange.attach(content, Answer(edge="a"))
    assert list(content) == ["metrics"]
    assert list(both) == ["metrics", exchange.CONTROL]


@pytest.mark.parametrize("read", [exchange.read_answer, exchange.read_instruction])
@pytest.mark.parametrize(
    "control",
    [
        None,
        MetricRecord({"json": 1}),
        ConfigRecord({}),
        ConfigRecord({"json": b"{}"}),
        ConfigRecord({"json": ""}),
        ConfigRecord({"json": "[]"}),
        ConfigRecord({"json": "{}"}),
        ConfigRecord({"json": "[" * 100_000}),
        ConfigRecord({"json": '{"edge": "' + "x" * 64 + '", "verb": "dance"}'}),
        ConfigRecord({"json": '{"edge": "a", "samples": -1, "verb": "train", "round": "x"}'}),
    ],
)
def test_what_was_not_said_by_our_kind_is_refused(read, control):
    with pytest.raises(WireError):
        read(RecordDict({exchange.CONTROL: control} if control is not None else {}))


@given(st.text())
def test_any_text_is_an_answer_or_refused(text):
    record = RecordDict({exchange.CONTROL: ConfigRecord({"json": text})})
    for read in (exchange.read_answer, exchange.read_instruction):
        with pytest.raises(WireError):
            read(record)


def test_a_field_of_a_newer_version_is_passed_over():
    record = RecordDict({exchange.CONTROL: ConfigRecord({"json": '{"edge": "a", "newer": 1}'})})
    assert exchange.read_answer(record) == Answer(edge="a")


def test_weights_keep_their_names_shapes_and_types():
    weights = {"k": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.asarray(5, np.int8), "e": np.zeros((0, 2))}
    record = exchange.to_arrays(weights)
    back = exchange.to_weights(record)
    assert list(back) == list(weights)
    for name, value in weights.items():
        assert (back[name].dtype, back[name].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(back[name], value)
    assert [str(spec) for spec in exchange.array_specs(record)] == ["k float16[2, 3]", "b int8[]", "e float64[0, 2]"]


def test_a_list_of_weights_is_named_by_its_places():
    assert list(exchange.to_arrays([np.zeros(1), np.ones(2)])) == ["0", "1"]


def test_weights_that_are_no_block_of_memory_are_sent_as_they_look():
    value = np.arange(12.0).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(exchange.to_weights(exchange.to_arrays([value]))["0"], value)


def test_weights_of_a_type_that_numpy_cannot_store_are_sent_as_float32():
    record = exchange.to_arrays({"w": np.asarray([1.5, -2.0], ml_dtypes.bfloat16)})
    assert exchange.array_specs(record)[0].dtype == "float32"
    np.testing.assert_array_equal(exchange.to_weights(record)["w"], np.asarray([1.5, -2.0], np.float32))


def test_metrics_carry_the_number_of_samples_that_strategies_weigh_by():
    record = exchange.to_metrics(np.int64(5), {"loss": np.float32(0.5), "num-examples": 9.0})
    assert dict(record) == {"loss": 0.5, "num-examples": 5}
    assert type(record["num-examples"]) is int


def test_each_verb_has_a_message_type_of_flowers():
    assert {exchange.message_type(verb) for verb in Verb} == {"train", "evaluate", "query"}
    assert exchange.message_type(Verb.TRAIN) == "train"
    assert isinstance(exchange.to_arrays([]), ArrayRecord)
