# SPDX-License-Identifier: Apache-2.0
"""A job as Kubernetes objects: the same plan that the local launcher runs, for `kubectl apply`, with no operator."""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from ..core.errors import SpecError
from ..core.job_file import JobFile
from ..core.plan import plan
from ..core.security import make_credentials, make_runtime_secret
from ..core.sources import is_absolute
from ..core.spec import DatasetSource, ModelSource
from ..core.workers import Placement, Plan, Worker
from .naming import is_label_value, labels, object_name, selector
from .pods import CONTEXT, DATA, KEYS, PORT, Object, Site, edge_job, metadata, server_job

__all__ = ["render", "to_yaml"]

_NODE_PORTS = range(30_000, 32_768)
_LARGEST = 2**20
_VOLUME_SIZE = "1Gi"


def render(
    file: JobFile,
    *,
    image: str | None = None,
    advertise: str | None = None,
    namespace: str | None = None,
    keys: Path | None = None,
) -> list[Object]:
    """Return the Kubernetes objects that run a job.

    Two renders of one file differ in their keys alone, which are made anew: keep what was applied.

    Parameters
    ----------
    file
        The job.
    image
        Container image of the workers; by default the job's `spec.image`.
    advertise
        HOST:PORT at which edges reach the SuperLink; by default the Service's name in the cluster's DNS.
        A port from 30000 to 32767 makes the Service a NodePort of that number, any other a LoadBalancer.
    namespace
        Namespace of all objects; by default the job's `metadata.namespace`, else none is written.
    keys
        Folder of keys that `solar_corona.core.security` made; by default new ones.

    Returns
    -------
    list of dict
        Secrets, ConfigMaps, PersistentVolumeClaim, NetworkPolicies, Service, the server's Job, the edges' Jobs.

    Raises
    ------
    SpecError
        If the job cannot run on a cluster as it is: no image, a path that no container sees, a wrong address, or more
        than a Secret or ConfigMap can hold.
    """
    spec, job = file.job.spec, file.job.metadata.name
    image = image or spec.image
    if not image:
        raise SpecError(
            f"{file.path}: spec.image is missing, expected the container image of the workers; set spec.image, or give "
            f"--image"
        )
    namespace = namespace or file.job.metadata.namespace
    service = object_name(job, "superlink")
    address = f"{service}.{namespace}.svc:{PORT}" if namespace else f"{service}:{PORT}"
    host, port = _advertised(advertise) if advertise else ("", PORT)
    site = Site(job, _run_of(file), image, tls=spec.security.tls, cluster_dns=not advertise)
    whole = plan(file, _placement(site, advertise or address))
    _check_paths(file)
    _check_nodes(file, whole)

    with TemporaryDirectory(prefix="solar-corona-") as temporary:
        folder = keys or Path(temporary)
        if keys is None:
            names = (service, f"{service}.{namespace}", f"{service}.{namespace}.svc") if namespace else (service,)
            hosts = ["localhost", "127.0.0.1", *names, *([host] if host else [])]
            _make_keys(folder, site, hosts, [edge.name for edge in spec.edges])
        secrets = list(_secrets(site, whole, folder))
    objects = [
        *secrets,
        *(_config_map(site, worker) for worker in whole.workers if worker.context is not None),
        _claim(site),
        *_network_policies(site),
        _service(site, service, port=port if advertise else None),
        *_jobs(site, whole),
    ]
    return [_finished(file, item, namespace) for item in objects]


def to_yaml(objects: Sequence[Object]) -> str:
    """Return objects as one YAML text that every parser reads alike, whether of YAML 1.1 or 1.2."""
    return yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, explicit_start=True, allow_unicode=True, width=10_000
    )


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        """Write equal parts out each time, as people expect of a manifest."""
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if "\n" in text:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
    # PyYAML leaves 1e3 and y bare, which kubectl's parser takes for a number and for true.
    bare = len(text) > 1 and (text[0].isalpha() or text[0] == "/")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if bare else '"')


_Dumper.add_representer(str, _represent_text)


def _advertised(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    known = host and "/" not in host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16
    if not known or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise SpecError(
            f"--advertise is {address!r}, expected HOST:PORT at which edges reach the server, such as 192.0.2.1:30092"
        )
    return host.strip("[]"), int(port)


def _run_of(file: JobFile) -> str:
    """Name the run after all that decides what it does, so that a changed job does not resume another's checkpoint."""
    documents = {
        "job": file.job.model_dump(mode="json", exclude={"metadata": {"labels", "annotations", "namespace"}}),
        "datasets": {name: d.spec.model_dump(mode="json") for name, d in sorted(file.datasets.items())},
        "models": {name: m.spec.model_dump(mode="json") for name, m in sorted(file.models.items())},
    }
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:12]


def _placement(site: Site, address: str) -> Placement:
    return Placement(
        run=site.run,
        python="python",
        superlink="flower-superlink",
        address=address,
        listen="0.0.0.0",  # noqa: S104 - the pod's own address, which only its Service leads to
        run_folder=lambda _: site.run_folder,
        base=lambda role: DATA if role == "edge" else site.run_folder,
        keys=KEYS,
        server_address=f"127.0.0.1:{PORT}",
        script_base="",
    )


def _check_paths(file: JobFile) -> None:
    spec = file.job.spec
    output = spec.output.model
    if output and (output.startswith("/") or _leads_out(output)):
        raise SpecError(
            f"{file.path}: spec.output.model is {output}, which is outside the run's volume, expected a relative path "
            f"within it; set spec.output.model to a name such as {posixpath.basename(output) or 'model'}"
        )
    named = {
        **{f"dataset:{name}": document.spec.path for name, document in file.datasets.items()},
        **{f"model:{name}": document.spec.path for name, document in file.models.items()},
    }
    for where, source in _sources(file):
        text = source if isinstance(source, str) else source.path
        path = named.get(text, text)
        if _leads_out(path):
            raise SpecError(
                f"{file.path}: {where} is {path}, which leads out of {DATA}, the only folder of a node that its edge "
                f"may read; put it there and give its path from there, or give a URL"
            )


