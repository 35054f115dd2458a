# SPDX-License-Identifier: Apache-2.0
"""The workers of a federated learning job: a SuperLink, the server, and the script on each edge."""

from __future__ import annotations

import posixpath

from .context_document import ContextDocument, SuperLinkAddress
from .job_file import JobFile
from .sources import dataset_source, joined, model_source
from .spec import Edge
from .workers import Placement, Plan, Worker

__all__ = ["plan_federated"]


def plan_federated(file: JobFile, place: Placement) -> Plan:
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
        address=place.address,
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
                    output_model=joined(place.base("server"), spec.output.model) if spec.output.model else None,
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
    script = joined(base if place.script_base is None else place.script_base, script)
    command = tuple(spec.command or (place.python, "-m", "solar_corona.lib.script_worker", script))
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
            train_data=dataset_source(file, edge.train_data, base, f"edge {edge.name}: trainData"),
            eval_data=dataset_source(file, edge.eval_data, base, f"edge {edge.name}: evalData")
            if edge.eval_data
            else None,
            model=model_source(file, spec.model, base, "spec.model") if spec.model is not None else None,
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
