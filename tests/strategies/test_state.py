# SPDX-License-Identifier: Apache-2.0
"""What a strategy remembers through a restart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi

from solar_corona.core.errors import StrategyError
from solar_corona.lib import wire
from solar_corona.lib.flower_objects import identify_as_server
from solar_corona.strategies import FedAvg, create
from solar_corona.strategies.nodes import ReadyNodes
from solar_corona.strategies.state import restore, state_of


def _through_a_file(record):
    return wire.unpack(wire.pack(record))


def _round(strategy, number, arrays):
    identify_as_server(1)
    list(strategy.configure_train(number, arrays, ConfigRecord(), ReadyNodes(lambda: [1, 2])))
    rng = np.random.default_rng(number)
    replies = []
    for node in (1, 2):
        content = RecordDict(
            {
                "arrays": ArrayRecord({k: Array(rng.normal(size=v.shape).astype("f4")) for k, v in arrays.items()}),
                "metrics": MetricRecord({"num-examples": node}),
            }
        )
        metadata = Metadata(1, f"{node}", node, 1, "r", "1", 0.0, 60.0, "train")
        replies.append(make_message(metadata=metadata, content=content))
    result, _ = strategy.aggregate_train(number, replies)
    return result


FIRST = ArrayRecord({"dense/kernel": Array(np.ones((2, 3), "f4")), "dense/bias": Array(np.zeros(3, "f4"))})


def _private():
    return create(
        "differentialprivacyserversidefixedclipping",
        {"strategy": "fedadam", "noise_multiplier": 0.0, "clipping_norm": 100.0, "num_sampled_clients": 2},
        min_edges=2,
    )


@pytest.mark.parametrize("make", [FedAdam, FedYogi, FedAdagrad, lambda: FedAvgM(server_momentum=0.9), FedAvg, _private])
def test_a_strategy_that_was_interrupted_goes_on_as_one_that_was_not(make):
    whole, first, resumed = make(), make(), make()
    whole_arrays = first_arrays = FIRST
    for number in (1, 2, 3):
        whole_arrays, first_arrays = _round(whole, number, whole_arrays), _round(first, number, first_arrays)
    restore(resumed, _through_a_file(state_of(first)))
    for number in (4, 5):
        whole_arrays, first_arrays = _round(whole, number, whole_arrays), _round(resumed, number, first_arrays)
    for name in FIRST:
        np.testing.assert_array_equal(whole_arrays[name].numpy(), first_arrays[name].numpy())


class Own(FedAvg):
    """Remembers many kinds of things."""

    def __init__(self):
        super().__init__()
        self.number, self.text, self.nothing, self.flag = 0, "", 1, False


@pytest.mark.parametrize(
    "value",
    [
        5,
        0.1,
        math.inf,
        "text",
        True,
        None,
        [],
        {},
        [1, 2.5, "x", None],
        {"edge-0": 0.5, "edge-1": {"a": [1]}},
        np.arange(6, dtype=np.float16).reshape(2, 3),
        np.asarray(3.5),
        np.float32(1.5),
        np.int64(7),
        {"a/b": np.ones(2), "c": np.zeros((0, 2))},
        [np.full(1, i) for i in range(12)],
        ArrayRecord({"a/b": Array(np.ones(2)), "c": Array(np.zeros(1))}),
    ],
)
def test_plain_values_arrays_and_collections_of_arrays_come_back_as_they_were(value):
    one, other = Own(), Own()
    one.kept = value
    restore(other, _through_a_file(state_of(one)))
    assert type(other.kept) is type(value)
    if isinstance(value, ArrayRecord):
        assert {k: a.data for k, a in other.kept.items()} == {k: a.data for k, a in value.items()}
    elif isinstance(value, (dict, list)) and any(isinstance(v, np.ndarray) for v in _values(value)):
        assert len(other.kept) == len(value)
        for a, b in zip(_values(other.kept), _values(value), strict=True):
            np.testing.assert_array_equal(a, b)
    elif isinstance(value, np.ndarray | np.generic):
        assert (other.kept.dtype, other.kept.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(other.kept, value)
    else:
        assert other.kept == value


def _values(collection):
    return list(collection.values()) if isinstance(collection, dict) else collection


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: 2}, {1, 2}, b"x", lambda: 1, object(), [object()], np.asarray([object()]), {1: np.ones(1)}, [1, (2,)]],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_kept_stays_what_the_new_strategy_made(value):
    one, other = Own(), Own()
    one.kept, other.kept = value, "new"
    restore(other, _through_a_file(state_of(one)))
    assert other.kept == "new"


class SaysSo(FedAvg):
    """Names its own state."""

    def __init__(self, **state):
        super().__init__()
        self.mine = state

    def state_dict(self):
        return self.mine

    def load_state_dict(self, state):
        self.mine = state


def test_a_strategy_may_name_its_own_state():
    one, other = SaysSo(count=3, **{"moments/kernel": np.ones(2)}), SaysSo()
    restore(other, _through_a_file(state_of(one)))
    assert other.mine["count"] == 3
    np.testing.assert_array_equal(other.mine["moments/kernel"], np.ones(2))


def test_a_state_of_its_own_that_cannot_be_written_is_told():
    with pytest.raises(StrategyError, match=r"state_dict\(\) of SaysSo holds 'when', a tuple that cannot be written"):
        state_of(SaysSo(when=(1, 2)))
