# SPDX-License-Identifier: Apache-2.0
"""The workers of a plan as Kubernetes Jobs.

A worker that is killed or evicted is started again; one whose script raised fails its Job at once. Pods run as a user
without rights on a file system that they cannot write, and hold no token for the cluster's API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import ExitCode
from ..core.settings import CONTEXT_VARIABLE
from ..core.workers import Worker
from .naming import labels, object_name

__all__ = ["CONTEXT", "DATA", "KEYS", "PORT", "RUNS", "USER", "Object", "Site", "edge_job", "metadata", "server_job"]

Object = dict[str, Any]

PORT = 9092
USER = 10001
"""User and group of every container; the owner of an edge's folders."""
DATA = "/var/lib/solar-corona/data"
"""An edge's samples, on its node and in its container alike."""
RUNS = "/var/lib/solar-corona/runs"
"""What runs leave behind, as JOB/RUN below it."""
KEYS = "/etc/solar-corona/keys"
CONTEXT = "/etc/solar-corona/context/context.json"

_EDGE_ROLE = "node-role.kubernetes.io/edge"
_PERMANENT = sorted(int(code) for code in (ExitCode.JOB_FAILED, ExitCode.BAD_JOB, ExitCode.BAD_INPUT))
_REQUESTS = {"cpu": "250m", "memory": "512Mi"}
# Only /tmp can be written, so what wants a home gets that.
_ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - an emptyDir of the pod's own
    "FLWR_HOME": "/tmp/.flwr",  # noqa: S108
    "FLWR_TELEMETRY_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}
# A script that nobody asked to catch SIGTERM does not end by it: as a container's first process it never sees it.
_EDGE_GRACE_SECONDS = 10


@dataclass(frozen=True)
class Site:
    """What all pods of a run share.

    Parameters
    ----------
    job, run
        Names of the job and of its run.
    image
        Container image of every worker.
    tls
        Whether connections are encrypted, so that edges have keys.
    cluster_dns
        Whether edges find the SuperLink by a name of the cluster's own DNS.
    """

    job: str
    run: str
    image: str
    tls: bool
    cluster_dns: bool

    @property
    def run_folder(self) -> str:
        """The run's folder, as every worker sees it."""
        return f"{RUNS}/{self.job}/{self.run}"


def metadata(site: Site, worker: Worker) -> Object:
    """Return the name and labels of a worker's objects; its Job, Secret and ConfigMap share them."""
    edge = worker.name if worker.role == "edge" else None
    name = object_name(site.job, "edge", edge) if edge else object_name(site.job, worker.name)
    return {"name": name, "labels": labels(site.job, worker.role, run=site.run, edge=edge)}


def server_job(site: Site, server: Worker, superlink: Worker) -> Object:
    """Return the Job of the server, with the SuperLink as a sidecar, so that it ends when the server does."""
    name = metadata(site, server)["name"]
    volumes: list[Object] = [
        *_context_and_keys(name, keys=True),
        {"name": "runs", "persistentVolumeClaim": {"claimName": name}},
    ]
    # A folder for each run: a job that was changed and applied again must not resume the old one's checkpoint.
    runs = {"name": "runs", "mountPath": site.run_folder, "subPath": site.run}
    pod = {
        "initContainers": [_superlink(site, superlink)],
        "containers": [_container(site, server, [runs], keys=True)],
        "volumes": [*volumes, {"name": "tmp", "emptyDir": {}}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": _EDGE_ROLE, "operator": "DoesNotExist"}]}]
                }
            }
        },
    }
    return _job(site, server, pod)


