# SPDX-License-Identifier: Apache-2.0
"""The workers of a joint inference service: the deep model's service, and the script on each edge."""

from __future__ import annotations

from typing import Any

from .context_document import ContextDocument, DeepModel
from .inference_spec import CLOUD, ExternalEndpoint, InferenceEdge, JointInferenceService, ScriptWorker
from .job_file import JobFile
from .sources import joined, model_source
from .workers import Placement, Plan, Worker

__all__ = ["TOKEN_FILE", "external_model", "plan_inference", "script_on_edge"]

TOKEN_FILE = "inference.token"  # noqa: S105 - the file's name, not what is in it
"""The file among a run's keys that holds the bearer token of the deep model's service."""

_READY = "/v2/health/ready"


def plan_inference(file: JobFile[JointInferenceService], place: Placement) -> Plan:
    """Return the workers of a joint inference service.

    Raises
    ------
    SpecError
        If it refers to a Model that the file does not hold.
    """
    spec = file.job.spec
    return Plan(
        job=file.job.metadata.name,
        run=place.run,
        tls=spec.security.tls,
        address=place.address,
        workers=(
            *([_cloud(file, place)] if spec.cloud_worker is not None else []),
            *(_edge(file, place, edge) for edge in spec.edges),
        ),
    )


def _cloud(file: JobFile[JointInferenceService], place: Placement) -> Worker:
    worker = file.job.spec.cloud_worker
    assert worker is not None
    model = model_source(file, worker.model, place.base("cloud"), "spec.cloudWorker.model")
    command = [place.python, "-m", "solar_corona.cli", "serve", f"{file.job.metadata.name}={model.path}"]
    command += ["--host", place.listen, "--port", (place.server_address or place.address).rpartition(":")[2]]
    command += ["--token-file", f"{place.keys}/{TOKEN_FILE}"]
    command += ["--threads", str(worker.threads), "--max-batch", str(worker.max_batch)]
    command += ["--max-queue", str(worker.max_queue)]
    if model.sha256 is not None:
        command += ["--sha256", f"{file.job.metadata.name}={model.sha256}"]
    if file.job.spec.security.tls:
        command += ["--tls-cert", f"{place.keys}/server.pem", "--tls-key", f"{place.keys}/server.key"]
    return Worker(name=CLOUD, role="cloud", command=tuple(command), context=None, env=worker.env, ready=_READY)


def _edge(file: JobFile[JointInferenceService], place: Placement, edge: InferenceEdge) -> Worker:
    worker, base = file.job.spec.edge_worker, place.base("edge")
    return script_on_edge(
        file,
        place,
        edge,
        worker,
        model=model_source(file, worker.model, base, "spec.edgeWorker.model"),
        deep_model=_deep_model(file, place, base),
        offload=worker.offload,
        deadline=worker.deadline,
    )


def script_on_edge(
    file: JobFile[Any], place: Placement, edge: InferenceEdge, worker: ScriptWorker, **more: Any
) -> Worker:
    """Return the worker that runs a script on an edge; `more` goes into its context document."""
    script = joined(place.base("edge") if place.script_base is None else place.script_base, worker.script or "infer.py")
    return Worker(
        name=edge.name,
        role="edge",
        node=edge.node or edge.name,
        command=tuple(worker.command or (place.python, "-m", "solar_corona.lib.script_worker", script)),
        env={**worker.env, **edge.env},
        context=ContextDocument(
            job=file.job.metadata.name,
            kind=file.job.kind,
            run=place.run,
            role="edge",
            worker=edge.name,
            run_folder=place.run_folder(edge.name),
            parameters={**worker.parameters, **edge.parameters},
            **more,
        ),
    )


def _deep_model(file: JobFile[JointInferenceService], place: Placement, base: str) -> DeepModel:
    spec = file.job.spec
    if spec.endpoint is None:
        scheme = "https" if spec.security.tls else "http"
        return DeepModel(
            url=f"{scheme}://{place.address}",
            model=file.job.metadata.name,
            token_file=f"{place.keys}/{TOKEN_FILE}",
            ca=f"{place.keys}/ca.pem" if spec.security.tls else None,
        )
    return external_model(spec.endpoint, place, base)


def external_model(there: ExternalEndpoint, place: Placement, base: str) -> DeepModel:
    """Return where a service that exists, or a callable, answers, as a worker sees it."""
    token_file = joined(base, there.token_file) if there.token_file else None
    return DeepModel(
        url=there.url,
        dialect=there.dialect,
        model=there.model,
        version=there.version,
        token_file=f"{place.keys}/{TOKEN_FILE}" if there.token_secret else token_file,
        ca=joined(base, there.ca) if there.ca else None,
        callable=there.callable,
    )
