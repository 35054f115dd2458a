# SPDX-License-Identifier: Apache-2.0
"""The contract suite, given runners that break one promise each."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from solar_corona.core.errors import ModelError
from solar_corona.lib.runners.checks import check_runner
from solar_corona.lib.tensors import TensorSpec

SAMPLE = {"x": np.array([[1, 2], [3, 4], [5, 6]], np.float32), "k": np.array([1, 2, 3], np.int64)}


class Times:
    """A user's own runner that keeps every promise: `y = k * x`."""

    platform = "times"
    inputs = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("k", "INT64", (-1,)))
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    closed = False

    def run(self, inputs):
        if self.closed:
            raise ModelError("times: was closed")
        self.refuse(inputs)
        return self.answer(inputs["x"].astype(np.float32), inputs["k"].astype(np.int64))

    def refuse(self, inputs):
        names = [spec.name for spec in self.inputs]
        for name in {*names} ^ {*inputs}:
            raise ModelError(f"times: {name!r} is missing or unknown")
        for spec in self.inputs:
            try:
                problem = spec.problem_with(inputs[spec.name])
            except ValueError as error:
                problem = f"{spec.name}: {error}"
            if problem:
                raise ModelError(problem)
        if len(inputs["x"]) != len(inputs["k"]):
            raise ModelError("'x' and 'k' differ in length")

    def answer(self, x, k):
        return {"y": x * k[:, np.newaxis].astype(np.float32)}

    def close(self):
        self.closed = True


def test_a_runner_that_keeps_the_contract_passes_and_is_closed():
    runner = Times()
    check_runner(runner, SAMPLE)
    assert runner.closed
    assert SAMPLE["x"].flags.writeable


class NoRunner:
    def run(self, inputs):
        return inputs


class Nameless(Times):
    platform = ""


class NoBatchAxis(Times):
    outputs = (TensorSpec("y", "FP32", (1, 2)),)


class TwoOfOneName(Times):
    inputs = (*Times.inputs, TensorSpec("x", "FP32", (-1,)))


class ListsItsInputs(Times):
    inputs = [*Times.inputs]  # noqa: RUF012


class UnknownDatatype(Times):
    outputs = (TensorSpec("y", "FLOAT", (-1, 2)),)


class Raises(Times):
    def answer(self, x, k):
        raise RuntimeError("engine is cold")


class GivesAnotherName(Times):
    def answer(self, x, k):
        return {"z": x}


class GivesAnotherDtype(Times):
    def answer(self, x, k):
        return {"y": x.astype(np.float64)}


class GivesLists(Times):
    def answer(self, x, k):
        return {"y": x.tolist()}


class GivesAnArray(Times):
    def answer(self, x, k):
        return x


class GivesOneAlone(Times):
    def answer(self, x, k):
        return {"y": super().answer(x, k)["y"][:1]}


class WritesToItsInput(Times):
    def run(self, inputs):
        answer = super().run(inputs)
        view = inputs["x"]
        view.flags.writeable = True
        view += 1
        return answer


class Drops(Times):
    chance = np.random.default_rng(1)

    def answer(self, x, k):
        return {"y": super().answer(x, k)["y"] * self.chance.integers(0, 2, x.shape).astype(np.float32)}


class KeepsItsBuffer(Times):
    def __init__(self):
        self.buffer = np.zeros((3, 2), np.float32)

    def answer(self, x, k):
        if len(x) != 3:
            return super().answer(x, k)
        self.buffer[:] = super().answer(x, k)["y"]
        return {"y": self.buffer}


class NormalizesByTheBatch(Times):
    def answer(self, x, k):
        return {"y": x - x.mean(0)} if len(x) else super().answer(x, k)


class ReadsMemoryAsItLies(Times):
    def run(self, inputs):
        x = inputs.get("x")
        if x is not None and x.dtype == np.float32 and not x.flags.c_contiguous:
            inputs = {**inputs, "x": np.resize(x.base, x.shape)}
        return super().run(inputs)


class IgnoresTheByteOrder(Times):
    def run(self, inputs):
        x = inputs.get("x")
        if x is not None and x.dtype == np.dtype(">f4"):
            inputs = {**inputs, "x": x.view("<f4")}
        return super().run(inputs)


class NeedsASample(Times):
    def answer(self, x, k):
        if not len(x):
            raise IndexError("no sample")
        return super().answer(x, k)


