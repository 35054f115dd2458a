# SPDX-License-Identifier: Apache-2.0
"""Runs LiteRT (`.tflite`) models, without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from ...core.errors import ModelError
from ..tensors import Tensors, TensorSpec
from .batches import BatchRunner, Run, spec_of

__all__ = ["LiteRtRunner", "Quantization"]

_SIGNATURES = ("serving_default", "serve")
_LEAST_BYTES = 64


@dataclass(frozen=True)
class Quantization:
    """What the integers of a quantised tensor stand for: `scale * (value - zero_point)`.

    Parameters
    ----------
    scale
        Of one step.
    zero_point
        The integer that stands for 0.
    """

    scale: float
    zero_point: int


class LiteRtRunner(BatchRunner):
    """A LiteRT model.

    Parameters
    ----------
    path
        The file, whose identifier was checked.
    name
        How messages name it.
    threads
        How many threads compute.
    order
        Names of the inputs and outputs in the order in which they are told; by default the file's, which is that of
        the alphabet for a converted SavedModel.

    Notes
    -----
    A model of one signature has that signature's names; one of several is run by `serving_default`. A quantised model
    takes and gives its own integers: `quantization` says what they stand for.

    Raises
    ------
    ModelError
        If the file is damaged, or needs operations that LiteRT has not.
    """

    platform = "litert"

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        threads: int = 1,
        order: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> None:
        if path.stat().st_size < _LEAST_BYTES:
            raise ModelError(f"{name}: is cut off after {path.stat().st_size} bytes; fetch or save it anew")
        try:
            interpreter = Interpreter(model_path=str(path), num_threads=threads)
            signature = _signature(interpreter, name)
            run, inputs, outputs = _by_name(interpreter) if signature is None else _signed(interpreter, signature)
            inputs, outputs = _ordered(inputs, order[0]), _ordered(outputs, order[1])
        except (RuntimeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            text = " ".join(str(error).split())[:400]
            raise ModelError(
                f"{name}: is no LiteRT model that runs here, or is damaged ({text}); fetch it anew, or convert it "
                f"with LiteRT's own operations alone"
            ) from error
        super().__init__(run, inputs=_specs(inputs, name, "input"), outputs=_specs(outputs, name, "output"), model=name)
        self.quantization: Mapping[str, Quantization] = {
            tensor: Quantization(float(scale), int(zero_point))
            for tensor, details in (*inputs.items(), *outputs.items())
            for scale, zero_point in [details["quantization"]]
            if scale
        }


_Details = dict[str, dict[str, Any]]


def _signature(interpreter: Interpreter, name: str) -> str | None:
    known = list(interpreter.get_signature_list())
    if len(known) < 2:
        return known[0] if known else None
    for wanted in _SIGNATURES:
        if wanted in known:
            return wanted
    raise ModelError(
        f"{name}: has the signatures {', '.join(map(repr, known))}, expected one of them to be {_SIGNATURES[0]!r}; "
        f"convert it anew with that name for the one to run"
    )


def _signed(interpreter: Interpreter, signature: str) -> tuple[Run, _Details, _Details]:
    runner = interpreter.get_signature_runner(signature)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    main = {
        each["name"]: each["index"] for each in (*interpreter.get_input_details(), *interpreter.get_output_details())
    }
    if all(main.get(each["name"]) == each["index"] for each in (*inputs.values(), *outputs.values())):
        return _direct(interpreter, inputs, outputs), inputs, outputs

    # A signature of another subgraph than the first, which the interpreter itself cannot run.
    def run(given: Tensors) -> dict[str, NDArray[Any]]:
        return cast("dict[str, NDArray[Any]]", runner(**given))

    return run, inputs, outputs


def _by_name(interpreter: Interpreter) -> tuple[Run, _Details, _Details]:
    """Return how a model without a signature runs: its tensors have names of their own."""
    inputs = {each["name"]: each for each in interpreter.get_input_details()}
    outputs = {each["name"]: each for each in interpreter.get_output_details()}
    return _direct(interpreter, inputs, outputs), inputs, outputs


def _direct(interpreter: Interpreter, inputs: _Details, outputs: _Details) -> Run:
    given = [(name, details["index"]) for name, details in inputs.items()]
    made = [(name, details["index"]) for name, details in outputs.items()]
    last: list[tuple[int, ...]] = []

    def run(tensors: Tensors) -> dict[str, NDArray[Any]]:
        nonlocal last
        shapes = [tensors[name].shape for name, _ in given]
        if shapes != last:
            # Some microseconds. Forgotten first: what fails half way fits no shape.
            last = []
            for (_, index), shape in zip(given, shapes, strict=True):
                interpreter.resize_tensor_input(index, shape)
            interpreter.allocate_tensors()
            last = shapes
        for name, index in given:
            interpreter.set_tensor(index, tensors[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in made}

    return run


def _ordered(details: _Details, names: Sequence[str]) -> _Details:
    return {name: details[name] for name in names} if set(names) == set(details) else details


def _specs(details: _Details, model: str, what: str) -> tuple[TensorSpec, ...]:
    return tuple(
        spec_of(name, each["dtype"], tuple(each["shape_signature"]), model=model, what=what)
        for name, each in details.items()
    )
