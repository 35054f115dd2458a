# SPDX-License-Identifier: Apache-2.0
"""Runs ONNX models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...core.errors import ModelError
from ..tensors import Tensors, TensorSpec
from .batches import BatchRunner, spec_of

__all__ = ["OnnxRunner"]

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "object",
}
_ONLY_ERRORS = 3


class OnnxRunner(BatchRunner):
    """An ONNX model on ONNX Runtime's CPU provider.

    Parameters
    ----------
    path
        The file, whose outline was checked.
    name
        How messages name it.
    threads
        How many threads compute.

    Raises
    ------
    ModelError
        If the file is damaged, needs operations that this ONNX Runtime has not, or takes or gives what is no tensor.
    """

    platform = "onnx"

    def __init__(self, path: Path, *, name: str, threads: int = 1) -> None:
        try:
            session = onnxruntime.InferenceSession(str(path), _options(threads), providers=["CPUExecutionProvider"])
            inputs = tuple(_spec(each, name, "input") for each in session.get_inputs())
            outputs = tuple(_spec(each, name, "output") for each in session.get_outputs())
        except ModelError:
            raise
        except Exception as error:
            # ONNX Runtime has a dozen errors of its own, none of which says what to do.
            text = " ".join(str(error).split())[:400]
            raise ModelError(
                f"{name}: is no ONNX model that runs here, or is damaged ({text}); fetch it anew, or export it for "
                f"an opset that onnxruntime {onnxruntime.__version__} knows"
            ) from error
        names = [spec.name for spec in outputs]

        def run(given: Tensors) -> dict[str, NDArray[Any]]:
            return dict(zip(names, session.run(names, given), strict=True))

        def run_texts(given: Tensors) -> dict[str, NDArray[Any]]:
            # ONNX Runtime's texts are Python's, the protocol's are bytes.
            found = run({each: _decoded(each, value) for each, value in given.items()})
            return {each: _each(value, str.encode) for each, value in found.items()}

        texts = any(spec.datatype == "BYTES" for spec in (*inputs, *outputs))
        super().__init__(run_texts if texts else run, inputs=inputs, outputs=outputs, model=name)


def _decoded(name: str, value: NDArray[Any]) -> NDArray[Any]:
    """Return bytes as the text that ONNX Runtime takes; it would make `b'x'` of b'x', four letters."""
    try:
        return _each(value, lambda item: item.decode() if isinstance(item, bytes) else item)
    except UnicodeDecodeError as error:
        raise ModelError(f"{name!r} has bytes that are no UTF-8 text, and ONNX models take text") from error


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ONLY_ERRORS
    # A plan of the memory for each batch length that was ever seen holds megabytes and saves nothing that was measured.
    options.enable_mem_pattern = False
    # Threads that spin between two batches take the core from whoever answers the network.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _each(value: NDArray[Any], convert: Callable[[Any], Any]) -> NDArray[Any]:
    if value.dtype != object:
        return value
    made = np.empty(value.size, object)
    made[:] = [convert(each) for each in value.ravel().tolist()]
    return made.reshape(value.shape)


def _spec(argument: Any, model: str, what: str) -> TensorSpec:
    dtype = _DTYPES.get(argument.type)
    if dtype is None:
        raise ModelError(
            f"{model}: its {what} {argument.name!r} is {argument.type}, expected a tensor of one of "
            f"{', '.join(sorted(set(_DTYPES.values()) - {'object'}))}, or strings; export it anew (a scikit-learn "
            f"model without ZipMap)"
        )
    return spec_of(argument.name, dtype, argument.shape, model=model, what=what)
