# SPDX-License-Identifier: Apache-2.0
"""What may count: complete, of the job's form, finite."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.fl_server.mail import Reply, Sent
from solar_corona.fl_server.screening import evaluation_fault, train_fault
from solar_corona.lib import exchange
from solar_corona.lib.exchange import Instruction, Verb
from solar_corona.strategies.model_form import model_fault, of_form

GOOD = {"w": np.ones((2, 3), np.float32), "c": np.ones(2, np.complex64), "n": np.asarray(3, np.int64)}
SPECS = exchange.array_specs(exchange.to_arrays(GOOD))


def _reply(arrays=None, metrics=None, *, error=None, **more):
    records = {"arrays": arrays, "metrics": metrics, **more}
    content = RecordDict({key: record for key, record in records.items() if record is not None})
    return Reply(Sent(1, Instruction(verb=Verb.TRAIN), 0.0, 0), None, content, None, error, 0)  # type: ignore[arg-type]


def _fault(weights=GOOD, samples=5, **more):
    return train_fault(_reply(exchange.to_arrays(weights), exchange.to_metrics(samples, {"loss": 1.0}), **more), SPECS)


def test_a_good_reply_has_no_fault():
    assert _fault() is None
    assert _fault(**{exchange.EVALUATION: MetricRecord({"num-examples": 1})}) is None


def test_a_metric_that_is_no_number_is_no_fault_of_the_model():
    metrics = exchange.to_metrics(5, {"loss": float("nan")})
    assert train_fault(_reply(exchange.to_arrays(GOOD), metrics), SPECS) is None


def test_an_error_is_its_own_reason():
    assert train_fault(_reply(error="out of memory"), SPECS) == "out of memory"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"w": np.ones((3, 2), np.float32)}, "its model has w float32[3, 2] where the job's has w float32[2, 3]"),
        ({"w": np.ones((2, 3), np.float64)}, "its model has w float64[2, 3] where the job's has w float32[2, 3]"),
        ({"n": np.asarray([3], np.int64)}, "its model has n int64[1] where the job's has n int64[]"),
        ({"more": np.ones(1)}, "its model has 4 arrays, the job's has 3"),
    ],
)
def test_another_form_is_told_with_what_differs(change, fault):
    found = _fault({**GOOD, **change})
    assert found is not None
    assert found.startswith(fault)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "c"])
def test_one_value_that_is_not_finite_is_found(name, value):
    bad = GOOD[name].copy()
    bad.flat[-1] = value
    assert f"NaN or infinite values (in {name})" in str(_fault({**GOOD, name: bad}))


def test_an_imaginary_part_that_is_not_finite_is_found():
    assert "in c" in str(_fault({**GOOD, "c": np.asarray([1, 1 + 1j * np.nan], np.complex64)}))


def test_both_infinities_do_not_cancel():
    assert "in w" in str(_fault({**GOOD, "w": np.asarray([[np.inf, -np.inf, 0]] * 2, np.float32)}))


def test_values_at_the_edge_of_float32_are_good():
    assert _fault({**GOOD, "w": np.full((2, 3), np.finfo(np.float32).max)}) is None


@pytest.mark.parametrize("samples", [0, -1, float("nan"), float("inf"), 10**13, [1, 2]])
def test_a_number_of_samples_that_cannot_be_is_a_fault(samples):
    metrics = MetricRecord({"num-examples": samples, "loss": 1.0})
    assert "says that it trained on" in str(train_fault(_reply(exchange.to_arrays(GOOD), metrics), SPECS))
    assert "says that it evaluated on" in str(evaluation_fault(metrics))


def test_a_reply_without_the_number_of_samples_is_a_fault():
    assert "trained on None samples" in str(
        train_fault(_reply(exchange.to_arrays(GOOD), MetricRecord({"loss": 1.0})), SPECS)
    )


@pytest.mark.parametrize(
    ("arrays", "metrics"),
    [(None, MetricRecord({"num-examples": 1})), (exchange.to_arrays(GOOD), None)],
)
def test_a_reply_without_a_model_or_metrics_is_a_fault(arrays, metrics):
    assert train_fault(_reply(arrays, metrics), SPECS) == "its reply has no model or no metrics"


@given(st.binary(max_size=200))
def test_any_bytes_under_a_good_label_are_a_fault(data):
    arrays = exchange.to_arrays(GOOD)
    arrays["w"] = Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data)
    assert model_fault(arrays, SPECS) is not None


def test_a_label_that_lies_about_its_content_is_a_fault():
    arrays = exchange.to_arrays(GOOD)
    arrays["w"] = Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=Array(np.ones(6)).data)
    assert model_fault(arrays, SPECS) == "its array w is not what its label says"


def test_a_strategys_model_is_put_into_the_jobs_order_and_types():
    made = ArrayRecord(
        {
            "n": Array(np.asarray(2.9999)),
            "c": Array(np.ones(2, np.complex128)),
            "w": Array(np.full((2, 3), 0.5)),
        }
    )
    result = of_form(made, SPECS)
    assert exchange.array_specs(result) == SPECS
    assert result["n"].numpy() == 3


def test_a_model_that_is_of_the_form_is_not_copied():
    arrays = exchange.to_arrays(GOOD)
    assert all(of_form(arrays, SPECS)[name].data is array.data for name, array in arrays.items())


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"w": GOOD["w"], "c": GOOD["c"]}, "of one and not the other: n"),
        ({**GOOD, "x": np.ones(1)}, "of one and not the other: x"),
        ({**GOOD, "w": np.ones((3, 2), np.float32)}, "its model has w"),
        ({**GOOD, "w": np.full((2, 3), np.nan, np.float32)}, "NaN or infinite"),
    ],
)
def test_a_model_that_no_edge_can_take_is_refused(weights, told):
    with pytest.raises(ValueError, match=told):
        of_form(exchange.to_arrays(weights), SPECS)
