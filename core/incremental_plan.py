# SPDX-License-Identifier: Apache-2.0
"""The workers of an incremental learning job: the hub, and on each edge a LocalController and the script."""

from __future__ import annotations

from .errors import SpecError
from .incremental_spec import HUB, IncrementalLearningJob
from .inference_plan import external_model, script_on_edge
from .inference_spec import InferenceEdge
from .job_file import JobFile
from .sources import model_source
from .workers import Lasting, Placement, Plan, Worker

__all__ = ["ADMIN_TOKEN", "PUBLIC_KEY", "SIGNING_KEY", "controller_of", "edge_token", "plan_incremental"]

ADMIN_TOKEN = "hub.token"  # noqa: S105 - the file's name, not what is in it
"""The file among a job's keys that holds the operator's token."""

SIGNING_KEY, PUBLIC_KEY = "hub.sign.key", "hub.sign.pub"
"""The files of the key that models are signed with, and of its public half."""

_READY = "/v1/ready"


def edge_token(edge: str) -> str:
    """Return the name of the file that holds an edge's own token."""
    return f"hub-{edge}.token"


def controller_of(edge: str) -> str:
    """Return the name of an edge's LocalController."""
    return f"{edge}-controller"


def plan_incremental(file: JobFile[IncrementalLearningJob], place: Placement) -> Plan:
    """Return the workers of an incremental learning job. Trainings are no part of it: the hub starts them.

    Raises
    ------
    SpecError
        If it refers to a Dataset or Model that the file does not hold, or the place keeps nothing beyond a run.
    """
    spec = file.job.spec
    workers = [_hub(file, place)]
    for edge in spec.inference.edges:
        workers += [_controller(file, place, edge), _edge(file, place, edge)]
    return Plan(
        job=file.job.metadata.name,
        run=place.run,
        tls=spec.security.tls,
        address=place.address,
        workers=tuple(workers),
    )


def _lasting(file: JobFile[IncrementalLearningJob], place: Placement) -> Lasting:
    if place.lasting is None:
        raise SpecError(f"{file.path}: an IncrementalLearningJob needs a place that keeps files beyond a run")
    return place.lasting


def _hub(file: JobFile[IncrementalLearningJob], place: Placement) -> Worker:
    state = _lasting(file, place).folder(HUB)
    command = [place.python, "-m", "solar_corona.cli", HUB, f"{place.run_folder(HUB)}/job.yaml"]
    command += ["--base", place.base("cloud"), "--state", state, "--keys", place.keys, "--run", place.run_folder(HUB)]
    command += ["--host", place.listen, "--port", (place.server_address or place.address).rpartition(":")[2]]
    return Worker(name=HUB, role="cloud", command=tuple(command), context=None, ready=_READY)


def _controller(file: JobFile[IncrementalLearningJob], place: Placement, edge: InferenceEdge) -> Worker:
    spec, job, lasting = file.job.spec, file.job.metadata.name, _lasting(file, place)
    scheme = "https" if spec.security.tls else "http"
    model = model_source(file, spec.model.source, place.base("edge"), "spec.model")
    command = [place.python, "-m", "solar_corona.cli", "local-controller", "--edge", edge.name]
    command += ["--state", lasting.folder(edge.name), "--socket", lasting.socket(edge.name), "--job", job]
    command += ["--hub", f"{scheme}://{place.address}"]
    command += ["--token-file", f"{place.keys}/{edge_token(edge.name)}", "--public-key", f"{place.keys}/{PUBLIC_KEY}"]
    command += ["--model", f"{spec.model.name}={model.path}", "--max-bytes", str(spec.hard_samples.outbox)]
    if model.sha256 is not None:
        command += ["--sha256", model.sha256]
    if spec.hard_samples.max_rate is not None:
        command += ["--max-rate", str(spec.hard_samples.max_rate)]
    if spec.hard_samples.quiet_hours is not None:
        command += ["--quiet-hours", spec.hard_samples.quiet_hours]
    if spec.security.tls:
        command += ["--ca", f"{place.keys}/ca.pem"]
    return Worker(
        name=controller_of(edge.name),
        role="controller",
        node=edge.node or edge.name,
        command=tuple(command),
        context=None,
    )


def _edge(file: JobFile[IncrementalLearningJob], place: Placement, edge: InferenceEdge) -> Worker:
    lasting, spec, base = _lasting(file, place), file.job.spec, place.base("edge")
    state, worker = lasting.folder(edge.name), spec.inference
    return script_on_edge(
        file,
        place,
        edge,
        worker,
        state_folder=state,
        model=model_source(file, spec.model.source, base, "spec.model"),
        deep_model=external_model(worker.endpoint, place, base) if worker.endpoint is not None else None,
        offload=worker.offload,
        deadline=worker.deadline,
        hard_samples=spec.hard_samples,
        controller=lasting.socket(edge.name),
        live_model=f"{state}/models/{spec.model.name}/active.json",
    )
