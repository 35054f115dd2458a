# SPDX-License-Identifier: Apache-2.0
"""Incremental learning in a job file, as pydantic models: the only source of what an `IncrementalLearningJob` may say.

The defaults of detection, replay, gate and rollout are measured; `docs/explanation/incremental-learning.md` has the
figures.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from .durations import Duration
from .inference_spec import CLOUD, ExternalEndpoint, InferenceEdge, Offload, ScriptWorker
from .spec_parts import DatasetSource, EnvName, ModelSource, Name, Parameter, Part, Resource, Security

__all__ = [
    "HUB",
    "Canary",
    "Encoding",
    "Gate",
    "HardSamples",
    "IncrementalLearningJob",
    "IncrementalLearningSpec",
    "InferenceWorker",
    "Labelling",
    "NamedModel",
    "Replay",
    "Training",
    "Trigger",
    "TriggerRule",
]

HUB = "hub"
"""The name of the worker that takes samples in and runs the loop, and that of its log."""

_FEWEST_LABELS = 200

PluginName = Annotated[str, StringConstraints(pattern=r"^([a-z][a-z0-9-]*|[\w.]+:\w+)$")]


class NamedModel(Part):
    """The model that the loop keeps better."""

    name: Name = Field(description="Its name; versions are counted from 1.")
    path: str = Field(min_length=1, description="Version 1: a file, a SavedModel folder or a URL; see ModelSource.")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="SHA-256 that the file must have."
    )
    classes: list[str] = Field(
        default_factory=list,
        max_length=100_000,
        description="What its outputs mean, in order; labellers see these. By default the numbers 0 to K-1.",
    )

    pre_fun: Annotated[str, StringConstraints(pattern=r"^[\w.]+:\w+$")] | None = Field(
        default=None,
        description="Where scripts give `load_model` a pre_fun: the same as `module:function`, for the gate, which "
        "answers with samples as scripts have them. The module stands beside the job file, or is installed.",
    )

    @property
    def source(self) -> ModelSource:
        """Where version 1 is."""
        return ModelSource(path=self.path, sha256=self.sha256)


class InferenceWorker(ScriptWorker):
    """What runs on each edge."""

    edges: list[InferenceEdge] = Field(min_length=1, max_length=10_000, description="The edges.")
    endpoint: ExternalEndpoint | None = Field(
        default=None, description="A deep model that hard samples may be sent to while they are answered."
    )
    offload: Offload | None = Field(default=None, description="With endpoint: what decides on uploads.")
    deadline: Duration = Field(default=1.0, description="With endpoint: how long its answer is waited for.")

    @field_validator("edges")
    @classmethod
    def _unique_names(cls, edges: list[InferenceEdge]) -> list[InferenceEdge]:
        names = [edge.name for edge in edges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"edge names must be unique, and {', '.join(twice)} stands more than once; rename one")
        taken = sorted({*names} & {HUB, CLOUD})
        if taken:
            raise ValueError(f"{', '.join(taken)} is the name of a worker that each job has; rename that edge")
        return edges


class Encoding(Part):
    """How samples are written for the way to the cloud and for labellers."""

    format: Literal["auto", "npy", "png", "jpeg", "webp", "wav", "text"] = Field(
        default="auto",
        description="`auto`: png for images of 8 bits, text for text, npy (exact) for all else. jpeg and webp are "
        "smaller and lose some detail; wav is for sound.",
    )
    quality: int = Field(default=90, ge=1, le=100, description="Of jpeg and webp.")
    rate: int = Field(default=16_000, ge=1, le=1_000_000, description="Samples a second of sound, for wav.")


class HardSamples(Part):
    """Which samples go up to be labelled."""

    detection: PluginName = Field(
        default="mixed",
        description="`mixed`, `threshold`, `margin`, `entropy`, `disagreement`, `embedding`, or `module:Class`.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of its constructor.")
    max_per_hour: int = Field(
        default=500, ge=1, le=10_000_000, description="Samples that an edge keeps in an hour at most, spread evenly."
    )
    outbox: int = Field(
        default=1 << 30,
        ge=1 << 20,
        le=1 << 42,
        description="Bytes that an edge keeps while the cloud is away; then hard samples leave before random ones, "
        "the oldest first.",
    )
    encode: Encoding = Field(default_factory=Encoding, description="How samples are written.")
    quiet_hours: Annotated[str, StringConstraints(pattern=r"^\d{2}:\d{2}-\d{2}:\d{2}$")] | None = Field(
        default=None, description="When nothing is uploaded, in UTC, such as 08:00-18:00."
    )
    max_rate: int | None = Field(default=None, ge=1_000, description="Bytes a second that an edge uploads at most.")
    retention: Duration | None = Field(
        default=None, description="After this, samples that no dataset version holds are deleted from the hub."
    )


class Labelling(Part):
    """Where labels come from."""

    source: PluginName = Field(
        default="page", description="`page`, `label-studio`, `teacher`, `api`, or `module:Class`."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of its constructor.")
    agreement: int = Field(default=1, ge=1, le=2, description="People who have to agree on a sample's label.")


class TriggerRule(Part):
    """One reason to train; a rule has one field."""

    labelled: int | None = Field(default=None, ge=1, description="So many labels that no training has used.")
    schedule: str | None = Field(default=None, description="Times in cron's form, in UTC, such as '0 3 * * *'.")
    drift: PluginName | None = Field(
        default=None,
        description="`ranks` or `adwin` on confidence, `cusum` of errors on labels of random samples, `both` (ranks "
        "and cusum), or `module:Class`.",
    )
    accuracy_below: float | None = Field(
        default=None, gt=0, le=1, description="Accuracy on the latest 200 labels of random samples."
    )
    manual: bool | None = Field(default=None, description="When `solar-corona incremental train JOB` asks for it.")

    @model_validator(mode="after")
    def _one_field(self) -> TriggerRule:
        told = [name for name in ("labelled", "schedule", "drift", "accuracy_below", "manual") if getattr(self, name)]
        if len(told) != 1:
            raise ValueError(f"a rule has one reason, and this one has {len(told)}; write each as an item of its own")
        if self.schedule is not None:
            _check_cron(self.schedule)
        return self


def _check_cron(schedule: str) -> None:
    """Refuse what no cron would take; the reading itself is croniter's, where the loop runs."""
    if len(schedule.split()) != 5:
        raise ValueError(f"schedule {schedule!r} has {len(schedule.split())} fields, expected 5, such as '0 3 * * *'")


