# SPDX-License-Identifier: Apache-2.0
"""One edge started by hand: `solar-corona edge`, or a stock `flower-supernode` that runs our ClientApp."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..core.context_document import SuperLinkAddress
from ..core.errors import SpecError
from ..core.job_file import read_job_file
from ..core.plan import plan
from ..core.run_folder import RunFolder, new_run
from ..core.settings import CONTEXT_VARIABLE, worker_environment
from ..core.workers import Placement, Worker

__all__ = ["edge_worker", "run_edge"]


def edge_worker(
    job: Path, overrides: Sequence[str], name: str, folder: RunFolder, link: SuperLinkAddress | None
) -> Worker:
    """Return the worker of edge `name` of a job file, on this machine.

    Raises
    ------
    SpecError
        If the job has no such edge.
    """
    file = read_job_file(job, overrides)
    names = [edge.name for edge in file.job.spec.edges]
    if name not in names:
        raise SpecError(f"{job}: has no edge {name!r}; it has: {', '.join(names)}")
    base = str(job.resolve().parent)
    place = Placement(
        run=folder.path.name,
        python=sys.executable,
        superlink="flower-superlink",
        address=link.address if link is not None else "",
        listen="",
        run_folder=lambda _: str(folder.path.resolve()),
        base=lambda _: base,
        keys="",
    )
    worker = next(w for w in plan(file, place).workers if w.name == name and w.role == "edge")
    assert worker.context is not None
    # Each start has a run folder of its own, and what is kept must be found by the next.
    state = str(folder.path.resolve().parent / "state")
    context = worker.context.model_copy(update={"superlink": link, "state_folder": state})
    return Worker(worker.name, worker.role, worker.command, context, worker.node, worker.env, worker.restarts)


def run_edge(
    job: Path,
    overrides: Sequence[str],
    *,
    name: str,
    address: str,
    ca: Path | None,
    key: Path | None,
    root: Path | None,
) -> int:
    """Become the worker of edge `name`, connected to a server elsewhere.

    Raises
    ------
    SpecError
        If the job has no such edge, or the address is no HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise SpecError(f"--superlink {address}: expected HOST:PORT, such as 192.0.2.1:9092")
    link = SuperLinkAddress(
        address=address,
        root_certificates=str(ca.resolve()) if ca else None,
        private_key=str(key.resolve()) if key else None,
    )
    job_name = read_job_file(job, overrides).job.metadata.name
    folder = new_run(job, f"{job_name}-{name}", root)
    worker = edge_worker(job, overrides, name, folder, link)
    assert worker.context is not None
    document = folder.context(name)
    document.write_text(worker.context.model_dump_json(indent=1), encoding="utf-8")
    os.chdir(job.resolve().parent)
    environment = worker_environment({**worker.env, CONTEXT_VARIABLE: str(document)})
    os.execvpe(worker.command[0], list(worker.command), environment)  # noqa: S606 - the worker takes our place
