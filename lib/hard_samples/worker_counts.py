# SPDX-License-Identifier: Apache-2.0
"""What a script's collector has done so far, as the LocalController gets it (`core.hub_messages.WorkerState`)."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["LoadTrouble", "WorkerCounts"]


@dataclass(frozen=True)
class LoadTrouble:
    """A version that cannot be used here, and why."""

    version: int
    error: str


@dataclass
class WorkerCounts:
    """Counts since the script began; the fields are those of `WorkerState`, for a script needs no pydantic."""

    started_at: float
    seen: int = 0
    hard: int = 0
    random: int = 0
    kept: int = 0
    near_duplicates: int = 0
    over_budget: int = 0
    dropped: int = 0
    version: int = 0
    confidence: float | None = None
    drift_at: list[float] = field(default_factory=list)
    load_error: LoadTrouble | None = None
