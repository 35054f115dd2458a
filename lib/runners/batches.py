# SPDX-License-Identifier: Apache-2.0
"""What every runner does around its engine: inputs checked before, batches cut where the format's is fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError
from ..tensors import DATATYPES, Tensors, TensorSpec, datatype_of

__all__ = ["BatchRunner", "Run", "spec_of"]

Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""An engine's answer to inputs that were checked: native byte order, one batch length."""


def spec_of(name: str, dtype: Any, shape: Sequence[Any] | None, *, model: str, what: str) -> TensorSpec:
    """Return the spec of an engine's tensor; whatever its shape does not fix is -1.

    Parameters
    ----------
    name
        The tensor's name.
    dtype
        What NumPy makes a dtype of.
    shape
        Length of each axis, batch first; None or a text where it varies.
    model
        The model's path, for messages.
    what
        `input` or `output`.

    Raises
    ------
    ModelError
        If it has no batch axis, or its dtype is none of `DATATYPES`.
    """
    if not shape:
        known = "of an unknown number of axes" if shape is None else "a single number"
        raise ModelError(f"{model}: its {what} {name!r} is {known}; save it anew with a batch as the first axis")
    try:
        datatype = datatype_of(np.dtype(dtype))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{model}: its {what} {name!r} is of the type {dtype}, expected one of {', '.join(DATATYPES)}; save it "
            f"anew with a cast"
        ) from error
    sizes = tuple(int(size) if isinstance(size, int | np.integer) and size >= 0 else -1 for size in shape)
    return TensorSpec(name, datatype, sizes)


class BatchRunner:
    """Runs batches of any length on an engine, whatever batch it takes: what every format's `Runner` is.

    Parameters
    ----------
    run
        The engine.
    inputs, outputs
        What it takes and gives, the batch axis as the format has it.
    model
        The model's path, for messages.
    """

    platform = ""

    def __init__(self, run: Run, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], model: str) -> None:
        self._run: Run | None = run
        self._model = model
        self._fixed = _fixed_batch(inputs, model)
        self.inputs = tuple(_any_batch(spec) for spec in inputs)
        self.outputs = tuple(_any_batch(spec) for spec in outputs)
        # Most calls are right: what these few comparisons pass needs no further look.
        self._expected = tuple((spec.name, spec.dtype, spec.shape[1:]) for spec in self.inputs)

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Return the outputs for a batch; see `Runner.run`."""
        run = self._run
        if run is None:
            raise ModelError(f"{self._model}: was closed and cannot be run; open it anew")
        length, inputs = self._checked(inputs)
        if length == 0:
            return {spec.name: np.zeros([max(size, 0) for size in spec.shape], spec.dtype) for spec in self.outputs}
        try:
            outputs = run(inputs) if self._fixed in (None, length) else self._in_parts(run, inputs, length)
        except ModelError:
            raise
        except Exception as error:
            # Each engine has errors of its own, and what they say of an input is what the user needs to know.
            text = " ".join(str(error).split())
            raise ModelError(
                f"{self._model}: failed on a batch of {length}: {type(error).__name__}: {text[:400]}"
            ) from error
        for name, value in outputs.items():
            if value.shape[:1] != (length,):
                raise ModelError(
                    f"{self._model}: its output {name!r} has shape {list(value.shape)} for a batch of {length}; "
                    f"expected the batch as the first axis: save the model anew with it"
                )
        return outputs

    def close(self) -> None:
        """Free what the model holds."""
        self._run = None

    def _checked(self, inputs: Tensors) -> tuple[int, Tensors]:
        """Return the batch's length and inputs as an engine takes them."""
        if len(inputs) != len(self._expected):
            raise self._names_differ(inputs)
        converted: dict[str, NDArray[Any]] = {}
        length = -1
        for index, (name, dtype, rest) in enumerate(self._expected):
            if name not in inputs:
                raise self._names_differ(inputs)
            value = inputs[name]
            if not isinstance(value, np.ndarray):
                raise ModelError(
                    f"{self._model}: input {name!r} is a {type(value).__name__}, expected a NumPy array of "
                    f"{self.inputs[index].datatype}"
                )
            if value.dtype != dtype or value.shape[1:] != rest or not value.shape:
                problem = _problem(self.inputs[index], value)
                if problem is not None:
                    raise ModelError(f"{self._model}: input {problem}")
                if value.dtype != dtype:
                    converted[name] = _native(value, dtype)
            if length not in (-1, value.shape[0]):
                raise ModelError(
                    f"{self._model}: input {name!r} holds {value.shape[0]} samples, and "
                    f"{self._expected[0][0]!r} holds {length}; expected as many in each"
                )
            length = value.shape[0]
        return length, {**inputs, **converted} if converted else inputs

    def _names_differ(self, inputs: Tensors) -> ModelError:
        wanted = {spec.name: spec for spec in self.inputs}
        missing = [name for name in wanted if name not in inputs]
        if missing:
            spec = wanted[missing[0]]
            given = ", ".join(map(repr, inputs)) or "nothing"
            return ModelError(
                f"{self._model}: input {spec.name!r} ({spec.datatype}, shape {list(spec.shape)}) is missing; "
                f"got {given}"
            )
        unknown = next(name for name in inputs if name not in wanted)
        return ModelError(
            f"{self._model}: has no input {unknown!r}; expected {', '.join(map(repr, wanted))} and no other"
        )

    def _in_parts(self, run: Run, inputs: Tensors, length: int) -> dict[str, NDArray[Any]]:
        size = self._fixed or length
        parts = []
        for start in range(0, length, size):
            here = {name: value[start : start + size] for name, value in inputs.items()}
            short = size - (min(start + size, length) - start)
            if short:
                # The last sample fills up the last part: any other filling could be one the model cannot take.
                here = {name: np.concatenate([value, value[-1:].repeat(short, 0)]) for name, value in here.items()}
            parts.append({name: value[: size - short] for name, value in run(here).items()})
        try:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except ValueError as error:
            raise ModelError(
                f"{self._model}: runs {size} samples at a time, and its outputs differ in shape from one to the next "
                f"({error}); run them one by one"
            ) from error


def _fixed_batch(inputs: Sequence[TensorSpec], model: str) -> int | None:
    sizes = {spec.shape[0] for spec in inputs if spec.shape[0] != -1}
    if len(sizes) > 1 or 0 in sizes:
        each = ", ".join(f"{spec.name!r} {list(spec.shape)}" for spec in inputs)
        raise ModelError(f"{model}: its inputs have no common batch axis ({each}); save it anew with one")
    return sizes.pop() if sizes else None


def _any_batch(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=(-1, *spec.shape[1:]))


def _problem(spec: TensorSpec, value: NDArray[Any]) -> str | None:
    try:
        return spec.problem_with(value)
    except ValueError:
        # NumPy holds more types than the protocol has names for.
        return f"{spec.name!r} is {value.dtype}, expected {spec.datatype}"


def _native(value: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array in the byte order of this machine; text as bytes."""
    if dtype != np.dtype(object):
        return value.astype(dtype)
    encoded = [each.encode() if isinstance(each, str) else each for each in value.ravel().tolist()]
    made = np.empty(len(encoded), object)
    made[:] = encoded
    return made.reshape(value.shape)
