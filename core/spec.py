# SPDX-License-Identifier: Apache-2.0
"""Federated learning in a job file, as pydantic models: the only source of what a `FederatedLearningJob` may say.

The YAML follows Kubernetes: `apiVersion`, `kind`, `metadata`, `spec`, camelCase. The same text is the file for a
laptop and the custom resource for a cluster.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from .durations import Duration
from .spec_parts import (
    API_VERSION,
    Dataset,
    DatasetSource,
    EnvName,
    Metadata,
    Model,
    ModelSource,
    Name,
    Parameter,
    Part,
    Resource,
    Security,
)

__all__ = [
    "API_VERSION",
    "Aggregation",
    "Compression",
    "Dataset",
    "DatasetSource",
    "Edge",
    "Evaluation",
    "FederatedLearningJob",
    "FederatedLearningSpec",
    "Metadata",
    "Model",
    "ModelSource",
    "Output",
    "Security",
    "Tasks",
]

_OWN_WORKERS = ("server", "superlink")


class Edge(Part):
    """One edge that takes part in a job."""

    name: Name = Field(description="Name of the edge, unique in the job.")
    node: str | None = Field(default=None, description="Kubernetes node to run on; by default the edge's name.")
    train_data: str | DatasetSource = Field(
        union_mode="left_to_right",
        description="Samples to train on: a path or URL, the name of a Dataset as `dataset:NAME`, or a full source.",
    )
    eval_data: str | DatasetSource | None = Field(
        default=None, union_mode="left_to_right", description="Samples to evaluate on, as in trainData."
    )
    parameters: dict[str, Parameter] = Field(
        default_factory=dict, description="Parameters for this edge alone; they win over the job's."
    )
    env: dict[EnvName, str] = Field(default_factory=dict, description="Environment variables of this edge's worker.")


CompressionMethod = Literal["none", "fp16", "int8", "topk"]


class Compression(Part):
    """How models are coded on the way, in both directions."""

    method: CompressionMethod = Field(
        default="none",
        description="`fp16` and `int8` round the change since the last model, with one scale for each array; `topk` "
        "lets edges send only its largest entries. What one message lacks goes with the next.",
    )
    fraction: float = Field(default=0.2, gt=0, le=1, description="With topk: share of an array's entries to send.")


class Aggregation(Part):
    """How the edges' models become one."""

    algorithm: str | None = Field(
        default=None,
        min_length=1,
        description="Strategy: a name from `solar-corona strategies`, or `module:Class`; by default the parameter "
        "`aggregation_algorithm`, else fedavg.",
    )
    rounds: int = Field(default=5, ge=1, le=100_000, description="Rounds to run.")
    min_edges: int | None = Field(
        default=None,
        ge=1,
        description="Edges that must reply for a round to count; by default the job's edges times `fraction`.",
    )
    fraction: float = Field(default=1.0, gt=0, le=1, description="Share of the ready edges that train in a round.")
    round_deadline: Duration = Field(
        default=600.0, description="After this a round closes with the edges that replied."
    )
    start_deadline: Duration = Field(
        default=600.0,
        description="How long the server waits for minEdges edges, at the start and in any round.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of the strategy's constructor.")
    compression: CompressionMethod | Compression = Field(
        default="none",
        union_mode="left_to_right",
        description="How models are coded on the way: `none`, `fp16`, `int8`, `topk`, or the method with its options.",
    )

    @property
    def model_coding(self) -> Compression:
        """The compression in its long form."""
        short = self.compression
        return short if isinstance(short, Compression) else Compression(method=short)


class Tasks(Part):
    """How an edge divides its samples into tasks, where they are of several."""

    task_attribute: str | None = Field(
        default=None,
        min_length=1,
        description="Array (npz) or column (csv, parquet) that says which task each sample is of, such as `season`.",
    )
    division: Annotated[str, StringConstraints(pattern=r"^(none|discovery|[\w.]+:\w+)$")] = Field(
        default="none",
        description="Without taskAttribute: `none` (an edge is one task), `discovery` (all edges together find which "
        "tasks their samples mix; with chunk from what comes in a row, without where edges mix tasks in other "
        "shares), or your own `module:function`, called with x and y, which returns a task for each sample.",
    )
    chunk: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="So many samples in a row belong together and are of one task, as in a stream; discovery tells "
        "by itself how many of them are not.",
    )
    min_samples: int = Field(
        default=20, ge=1, le=1_000_000, description="A task with fewer samples joins the edge's largest."
    )

    @property
    def divides(self) -> bool:
        """Whether an edge may have several tasks."""
        return self.task_attribute is not None or self.division != "none"

    @model_validator(mode="after")
    def _one_way(self) -> Tasks:
        if self.task_attribute is not None and self.division != "none":
            raise ValueError(
                f"tasks.taskAttribute is {self.task_attribute!r} and tasks.division is {self.division!r}; keep one"
            )
        return self


