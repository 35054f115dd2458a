# SPDX-License-Identifier: Apache-2.0
"""Checks a request against the model that it asks, before it takes a place in the queue."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ...core.errors import RefusedRequestError
from .images import image_form

if TYPE_CHECKING:
    from ...lib.open_inference import Request
    from ...lib.tensors import Tensors, TensorSpec
    from .models import ServedModel

__all__ = ["deadline_of", "encoded_inputs", "rows_of", "shapes_of"]


def rows_of(model: ServedModel, request: Request) -> int:
    """Return how many samples a request has; image files count as the samples that they will be.

    Raises
    ------
    RefusedRequestError
        With status 400 if the inputs or wanted outputs are not those of the model, 415 for a file of another kind.
    """
    inputs, rows = request.inputs, -1
    for spec in model.inputs:
        value = inputs.get(spec.name)
        if value is None:
            raise RefusedRequestError(400, f"input {spec.name!r} is missing; expected {_described(model.inputs)}")
        problem = _problem(spec, value, request.encodings)
        if problem is not None:
            raise RefusedRequestError(400, problem)
        if rows not in (-1, len(value)):
            raise RefusedRequestError(
                400, f"{spec.name!r} has {len(value)} samples and another input {rows}; expected the same number"
            )
        rows = len(value)
    if len(inputs) > len(model.inputs):
        unknown = next(name for name in inputs if all(name != spec.name for spec in model.inputs))
        raise RefusedRequestError(400, f"there is no input {unknown[:80]!r}; expected {_described(model.inputs)}")
    if not 1 <= rows <= model.max_batch:
        raise RefusedRequestError(400, f"the batch has {rows} samples, expected 1 to {model.max_batch}")
    for name in request.outputs:
        if all(name != spec.name for spec in model.outputs):
            raise RefusedRequestError(400, f"there is no output {name[:80]!r}; expected {_described(model.outputs)}")
    return rows


def encoded_inputs(model: ServedModel, request: Request) -> list[tuple[TensorSpec, str]]:
    """Return the inputs that come as image files and have to be decoded, each with Pillow's name of its format."""
    return [
        (spec, image_form(request.encodings[spec.name]))
        for spec in model.inputs
        if spec.datatype != "BYTES" and request.inputs[spec.name].dtype == object
    ]


def shapes_of(model: ServedModel, inputs: Tensors) -> tuple[tuple[int, ...], ...] | None:
    """Return what has to be equal within a batch; None where the model leaves no choice."""
    return tuple(inputs[spec.name].shape[1:] for spec in model.inputs) if model.varying else None


def deadline_of(parameters: Mapping[str, Any], deadline: float) -> float:
    """Return when a request has to be answered: `deadline`, or earlier if it asks for so.

    Parameters
    ----------
    parameters
        The request's; `timeout` is in microseconds, as Triton has it.
    deadline
        When it has to be at the latest, on the monotonic clock.
    """
    timeout = parameters.get("timeout")
    if timeout is None or timeout == 0:
        return deadline
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise RefusedRequestError(400, f"the parameter timeout is {str(timeout)[:40]!r}, expected microseconds from 0")
    return min(deadline, time.monotonic() + timeout / 1e6)


def _problem(spec: TensorSpec, value: NDArray[Any], encodings: Mapping[str, str]) -> str | None:
    # Some clients give plain tensors a content_type too: only bytes where the model takes none are files.
    if spec.name not in encodings or spec.datatype == "BYTES" or value.dtype != object:
        return spec.problem_with(value)
    if value.ndim == 1 or value.shape[1:] == (1,):
        return None
    return f"{spec.name!r} has image files of shape {list(value.shape)}, expected [n] or [n, 1]"


def _described(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name!r} ({spec.datatype} {list(spec.shape)})" for spec in specs)
