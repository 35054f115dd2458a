# SPDX-License-Identifier: Apache-2.0
"""What runs a saved model, whatever its format."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from ..tensors import Tensors, TensorSpec

__all__ = ["Runner"]


@runtime_checkable
class Runner(Protocol):
    """A model that is loaded and answers batches; one thread at a time calls it.

    The first axis of every input and output is the batch. A runner whose format has a fixed batch of one runs larger
    batches sample by sample.
    """

    @property
    def platform(self) -> str:
        """The format in the Open Inference Protocol's words: `keras`, `tensorflow_savedmodel`, `litert`, `onnx`."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Return the outputs for a batch.

        Raises
        ------
        ModelError
            If an input is missing, or its dtype or shape is not that of `inputs`; the message says what was expected.
        """

    def close(self) -> None:
        """Free what the model holds; it may not be run after that."""