class Output(Part):
    """What a job leaves behind."""

    model: str | None = Field(
        default=None,
        min_length=1,
        description="Where the final model goes, relative to the job file: `.keras`, a folder for a SavedModel, "
        "`.npz` for a torch module, or what an own `save` writes.",
    )

    @field_validator("model")
    @classmethod
    def _is_a_path(cls, model: str | None) -> str | None:
        if model is not None and "://" in model:
            raise ValueError(f"{model} is a URL, and the model is written to the server's own disk; give a path")
        return model


class Evaluation(Part):
    """What is measured beside the rounds themselves."""

    alone: bool = Field(
        default=False,
        description="Also train each edge alone, for as many epochs, and one model for all where there are groups, "
        "to show what the federation gained.",
    )


class FederatedLearningSpec(Part):
    """A federated learning job: one script, several edges, one model."""

    script: str | None = Field(
        default=None,
        description="Python script that every edge runs; relative to the job file. Needed on a laptop.",
    )
    image: str | None = Field(default=None, description="Container image of the workers. Needed on a cluster.")
    command: list[str] | None = Field(
        default=None, description="Command in the edges' image; by default python and the script."
    )
    env: dict[EnvName, str] = Field(default_factory=dict, description="Environment variables of every worker.")
    parameters: dict[str, Parameter] = Field(
        default_factory=dict, description="What `solar_corona.context.get_parameters` returns."
    )
    aggregation: Aggregation = Field(default_factory=Aggregation, description="How models are aggregated.")
    edges: list[Edge] = Field(min_length=1, max_length=10_000, description="The edges that take part.")
    tasks: Tasks = Field(default_factory=Tasks, description="How each edge divides its samples into tasks.")
    model: str | ModelSource | None = Field(
        default=None,
        union_mode="left_to_right",
        description="Model to start from: a path or URL, `model:NAME` of a Model document, or a full source.",
    )
    output: Output = Field(default_factory=Output, description="What the job leaves behind.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="What is measured beside the rounds.")
    security: Security = Field(default_factory=Security, description="Protection of the connections.")

    @field_validator("edges")
    @classmethod
    def _unique_names(cls, edges: list[Edge]) -> list[Edge]:
        names = [edge.name for edge in edges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"edge names must be unique, and {', '.join(twice)} stands more than once; rename one")
        taken = sorted({*names} & {*_OWN_WORKERS})
        if taken:
            raise ValueError(f"{', '.join(taken)} is the name of a worker that each job has; rename that edge")
        return edges

    @model_validator(mode="after")
    def _reachable_minimum(self) -> FederatedLearningSpec:
        wanted = self.aggregation.min_edges
        if wanted is not None and wanted > len(self.edges):
            raise ValueError(
                f"aggregation.minEdges is {wanted}, but the job has {len(self.edges)} edge(s); "
                f"lower minEdges or add edges"
            )
        return self

    @model_validator(mode="after")
    def _named_algorithm(self) -> FederatedLearningSpec:
        asked = self.parameters.get("aggregation_algorithm", "fedavg")
        if self.aggregation.algorithm is None and not (isinstance(asked, str) and asked):
            raise ValueError(f"parameters.aggregation_algorithm is {asked!r}, expected the name of a strategy")
        return self

    @property
    def min_edges(self) -> int:
        """Edges that must reply for a round to count."""
        return self.aggregation.min_edges or max(1, int(len(self.edges) * self.aggregation.fraction))

    @property
    def algorithm(self) -> str:
        """The strategy's name."""
        asked = self.parameters.get("aggregation_algorithm")
        return self.aggregation.algorithm or (asked if isinstance(asked, str) and asked else "fedavg")


class FederatedLearningJob(Resource):
    """Train one model over several edges whose data stays where it is."""

    kind: Literal["FederatedLearningJob"]
    spec: FederatedLearningSpec
