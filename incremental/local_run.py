# SPDX-License-Identifier: Apache-2.0
"""Runs an incremental learning job on this machine: the hub, and on each edge a LocalController and the script.

What the job has learned outlives a run: the next one goes on with its samples, labels, versions and keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ..core import preparation
from ..core.errors import PlatformError, SpecError
from ..core.incremental_plan import ADMIN_TOKEN, PUBLIC_KEY, SIGNING_KEY, edge_token
from ..core.incremental_spec import HUB, IncrementalLearningJob
from ..core.job_file import JobFile, read_job_file
from ..core.local_launcher import LocalLauncher
from ..core.plan import plan
from ..core.preparation import (
    LOCALHOST,
    check_dataset,
    check_exists,
    check_model,
    check_script,
    local_placement,
    make_private_folder,
    own_names,
    socket_folder,
)
from ..core.run_folder import RunFolder, find_run
from ..core.security import make_credentials, make_signing_key, make_token
from ..core.workers import Plan
from .loop.client import HubClient
from .loop.command import HubPlace, left_status
from .loop.status import LoopStatus

__all__ = ["IncrementalRun", "check_inputs", "hub_of", "lasting_folder", "prepared", "status_of"]

_READ_EVERY = 0.5


def check_inputs(file: JobFile[IncrementalLearningJob]) -> None:
    """Check what a run on this machine needs: scripts, the model and datasets.

    Raises
    ------
    SpecError
        If a script is missing.
    DatasetError
        If a dataset is missing.
    ModelError
        If the model is missing.
    """
    spec = file.job.spec
    if spec.inference.command is None:
        check_script(file, "spec.inference.script", spec.inference.script)
    if spec.training.command is None:
        check_script(file, "spec.training.script", spec.training.script)
    check_model(file, "spec.model.path", spec.model.source)
    check_dataset(file, "spec.training.baseData", spec.training.base_data)
    check_dataset(file, "spec.training.evalData", spec.training.eval_data)
    if spec.inference.endpoint is not None:
        for field, path in (("tokenFile", spec.inference.endpoint.token_file), ("ca", spec.inference.endpoint.ca)):
            check_exists(file, f"spec.inference.endpoint.{field}", path, SpecError)


def lasting_folder(runs: Path) -> Path:
    """Return where a job keeps what outlives its runs, given the folder of those."""
    return runs / "kept"


def prepared(
    job_file: Path, overrides: Sequence[str], *, root: Path | None
) -> AbstractContextManager[tuple[JobFile[IncrementalLearningJob], RunFolder]]:
    """Read, check and hold a job; see `core.preparation.prepared`."""

    def read(path: Path, changes: Sequence[str]) -> JobFile[IncrementalLearningJob]:
        return read_job_file(path, changes, IncrementalLearningJob)

    return preparation.prepared(job_file, overrides, read=read, check=check_inputs, resume=False, root=root)


def hub_of(what: str, root: Path | None) -> HubClient:
    """Return a client of the hub of a job that runs on this machine; `what` is a job file, a run folder or a name.

    Raises
    ------
    SpecError
        If there is no run of it, or the job is of another kind.
    PlatformError
        If it does not run.
    """
    folder = find_run(what, root)
    spec = read_job_file(folder.job_file, [], IncrementalLearningJob).job.spec
    state = folder.read_state()
    if state is None or state.address is None or folder.phase() not in ("starting", "running"):
        raise PlatformError(
            f"the last run of {what} is {folder.phase()}, and its hub with it; start it with `solar-corona run`"
        )
    keys = lasting_folder(folder.path.parent) / "keys"
    return HubClient.of(state.address, keys / ADMIN_TOKEN, ca=keys / "ca.pem" if spec.security.tls else None)


def status_of(folder: RunFolder) -> LoopStatus | None:
    """Return where a job's loop stands: as its hub tells, or as it left things; None where it never came up."""
    if folder.phase() in ("starting", "running"):
        with hub_of(str(folder.path), None) as hub:
            return hub.status()
    job = read_job_file(folder.job_file, [], IncrementalLearningJob)
    origin, kept = folder.read_origin(), lasting_folder(folder.path.parent)
    base = Path(origin.job_file).parent if origin is not None else folder.path
    return left_status(job, HubPlace(base=base, state=kept / HUB, keys=kept / "keys"))


@dataclass(frozen=True)
class IncrementalRun:
    """A job that is ready to run on this machine."""

    file: JobFile[IncrementalLearningJob]
    folder: RunFolder
    plan: Plan
    hub: HubClient

    @classmethod
    def of(cls, file: JobFile[IncrementalLearningJob], folder: RunFolder) -> IncrementalRun:
        """Make the keys that are not there yet, and the plan of a run."""
        spec, kept = file.job.spec, lasting_folder(folder.path.parent)
        keys = kept / "keys"
        for name in (ADMIN_TOKEN, *(edge_token(edge.name) for edge in spec.inference.edges)):
            if not (keys / name).exists():
                make_token(keys / name)
        if not (keys / PUBLIC_KEY).exists():
            make_signing_key(keys / SIGNING_KEY, keys / PUBLIC_KEY)
        if spec.security.tls:
            make_credentials(keys, hosts=own_names(LOCALHOST), edges=[])
        make_private_folder(socket_folder(kept))
        planned = plan(file, local_placement(file, folder, lasting=kept))
        ca = keys / "ca.pem" if spec.security.tls else None
        return cls(file, folder, planned, HubClient.of(planned.address, keys / ADMIN_TOKEN, ca=ca))

    @property
    def page(self) -> str:
        """Where the hub's pages are, with what lets this user in."""
        return self.hub.page

    def run(self, show: Callable[[LoopStatus], None]) -> None:
        """Run the workers until all edges' scripts have ended and nothing is left to do without them.

        `show` is called as something happens.

        Raises
        ------
        SolarCoronaError
            If a script or the hub failed.
        KeyboardInterrupt
            If it was stopped.
        """
        read, status = 0.0, None

        def look() -> LoopStatus | None:
            nonlocal read, status
            if time.monotonic() - read > _READ_EVERY:
                read, status = time.monotonic(), self.hub.status()
                if status is not None:
                    show(status)
            return status

        launcher = LocalLauncher(self.folder, self.plan, cwd=self.file.path.resolve().parent)
        with self.hub:
            launcher.run(tick=look, has_result=lambda _: False, busy=lambda: _busy(look()))


def _busy(status: LoopStatus | None) -> bool:
    """Tell whether the loop goes on by itself; what waits for a canary's samples goes on with the next run."""
    return status is None or status.goes_on
