# SPDX-License-Identifier: Apache-2.0
"""What an operator may ask of the loop: train, pause, resume, rollback."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ...core.errors import RefusedRequestError
from ...core.tasks import TaskLauncher
from ..hub.hub import Hub
from ..hub.model_versions import serving_version
from ..tables import LoopState, ModelVersion
from .evaluation import not_judged
from .rollout_steps import RolloutSteps
from .standing import Standing, give_up_training, put
from .triggers import Triggers

__all__ = ["Commands"]


class Commands:
    """Carries out what an operator asks, each in one transaction.

    Parameters
    ----------
    hub, standing
        Whose loop it is, and where that stands.
    triggers, rollout
        What the commands touch.
    tasks, running
        What runs tasks, and says which may be under way.
    """

    def __init__(
        self,
        hub: Hub,
        standing: Standing,
        *,
        triggers: Triggers,
        rollout: RolloutSteps,
        tasks: TaskLauncher,
        running: Callable[[Session, LoopState], Sequence[str]],
    ) -> None:
        self._hub, self._standing, self._triggers, self._rollout = hub, standing, triggers, rollout
        self._tasks, self._running = tasks, running

    def carry_out(self, name: str, why: str = "") -> str:
        """Do what an operator asks, and return what was done.

        Parameters
        ----------
        name
            `train`, `pause`, `resume` or `rollback`.
        why
            In the operator's words.

        Raises
        ------
        RefusedRequestError
            If there is no such command, or it makes no sense where the loop stands.
        """
        known: dict[str, Callable[[Session, LoopState, str], str]] = {
            "train": self._ask_for_training,
            "pause": self._pause,
            "resume": self._resume,
            "rollback": self._roll_back_now,
        }
        if name not in known:
            raise RefusedRequestError(404, f"there is no command {name!r}; expected one of {', '.join(sorted(known))}")

        def work(session: Session) -> tuple[str, Sequence[str]]:
            row = session.get(LoopState, 1, with_for_update=True)
            if row is None:
                row = self._standing.begin(session)
            running = self._running(session, row)
            said = known[name](session, row, f": {why}" if why else "")
            return said, running if name == "rollback" else []

        said, abandoned = self._hub.database.write(work)
        for task in abandoned:
            self._tasks.stop(task)
        return said

    def _ask_for_training(self, session: Session, row: LoopState, words: str) -> str:
        put(row, triggers=self._triggers.asked(row.triggers, self._hub.clock()))
        self._standing.decide(session, row, "asked", f"an operator asked for a training{words}")
        return f"a training starts as soon as none runs and there are {self._triggers.labels_needed} new labels"

    def _pause(self, session: Session, row: LoopState, words: str) -> str:
        if row.phase == "paused":
            return "the loop is paused already"
        before = row.phase
        put(row, data={"from": before, "inner": row.data})
        row.phase, row.since = "paused", self._hub.clock()
        self._standing.decide(session, row, "paused", f"an operator paused it while {before}{words}", row.candidate)
        return "paused; a training that runs goes on, and its candidate waits"

    def _resume(self, session: Session, row: LoopState, words: str) -> str:
        if row.phase != "paused":
            raise RefusedRequestError(409, f"the loop is not paused: it is {row.phase}")
        data = dict(row.data.get("inner") or {})
        if "alarm" in row.data:
            data["accepted"] = row.data["alarm"]
        phase = row.data["from"]
        put(row, data=data)
        row.phase, row.since = phase, self._hub.clock()
        self._standing.decide(
            session, row, "resumed", f"an operator resumed it; it goes on {phase}{words}", row.candidate
        )
        return f"resumed: {phase}"

    def _roll_back_now(self, session: Session, row: LoopState, words: str) -> str:
        """Take back the candidate that edges try, or else the version in use, and what is under way for it."""
        why, phase = f"an operator rolled it back{words}", row.data.get("from") if row.phase == "paused" else row.phase
        if phase == "canary" and row.candidate is not None:
            self._rollout.take_back(session, row, self._standing.version(session, row.candidate), why)
            return f"version {row.candidate} is taken back"
        serving = serving_version(session)
        others = session.scalar(select(func.count()).select_from(ModelVersion).where(ModelVersion.state == "promoted"))
        if serving is None or (others or 0) < 2:
            raise RefusedRequestError(409, "there is no version before the one in use to go back to")
        if phase == "training":
            give_up_training(session, row, why, standing=self._standing, triggers=self._triggers)
        elif phase == "evaluating" and row.candidate is not None:
            candidate = self._standing.version(session, row.candidate)
            candidate.state, candidate.report = "refused", not_judged(why)
        self._rollout.take_back(session, row, serving, why)
        return f"version {serving.version} is taken back"
