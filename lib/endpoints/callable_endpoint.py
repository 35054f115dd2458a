# SPDX-License-Identifier: Apache-2.0
"""A Python callable in place of a deep model's service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np

from ...core.errors import ModelError, SpecError, TemporaryError
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
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="solar-corona-deep-model")

    def describe(self, *, deadline: float) -> Description:
        """Return nothing: a function says nothing of what it takes, and gets what the shallow model gets."""
        del deadline
        return Description()

    def infer(self, inputs: Tensors, *, deadline: float, encodings: Mapping[str, str] | None = None) -> Reply:
        """Return the outputs for a batch; what the function raises is a `TemporaryError`."""
        del encodings
        given: Any = next(iter(inputs.values())) if len(inputs) == 1 else dict(inputs)
        work = self._threads.submit(self._function, given)
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
        self._threads.shutdown(wait=False, cancel_futures=True)


def named_callable(name: str) -> CallableEndpoint:
    """Return the function that a job names as `module:function`.

    Raises
    ------
    SpecError
        If there is none of that name.
    ModelError
        If it is no function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except Exception as error:
        # Whatever the user's module raises while it is imported.
        raise SpecError(
            f"endpoint.callable is {name!r}, which cannot be loaded ({type(error).__name__}: {error}); expected "
            f"module:function, with the module beside the script or installed"
        ) from error
    if not callable(found):
        raise ModelError(f"endpoint.callable is {name!r}, which is no function; it is called with a batch")
    return CallableEndpoint(found, name=name)
