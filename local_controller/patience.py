# SPDX-License-Identifier: Apache-2.0
"""Trying again for days: waits that grow, that differ from node to node, and that end when somebody calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import tenacity

from ..core.errors import InterruptedJobError, RefusedRequestError, TemporaryError
from .clock import Clock

__all__ = ["is_refused_for_good", "patiently"]

_Result = TypeVar("_Result")
_LEAST_WAIT = 0.2
_MOST_ASKED_WAIT = 3600.0
# What another request with the same content would be answered as well.
_FOR_GOOD = {400, 413, 415, 422}


def is_refused_for_good(error: BaseException) -> bool:
    """Tell whether the hub will never take what this request held."""
    return isinstance(error, RefusedRequestError) and error.status in _FOR_GOOD


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, TemporaryError) or (
        isinstance(error, RefusedRequestError) and error.status not in _FOR_GOOD
    )


def patiently(
    work: Callable[[], _Result],
    *,
    clock: Clock,
    wake: threading.Event,
    stopping: threading.Event,
    most_wait: float,
    trouble: Callable[[str], None],
) -> _Result:
    """Do `work`, again and again while it fails for reasons that may pass.

    Parameters
    ----------
    work
        Raises TemporaryError, or RefusedRequestError with a status, where it fails.
    clock
        Waits.
    wake
        Ends a wait, and is cleared then.
    stopping
        Ends the trying.
    most_wait
        Seconds between two attempts at most, unless the hub asks for more. They are drawn at random below a bound that
        doubles, so that the edges of a hub that comes back do not come all at once.
    trouble
        Gets why it failed before each wait, and the empty text when it works.

    Raises
    ------
    InterruptedJobError
        If `stopping` is set.
    SolarCoronaError
        What `work` raised, if it will not pass.
    """
    wait = tenacity.wait_random_exponential(multiplier=2 * _LEAST_WAIT, max=most_wait)

    def seconds(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after or 0.0 if isinstance(error, RefusedRequestError) else 0.0
        return max(_LEAST_WAIT, min(asked, _MOST_ASKED_WAIT), wait(state))

    def sleep(wanted: float) -> None:
        if not stopping.is_set():
            clock.wait(wake, wanted)
        wake.clear()
        if stopping.is_set():
            raise InterruptedJobError("the LocalController was asked to stop")

    def tell(state: tenacity.RetryCallState) -> None:
        trouble(str(state.outcome.exception()) if state.outcome is not None else "")

    result = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        wait=seconds,
        sleep=sleep,
        before_sleep=tell,
        reraise=True,
    )(work)
    trouble("")
    return result
