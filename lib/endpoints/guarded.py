# SPDX-License-Identifier: Apache-2.0
"""An endpoint that is left alone for a while when it does not answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from circuitbreaker import CircuitBreaker

from ...core.errors import NotAskedError, TemporaryError
from ..tensors import Tensors
from .endpoint import Description, Endpoint, Reply

__all__ = ["Circuit", "GuardedEndpoint"]

Circuit = Literal["closed", "half-open", "open"]

_STATES: Mapping[str, Circuit] = {"closed": "closed", "half_open": "half-open", "open": "open"}


class GuardedEndpoint:
    """Asks an endpoint through a circuit breaker, so that a dead cloud costs nothing (Nygard, Release It!, 2007).

    After `failures` temporary errors in a row the circuit opens: for `rest` seconds nothing is asked, then the next
    request tries again. That an endpoint refuses a request is no failure of the endpoint.

    Parameters
    ----------
    endpoint
        What is asked.
    failures
        Temporary errors in a row that open the circuit.
    rest
        Seconds for which it stays open, whole ones.
    """

    def __init__(self, endpoint: Endpoint, *, failures: int = 3, rest: int = 2) -> None:
        self._endpoint = endpoint
        self._breaker = CircuitBreaker(failures, rest, TemporaryError, "deep model")

    @property
    def circuit(self) -> Circuit:
        """How the circuit stands."""
        return _STATES[self._breaker.state]

    def describe(self, *, deadline: float) -> Description:
        """Return what the model takes; see `Endpoint.describe`."""
        self.check()
        with self._breaker:
            return self._endpoint.describe(deadline=deadline)

    def infer(self, inputs: Tensors, *, deadline: float, encodings: Mapping[str, str] | None = None) -> Reply:
        """Return the outputs for a batch; see `Endpoint.infer`."""
        self.check()
        with self._breaker:
            return self._endpoint.infer(inputs, deadline=deadline, encodings=encodings or {})

    def close(self) -> None:
        """Close its connections."""
        self._endpoint.close()

    def check(self) -> None:
        """Raise NotAskedError while the circuit is open, before anything is made ready to be sent."""
        if self._breaker.opened:
            last = self._breaker.last_failure
            raise NotAskedError(
                f"the deep model is not asked for now: it failed {self._breaker.failure_count} times, "
                f"the last time because {last}"
            )