def edge_job(site: Site, edge: Worker) -> Object:
    """Return the Job of one edge, pinned to its node."""
    name = metadata(site, edge)["name"]
    mounts: list[Object] = [{"name": "runs", "mountPath": RUNS}]
    # Not made if missing: the kubelet would make it root's, and the edge would fail when it saves, hours later.
    volumes: list[Object] = [
        *_context_and_keys(name, keys=site.tls),
        {"name": "runs", "hostPath": {"path": RUNS, "type": "Directory"}},
    ]
    if _reads_node(edge):
        mounts.append({"name": "data", "mountPath": DATA, "readOnly": True})
        volumes.append({"name": "data", "hostPath": {"path": DATA, "type": "Directory"}})
    pod = {
        "containers": [_container(site, edge, mounts, keys=site.tls)],
        "volumes": [*volumes, {"name": "tmp", "emptyDir": {}}],
        "nodeSelector": {"kubernetes.io/hostname": edge.node},
        "tolerations": [
            {"key": _EDGE_ROLE, "operator": "Exists", "effect": "NoSchedule"},
            # An edge that the cloud does not see is still at work: it must not be evicted for that.
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
        ],
        "terminationGracePeriodSeconds": _EDGE_GRACE_SECONDS,
        # The node's own resolver finds an address outside the cluster, where the cluster's may be out of reach.
        "dnsPolicy": "ClusterFirst" if site.cluster_dns else "Default",
    }
    return _job(site, edge, pod)


def _reads_node(edge: Worker) -> bool:
    document = edge.context
    assert document is not None
    sources = (document.train_data, document.eval_data, document.model)
    return any(source is not None and source.path.startswith(f"{DATA}/") for source in sources)


def _job(site: Site, worker: Worker, pod: Mapping[str, Any]) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(site, worker),
        "spec": {
            "backoffLimit": worker.restarts,
            "podFailurePolicy": {
                "rules": [
                    # First, because a script that is being evicted may end itself with any exit code.
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": worker.role, "operator": "In", "values": _PERMANENT},
                    },
                ]
            },
            "template": {
                "metadata": {"labels": metadata(site, worker)["labels"]},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": USER,
                        "runAsGroup": USER,
                        "fsGroup": USER,
                        "fsGroupChangePolicy": "OnRootMismatch",
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    **pod,
                },
            },
        },
    }


def _superlink(site: Site, superlink: Worker) -> Object:
    health = {"path": "/health", "port": PORT, "scheme": "HTTPS" if site.tls else "HTTP"}
    return {
        "name": "superlink",
        "image": site.image,
        "restartPolicy": "Always",
        "command": [_literal(word) for word in superlink.command],
        "env": _env({**_ENVIRONMENT, **superlink.env}),
        "ports": [{"name": "superlink", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": {"httpGet": health, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 90},
        "readinessProbe": {"httpGet": health, "periodSeconds": 5, "timeoutSeconds": 5},
        "resources": {"requests": dict(_REQUESTS)},
        "securityContext": _restricted(),
        "volumeMounts": [
            {"name": "keys", "mountPath": KEYS, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def _container(site: Site, worker: Worker, mounts: list[Object], *, keys: bool) -> Object:
    folder = CONTEXT.rpartition("/")[0]
    return {
        "name": worker.role,
        "image": site.image,
        "command": [_literal(word) for word in worker.command],
        "env": _env({**_ENVIRONMENT, **worker.env, CONTEXT_VARIABLE: CONTEXT}),
        "resources": {"requests": dict(_REQUESTS)},
        "securityContext": _restricted(),
        "volumeMounts": [
            {"name": "context", "mountPath": folder, "readOnly": True},
            *([{"name": "keys", "mountPath": KEYS, "readOnly": True}] if keys else []),
            *mounts,
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def _context_and_keys(name: str, *, keys: bool) -> list[Object]:
    secret = {"name": "keys", "secret": {"secretName": name, "defaultMode": 0o440}}
    return [{"name": "context", "configMap": {"name": name}}, *([secret] if keys else [])]


def _restricted() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _env(variables: Mapping[str, str]) -> list[Object]:
    return [{"name": name, "value": _literal(value)} for name, value in variables.items()]


def _literal(text: str) -> str:
    """Write `text` so that Kubernetes, which replaces `$(NAME)` by a variable, leaves it as it is."""
    return text.replace("$", "$$")
