# SPDX-License-Identifier: Apache-2.0
"""What groups take from each other, and how a gain is told from chance."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from solar_corona.strategies.transfer import borrow, early_arrays, gain, is_clear, share_early_layers


def model(value, counter=0):
    return ArrayRecord(
        {
            "0/kernel": Array(np.full((3, 4), value, np.float32)),
            "1/bias": Array(np.full(4, value, np.float32)),
            "2/seen": Array(np.array([counter], np.int64)),
            "3/kernel": Array(np.full((4, 2), value, np.float32)),
            "4/bias": Array(np.full(2, value, np.float32)),
        }
    )


def values(record):
    return {name: float(array.numpy().flat[0]) for name, array in record.items()}


def test_the_early_layers_are_all_before_the_last_matrix():
    assert early_arrays(model(1.0)) == ["0/kernel", "1/bias", "2/seen"]
    assert early_arrays(ArrayRecord({"b": Array(np.zeros(3))})) == []


def test_groups_with_like_inputs_share_early_layers_and_keep_their_own_head():
    models = {"a": (model(0.0), 30.0), "b": (model(1.0), 10.0), "c": (model(9.0), 10.0)}
    shared = share_early_layers(models, [["a", "b"]])
    assert values(shared["a"]) == {"0/kernel": 0.25, "1/bias": 0.25, "2/seen": 0, "3/kernel": 0.0, "4/bias": 0.0}
    assert values(shared["b"])["0/kernel"] == 0.25
    assert values(shared["b"])["3/kernel"] == 1.0
    assert values(shared["c"]) == values(model(9.0))
    assert shared["a"]["0/kernel"].numpy().dtype == np.float32


def test_a_small_group_borrows_from_the_alike_and_a_large_one_does_not():
    models = {"small": (model(0.0), 10.0), "near": (model(1.0), 100.0), "far": (model(5.0), 100.0)}
    distances = {(a, b): 0.0 if {a, b} == {"small", "near"} else 50.0 for a in models for b in models if a != b}
    found = borrow(models, distances)
    assert values(found["small"])["0/kernel"] == pytest.approx(90 / 110, abs=1e-3)
    assert values(found["near"]) == values(model(1.0))
    assert values(found["far"]) == values(model(5.0))


def test_a_gain_is_clear_above_one_standard_error():
    edges = [f"e{i}" for i in range(8)]
    low = {e: (0.7 + 0.01 * i, 60) for i, e in enumerate(edges)}
    high = {e: (value + 0.05 + 0.01 * (i % 2), 60) for i, (e, (value, _)) in enumerate(low.items())}
    assert is_clear(gain(high, low))
    assert not is_clear(gain(low, high))
    noisy = {e: (value + (0.1 if i % 2 else -0.1), 60) for i, (e, (value, _)) in enumerate(low.items())}
    assert not is_clear(gain(noisy, low))


def test_of_one_edge_alone_only_a_large_gain_is_clear():
    assert not is_clear(gain({"e": (0.72, 50)}, {"e": (0.70, 50)}))
    assert is_clear(gain({"e": (0.95, 50)}, {"e": (0.70, 50)}))


def test_edges_that_measured_only_one_of_both_do_not_count():
    assert gain({"a": (1.0, 5)}, {"b": (0.0, 5)}) is None
    assert not is_clear(None)
