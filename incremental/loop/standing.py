# SPDX-License-Identifier: Apache-2.0
"""Where the loop stands: its row, the steps that change it, and what was decided."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from ...core.errors import ModelError
from ..hub.hub import Hub
from ..hub.model_versions import serving_version
from ..tables import ConsumedLabel, Decision, LoopState, ModelVersion, Phase, TrainingRun
from .triggers import Triggers

__all__ = ["Change", "Standing", "give_up_training", "put"]

_log = logging.getLogger(__name__)
_LONGEST_GAP = 60.0
_SAVE_EVERY = 5.0

Change = Callable[[Session, LoopState], None]
"""What a step does within its transaction."""


class Standing:
    """The loop's row, and what every step does with it.

    Parameters
    ----------
    hub
        Whose loop it is.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self._hub.clock()

    def begin(self, session: Session) -> LoopState:
        """Return the loop's row; it is made where there is none."""
        row = session.get(LoopState, 1)
        if row is None:
            row = LoopState(id=1, phase="collecting", since=self._hub.clock(), data={}, triggers={})
            session.add(row)
        return row

    def change(self, seen: LoopState, change: Change) -> None:
        """Carry out a step in a transaction, unless the loop stands elsewhere than when it was looked at."""

        def carry_out(session: Session) -> None:
            row = session.get(LoopState, 1, with_for_update=True)
            if row is not None and _stand(row) == _stand(seen):
                change(session, row)

        self._hub.database.write(carry_out)

    def enter(
        self,
        row: LoopState,
        phase: Phase,
        *,
        training: int | None = None,
        candidate: int | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Go on to a phase."""
        row.phase, row.since, row.training, row.candidate = phase, self._hub.clock(), training, candidate
        put(row, data=data or {})

    def decide(self, session: Session, row: LoopState, what: str, why: str, version: int | None = None) -> None:
        """Write down what was decided, and why."""
        _log.info("%s: %s", what, why)
        session.add(Decision(at=self._hub.clock(), what=what, why=why, version=version, details={"phase": row.phase}))

    def timed(self, seen: LoopState) -> float:
        """Return how long the loop has been here, as it looked on: a clock that jumps, or a long gap, is a minute."""
        now = self._hub.clock()
        timer = seen.data.get("timer") or {"elapsed": 0.0, "at": now}
        gap: float = min(max(now - timer["at"], 0.0), _LONGEST_GAP)
        elapsed: float = float(timer["elapsed"]) + gap
        if "timer" not in seen.data or gap >= _SAVE_EVERY or now < timer["at"]:
            fresh = {**seen.data, "timer": {"elapsed": elapsed, "at": now}}
            self.change(seen, lambda _, row: put(row, data=fresh))
            seen.data = fresh
        return elapsed

    def serving(self) -> int:
        """Return the version in use."""
        row = self._hub.database.read(serving_version)
        if row is None:
            raise ModelError("no version is in use; the hub's database has lost its first one")
        return row.version

    def version(self, session: Session, number: int) -> ModelVersion:
        """Return a version that there is."""
        version = session.get(ModelVersion, number)
        assert version is not None
        return version

    def candidate(self, seen: LoopState) -> int:
        """Return the candidate of a phase that has one."""
        assert seen.candidate is not None
        return seen.candidate

    def run(self, seen: LoopState) -> TrainingRun:
        """Return the training of a phase that has one."""
        run = self._hub.database.read(lambda session: session.get(TrainingRun, seen.training))
        assert run is not None
        return run


def give_up_training(session: Session, row: LoopState, why: str, *, standing: Standing, triggers: Triggers) -> None:
    """End the training that the loop is in, without a candidate."""
    run = session.get(TrainingRun, row.training)
    assert run is not None
    run.state, run.ended_at, run.error = "failed", standing.now, why
    # No version has learned from its labels, so they count again.
    session.execute(delete(ConsumedLabel).where(ConsumedLabel.training == run.number))
    put(row, triggers=triggers.after_end(row.triggers, failed=True))
    standing.enter(row, "collecting")
    standing.decide(session, row, "training-failed", f"training {run.number} failed: {why}")


def put(row: LoopState, **values: dict[str, Any]) -> None:
    """Set columns of the row."""
    for name, value in values.items():
        setattr(row, name, value)


def _stand(row: LoopState) -> tuple[Any, ...]:
    return row.phase, row.training, row.candidate, row.data, row.triggers