class Trigger(Part):
    """When a training starts. There is never more than one at a time."""

    any: list[TriggerRule] = Field(default_factory=list, max_length=20, description="One of these is enough.")
    all: list[TriggerRule] = Field(default_factory=list, max_length=20, description="All of these are needed.")
    cooldown: Duration = Field(default=3600.0, description="Time between the starts of two trainings.")
    min_labels: int | None = Field(
        default=None,
        ge=1,
        description="New labels without which no training starts, whatever the reason; by default 200, or fewer where "
        "a rule asks for fewer.",
    )

    @property
    def labels_needed(self) -> int:
        """New labels without which no training starts."""
        asked = [rule.labelled for rule in (*self.any, *self.all) if rule.labelled is not None]
        return self.min_labels or min(_FEWEST_LABELS, *asked, _FEWEST_LABELS)


class Replay(Part):
    """What is repeated of the data before, against forgetting."""

    ratio: float = Field(default=0.5, ge=0, le=0.95, description="Share of a training's samples that are old ones.")
    buffer: int = Field(default=1_000, ge=0, le=10_000_000, description="Old samples to draw from, at least.")


class Training(Part):
    """What makes a candidate from the model in use, and from base and new samples."""

    script: str | None = Field(default=None, description="The training script. Needed on a laptop.")
    image: str | None = Field(default=None, description="Container image. Needed on a cluster.")
    command: list[str] | None = Field(default=None, description="Command; by default python and the script.")
    env: dict[EnvName, str] = Field(default_factory=dict, description="Environment variables.")
    parameters: dict[str, Parameter] = Field(
        default_factory=dict, description="What `solar_corona.context.get_parameters` returns."
    )
    base_data: str | DatasetSource | None = Field(
        default=None,
        union_mode="left_to_right",
        description="Samples that version 1 was trained on, for replay; as a federated job's trainData.",
    )
    eval_data: str | DatasetSource | None = Field(
        default=None,
        union_mode="left_to_right",
        description="Labelled samples of the old distribution that no version was trained on, for the gate.",
    )
    replay: Replay = Field(default_factory=Replay, description="Old samples in a training.")
    deadline: Duration = Field(default=3600.0, description="After this a training has failed.")
    retries: int = Field(default=2, ge=0, le=20, description="Further attempts of a training that was killed.")


