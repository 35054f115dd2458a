# SPDX-License-Identifier: Apache-2.0
"""The loop as a durable machine: where it stands is one row, and each step is one transaction.

What a step does beside the database can be done twice: files are written whole under names that their content or step
decides, tasks are started by name, models are kept under their SHA-256. So it may be killed anywhere, and goes on.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from ...core.durations import format_duration
from ...core.errors import DatasetError, ModelError, WireError
from ...core.incremental_spec import IncrementalLearningJob
from ...core.job_file import JobFile
from ...core.sources import model_source
from ...core.tasks import TaskLauncher
from ...lib.model_cards import read_card
from ..hub.dataset_versions import DatasetVersions
from ..hub.hub import Hub
from ..hub.model_versions import serving_version
from ..tables import (
    ConsumedLabel,
    DatasetVersionSample,
    LoopState,
    Phase,
    Sample,
    TrainingRun,
)
from .commands import Commands
from .evaluation import Evaluations, lacks, not_judged
from .registry import Lineage, Registry
from .rollout import canaries_for
from .rollout_steps import RolloutSteps
from .standing import Standing, give_up_training, put
from .status import TriggerProgress
from .trainings import Trainings, Workplace
from .triggers import Triggers

__all__ = ["Loop", "LoopParts"]

_log = logging.getLogger(__name__)
_GAINS = 2  # over all, and on new samples


@dataclass(frozen=True)
class LoopParts:
    """What the loop works with."""

    hub: Hub
    file: JobFile[IncrementalLearningJob]
    registry: Registry
    tasks: TaskLauncher
    place: Workplace
    triggers: Triggers


class Loop:
    """Collects, trains, judges and rolls out, a step at a time.

    Parameters
    ----------
    parts
        What it works with.
    """

    def __init__(self, parts: LoopParts) -> None:
        self._hub, self._file, self._registry, self._tasks = parts.hub, parts.file, parts.registry, parts.tasks
        self._spec, self._triggers, self._base = parts.file.job.spec, parts.triggers, parts.place.base
        self._folder = parts.place.folder
        self._trainings = Trainings(parts.hub, parts.registry, parts.file, parts.place)
        self._evaluations = Evaluations(parts.hub, parts.registry, parts.file, parts.place)
        self._standing = Standing(parts.hub)
        self._rollout = RolloutSteps(parts.hub, self._standing, self._spec.rollout)
        self.commands = Commands(
            parts.hub,
            self._standing,
            triggers=parts.triggers,
            rollout=self._rollout,
            tasks=parts.tasks,
            running=self._running,
        )
        self._steps: dict[Phase, Callable[[LoopState], None]] = {
            "collecting": self._collect,
            "training": self._train,
            "evaluating": self._evaluate,
            "canary": self._rollout.watch,
            "promoting": self._rollout.settle,
            "rolling-back": self._rollout.settle,
            "paused": lambda _: None,
        }

    def step(self) -> Phase:
        """Look where the loop stands, do what is to be done there, and return where it stands then.

        Raises
        ------
        TemporaryError
            If the database or storage is away; the step is done again later.
        ModelError
            If the job's own model cannot be used.
        """
        self._registry.import_first(model_source(self._file, self._spec.model.source, self._base, "spec.model"))
        row = self._hub.database.read(lambda session: session.get(LoopState, 1))
        if row is None:
            row = self._hub.database.write(self._standing.begin)
        self._steps[row.phase](row)  # type: ignore[index]
        after = self._hub.database.read(lambda session: session.get(LoopState, 1))
        assert after is not None
        return after.phase  # type: ignore[return-value]

    def progress(self) -> Sequence[TriggerProgress]:
        """Return how far each trigger is, and what a training that is asked for waits for."""

        def look(session: Session) -> Sequence[TriggerProgress]:
            row, serving = session.get(LoopState, 1), serving_version(session)
            if row is None or serving is None:
                return []
            found = self._triggers.look(session, row.triggers, serving=serving.version, now=self._hub.clock())
            if not found.blocked:
                return found.progress
            enough = found.labels >= self._triggers.labels_needed
            # What waits for labels is not due: without any it would wait for ever.
            rules = [each.model_copy(update={"due": each.due and enough}) for each in found.progress]
            return [*rules, TriggerProgress(name="waits", text=found.blocked, share=0.0)]

        return self._hub.database.read(look)

    def leave(self) -> None:
        """End what trains or evaluates; the next step, of whatever process, begins it anew."""

        def names(session: Session) -> Sequence[str]:
            row = session.get(LoopState, 1)
            return [] if row is None else self._running(session, row)

        for name in self._hub.database.read(names):
            if self._tasks.state(name).phase == "running":
                self._tasks.stop(name)

    def _running(self, session: Session, row: LoopState) -> list[str]:
        """Return the names of tasks that may be under way."""
        names = []
        run = session.get(TrainingRun, row.training) if row.training is not None else None
        if run is not None and run.state == "running":
            names.append(self._trainings.name(run))
        phase = row.data.get("from", row.phase)
        if row.candidate is not None and phase == "evaluating":
            inner = row.data.get("inner", row.data)
            names.append(self._evaluations.name(row.candidate, int(inner.get("attempt", 1))))
        return names

    def _tidy(self) -> None:
        """End and remove what is left of trainings and evaluations: where none is under way, no step needs it."""
        if not self._folder.is_dir():
            return
        for left in self._folder.iterdir():
            kind, _, number = left.name.partition("-")
            if kind == "training" and number.isdigit():
                for attempt in range(1, self._spec.training.retries + 2):
                    self._tasks.stop(f"{left.name}-{attempt}")
            elif kind == "evaluation":
                self._tasks.stop(left.name)
            else:
                continue
            shutil.rmtree(left, ignore_errors=True)

    # --- collecting -------------------------------------------------------------------------------------------------

    def _collect(self, seen: LoopState) -> None:
        self._tidy()
        now, serving = self._hub.clock(), self._standing.serving()
        look = self._hub.database.read(
            lambda session: self._triggers.look(session, seen.triggers, serving=serving, now=now)
        )
        if look.fired is None:
            if look.state != seen.triggers:
                self._standing.change(seen, lambda _, row: put(row, triggers=look.state))
            return
        reason = look.fired
        try:
            dataset = DatasetVersions(self._hub).make()
        except DatasetError as error:
            _log.warning("no training: %s", error)
            return

        def start(session: Session, row: LoopState) -> None:
            run = TrainingRun(
                reason=reason, dataset=dataset, parent=serving, state="running", attempt=1, started_at=now
            )
            session.add(run)
            session.flush()
            _consume(session, dataset, run.number, now)
            put(row, triggers=self._triggers.after_start(look.state, now))
            self._standing.enter(row, "training", training=run.number)
            self._standing.decide(session, row, "train", f"{reason}; dataset version {dataset}, from version {serving}")

        self._standing.change(seen, start)

    # --- training ---------------------------------------------------------------------------------------------------

    def _train(self, seen: LoopState) -> None:
        run = self._standing.run(seen)
        name = self._trainings.name(run)
        state = self._tasks.state(name)
        if state.phase == "unknown":
            try:
                worker = self._trainings.worker(run)
            except (DatasetError, ModelError) as error:
                self._training_failed(seen, str(error))
                return
            self._tasks.start(worker)
            return
        if state.phase == "running":
            if self._standing.timed(seen) > self._spec.training.deadline:
                self._tasks.stop(name)
                self._training_failed(seen, f"it took longer than {format_duration(self._spec.training.deadline)}")
            return
        if state.phase == "succeeded":
            self._trained(seen, run)
        elif state.killed and run.attempt <= self._spec.training.retries:
            self._standing.change(seen, lambda session, row: self._again(session, row, state.error))
        else:
            self._training_failed(seen, state.error)

    def _trained(self, seen: LoopState, run: TrainingRun) -> None:
        output = self._trainings.output(run)
        if not output.exists():
            self._training_failed(
                seen, "its script ended well, and saved no model; call solar_corona.save_model(model) at its end"
            )
            return
        try:
            stored = self._registry.store(output)
        except ModelError as error:
            self._training_failed(seen, str(error))
            return
        card, code = read_card(output), self._trainings.code
        metrics = {f"training_{name}": value for name, value in (card.metrics if card is not None else {}).items()}

        def register(session: Session, row: LoopState) -> None:
            of_row = session.get(TrainingRun, run.number)
            assert of_row is not None
            of_row.state, of_row.ended_at = "succeeded", self._hub.clock()
            lineage = Lineage(run.parent, run.number, run.dataset, code)
            version = self._registry.add(session, stored, lineage, state="candidate", metrics=metrics)
            put(row, triggers=self._triggers.after_end(row.triggers, failed=False))
            self._standing.enter(row, "evaluating", training=run.number, candidate=version.version, data={"attempt": 1})
            self._standing.decide(
                session, row, "candidate", f"training {run.number} made version {version.version}", version.version
            )

        self._standing.change(seen, register)

    def _again(self, session: Session, row: LoopState, why: str) -> None:
        run = session.get(TrainingRun, row.training)
        assert run is not None
        run.attempt += 1
        put(row, data={})
        self._standing.decide(session, row, "train-again", f"{why}; attempt {run.attempt} begins")

    def _training_failed(self, seen: LoopState, why: str) -> None:
        def fail(session: Session, row: LoopState) -> None:
            give_up_training(session, row, why, standing=self._standing, triggers=self._triggers)

        self._standing.change(seen, fail)

    # --- the gate ---------------------------------------------------------------------------------------------------

    def _evaluate(self, seen: LoopState) -> None:
        candidate, attempt = self._standing.candidate(seen), int(seen.data.get("attempt", 1))
        name = self._evaluations.name(candidate, attempt)
        state = self._tasks.state(name)
        if state.phase == "unknown":
            self._begin_evaluation(seen, candidate, attempt)
        elif state.phase == "running":
            if self._standing.timed(seen) > self._spec.gate.deadline:
                self._tasks.stop(name)
                deadline = format_duration(self._spec.gate.deadline)
                self._refuse(seen, f"its evaluation took longer than {deadline}", None)
        elif state.phase == "succeeded":
            self._judge(seen, candidate, attempt)
        elif state.killed and attempt <= self._spec.training.retries:
            why = state.error

            def again(session: Session, row: LoopState) -> None:
                put(row, data={"attempt": attempt + 1})
                self._standing.decide(session, row, "evaluate-again", why, candidate)

            self._standing.change(seen, again)
        else:
            self._refuse(seen, f"it could not be evaluated: {state.error}", None)

    def _begin_evaluation(self, seen: LoopState, candidate: int, attempt: int) -> None:
        now, serving = self._hub.clock(), self._standing.serving()
        try:
            needs = lacks(*self._evaluations.counts(), self._file)
            if needs is not None:
                self._wait_for_labels(seen, candidate, needs.why)
                return
            if "waits_for" in seen.data:
                kept = {name: value for name, value in seen.data.items() if name != "waits_for"}
                self._standing.change(seen, lambda _, row: put(row, data=kept))
                return
            edges = self._hub.database.read(lambda session: canaries_for(session, self._spec.rollout.canary, now))
            worker = self._evaluations.worker(candidate, serving, attempt, edges=edges)
        except (DatasetError, ModelError) as error:
            self._refuse(seen, f"it could not be evaluated: {error}", None)
            return
        self._tasks.start(worker)

    def _wait_for_labels(self, seen: LoopState, candidate: int, why: str) -> None:
        """Say once what is missing; a training that is asked for meanwhile makes a newer candidate."""
        now, serving = self._hub.clock(), self._standing.serving()
        look = self._hub.database.read(
            lambda session: self._triggers.look(session, seen.triggers, serving=serving, now=now)
        )
        if look.fired is not None:
            self._refuse(seen, f"{why}; meanwhile a newer training is asked for: {look.fired}", None)
        elif seen.data.get("waits_for") is None:

            def wait(session: Session, row: LoopState) -> None:
                put(row, data={**row.data, "waits_for": why}, triggers=look.state)
                self._standing.decide(session, row, "waits-for-labels", why, candidate)

            self._standing.change(seen, wait)
        elif seen.data["waits_for"] != why or look.state != seen.triggers:
            self._standing.change(
                seen, lambda _, row: put(row, data={**row.data, "waits_for": why}, triggers=look.state)
            )

    def _judge(self, seen: LoopState, candidate: int, attempt: int) -> None:
        try:
            outcome = self._evaluations.outcome(candidate, self._standing.serving(), attempt)
        except (WireError, DatasetError) as error:
            self._refuse(seen, f"it could not be evaluated: {error}", None)
            return
        verdict, reference = outcome.verdict, outcome.reference
        report = {
            "gate": verdict.as_json(),
            "reference": None if reference is None else reference.as_json(),
            "serving": self._standing.serving(),
        }
        # All that was asked is in the version's report; of what passed the gains say why.
        why = "; ".join(verdict.reasons[:_GAINS] if verdict.passed else verdict.reasons)
        if not verdict.passed:
            self._refuse(seen, why, report, outcome.metrics)
            return

        def passed(session: Session, row: LoopState) -> None:
            version = self._standing.version(session, candidate)
            version.report, version.metrics = report, {**version.metrics, **outcome.metrics}
            self._standing.decide(session, row, "passed", why, candidate)
            if self._spec.rollout.canary == 0:
                self._rollout.promote(session, row, version, "the job asks for no canary")
                return
            version.state = "canary"
            self._standing.enter(row, "canary", training=row.training, candidate=candidate, data={})

        self._standing.change(seen, passed)

    def _refuse(
        self, seen: LoopState, why: str, report: dict[str, Any] | None, metrics: dict[str, float] | None = None
    ) -> None:
        candidate = self._standing.candidate(seen)

        def refuse(session: Session, row: LoopState) -> None:
            version = self._standing.version(session, candidate)
            version.state, version.report = "refused", report or not_judged(why)
            version.metrics = {**version.metrics, **(metrics or {})}
            self._standing.enter(row, "collecting")
            self._standing.decide(session, row, "refused", why, candidate)

        self._standing.change(seen, refuse)


def _consume(session: Session, dataset: int, training: int, now: float) -> None:
    """Note that a training uses all labels there are, also those of samples that no version takes in."""
    used = select(ConsumedLabel.sample)
    members = select(DatasetVersionSample.sample).where(DatasetVersionSample.version == dataset)
    query = select(Sample.id).where(
        Sample.state == "labelled", Sample.id.not_in(used), Sample.id.in_(members) | (Sample.labelled_at < now)
    )
    rows = [{"sample": sample, "training": training} for sample in session.scalars(query)]
    if rows:
        session.execute(insert(ConsumedLabel), rows)
