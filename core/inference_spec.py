# SPDX-License-Identifier: Apache-2.0
"""Joint inference in a job file, as pydantic models: the only source of what a `JointInferenceService` may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from .durations import Duration
from .spec_parts import EnvName, ModelSource, Name, Parameter, Part, Resource, Security

__all__ = [
    "CloudWorker",
    "EdgeWorker",
    "ExternalEndpoint",
    "InferenceEdge",
    "JointInferenceService",
    "JointInferenceSpec",
    "Offload",
    "Resources",
    "ScriptWorker",
]

CLOUD = "cloud"
"""The cloud worker's name, and that of its log."""


class Offload(Part):
    """What decides which samples go to the deep model."""

    algorithm: str = Field(
        default="margin",
        min_length=1,
        description="`margin`, `threshold`, `entropy`, `ibt`, `calibrated`, `learned`, or `module:Class`.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of its constructor, such as upload_ratio: 0.1."
    )


class ScriptWorker(Part):
    """A worker that runs a script of the user's."""

    script: str | None = Field(
        default=None, description="Python script that every edge runs; relative to the job file. Needed on a laptop."
    )
    image: str | None = Field(default=None, description="Container image. Needed on a cluster.")
    command: list[str] | None = Field(default=None, description="Command; by default python and the script.")
    env: dict[EnvName, str] = Field(default_factory=dict, description="Environment variables.")
    parameters: dict[str, Parameter] = Field(
        default_factory=dict, description="What `solar_corona.context.get_parameters` returns."
    )


class EdgeWorker(ScriptWorker):
    """The worker of each edge: a script, the shallow model, and what decides on uploads."""

    model: str | ModelSource = Field(
        union_mode="left_to_right",
        description="The shallow model: a path or URL, `model:NAME` of a Model document, or a full source.",
    )
    offload: Offload | None = Field(
        default=None,
        description="What decides on uploads, where the script's `load_model` names no algorithm; by default margin.",
    )
    deadline: Duration = Field(
        default=1.0, description="After this the shallow model's answer is taken, whatever the cloud does."
    )

    @field_validator("deadline")
    @classmethod
    def _some_time(cls, deadline: float) -> float:
        if deadline <= 0:
            raise ValueError("a deadline of 0s leaves the cloud no time to answer; write such as 500ms")
        return deadline


class InferenceEdge(Part):
    """One edge that the service runs on."""

    name: Name = Field(description="Name of the edge, unique in the service.")
    node: str | None = Field(default=None, description="Kubernetes node to run on; by default the edge's name.")
    parameters: dict[str, Parameter] = Field(
        default_factory=dict, description="Parameters for this edge alone; they win over the edge worker's."
    )
    env: dict[EnvName, str] = Field(default_factory=dict, description="Environment variables of this edge alone.")


class Resources(Part):
    """What a container asks for and may use, in Kubernetes' words and units."""

    requests: dict[str, str] = Field(default_factory=dict, description="What it needs, such as cpu: 500m.")
    limits: dict[str, str] = Field(default_factory=dict, description="What it may use, such as memory: 1Gi.")


class CloudWorker(Part):
    """The service that answers with the deep model."""

    model: str | ModelSource = Field(
        union_mode="left_to_right",
        description="The deep model: a path or URL, `model:NAME` of a Model document, or a full source.",
    )
    image: str | None = Field(default=None, description="Container image. Needed on a cluster.")
    env: dict[EnvName, str] = Field(default_factory=dict, description="Environment variables.")
    replicas: int = Field(default=1, ge=1, le=1_000, description="Copies of the service; on a laptop there is one.")
    resources: Resources = Field(default_factory=Resources, description="Kubernetes resources of each copy.")
    threads: int = Field(default=1, ge=1, le=256, description="Threads of one inference.")
    max_batch: int = Field(default=32, ge=1, le=4_096, description="Samples that are inferred at once at most.")
    max_queue: int = Field(
        default=256, ge=1, le=100_000, description="Requests that wait at most; more are told to come back later."
    )


class ExternalEndpoint(Part):
    """A service that exists, or a Python callable, in place of a cloud worker."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")] | None = Field(
        default=None, description="Base URL, such as https://models.example.org."
    )
    dialect: Literal["open-inference", "tensorflow-serving"] = Field(
        default="open-inference",
        description="What it speaks: the Open Inference Protocol (Triton, KServe, MLServer, OpenVINO), or TensorFlow "
        "Serving's REST.",
    )
    model: str | None = Field(default=None, min_length=1, description="The model's name there.")
    version: str | None = Field(default=None, min_length=1, description="Its version; by default the server's choice.")
    token_file: str | None = Field(
        default=None, description="File with a bearer token, relative to the job file; on a cluster use tokenSecret."
    )
    token_secret: str | None = Field(
        default=None, description="Kubernetes Secret whose key `token` holds the bearer token."
    )
    ca: str | None = Field(default=None, description="File of the CA that signed its certificate.")
    callable: Annotated[str, StringConstraints(pattern=r"^[\w.]+:\w+$")] | None = Field(
        default=None, description="Instead of a URL: `module:function`, called with a batch, which returns the outputs."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> ExternalEndpoint:
        if (self.url is None) == (self.callable is None):
            raise ValueError("endpoint needs either url or callable; set one of them")
        if self.url is not None and self.model is None:
            raise ValueError("endpoint.url is set and endpoint.model is missing; say which model of the server to ask")
        if self.callable is not None and (self.token_file or self.token_secret or self.ca):
            raise ValueError("endpoint.callable runs on the edge itself; leave out tokenFile, tokenSecret and ca")
        return self


class JointInferenceSpec(Part):
    """A shallow model on each edge, and a deep one in the cloud that answers hard samples."""

    edge_worker: EdgeWorker = Field(description="What runs on each edge.")
    edges: list[InferenceEdge] = Field(min_length=1, max_length=10_000, description="The edges.")
    cloud_worker: CloudWorker | None = Field(default=None, description="The service with the deep model.")
    endpoint: ExternalEndpoint | None = Field(
        default=None, description="A service that exists, in place of a cloud worker."
    )
    security: Security = Field(default_factory=Security, description="Protection of the connections.")

    @field_validator("edges")
    @classmethod
    def _unique_names(cls, edges: list[InferenceEdge]) -> list[InferenceEdge]:
        names = [edge.name for edge in edges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"edge names must be unique, and {', '.join(twice)} stands more than once; rename one")
        if CLOUD in names:
            raise ValueError(f"{CLOUD} is the name of the service's own worker; rename that edge")
        return edges

    @model_validator(mode="after")
    def _one_deep_model(self) -> JointInferenceSpec:
        if (self.cloud_worker is None) == (self.endpoint is None):
            raise ValueError("a service needs either cloudWorker or endpoint, where hard samples go; set one of them")
        return self


class JointInferenceService(Resource):
    """A shallow model answers on each edge, and sends hard samples to a deep one within a budget."""

    kind: Literal["JointInferenceService"]
    spec: JointInferenceSpec