class Gate(Part):
    """What a candidate has to show before it goes to any edge."""

    metric: Literal["accuracy"] = Field(default="accuracy", description="What is compared.")
    min_gain: float = Field(default=0.0, ge=-1, le=1, description="Gain on new samples, at least.")
    margin: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Loss on new samples that few labels may hide; over all samples twice as much is excluded, with "
        "99.5 % confidence.",
    )
    old_margin: float = Field(
        default=0.02, ge=0, le=1, description="Loss on old samples, at most; twice as much is excluded."
    )
    per_class: Literal["mcnemar", "none"] = Field(
        default="mcnemar", description="No class may fall by more than 5 points beyond what chance explains."
    )
    min_labels: int = Field(
        default=1_000,
        ge=50,
        description="Labels of random samples that the gate judges on, half new and half old where there are enough.",
    )
    max_latency: float = Field(default=1.5, gt=0, description="Time of one inference, beside the model in use.")
    max_size: float = Field(default=4.0, gt=0, description="Bytes, beside the model in use.")
    max_disagreement: float = Field(default=0.25, gt=0, le=1, description="Share of samples with another answer.")
    deadline: Duration = Field(default=1800.0, description="After this an evaluation has failed.")


class Canary(Part):
    """How a candidate that passed the gate gets to the edges."""

    canary: int = Field(default=1, ge=0, le=10_000, description="Edges that try it first; 0 sends it to all at once.")
    watch: Duration = Field(default=1800.0, description="How long the canaries are watched.")
    min_samples: int = Field(
        default=200, ge=1, description="Samples that the canaries have to answer; watch is prolonged until then."
    )
    max_regression: float = Field(
        default=0.02, gt=0, le=1, description="Loss of accuracy on labels of canary samples that rolls back."
    )
    on_failure: Literal["rollback", "pause"] = Field(
        default="rollback", description="What happens then: back to the version before, or wait for an operator."
    )


class IncrementalLearningSpec(Part):
    """A model in use, and the loop that keeps it good."""

    model: NamedModel = Field(description="The model.")
    inference: InferenceWorker = Field(description="The script on each edge, and the edges.")
    hard_samples: HardSamples = Field(default_factory=HardSamples, description="Which samples go up.")
    labelling: Labelling = Field(default_factory=Labelling, description="Who labels samples.")
    trigger: Trigger = Field(
        default_factory=lambda: Trigger(any=[TriggerRule(labelled=200)]), description="When a training starts."
    )
    training: Training = Field(description="What makes a candidate.")
    gate: Gate = Field(default_factory=Gate, description="What a candidate has to show.")
    rollout: Canary = Field(default_factory=Canary, description="How it gets to the edges.")
    storage: str | None = Field(
        default=None,
        description="Where the hub keeps samples and models: a folder or a URL that fsspec opens; by default beside "
        "the job's runs.",
    )
    database: str | None = Field(
        default=None, description="The hub's database, as SQLAlchemy's URL; by default SQLite beside the job's runs."
    )
    security: Security = Field(default_factory=Security, description="Protection of the connections.")

    @model_validator(mode="after")
    def _canaries_among_edges(self) -> IncrementalLearningSpec:
        count = len(self.inference.edges)
        if self.rollout.canary > count:
            raise ValueError(
                f"rollout.canary is {self.rollout.canary}, but the job has {count} edge(s); lower it or add edges"
            )
        return self


class IncrementalLearningJob(Resource):
    """A model that gets better as it is used: hard samples, labels, training, gate, rollout."""

    kind: Literal["IncrementalLearningJob"]
    spec: IncrementalLearningSpec
