# SPDX-License-Identifier: Apache-2.0
"""A version of a model that is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from .runners.runner import Runner

__all__ = ["Serving"]


@dataclass(frozen=True, eq=False)
class Serving:
    """A version that is loaded.

    Parameters
    ----------
    runner
        Runs it.
    version
        Its number, from 1; 0 where none is known.
    """

    runner: Runner
    version: int = 0
