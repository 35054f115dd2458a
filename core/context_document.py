# SPDX-License-Identifier: Apache-2.0
"""The JSON document that tells a worker about its job; its path is in `SOLAR_CORONA_CONTEXT`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .incremental_spec import HardSamples
from .inference_spec import Offload
from .spec import Aggregation, Evaluation, Tasks
from .spec_parts import DatasetSource, ModelSource

__all__ = ["ContextDocument", "DeepModel", "SuperLinkAddress"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SuperLinkAddress(_Part):
    """Where the job's SuperLink listens, and how a worker proves who it is."""

    address: str = Field(description="HOST:PORT.")
    root_certificates: str | None = Field(default=None, description="CA file; None means no TLS.")
    private_key: str | None = Field(default=None, description="Key file of this worker's node; None: made anew.")
    runtime_secret: str | None = Field(default=None, description="File of the server's secret; the server's alone.")


class DeepModel(_Part):
    """Where the deep model answers, or which callable is asked instead."""

    url: str | None = None
    dialect: Literal["open-inference", "tensorflow-serving"] = "open-inference"
    model: str | None = None
    version: str | None = None
    token_file: str | None = Field(default=None, description="File of the bearer token.")
    ca: str | None = Field(default=None, description="CA file, for https.")
    callable: str | None = Field(default=None, description="`module:function`.")


class ContextDocument(_Part):
    """All that a worker knows about its job. Paths and URLs in it can be opened as they stand."""

    version: Literal[1] = 1
    job: str
    kind: str
    run: str = Field(description="Identifier of this run of the job.")
    role: Literal["superlink", "server", "cloud", "edge"]
    worker: str = Field(description="Name of the edge, or of the server.")
    run_folder: str
    state_folder: str | None = Field(
        default=None, description="Where an edge keeps what its next process needs; by default in the run folder."
    )
    parameters: dict[str, Any] = Field(default_factory=dict)
    train_data: DatasetSource | None = None
    eval_data: DatasetSource | None = None
    model: ModelSource | None = None
    output_model: str | None = Field(default=None, description="Where this worker's `save_model` writes.")
    superlink: SuperLinkAddress | None = None
    aggregation: Aggregation | None = Field(default=None, description="The server's alone.")
    min_edges: int | None = Field(default=None, description="The server's alone.")
    edges: list[str] = Field(default_factory=list, description="Names of the job's edges; the server's alone.")
    edge_keys: dict[str, str] = Field(
        default_factory=dict,
        description="Public key file of each edge, to let no other in; the server's alone.",
    )
    evaluation: Evaluation = Field(default_factory=Evaluation)
    tasks: Tasks = Field(default_factory=Tasks)
    deep_model: DeepModel | None = Field(default=None, description="Where hard samples go, in joint inference.")
    offload: Offload | None = Field(default=None, description="What decides which samples are hard.")
    deadline: float | None = Field(default=None, description="Seconds in which the deep model has to answer.")
    hard_samples: HardSamples | None = Field(default=None, description="Which samples are kept to be labelled.")
    controller: str | None = Field(default=None, description="Unix socket of the node's LocalController.")
    live_model: str | None = Field(default=None, description="File that says which version to answer with.")