def _sources(file: JobFile) -> Iterator[tuple[str, str | DatasetSource | ModelSource]]:
    if file.job.spec.model is not None:
        yield "spec.model", file.job.spec.model
    for edge in file.job.spec.edges:
        yield f"edge {edge.name}: trainData", edge.train_data
        if edge.eval_data is not None:
            yield f"edge {edge.name}: evalData", edge.eval_data


def _leads_out(path: str) -> bool:
    return not is_absolute(path) and posixpath.normpath(path).split("/")[0] == ".."


def _check_nodes(file: JobFile, whole: Plan) -> None:
    for edge in whole.of_role("edge"):
        if not is_label_value(edge.node or ""):
            raise SpecError(
                f"{file.path}: edge {edge.name}: node is {edge.node!r}, expected the node's label "
                f"kubernetes.io/hostname; `kubectl get nodes -L kubernetes.io/hostname` shows it"
            )


def _make_keys(folder: Path, site: Site, hosts: Sequence[str], edges: Sequence[str]) -> None:
    make_runtime_secret(folder)
    if site.tls:
        make_credentials(folder, hosts=hosts, edges=edges)


def _secrets(site: Site, whole: Plan, folder: Path) -> Iterator[Object]:
    """Give the server's Secret and, with TLS, one an edge, so that a node can read no other edge's key."""
    edges = whole.of_role("edge")
    public = ["ca.pem", "server.pem", *(f"edge-{edge.name}.pub" for edge in edges)] if site.tls else []
    private = ["runtime.secret", *(["server.key"] if site.tls else [])]
    yield _secret(site, whole.of_role("server")[0], folder, [*private, *public])
    if site.tls:
        for edge in edges:
            yield _secret(site, edge, folder, ["ca.pem", f"edge-{edge.name}.key"])


def _secret(site: Site, worker: Worker, folder: Path, names: Sequence[str]) -> Object:
    try:
        content = {name: (folder / name).read_bytes() for name in names}
    except FileNotFoundError as error:
        raise SpecError(
            f"{error.filename} is missing, expected the keys of all edges of job {site.job}; make them anew"
        ) from None
    _check_size(site, worker, "Secret", sum(len(value) for value in content.values()))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(site, worker),
        "type": "Opaque",
        # A second render has other keys; applied over a running job it would cut its edges off one by one.
        "immutable": True,
        "data": {name: base64.b64encode(value).decode() for name, value in content.items()},
    }


def _config_map(site: Site, worker: Worker) -> Object:
    assert worker.context is not None
    text = worker.context.model_dump_json(indent=1) + "\n"
    _check_size(site, worker, "ConfigMap", len(text.encode()))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(site, worker),
        "immutable": True,
        "data": {posixpath.basename(CONTEXT): text},
    }


def _check_size(site: Site, worker: Worker, kind: str, size: int) -> None:
    if size > _LARGEST:
        raise SpecError(
            f"job {site.job}: the {kind} of {worker.name} would have {size} bytes, and Kubernetes allows {_LARGEST}; "
            f"use fewer edges in one job, or fewer parameters"
        )


def _claim(site: Site) -> Object:
    """Return the claim for checkpoints and models, so that a server that is started again resumes."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": object_name(site.job, "server"),
            "labels": labels(site.job, "server", run=site.run),
        },
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": _VOLUME_SIZE}}},
    }


def _network_policies(site: Site) -> list[Object]:
    """Return what may reach the pods: the SuperLink's port from anywhere, edges not at all.

    From anywhere, because a node port or a tunnel between edge and cloud hides who is calling.
    """
    ports = [{"protocol": "TCP", "port": PORT}]
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {
                "name": object_name(site.job, component),
                "labels": labels(site.job, component, run=site.run),
            },
            "spec": {
                "podSelector": {"matchLabels": selector(site.job, component)},
                "policyTypes": ["Ingress"],
                "ingress": ingress,
            },
        }
        for component, ingress in (("server", [{"ports": ports}]), ("edge", []))
    ]


def _service(site: Site, name: str, *, port: int | None) -> Object:
    """Return the Service of the SuperLink; `port` is the advertised one."""
    kind, number = "ClusterIP", PORT
    node_port: Mapping[str, int] = {}
    if port is not None and port in _NODE_PORTS:
        kind, node_port = "NodePort", {"nodePort": port}
    elif port is not None:
        kind, number = "LoadBalancer", port
    # By number: older clusters do not find a named port of a sidecar.
    exposed = {"name": "superlink", "protocol": "TCP", "port": number, "targetPort": PORT, **node_port}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels(site.job, "server", run=site.run)},
        "spec": {"type": kind, "selector": selector(site.job, "server"), "ports": [exposed]},
    }


def _jobs(site: Site, whole: Plan) -> Iterator[Object]:
    (server,), (superlink,) = whole.of_role("server"), whole.of_role("superlink")
    yield server_job(site, server, superlink)
    for edge in whole.of_role("edge"):
        yield edge_job(site, edge)


def _finished(file: JobFile, item: Object, namespace: str | None) -> Object:
    """Add what the job's own metadata says to an object; our labels win, because objects are selected by them."""
    own, given = item["metadata"], file.job.metadata
    return {
        **item,
        "metadata": {
            "name": own["name"],
            **({"namespace": namespace} if namespace else {}),
            "labels": {**given.labels, **own["labels"]},
            **({"annotations": dict(given.annotations)} if given.annotations else {}),
        },
    }
