# SPDX-License-Identifier: Apache-2.0
"""A deep model that answers elsewhere, whatever it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..tensors import Tensors, TensorSpec

__all__ = ["Description", "Endpoint", "Reply"]


@dataclass(frozen=True)
class Reply:
    """What an endpoint answered.

    Parameters
    ----------
    outputs
        Tensors by name, batch first.
    model, version
        Which model made them.
    bytes_up, bytes_down
        Bytes of the request's and the answer's bodies.
    """

    outputs: Tensors
    model: str = ""
    version: str = ""
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class Description:
    """What a model elsewhere takes.

    Parameters
    ----------
    inputs
        Its inputs; empty where nobody says.
    reads_files
        Whether image files (JPEG, PNG, WebP) may be sent in place of a tensor.
    """

    inputs: tuple[TensorSpec, ...] = ()
    reads_files: bool = False


@runtime_checkable
class Endpoint(Protocol):
    """Something that answers batches within a deadline; any number of threads may call it at once."""

    def describe(self, *, deadline: float) -> Description:
        """Return what the model takes.

        Raises
        ------
        TemporaryError
            If it cannot be reached within `deadline` seconds.
        ModelError
            If there is no such model.
        """

    def infer(self, inputs: Tensors, *, deadline: float, encodings: Mapping[str, str] = ...) -> Reply:
        """Return the outputs for a batch.

        Parameters
        ----------
        inputs
            Tensors by name; one whose name is in `encodings` holds files (BYTES) of that format, such as `jpeg`.
        deadline
            Seconds from now in which it has to answer.

        Raises
        ------
        TemporaryError
            If no usable answer came in time: not reached, overloaded, cut off, garbage. It may work later.
        ModelError
            If the request itself was refused, as one of a wrong shape or a wrong token is; trying again is useless.
        """

    def close(self) -> None:
        """Close its connections."""
