# SPDX-License-Identifier: Apache-2.0
"""What is around every engine: inputs that are refused before it sees them, and batches of a fixed length."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import ModelError
from solar_corona.lib.runners.batches import BatchRunner, spec_of
from solar_corona.lib.runners.runner import Runner
from solar_corona.lib.tensors import TensorSpec

X, K, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("k", "INT64", (-1,)), TensorSpec("y", "FP32", (-1, 2))
GOOD = {"x": np.ones((3, 2), np.float32), "k": np.ones(3, np.int64)}


def _times(inputs):
    return {"y": inputs["x"] * inputs["k"][:, np.newaxis].astype(np.float32)}


def _runner(run=_times, inputs=(X, K), outputs=(Y,)) -> BatchRunner:
    return BatchRunner(run, inputs=inputs, outputs=outputs, model="m.own")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": GOOD["x"]}, "m.own: input 'k' (INT64, shape [-1]) is missing; got 'x'"),
        ({}, "m.own: input 'x' (FP32, shape [-1, 2]) is missing; got nothing"),
        ({**GOOD, "z": GOOD["k"]}, "m.own: has no input 'z'; expected 'x', 'k' and no other"),
        ({**GOOD, "x": GOOD["x"].astype(np.float64)}, "m.own: input 'x' is FP64, expected FP32"),
        ({**GOOD, "x": GOOD["x"].astype(complex)}, "m.own: input 'x' is complex128, expected FP32"),
        ({**GOOD, "x": np.ones((3, 3), np.float32)}, "m.own: input 'x' has shape [3, 3], expected [-1, 2]"),
        ({**GOOD, "x": np.ones(2, np.float32)}, "m.own: input 'x' has shape [2], expected [-1, 2]"),
        ({**GOOD, "x": np.float32(1) * np.ones((), np.float32)[()]}, "m.own: input 'x' is a float32, expected a NumPy"),
        ({**GOOD, "k": np.ones((), np.int64)}, "m.own: input 'k' has shape [], expected [-1]"),
        ({**GOOD, "x": [[1.0, 2.0]]}, "m.own: input 'x' is a list, expected a NumPy array of FP32"),
        ({**GOOD, "k": np.ones(4, np.int64)}, "m.own: input 'k' holds 4 samples, and 'x' holds 3; expected as many"),
    ],
)
def test_a_wrong_input_is_named_with_what_was_expected(inputs, message):
    def never(_inputs):
        raise AssertionError("the engine saw a wrong input")

    with pytest.raises(ModelError, match=re.escape(message)):
        _runner(never).run(inputs)


def test_an_engines_error_says_which_model_and_batch():
    def fails(_inputs):
        raise RuntimeError("index 7 is out of bounds\nat line 3")

    with pytest.raises(ModelError, match=r"m\.own: failed on a batch of 3: RuntimeError: index 7 is out of bounds at"):
        _runner(fails).run(GOOD)


def test_an_output_without_the_batch_is_told_about():
    with pytest.raises(ModelError, match=r"output 'y' has shape \[2\] for a batch of 3; expected the batch as"):
        _runner(lambda inputs: {"y": inputs["x"][0]}).run(GOOD)


def test_a_closed_runner_lets_go_of_its_engine_and_says_so():
    runner = _runner()
    runner.close()
    runner.close()
    with pytest.raises(ModelError, match=r"m\.own: was closed and cannot be run; open it anew"):
        runner.run(GOOD)
    assert isinstance(runner, Runner)


def test_an_empty_batch_has_empty_outputs_and_no_engine_sees_it():
    def never(_inputs):
        raise AssertionError("the engine saw an empty batch")

    runner = _runner(never, outputs=(TensorSpec("y", "FP32", (-1, -1, 4)),))
    (found,) = runner.run({name: value[:0] for name, value in GOOD.items()}).values()
    assert (found.shape, found.dtype) == ((0, 0, 4), np.float32)


@given(length=st.integers(1, 9), size=st.integers(1, 5))
def test_a_fixed_batch_serves_any_length(length, size):
    seen = []

    def fixed(inputs):
        seen.append({len(value) for value in inputs.values()})
        return _times(inputs)

    rng = np.random.default_rng(length)
    inputs = {"x": rng.normal(size=(length, 2)).astype(np.float32), "k": np.arange(length)}
    runner = _runner(fixed, inputs=(TensorSpec("x", "FP32", (size, 2)), TensorSpec("k", "INT64", (size,))))
    assert [spec.shape for spec in runner.inputs] == [(-1, 2), (-1,)]
    np.testing.assert_array_equal(runner.run(inputs)["y"], _times(inputs)["y"])
    assert all(each == {size} for each in seen)
    assert len(seen) == -(-length // size)


def test_parts_of_a_fixed_batch_that_differ_in_shape_are_told_about():
    def growing(inputs):
        return {"y": np.zeros((1, int(inputs["k"][0])), np.float32)}

    runner = _runner(growing, inputs=(TensorSpec("x", "FP32", (1, 2)), TensorSpec("k", "INT64", (1,))))
    with pytest.raises(ModelError, match=r"runs 1 samples at a time, and its outputs differ in shape.*one by one"):
        runner.run({"x": np.ones((2, 2), np.float32), "k": np.array([1, 2])})


def test_inputs_without_a_common_batch_are_refused():
    with pytest.raises(ModelError, match=r"its inputs have no common batch axis \('x' \[2, 2\], 'k' \[3\]\)"):
        _runner(inputs=(TensorSpec("x", "FP32", (2, 2)), TensorSpec("k", "INT64", (3,))))


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        (np.float32, None, "its input 'a' is of an unknown number of axes; save it anew with a batch"),
        (np.float32, (), "its input 'a' is a single number; save it anew with a batch"),
        ("bfloat16", (None, 2), "its input 'a' is of the type bfloat16, expected one of BOOL"),
        (np.complex64, (None, 2), "its input 'a' is of the type .*complex64.*, expected one of BOOL"),
    ],
)
def test_a_tensor_that_cannot_be_described_is_refused(dtype, shape, message):
    with pytest.raises(ModelError, match=message):
        spec_of("a", dtype, shape, model="m", what="input")


@given(st.lists(st.one_of(st.none(), st.text(max_size=3), st.integers(-3, 9)), min_size=1, max_size=4))
def test_what_a_shape_does_not_fix_is_minus_one(shape):
    spec = spec_of("a", np.float32, shape, model="m", what="output")
    assert spec.shape == tuple(size if isinstance(size, int) and size >= 0 else -1 for size in shape)


def test_bytes_are_given_to_the_engine_as_objects():
    seen = {}

    def keep(inputs):
        seen.update(inputs)
        return {"y": np.zeros((2, 2), np.float32)}

    runner = _runner(keep, inputs=(TensorSpec("t", "BYTES", (-1,)),))
    runner.run({"t": np.array([b"a", b"bc"])})
    assert (seen["t"].dtype, seen["t"].tolist()) == (object, [b"a", b"bc"])
