# SPDX-License-Identifier: Apache-2.0
"""One page that says where every sample and every model stands, read from the hub's database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ...core.hub_messages import Heartbeat
from ..hub.hub import Hub
from ..tables import (
    ConsumedLabel,
    Decision,
    Edge,
    LoopState,
    ModelVersion,
    ObservationEntry,
    Sample,
    TrainingRun,
)

__all__ = [
    "CanaryStatus",
    "DecisionStatus",
    "EdgeStatus",
    "LoopStatus",
    "SampleCounts",
    "TrainingStatus",
    "TriggerProgress",
    "VersionStatus",
    "read_status",
]

_LAST = 8
_SILENT = 30.0
_WORKING = ("training", "evaluating")
_CANARY = ("canary", "promoting", "rolling-back")


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class SampleCounts(_Part):
    """How many samples came how far. What edges tell is since their scripts began; the rest is in all."""

    seen: int = Field(default=0, description="Answered by the edges.")
    hard: int = Field(default=0, description="Of these, found hard.")
    queued: int = Field(default=0, description="In the edges' outboxes.")
    uploaded: int = Field(default=0, description="At the hub.")
    waiting: int = Field(default=0, description="No labelling source has them.")
    out: int = Field(default=0, description="A labelling source has them.")
    labelled: int = 0
    conflict: int = Field(default=0, description="Labellers disagree.")
    skipped: int = 0
    used: int = Field(default=0, description="A training has used their labels.")


class TriggerProgress(_Part):
    """How far a trigger is."""

    name: str = Field(description="Its rule, such as `labelled: 200`.")
    text: str = Field(description="Such as `140 of 200 labels`.")
    share: float = Field(ge=0, le=1)
    due: bool = False


class TrainingStatus(_Part):
    """A training."""

    number: int
    state: str
    reason: str
    attempt: int
    started_at: float
    ended_at: float | None = None
    error: str | None = None


class VersionStatus(_Part):
    """A version of the model."""

    version: int
    state: str
    parent: int | None = None
    dataset: int | None = None
    made_at: float
    metrics: dict[str, Any] = Field(default_factory=dict)
    edges: list[str] = Field(default_factory=list, description="Where it answers now.")


class EdgeStatus(_Part):
    """An edge, as its last heartbeat tells."""

    name: str
    seen_at: float
    silent: bool = Field(description="Whether its heartbeat is overdue.")
    version: int
    queued: int = 0
    evicted: int = 0
    seen: int = 0
    hard: int = 0
    confidence: float | None = None
    trouble: str = ""


class CanaryStatus(_Part):
    """A rollout that is under way."""

    version: int
    edges: list[str]
    since: float
    samples: int = Field(description="Observations of canaries.")


class DecisionStatus(_Part):
    """What was decided, and why."""

    at: float
    what: str
    why: str
    version: int | None = None


class LoopStatus(_Part):
    """Where a job's loop stands."""

    job: str
    at: float
    phase: str
    since: float
    waits_for: str = Field(default="", description="What the phase waits for; empty if for nothing but time.")
    samples: SampleCounts
    triggers: list[TriggerProgress] = Field(default_factory=list)
    trainings: list[TrainingStatus] = Field(default_factory=list, description="The latest first.")
    versions: list[VersionStatus] = Field(default_factory=list, description="The latest first.")
    edges: list[EdgeStatus] = Field(default_factory=list)
    canary: CanaryStatus | None = None
    decisions: list[DecisionStatus] = Field(default_factory=list, description="The latest first.")
    labelling: str = Field(default="", description="How the labelling source is; empty if all is well.")
    labels_come: bool = Field(default=True, description="Whether labels come without a script on any edge.")
    running: bool = Field(default=True, description="Whether the hub runs; else it is told from what it left.")

    @property
    def goes_on(self) -> bool:
        """Whether something happens without a script on any edge."""
        counts = self.samples
        due = self.phase == "collecting" and any(trigger.due for trigger in self.triggers)
        pending = counts.queued + (counts.waiting + counts.out if self.labels_come else 0)
        working = self.phase in _WORKING and not self.waits_for
        return pending > 0 or working or due


