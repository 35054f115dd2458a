# SPDX-License-Identifier: Apache-2.0
"""A Python callable in place of a deep model's service."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from ...core.errors import ModelError, SpecError, TemporaryError
from ...core.named import imported
from ..tensors import Tensors
from .endpoint import Description, Reply

__all__ = ["CallableEndpoint", "named_callable"]

_AT_ONCE = 4


class CallableEndpoint:
    """Asks a function of the user's own.

    Parameters
    ----------
    function
        Called with one batch, an array of n x …, or with a mapping of arrays where the model has several inputs. It
        returns the outputs: an array, n x …, or a mapping of arrays.
    name
        For status pages.
    """

    def __init__(self, function: Callable[[Any], Any], *, name: str = "") -> None:
        self._function, self._name = function, name or getattr(function, "__qualname__", type(function).__name__)
        self._threads = _Threads(self._function)

    def describe(self, *, deadline: float) -> Description:
        """Return nothing: a function says nothing of what it takes, and gets what the shallow model gets."""
        del deadline
        return Description()

    def infer(self, inputs: Tensors, *, deadline: float, encodings: Mapping[str, str] | None = None) -> Reply:
        """Return the outputs for a batch; what the function raises is a `TemporaryError`."""
        del encodings
        given: Any = next(iter(inputs.values())) if len(inputs) == 1 else dict(inputs)
        work = self._threads.submit(given)
        try:
            found = work.result(timeout=deadline)
        except TimeoutError as error:
            work.cancel()
            raise TemporaryError(f"{self._name} gave no answer within {deadline:.3g} s") from error
        except Exception as error:
            # Whatever the user's function raises: the edge goes on without it.
            raise TemporaryError(f"{self._name} raised {type(error).__name__}: {error}") from error
        named = found if isinstance(found, Mapping) else {"output": found}
        try:
            return Reply({str(name): np.asarray(value) for name, value in named.items()}, model=self._name)
        except ValueError as error:
            raise TemporaryError(f"{self._name} returned what is no array: {error}") from error

    def close(self) -> None:
        """Let its threads end."""
        self._threads.close()


class _Threads:
    """Calls a function on up to four threads; one that hangs in it does not keep the process from ending."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._queue: queue.SimpleQueue[tuple[Future[Any], Any] | None] = queue.SimpleQueue()
        self._lock, self._started, self._free = threading.Lock(), 0, 0

    def submit(self, given: Any) -> Future[Any]:
        work: Future[Any] = Future()
        with self._lock:
            self._free -= 1
            if self._free < 0 and self._started < _AT_ONCE:
                self._started, self._free = self._started + 1, self._free + 1
                threading.Thread(target=self._work, name="solar-corona-deep-model", daemon=True).start()
        self._queue.put((work, given))
        return work

    def close(self) -> None:
        with self._lock:
            for _ in range(self._started):
                self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            work, given = item
            if work.set_running_or_notify_cancel():
                try:
                    work.set_result(self._function(given))
                except BaseException as error:  # noqa: BLE001  # who waits for it gets it
                    work.set_exception(error)
            with self._lock:
                self._free += 1


def named_callable(name: str) -> CallableEndpoint:
    """Return the function that a job names as `module:function`.

    Raises
    ------
    SpecError
        If there is none of that name.
    ModelError
        If it is no function.
    """
    subject = f"endpoint.callable is {name!r}, which"
    found = imported(name, subject, error=SpecError, kind="function")
    if not callable(found):
        raise ModelError(f"{subject} is no function; it is called with a batch")
    return CallableEndpoint(found, name=name)
