# SPDX-License-Identifier: Apache-2.0
"""The hub's database: one place where every sample, label, training and model version stands.

Times are seconds since 1970, by the hub's clock unless a column says otherwise. Contents of samples and files of models
are not in here, but in the storage, under their SHA-256.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "Base",
    "ConsumedLabel",
    "DatasetVersion",
    "DatasetVersionSample",
    "Decision",
    "Edge",
    "GoneSample",
    "LabelEntry",
    "LabelEvent",
    "LoopState",
    "ModelVersion",
    "ObservationEntry",
    "Phase",
    "Sample",
    "SampleState",
    "TrainingRun",
]

SampleState = Literal["waiting", "out", "labelled", "conflict", "skipped"]
"""Of a sample: nobody has it; a labelling source has it; it has a label; labellers disagree; nobody can label it."""

Phase = Literal["collecting", "training", "evaluating", "canary", "promoting", "rolling-back", "paused"]
"""Where the loop stands."""

_Id = String(64)


class Base(DeclarativeBase):
    """All tables of the hub."""


class Edge(Base):
    """An edge, as its last heartbeat tells."""

    __tablename__ = "edges"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    seen_at: Mapped[float]
    heartbeat: Mapped[dict[str, Any]] = mapped_column(JSON)
    clock_ahead: Mapped[float]  # seconds by which its clock was ahead of the hub's at its last heartbeat
    wanted_version: Mapped[int | None]  # what the rollout wants there; None: the promoted version
    shadow_version: Mapped[int | None]


class Sample(Base):
    """A sample that went up."""

    __tablename__ = "samples"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    edge: Mapped[str] = mapped_column(String(63), index=True)
    model: Mapped[int]
    taken_at: Mapped[float]  # by the edge's clock
    received_at: Mapped[float] = mapped_column(index=True)
    reason: Mapped[str] = mapped_column(String(16))
    media_type: Mapped[str] = mapped_column(String(100))
    size: Mapped[int] = mapped_column(BigInteger)
    confidence: Mapped[float | None]
    hardness: Mapped[float | None]
    prediction: Mapped[Any] = mapped_column(JSON, nullable=True)
    probabilities: Mapped[Any] = mapped_column(JSON, nullable=True)
    embedding: Mapped[Any] = mapped_column(JSON, nullable=True)
    subject: Mapped[str | None] = mapped_column(String(200), index=True)
    state: Mapped[str] = mapped_column(String(16), default="waiting", index=True)
    state_at: Mapped[float]
    source: Mapped[str | None] = mapped_column(String(100))  # which labelling source has it, or labelled it
    task: Mapped[str | None] = mapped_column(String(200))  # its number there
    label: Mapped[Any] = mapped_column(JSON, nullable=True)  # what was agreed on
    labelled_at: Mapped[float | None] = mapped_column(index=True)


class GoneSample(Base):
    """A sample that was deleted, so that an edge that sends it again does not bring it back."""

    __tablename__ = "gone_samples"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    at: Mapped[float]
    why: Mapped[str] = mapped_column(String(16))  # retention, or subject
    pending: Mapped[bool] = mapped_column(index=True)  # whether its content may still be there
    source: Mapped[str | None] = mapped_column(String(100))  # a labelling source that still has to give it up
    task: Mapped[str | None] = mapped_column(String(200))


class LabelEntry(Base):
    """What one labeller said of a sample; kept also where it was not agreed on."""

    __tablename__ = "labels"
    __table_args__ = (UniqueConstraint("sample", "source", "by"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    sample: Mapped[str] = mapped_column(_Id, index=True)  # no foreign key: truth may come before its sample
    source: Mapped[str] = mapped_column(String(100))
    by: Mapped[str] = mapped_column(String(200))
    value: Mapped[Any] = mapped_column(JSON, nullable=True)
    skipped: Mapped[bool] = mapped_column(default=False)
    confidence: Mapped[float | None]  # a teacher's
    at: Mapped[float]


class LabelEvent(Base):
    """What was done to a sample's labels, in order; nothing in here is ever changed, only deleted with its sample."""

    __tablename__ = "label_events"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    sample: Mapped[str] = mapped_column(_Id, index=True)
    at: Mapped[float]
    what: Mapped[str] = mapped_column(String(16))  # labelled, skipped, undone; or the state that it came to
    source: Mapped[str] = mapped_column(String(100))
    by: Mapped[str] = mapped_column(String(200))
    value: Mapped[Any] = mapped_column(JSON, nullable=True)


class DatasetVersion(Base):
    """A set of labelled samples; `digest` is of its list of ids, splits and labels.

    It never changes, but for samples that have to be deleted everywhere: then `missing` says how many.
    """

    __tablename__ = "dataset_versions"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    digest: Mapped[str] = mapped_column(_Id, unique=True)
    made_at: Mapped[float]
    count: Mapped[int]
    missing: Mapped[int] = mapped_column(default=0)


class DatasetVersionSample(Base):
    """A sample in a dataset version, with the label that it had then."""

    __tablename__ = "dataset_version_samples"
    version: Mapped[int] = mapped_column(ForeignKey("dataset_versions.version"), primary_key=True)
    sample: Mapped[str] = mapped_column(_Id, primary_key=True, index=True)
    split: Mapped[str] = mapped_column(String(8))  # train, or gate: random samples that no training sees
    label: Mapped[Any] = mapped_column(JSON, nullable=True)


class ConsumedLabel(Base):
    """A label that a training has used, so that triggers count each once."""

    __tablename__ = "consumed_labels"
    sample: Mapped[str] = mapped_column(_Id, primary_key=True)
    training: Mapped[int] = mapped_column(index=True)


class ModelVersion(Base):
    """A version of the model, from the one that the job began with."""

    __tablename__ = "model_versions"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent: Mapped[int | None]
    training: Mapped[int | None]
    dataset: Mapped[int | None]
    code: Mapped[str | None] = mapped_column(_Id)  # SHA-256 of the training script
    file: Mapped[str] = mapped_column(String(200))
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(_Id)
    signature: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), index=True)  # candidate, refused, canary, promoted, rolled-back
    made_at: Mapped[float]
    promoted_at: Mapped[float | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # the gate's, and the canary's


class TrainingRun(Base):
    """A training that a trigger asked for; it has a row before its first process starts."""

    __tablename__ = "training_runs"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    reason: Mapped[str] = mapped_column(Text)
    dataset: Mapped[int]
    parent: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), index=True)  # running, succeeded, failed
    attempt: Mapped[int] = mapped_column(default=1)
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)


class LoopState(Base):
    """Where the loop stands: one row, replaced in the transaction that carries a step out."""

    __tablename__ = "loop_state"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    phase: Mapped[str] = mapped_column(String(16))
    since: Mapped[float]
    training: Mapped[int | None]
    candidate: Mapped[int | None]
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # a phase's own, such as e-processes
    triggers: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # a trigger's own, by its place in the job


class Decision(Base):
    """What the loop decided, and why; the newest explains how things stand."""

    __tablename__ = "decisions"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float]
    what: Mapped[str] = mapped_column(String(40))
    why: Mapped[str] = mapped_column(Text)
    version: Mapped[int | None]
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class ObservationEntry(Base):
    """What a canary observed of one sample; see `core.hub_messages.Observation`."""

    __tablename__ = "observations"
    __table_args__ = (UniqueConstraint("edge", "seq"), Index("observations_of", "version", "id"))
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    edge: Mapped[str] = mapped_column(String(63))
    seq: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int]
    reference: Mapped[int]
    value: Mapped[dict[str, Any]] = mapped_column(JSON)
