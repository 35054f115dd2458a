# SPDX-License-Identifier: Apache-2.0
"""The deep model as an edge uses it: what to send, within which deadline and budget, and whether the answer fits."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError, NotAskedError, TemporaryError
from ..lib.endpoints.endpoint import Description, Endpoint
from ..lib.endpoints.guarded import Circuit, GuardedEndpoint
from ..lib.tensors import Tensors
from .link import LinkBudget
from .uploads import Upload, UploadForm

__all__ = ["DeepAnswer", "DeepModel"]

_NUMBERS = "iuf"


@dataclass(frozen=True)
class DeepAnswer:
    """The deep model's outputs for some samples, batch first, and what it took to get them."""

    outputs: dict[str, NDArray[Any]]
    model: str
    bytes_up: int
    bytes_down: int
    seconds: float


class DeepModel:
    """Asks an endpoint about hard samples; any number of threads may do so at once.

    Parameters
    ----------
    endpoint
        Where the model answers.
    deadline
        Seconds in which an answer has to be there.
    form
        How samples are sent.
    link
        What the link carries; None sends whatever is wanted.
    """

    def __init__(
        self, endpoint: Endpoint, *, deadline: float, form: UploadForm | None = None, link: LinkBudget | None = None
    ) -> None:
        if not isinstance(deadline, int | float | np.number) or not 0 < deadline < float("inf"):
            raise ModelError(f"the deadline is {deadline!r}, expected a number of seconds above 0")
        if form is not None and not isinstance(form, UploadForm):
            raise ModelError(f"upload is {form!r}, expected an UploadForm, such as UploadForm('jpeg')")
        self._endpoint = GuardedEndpoint(endpoint)
        self._deadline, self._form, self._link = deadline, form or UploadForm(), link
        self._description: Description | None = None
        self._lock = threading.Lock()

    @property
    def circuit(self) -> Circuit:
        """How the circuit breaker stands."""
        return self._endpoint.circuit

    def ask(self, samples: Sequence[Any], inputs: Tensors, *, alike: Sequence[NDArray[Any]]) -> DeepAnswer:
        """Return the deep model's answer about some samples.

        Parameters
        ----------
        samples
            As the script has them.
        inputs
            What the shallow model took.
        alike
            Outputs of one sample that the answers' shapes must be like; empty where any will do.

        Raises
        ------
        TemporaryError
            If no usable answer came in time, or the link is full.
        ModelError
            If the deep model cannot take such samples, or its answers are another model's.
        """
        self._endpoint.check()
        begin = time.perf_counter()
        end = begin + self._deadline
        about = self._describe()
        upload = Upload.of(samples, inputs, wanted=about.inputs, form=self._form, reads_files=about.reads_files)
        if self._link is not None:
            with self._lock:
                if not self._link.take(upload.size):
                    raise NotAskedError(f"the link is full: {upload.size} bytes do not fit into its rate now")
        reply = self._endpoint.infer(upload.inputs, deadline=end - time.perf_counter(), encodings=upload.encodings)
        outputs = _checked(reply.outputs, len(samples), alike)
        name = f"{reply.model} {reply.version}".strip()
        return DeepAnswer(outputs, name, reply.bytes_up, reply.bytes_down, time.perf_counter() - begin)

    def close(self) -> None:
        """Close its connections."""
        self._endpoint.close()

    def _describe(self) -> Description:
        if self._description is None:
            self._description = self._endpoint.describe(deadline=self._deadline)
        return self._description


def _checked(outputs: Tensors, count: int, alike: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    found = dict(outputs)
    if not found:
        raise TemporaryError("the deep model answered without any output")
    for name, value in found.items():
        if value.shape[:1] != (count,):
            raise TemporaryError(
                f"the deep model's output {name!r} has shape {list(value.shape)}; expected {count} samples first"
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise TemporaryError(f"the deep model's output {name!r} has values that are no numbers")
    if alike:
        theirs = [value.shape[1:] for value in found.values()]
        ours = [value.shape for value in alike]
        if theirs != ours:
            raise ModelError(
                f"the deep model answers with {_shapes(theirs)}, and the shallow one with {_shapes(ours)}; it is "
                f"another model than meant, or give load_model a big_model_post_fun that makes them alike"
            )
        for (name, value), own in zip(found.items(), alike, strict=True):
            if (value.dtype.kind in _NUMBERS) != (own.dtype.kind in _NUMBERS):
                raise ModelError(
                    f"the deep model's output {name!r} is {value.dtype}, and the shallow one's {own.dtype}; it is "
                    f"another model than meant, or give load_model a big_model_post_fun that makes them alike"
                )
    return found


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
