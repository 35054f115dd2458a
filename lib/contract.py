# SPDX-License-Identifier: Apache-2.0
"""What the contract suites of plug-ins have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.errors import SolarCoronaError

__all__ = ["Contract", "Describes"]


class Describes(Protocol):
    """A plug-in that says what it is."""

    def describe(self) -> dict[str, Any]:
        """Return the name and the parameters: plain values only."""


@dataclass(frozen=True)
class Contract:
    """What a kind of plug-in promises.

    Parameters
    ----------
    what
        What it is called, such as `offload algorithm`.
    error
        What is raised where a promise is broken.
    """

    what: str
    error: type[SolarCoronaError]

    def require(self, kept: object, broken: str) -> None:
        """Raise the contract's error unless a promise is kept; `broken` says which one is not."""
        if not kept:
            raise self.error(f"the {self.what} breaks its contract: {broken}")

    def require_description(self, plug_in: Describes) -> None:
        """Require that `describe()` gives a name, and plain JSON."""
        told = plug_in.describe()
        self.require(
            isinstance(told, dict) and isinstance(told.get("name"), str), "describe() gives no dict with a 'name'"
        )
        try:
            json.dumps(told)
        except (TypeError, ValueError) as error:
            raise self.error(
                f"the {self.what} breaks its contract: describe() gives {told!r}, which is no JSON ({error})"
            ) from error