def read_status(
    hub: Hub,
    progress: Sequence[TriggerProgress],
    *,
    labelling: str = "",
    labels_come: bool = True,
) -> LoopStatus:
    """Return where a job's loop stands.

    Parameters
    ----------
    hub
        The job's.
    progress
        How far each trigger is.
    labelling
        What is wrong with the labelling source.
    labels_come
        Whether labels come without a script on any edge, as a person's or a teacher's do.
    """
    now = hub.clock()
    return hub.database.read(lambda session: _read(session, hub.settings.job, now, progress, labelling, labels_come))


def _read(
    session: Session, job: str, now: float, progress: Sequence[TriggerProgress], labelling: str, labels_come: bool
) -> LoopStatus:
    state = session.get(LoopState, 1)
    beats = {row.name: (row, Heartbeat.model_validate(row.heartbeat)) for row in session.scalars(select(Edge))}
    edges = [_edge(row, beat, now) for row, beat in sorted(beats.values(), key=lambda pair: pair[0].name)]
    latest = select(ModelVersion).order_by(ModelVersion.version.desc()).limit(_LAST)
    trainings = select(TrainingRun).order_by(TrainingRun.number.desc()).limit(_LAST)
    decisions = select(Decision).order_by(Decision.id.desc()).limit(_LAST)
    return LoopStatus(
        job=job,
        at=now,
        phase=state.phase if state is not None else "collecting",
        since=state.since if state is not None else now,
        waits_for=str(state.data.get("waits_for") or "") if state is not None else "",
        samples=_counts(session, edges),
        triggers=list(progress),
        trainings=[TrainingStatus.model_validate(row, from_attributes=True) for row in session.scalars(trainings)],
        versions=[
            VersionStatus(
                version=row.version,
                state=row.state,
                parent=row.parent,
                dataset=row.dataset,
                made_at=row.made_at,
                metrics=row.metrics or {},
                edges=[edge.name for edge in edges if edge.version == row.version],
            )
            for row in session.scalars(latest)
        ],
        edges=edges,
        canary=_canary(session, state, beats),
        decisions=[DecisionStatus.model_validate(row, from_attributes=True) for row in session.scalars(decisions)],
        labelling=labelling,
        labels_come=labels_come,
    )


def _counts(session: Session, edges: Sequence[EdgeStatus]) -> SampleCounts:
    found = session.execute(select(Sample.state, func.count()).group_by(Sample.state)).all()
    states: Mapping[str, int] = dict(found)
    return SampleCounts(
        seen=sum(edge.seen for edge in edges),
        hard=sum(edge.hard for edge in edges),
        queued=sum(edge.queued for edge in edges),
        uploaded=sum(states.values()),
        used=session.scalar(select(func.count()).select_from(ConsumedLabel)) or 0,
        **{name: states.get(name, 0) for name in ("waiting", "out", "labelled", "conflict", "skipped")},
    )


def _edge(row: Edge, beat: Heartbeat, now: float) -> EdgeStatus:
    worker, error = beat.worker, beat.models.error
    trouble = beat.outbox.trouble
    if error is not None:
        trouble = f"version {error.version} cannot be used: {error.error}"
    elif worker is not None and worker.load_error is not None:
        trouble = f"version {worker.load_error.version} cannot be loaded: {worker.load_error.error}"
    return EdgeStatus(
        name=row.name,
        seen_at=row.seen_at,
        silent=now - row.seen_at > _SILENT,
        version=(worker.version if worker is not None and worker.version else beat.models.active),
        queued=beat.outbox.queued,
        evicted=beat.outbox.evicted,
        seen=worker.seen if worker is not None else 0,
        hard=worker.hard if worker is not None else 0,
        confidence=worker.confidence if worker is not None else None,
        trouble=trouble,
    )


def _canary(
    session: Session, state: LoopState | None, beats: Mapping[str, tuple[Edge, Heartbeat]]
) -> CanaryStatus | None:
    if state is None or state.phase not in _CANARY or state.candidate is None:
        return None
    seen = select(func.count()).select_from(ObservationEntry).where(ObservationEntry.version == state.candidate)
    return CanaryStatus(
        version=state.candidate,
        edges=sorted(name for name, (row, _) in beats.items() if row.wanted_version == state.candidate),
        since=state.since,
        samples=session.scalar(seen) or 0,
    )
