# SPDX-License-Identifier: Apache-2.0
"""Decides which workers a job needs: spec in, workers out, nothing else touched.

Launchers place and keep the workers; none of them decides anything about a feature.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .context_document import ContextDocument, SuperLinkAddress
from .errors import SpecError
from .job_file import JobFile
from .spec import DatasetSource, Edge, ModelSource

__all__ = ["Placement", "Plan", "Role", "Worker", "is_absolute", "plan"]

Role = Literal["superlink", "server", "edge"]
_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+(://|::)")


@dataclass(frozen=True)
class Placement:
    """What a plan must know of where the workers will run.

    Parameters
    ----------
    run
        Identifier of the run.
    python, superlink
        How to start Python and Flower's SuperLink there.
    address
        HOST:PORT at which edges and server reach the SuperLink.
    listen
        Host that the SuperLink listens on.
    run_folder
        Folder of the run, as a worker of the given name sees it.
    base
        What relative paths of the job file are relative to, as a worker of the given role sees it.
    keys
        Folder of keys and certificates, as a worker sees it.
    server_address
        HOST:PORT at which the server, beside the SuperLink, reaches it; by default `address`. The SuperLink listens
        on its port: what edges are told may be a port that something on the way maps.
    script_base
        What the script's path is relative to where that is not `base`, as in an image that holds the script alone;
        empty for the folder that the worker starts in.
    """

    run: str
    python: str
    superlink: str
    address: str
    listen: str
    run_folder: Callable[[str], str]
    base: Callable[[Role], str]
    keys: str
    server_address: str | None = None
    script_base: str | None = None


@dataclass(frozen=True)
class Worker:
    """One process of a job, wherever it runs.

    `restarts` is how often it may be started again when it was killed; a script that raised is not.
    """

    name: str
    role: Role
    command: tuple[str, ...]
    context: ContextDocument | None
    node: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 20


@dataclass(frozen=True)
class Plan:
    """The workers of a job. The job is over when the server is."""

    job: str
    run: str
    tls: bool
    workers: tuple[Worker, ...]

    def of_role(self, role: Role) -> list[Worker]:
        """Return the workers of a role."""
        return [worker for worker in self.workers if worker.role == role]


def plan(file: JobFile, place: Placement) -> Plan:
    """Return the workers of a job.

    Raises
    ------
    SpecError
        If the job refers to a Dataset or Model that the file does not hold.
    """
    spec, job = file.job.spec, file.job.metadata.name
    tls = spec.security.tls
    return Plan(
        job=job,
        run=place.run,
        tls=tls,
        workers=(
            _superlink(file, place),
            Worker(
                name="server",
                role="server",
                command=(place.python, "-m", "solar_corona.fl_server"),
                env=spec.env,
                context=ContextDocument(
                    job=job,
                    kind=file.job.kind,
                    run=place.run,
                    role="server",
                    worker="server",
                    run_folder=place.run_folder("server"),
                    parameters=dict(spec.parameters),
                    output_model=_output(file, place),
                    superlink=_address(place, "server", tls=tls),
                    aggregation=spec.aggregation.model_copy(update={"algorithm": spec.algorithm}),
                    min_edges=spec.min_edges,
                    edges=[edge.name for edge in spec.edges],
                    edge_keys={e.name: f"{place.keys}/edge-{e.name}.pub" for e in spec.edges} if tls else {},
                    evaluation=spec.evaluation,
                    tasks=spec.tasks,
                ),
            ),
            *(_edge(file, place, edge) for edge in spec.edges),
        ),
    )


def _superlink(file: JobFile, place: Placement) -> Worker:
    port = (place.server_address or place.address).rpartition(":")[2]
    command = [place.superlink, "--isolation", "process", "--host", place.listen, "--port", port]
    command += ["--superexec-auth-secret-file", f"{place.keys}/runtime.secret"]
    if file.job.spec.security.tls:
        command += ["--ssl-ca-certfile", f"{place.keys}/ca.pem", "--ssl-certfile", f"{place.keys}/server.pem"]
        command += ["--ssl-keyfile", f"{place.keys}/server.key", "--enable-supernode-auth"]
    else:
        command += ["--insecure"]
    return Worker(name="superlink", role="superlink", command=tuple(command), context=None)


def _edge(file: JobFile, place: Placement, edge: Edge) -> Worker:
    spec = file.job.spec
    base = place.base("edge")
    folder = place.run_folder(edge.name)
    script = spec.script or "train.py"
    script = _join(base if place.script_base is None else place.script_base, script)
    command = tuple(spec.command or (place.python, "-m", "solar_corona.fl_client.worker", script))
    # A script that asks for the algorithm gets the one that the job really uses.
    parameters = {**spec.parameters, **edge.parameters}
    if "aggregation_algorithm" in parameters:
        parameters["aggregation_algorithm"] = spec.algorithm
    model_name = posixpath.basename((spec.output.model or "model.keras").rstrip("/"))
    return Worker(
        name=edge.name,
        role="edge",
        node=edge.node or edge.name,
        command=command,
        env={**spec.env, **edge.env},
        context=ContextDocument(
            job=file.job.metadata.name,
            kind=file.job.kind,
            run=place.run,
            role="edge",
            worker=edge.name,
            run_folder=folder,
            parameters=parameters,
            train_data=_dataset(file, edge.train_data, base, f"edge {edge.name}: trainData"),
            eval_data=_dataset(file, edge.eval_data, base, f"edge {edge.name}: evalData") if edge.eval_data else None,
            model=_model(file, base),
            output_model=f"{folder}/edges/{edge.name}/{model_name}",
            superlink=_address(place, edge.name, tls=spec.security.tls),
            evaluation=spec.evaluation,
            tasks=spec.tasks,
        ),
    )


def _address(place: Placement, worker: str, *, tls: bool) -> SuperLinkAddress:
    server = worker == "server"
    return SuperLinkAddress(
        address=(place.server_address or place.address) if server else place.address,
        root_certificates=f"{place.keys}/ca.pem" if tls else None,
        private_key=f"{place.keys}/edge-{worker}.key" if tls and not server else None,
        runtime_secret=f"{place.keys}/runtime.secret" if server else None,
    )


def is_absolute(path: str) -> bool:
    """Tell whether a path is a URL or begins at the root."""
    return bool(_URL.match(path)) or path.startswith("/")


def _join(base: str, path: str) -> str:
    return path if is_absolute(path) else posixpath.normpath(posixpath.join(base, path))


def _output(file: JobFile, place: Placement) -> str | None:
    path = file.job.spec.output.model
    return _join(place.base("server"), path) if path else None


def _dataset(file: JobFile, source: str | DatasetSource, base: str, where: str) -> DatasetSource:
    if isinstance(source, str):
        kind, _, name = source.partition(":")
        if kind == "dataset":
            if name not in file.datasets:
                raise SpecError(_unknown(file, where, "Dataset", name, list(file.datasets)))
            source = file.datasets[name].spec
        else:
            source = DatasetSource(path=source)
    return source.model_copy(update={"path": _join(base, source.path)})


def _model(file: JobFile, base: str) -> ModelSource | None:
    source = file.job.spec.model
    if source is None:
        return None
    if isinstance(source, str):
        kind, _, name = source.partition(":")
        if kind == "model":
            if name not in file.models:
                raise SpecError(_unknown(file, "spec.model", "Model", name, list(file.models)))
            source = file.models[name].spec
        else:
            source = ModelSource(path=source)
    return source.model_copy(update={"path": _join(base, source.path)})


def _unknown(file: JobFile, where: str, kind: str, name: str, known: list[str]) -> str:
    have = f"it has: {', '.join(sorted(known))}" if known else "it has none"
    return f"{file.path}: {where} names the {kind} {name!r}, which is not in this file; {have}. Add it after a line ---"
