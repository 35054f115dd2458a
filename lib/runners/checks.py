# SPDX-License-Identifier: Apache-2.0
"""The contract that every runner keeps, ours and yours: `check_runner(MyRunner(...), {"image": images})`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError
from ..tensors import DATATYPES, Tensors, TensorSpec
from .opening import open_runner
from .runner import Runner

__all__ = ["check_runner"]

_T = TypeVar("_T")
_Outputs = dict[str, NDArray[Any]]
# Batches are summed in another order than single samples.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4
_STEPS_OF_INTEGERS = 1


def check_runner(runner_or_path: Runner | str | os.PathLike[str], sample: Tensors | NDArray[Any]) -> None:
    """Check that a runner keeps what `Runner` promises.

    Parameters
    ----------
    runner_or_path
        The runner, which is closed at the end, or the path of a model that `open_runner` opens.
    sample
        Two samples or more that the model can take: arrays by input name, or the one array of a model with one input.

    Raises
    ------
    ModelError
        If it does not: the message says which promise is broken.
    """
    if isinstance(runner_or_path, str | os.PathLike):
        runner_or_path = open_runner(runner_or_path)
    runner = runner_or_path
    _require(isinstance(runner, Runner), f"{type(runner).__name__} has not all that a Runner has; see its protocol")
    _within("its description", lambda: _describes_itself(runner))
    inputs = _sample(runner, sample)
    wanted = _within("run", lambda: _answers(runner, inputs))
    _within("run, given the same batch again,", lambda: _repeats(runner, inputs, wanted))
    _within("run, given samples one by one,", lambda: _ignores_the_batch(runner, inputs, wanted))
    _within("run, given arrays of another layout,", lambda: _takes_any_layout(runner, inputs, wanted))
    _within("run, given an empty batch,", lambda: _takes_an_empty_batch(runner, inputs))
    _refuses(runner, inputs)
    _within("run, after it refused inputs,", lambda: _same(runner.run(inputs), wanted, "after it refused inputs"))
    _within("run in another thread", lambda: _runs_in_another_thread(runner, inputs, wanted))
    _within("close", lambda: _closes(runner, inputs))


def _within(step: str, check: Callable[[], _T]) -> _T:
    """Run a check; what the runner raises in it is a broken promise too."""
    try:
        return check()
    except ModelError as error:
        raise ModelError(f"{step}: {error}") from error
    except Exception as error:
        raise ModelError(f"{step} raised {type(error).__name__}: {error}") from error


def _require(condition: object, promise: str) -> None:
    if not condition:
        raise ModelError(promise)


def _describes_itself(runner: Runner) -> None:
    _require(isinstance(runner.platform, str) and runner.platform, "platform must be the format's name, such as 'onnx'")
    for what, specs in (("inputs", runner.inputs), ("outputs", runner.outputs)):
        _require(isinstance(specs, tuple) and specs, f"{what} must be a tuple of at least one TensorSpec")
        for spec in specs:
            _require(isinstance(spec, TensorSpec), f"{what} must hold TensorSpecs, and {spec!r:.100} is none")
            _require(spec.datatype in DATATYPES, f"{spec.name!r} is {spec.datatype}, expected a key of DATATYPES")
            _require(
                spec.shape[:1] == (-1,),
                f"{spec.name!r} has shape {list(spec.shape)}, expected -1 first: the batch may have any length",
            )
        names = [spec.name for spec in specs]
        _require(len(set(names)) == len(names), f"{what} must have a name of its own each, and are {names}")


def _sample(runner: Runner, sample: Tensors | NDArray[Any]) -> _Outputs:
    if isinstance(sample, np.ndarray):
        _require(
            len(runner.inputs) == 1,
            f"the model has {len(runner.inputs)} inputs ({', '.join(spec.name for spec in runner.inputs)}); give "
            f"sample as arrays by their names",
        )
        sample = {runner.inputs[0].name: sample}
    for spec in runner.inputs:
        _require(spec.name in sample, f"sample has no {spec.name!r}; give one array for each input")
        problem = spec.problem_with(sample[spec.name])
        _require(problem is None, f"sample: {problem}")
        _require(
            len(sample[spec.name]) > 1, f"sample holds {len(sample[spec.name])} of {spec.name!r}; give two or more"
        )
    return {spec.name: np.array(sample[spec.name], order="C") for spec in runner.inputs}


def _answers(runner: Runner, inputs: _Outputs) -> _Outputs:
    before = _copied(inputs)
    for value in inputs.values():
        value.flags.writeable = False
    outputs = runner.run(inputs)
    for name, value in inputs.items():
        _require(_equal(value, before[name]), f"it must not write to its input {name!r}")
    _fit(runner, outputs, len(next(iter(inputs.values()))))
    return _copied(outputs)


def _fit(runner: Runner, outputs: Any, length: int) -> None:
    wanted = [spec.name for spec in runner.outputs]
    _require(isinstance(outputs, dict), f"it must return a dict of arrays, and returned a {type(outputs).__name__}")
    _require(set(outputs) == set(wanted), f"it must return the outputs {wanted}, and returned {list(outputs)}")
    for spec in runner.outputs:
        value = outputs[spec.name]
        _require(
            isinstance(value, np.ndarray), f"output {spec.name!r} must be a NumPy array, not a {type(value).__name__}"
        )
        problem = spec.problem_with(value)
        _require(problem is None, f"output {problem}")
        _require(len(value) == length, f"output {spec.name!r} holds {len(value)} samples for a batch of {length}")


def _repeats(runner: Runner, inputs: _Outputs, wanted: _Outputs) -> None:
    first = runner.run(inputs)
    _require(
        all(_equal(first[name], wanted[name]) for name in wanted),
        "the same batch must give the same answer; switch off dropout and other chance",
    )
    runner.run({name: value[::-1].copy() for name, value in inputs.items()})
    _require(
        all(_equal(first[name], wanted[name]) for name in wanted),
        "an answer must stay as it is when the next batch runs; return copies of the engine's buffers",
    )


def _ignores_the_batch(runner: Runner, inputs: _Outputs, wanted: _Outputs) -> None:
    for i in range(len(next(iter(inputs.values())))):
        one = runner.run({name: value[i : i + 1] for name, value in inputs.items()})
        _fit(runner, one, 1)
        _same(one, {name: value[i : i + 1] for name, value in wanted.items()}, f"for sample {i} alone")


def _takes_any_layout(runner: Runner, inputs: _Outputs, wanted: _Outputs) -> None:
    strided = {name: value.repeat(2, 0)[::2] for name, value in inputs.items()}
    _same(runner.run(strided), wanted, "for arrays that are not contiguous")
    swapped = {
        name: value if value.dtype == object else value.astype(value.dtype.newbyteorder(">"))
        for name, value in inputs.items()
    }
    _same(runner.run(swapped), wanted, "for arrays in the other byte order")


def _takes_an_empty_batch(runner: Runner, inputs: _Outputs) -> None:
    _fit(runner, runner.run({name: value[:0] for name, value in inputs.items()}), 0)


def _refuses(runner: Runner, inputs: _Outputs) -> None:
    for spec in runner.inputs:
        value = inputs[spec.name]
        another = np.complex64 if value.dtype == object else object
        wrong: dict[str, Mapping[str, NDArray[Any]]] = {
            "without one": {name: each for name, each in inputs.items() if name != spec.name},
            "of another dtype": {**inputs, spec.name: np.zeros(value.shape, another)},
            "of one axis more": {**inputs, spec.name: value[..., np.newaxis]},
        }
        fixed = [axis for axis, size in enumerate(spec.shape) if size > 0]
        if fixed:
            wrong["of another size"] = {**inputs, spec.name: value.repeat(2, fixed[-1])}
        if len(runner.inputs) > 1:
            wrong["of another length"] = {**inputs, spec.name: value[1:]}
        for how, given in wrong.items():
            _refuses_one(runner, given, spec.name, how)
    _refuses_one(runner, {**inputs, "not an input": next(iter(inputs.values()))}, "not an input", "that it has not")


def _refuses_one(runner: Runner, given: Tensors, name: str, how: str) -> None:
    promise = f"run, given an input {name!r} {how}, must raise a ModelError that names it"
    try:
        runner.run(given)
    except ModelError as error:
        _require(name in str(error), f"{promise}; it said: {error}")
    except Exception as error:
        raise ModelError(f"{promise}; it raised {type(error).__name__}: {error}") from error
    else:
        raise ModelError(f"{promise}; it answered")


def _runs_in_another_thread(runner: Runner, inputs: _Outputs, wanted: _Outputs) -> None:
    found: list[_Outputs | BaseException] = []

    def work() -> None:
        try:
            found.append(runner.run(inputs))
        except BaseException as error:  # noqa: BLE001  # raised below, in the caller's thread
            found.append(error)

    thread = Thread(target=work, name="check_runner")
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    _same(found[0], wanted, "in another thread")


def _closes(runner: Runner, inputs: _Outputs) -> None:
    runner.close()
    runner.close()
    try:
        runner.run(inputs)
    except ModelError:
        return
    raise ModelError("run must raise a ModelError once the runner is closed; it answered")


def _copied(arrays: Mapping[str, NDArray[Any]]) -> _Outputs:
    return {name: value.copy() for name, value in arrays.items()}


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _same(found: _Outputs, wanted: _Outputs, when: str) -> None:
    for name, value in wanted.items():
        if value.dtype.kind == "f":
            close = np.allclose(found[name], value, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)
        elif value.dtype.kind in "iu":
            # A quantised model rounds, and what was summed in another order may round to the next step.
            close = bool(np.all(np.abs(found[name].astype(float) - value.astype(float)) <= _STEPS_OF_INTEGERS))
        else:
            close = _equal(found[name], value)
        _require(close, f"output {name!r} must be the same {when}, and differs")
