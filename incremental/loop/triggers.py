# SPDX-License-Identifier: Apache-2.0
"""When a training starts, as the database says: what a restart reads is what was there before it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from croniter import CroniterBadDateError, CroniterError, croniter
from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from ...core.durations import format_duration
from ...core.errors import SpecError
from ...core.incremental_spec import Trigger, TriggerRule
from ..drift import DriftDetector
from ..tables import ConsumedLabel, Edge, Sample
from .audit import accuracy_of, was_wrong
from .status import TriggerProgress

__all__ = ["Look", "Triggers"]

_LATEST, _FEWEST = 200, 50
_ROWS = 5_000
_MOST_FAILURES = 6
_PERIODS_AHEAD = 2


@dataclass(frozen=True)
class Look:
    """What a look at the triggers came to.

    Parameters
    ----------
    fired
        Why a training is to start; None where none is.
    blocked
        Why one that is asked for has to wait; empty where none has to.
    progress
        How far each rule is.
    labels
        Labels that no training has used.
    state
        What to keep for the next look.
    """

    fired: str | None
    blocked: str
    progress: Sequence[TriggerProgress]
    labels: int
    state: dict[str, Any]


class Triggers:
    """Looks at all rules of a job.

    Parameters
    ----------
    spec
        The rules.
    detector
        Makes a detector of drift by its name.
    classes
        Names of the classes, where answers are names.

    Raises
    ------
    SpecError
        If a schedule or the name of a detector is none.
    """

    def __init__(self, spec: Trigger, detector: Callable[[str], DriftDetector], *, classes: Sequence[str] = ()) -> None:
        self._spec, self._detector, self._classes = spec, detector, classes
        self._rules = [*spec.any, *spec.all]
        for rule in self._rules:
            if rule.schedule is not None:
                _check_schedule(rule.schedule)
            if rule.drift is not None:
                detector(rule.drift)

    @property
    def labels_needed(self) -> int:
        """New labels without which no training starts."""
        return self._spec.labels_needed

    def look(self, session: Session, state: Mapping[str, Any], *, serving: int, now: float) -> Look:
        """Look at all rules.

        Parameters
        ----------
        session
            Of the hub's database; nothing is written.
        state
            What the last look returned, or `after_start` or `after_end` made of it.
        serving
            The version in use.
        now
            Seconds since 1970; may be earlier than at the last look, for clocks jump.
        """
        kept = copy.deepcopy(dict(state))
        rules = kept.setdefault("rules", {})
        labels = _labels(session)
        progress = []
        for place, rule in enumerate(self._rules):
            own = rules.setdefault(str(place), {})
            progress.append(self._progress(session, rule, own, kept, labels=labels, serving=serving, now=now))
        met = self._met(progress, asked=kept.get("asked") is not None)
        blocked = self._blocked(kept, labels, now) if met else ""
        return Look(met if met and not blocked else None, blocked, progress, labels, kept)

    def after_start(self, state: Mapping[str, Any], now: float) -> dict[str, Any]:
        """Return the state once a training has started: what asked for it has been heard."""
        kept = copy.deepcopy(dict(state))
        kept["started"] = now
        kept.pop("asked", None)
        for own in kept.get("rules", {}).values():
            own.pop("found", None)
            if "last" in own:
                own["last"] = now
        return kept

    def after_end(self, state: Mapping[str, Any], *, failed: bool) -> dict[str, Any]:
        """Return the state once a training has ended; after failures the next one waits twice as long each time."""
        kept = copy.deepcopy(dict(state))
        kept["failures"] = int(kept.get("failures", 0)) + 1 if failed else 0
        return kept

    def asked(self, state: Mapping[str, Any], now: float) -> dict[str, Any]:
        """Return the state once an operator has asked for a training."""
        return {**copy.deepcopy(dict(state)), "asked": now}

    def _met(self, progress: Sequence[TriggerProgress], *, asked: bool) -> str | None:
        """Return why a training is asked for, or None."""
        either, every = progress[: len(self._spec.any)], progress[len(self._spec.any) :]
        reasons = [each.text for each in either if each.due]
        if every and all(each.due for each in every):
            reasons += [each.text for each in every]
        if asked and not any(rule.manual for rule in self._rules):
            reasons.append("an operator asked for it")
        return "; ".join(reasons) or None

    def _blocked(self, kept: dict[str, Any], labels: int, now: float) -> str:
        needed = self._spec.labels_needed
        if labels < needed:
            return f"a training needs {needed} new labels, and there are {labels}"
        started = kept.get("started")
        if started is None or kept.get("asked") is not None:
            return ""
        # A clock that was set back would make the last start a time to come; it counts as now, once.
        kept["started"] = started = min(float(started), now)
        failures = int(kept.get("failures", 0))
        left = started + self._spec.cooldown * 2 ** min(failures, _MOST_FAILURES) - now
        if left <= 0:
            return ""
        after = f", {failures} trainings in a row having failed" if failures > 1 else ""
        return f"the next training may start in {format_duration(math.ceil(left))}{after}"

    def _progress(
        self,
        session: Session,
        rule: TriggerRule,
        own: dict[str, Any],
        kept: Mapping[str, Any],
        *,
        labels: int,
        serving: int,
        now: float,
    ) -> TriggerProgress:
        if rule.labelled is not None:
            share = min(labels / rule.labelled, 1.0)
            return _told("labelled", share, share >= 1, f"{labels} of {rule.labelled} new labels")
        if rule.schedule is not None:
            return _scheduled(rule.schedule, own, now)
        if rule.accuracy_below is not None:
            return self._accuracy(session, rule.accuracy_below, serving)
        if rule.drift is not None:
            return self._drift(session, rule.drift, own, kept, serving=serving)
        asked = kept.get("asked") is not None
        return _told("manual", float(asked), asked, "an operator asked for it" if asked else "no operator asked for it")

    def _accuracy(self, session: Session, limit: float, serving: int) -> TriggerProgress:
        accuracy, count = accuracy_of(session, serving, latest=_LATEST, classes=self._classes)
        if count < _FEWEST:
            told = f"{count} labels of random samples that version {serving} answered; judged from {_FEWEST} on"
            return _told("accuracyBelow", 0.0, False, told)
        share = min((1 - accuracy) / (1 - limit), 1.0) if limit < 1 else 1.0
        told = f"accuracy {accuracy:.3f} on the latest {count} labels of random samples, asked below {limit:g}"
        return _told("accuracyBelow", share, accuracy < limit, told)

    def _drift(
        self, session: Session, name: str, own: dict[str, Any], kept: Mapping[str, Any], *, serving: int
    ) -> TriggerProgress:
        """Give a detector what has come since the last look, in order; what it found stays until a training starts."""
        if own.get("version") != serving:
            own.clear()
            own["version"] = serving
        detector = self._detector(name)
        if "detector" in own:
            detector.load_state_dict(own["detector"])
        reads = set(detector.reads)
        if "confidence" in reads:
            for row in _since(session, own, "confidences", Sample.received_at, serving):
                if row.confidence is not None and detector.update(row.confidence, "confidence"):
                    own["found"] = detector.why or "the confidence has drifted"
        if "error" in reads:
            for row in _since(session, own, "errors", Sample.labelled_at, serving):
                wrong = was_wrong(row, self._classes)
                if wrong is not None and detector.update(float(wrong), "error"):
                    own["found"] = detector.why or "the model errs more often"
        own["detector"] = detector.state_dict()
        if "confidence" in reads and "found" not in own and (edge := _seen_by_edge(session, kept, serving)):
            own["found"] = edge
        seen = f"{own.get('seen:confidences', 0)} confidences and {own.get('seen:errors', 0)} labels looked at"
        level = float(getattr(detector, "level", 0.0))
        found = own.get("found")
        return _told(f"drift: {name}", 1.0 if found else level, found is not None, found or f"no drift; {seen}")


def _told(name: str, share: float, due: bool, text: str) -> TriggerProgress:
    return TriggerProgress(name=name, text=text, share=min(max(share, 0.0), 1.0), due=due)


def _labels(session: Session) -> int:
    used = select(ConsumedLabel.sample).where(ConsumedLabel.sample == Sample.id).exists()
    query = select(func.count()).select_from(Sample).where(Sample.state == "labelled", ~used)
    return int(session.scalar(query) or 0)


def _since(session: Session, own: dict[str, Any], name: str, at: Any, serving: int) -> Sequence[Sample]:
    """Return random samples that came after those of the last look, in order, and note how far that is."""
    query = select(Sample).where(Sample.reason == "random", Sample.model == serving, at.is_not(None))
    if name == "errors":
        query = query.where(Sample.state == "labelled")
    if name in own:
        query = query.where(tuple_(at, Sample.id) > tuple_(*own[name]))
    rows = list(session.scalars(query.order_by(at, Sample.id).limit(_ROWS)))
    if rows:
        own[name] = [rows[-1].received_at if name == "confidences" else rows[-1].labelled_at, rows[-1].id]
        own[f"seen:{name}"] = int(own.get(f"seen:{name}", 0)) + len(rows)
    return rows


def _seen_by_edge(session: Session, kept: Mapping[str, Any], serving: int) -> str | None:
    """Return which edge saw a drift in all that it answers since the last training started."""
    started = float(kept.get("started") or 0.0)
    for edge in session.scalars(select(Edge).order_by(Edge.name)):
        worker = edge.heartbeat.get("worker") or {}
        begin = max(started, float(worker.get("started_at") or 0.0) - edge.clock_ahead)
        times = [float(at) - edge.clock_ahead for at in worker.get("drift_at") or []]
        if worker.get("version") == serving and any(at > begin for at in times):
            return f"edge {edge.name} saw its confidence drift"
    return None


def _check_schedule(schedule: str) -> None:
    if not croniter.is_valid(schedule):
        raise SpecError(
            f"spec.trigger: schedule {schedule!r} is no time in cron's form; expected minute, hour, day, month and "
            f"weekday, such as '0 3 * * *' for three o'clock each night"
        )


def _scheduled(schedule: str, own: dict[str, Any], now: float) -> TriggerProgress:
    """Tell whether a time has passed since the last training; several that were missed are one."""
    last = float(own.setdefault("last", now))
    try:
        times = croniter(schedule, datetime.fromtimestamp(last, UTC))
        following, second = times.get_next(float), times.get_next(float)
    except (CroniterBadDateError, CroniterError) as error:
        return _told("schedule", 0.0, False, f"schedule {schedule!r} never comes ({error})")
    if last - now > _PERIODS_AHEAD * (second - following):
        # The clock had been far ahead, and is right again.
        own["last"] = now
        return _scheduled(schedule, own, now)
    if following <= now:
        return _told("schedule", 1.0, True, f"it is past {_clock(following)} ({schedule})")
    share = min(max((now - last) / (following - last), 0.0), 1.0)
    return _told("schedule", share, False, f"next at {_clock(following)} ({schedule})")


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