class TakesEveryName(Times):
    def refuse(self, inputs):
        super().refuse({name: value for name, value in inputs.items() if name in ("x", "k")})


class TakesEveryDtype(Times):
    def refuse(self, inputs):
        wrong = {name: each for name, each in inputs.items() if each.dtype != object}
        super().refuse({**wrong, **{name: SAMPLE[name] for name in inputs if name in SAMPLE and name not in wrong}})


class RefusesWithoutAName(Times):
    def refuse(self, inputs):
        try:
            super().refuse(inputs)
        except ModelError as error:
            raise ModelError("bad input") from error


class RefusesByAnotherError(Times):
    def refuse(self, inputs):
        try:
            super().refuse(inputs)
        except ModelError as error:
            raise KeyError(str(error)) from error


class BreaksWhenItRefuses(Times):
    broken = False

    def refuse(self, inputs):
        try:
            super().refuse(inputs)
        except ModelError:
            self.broken = True
            raise

    def answer(self, x, k):
        return {"y": super().answer(x, k)["y"] + (1 if self.broken else 0)}


class StaysInItsThread(Times):
    def __init__(self):
        self.thread = threading.current_thread()

    def answer(self, x, k):
        if threading.current_thread() is not self.thread:
            raise RuntimeError("made in another thread")
        return super().answer(x, k)


class RunsWhenClosed(Times):
    def close(self):
        pass


class ClosesOnce(Times):
    def close(self):
        if self.closed:
            raise ValueError("closed already")
        self.closed = True


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoRunner, "NoRunner has not all that a Runner has"),
        (Nameless, "platform must be the format's name"),
        (NoBatchAxis, r"'y' has shape \[1, 2\], expected -1 first"),
        (TwoOfOneName, "inputs must have a name of its own each"),
        (ListsItsInputs, "inputs must be a tuple"),
        (UnknownDatatype, "'y' is FLOAT, expected a key of DATATYPES"),
        (Raises, "^run raised RuntimeError: engine is cold"),
        (GivesAnotherName, r"must return the outputs \['y'\], and returned \['z'\]"),
        (GivesAnotherDtype, "output 'y' is FP64, expected FP32"),
        (GivesLists, "output 'y' must be a NumPy array, not a list"),
        (GivesAnArray, "must return a dict of arrays, and returned a ndarray"),
        (GivesOneAlone, "output 'y' holds 1 samples for a batch of 3"),
        (WritesToItsInput, "must not write to its input 'x'"),
        (Drops, "the same batch must give the same answer; switch off dropout"),
        (KeepsItsBuffer, "an answer must stay as it is when the next batch runs; return copies"),
        (NormalizesByTheBatch, "output 'y' must be the same for sample 0 alone"),
        (ReadsMemoryAsItLies, "must be the same for arrays that are not contiguous"),
        (IgnoresTheByteOrder, "must be the same for arrays in the other byte order"),
        (NeedsASample, "given an empty batch, raised IndexError: no sample"),
        (
            TakesEveryName,
            "given an input 'not an input' that it has not, must raise a ModelError that names it; it answered",
        ),
        (TakesEveryDtype, "given an input 'x' of another dtype, must raise a ModelError"),
        (RefusesWithoutAName, "given an input 'x' without one.*it said: bad input"),
        (RefusesByAnotherError, "given an input 'x' without one.*it raised KeyError"),
        (BreaksWhenItRefuses, "must be the same after it refused inputs"),
        (StaysInItsThread, "in another thread raised RuntimeError: made in another thread"),
        (RunsWhenClosed, "must raise a ModelError once the runner is closed; it answered"),
        (ClosesOnce, "close raised ValueError: closed already"),
    ],
)
def test_a_broken_promise_is_named(kind, message):
    with pytest.raises(ModelError, match=message):
        check_runner(kind(), SAMPLE)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (SAMPLE["x"], r"the model has 2 inputs \(x, k\); give sample as arrays by their names"),
        ({"x": SAMPLE["x"]}, "sample has no 'k'"),
        ({**SAMPLE, "k": np.ones(3)}, "sample: 'k' is FP64, expected INT64"),
        ({name: value[:1] for name, value in SAMPLE.items()}, "sample holds 1 of 'x'; give two or more"),
    ],
)
def test_a_sample_that_the_model_cannot_take_is_the_callers_fault(sample, message):
    with pytest.raises(ModelError, match=message):
        check_runner(Times(), sample)
