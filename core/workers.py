# SPDX-License-Identifier: Apache-2.0
"""What a plan says: the workers of a job, and what it must know of the place where they will run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .context_document import ContextDocument

__all__ = ["Lasting", "Placement", "Plan", "Role", "Worker"]

Role = Literal["superlink", "server", "cloud", "controller", "edge"]


@dataclass(frozen=True)
class Lasting:
    """What outlives a run at a place.

    Parameters
    ----------
    folder
        Where a worker of the given name keeps its state.
    socket
        Path of the unix socket that an edge's LocalController listens on; short, as the system asks (108 bytes).
    """

    folder: Callable[[str], str]
    socket: Callable[[str], str]


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
        HOST:PORT at which edges and server reach the SuperLink, or edges the cloud worker.
    listen
        Host that the SuperLink, or the cloud worker, listens on.
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
    lasting
        What outlives a run there; None where nothing does.
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
    lasting: Lasting | None = None


@dataclass(frozen=True)
class Worker:
    """One process of a job, wherever it runs.

    `restarts` is how often it may be started again when it was killed; a script that raised is not. `ready` is the path
    that answers 200 on the place's address once the worker can be used; later workers are started after that.
    """

    name: str
    role: Role
    command: tuple[str, ...]
    context: ContextDocument | None
    node: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 20
    ready: str | None = None


@dataclass(frozen=True)
class Plan:
    """The workers of a job. It is over when its server is, or without a server, when all edges are.

    `address` is the HOST:PORT at which its superlink or cloud worker is reached.
    """

    job: str
    run: str
    tls: bool
    address: str
    workers: tuple[Worker, ...]

    def of_role(self, role: Role) -> list[Worker]:
        """Return the workers of a role."""
        return [worker for worker in self.workers if worker.role == role]
