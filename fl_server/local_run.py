# SPDX-License-Identifier: Apache-2.0
"""Runs a federated job on this machine: checks it, lays out its run folder, and watches its workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..core import preparation
from ..core.errors import SolarCoronaError
from ..core.events import EdgeFinished
from ..core.job_file import JobFile, read_job_file
from ..core.local_launcher import LocalLauncher
from ..core.plan import plan
from ..core.preparation import LOCALHOST, local_placement, own_names
from ..core.run_folder import RunFolder
from ..core.security import make_credentials, make_runtime_secret
from ..core.workers import Plan
from .job_checks import check_job
from .progress import RunView

__all__ = ["LocalRun", "prepared"]


def prepared(
    job_file: Path,
    overrides: Sequence[str],
    *,
    resume: bool,
    root: Path | None,
    command: Sequence[str] = ("run",),
    edges_here: bool = True,
) -> AbstractContextManager[tuple[JobFile, RunFolder]]:
    """Read, check and hold a federated job; see `core.preparation.prepared`, and `check_job` for `edges_here`."""
    check = partial(check_job, edges_here=edges_here)
    return preparation.prepared(
        job_file, overrides, read=read_job_file, check=check, command=command, resume=resume, root=root
    )


@dataclass(frozen=True)
class LocalRun:
    """A job that is ready to run on this machine."""

    file: JobFile
    folder: RunFolder
    plan: Plan

    @classmethod
    def of(cls, file: JobFile, folder: RunFolder, *, listen: str = LOCALHOST, port: int | None = None) -> LocalRun:
        """Make the keys and the plan of a run."""
        keys = folder.secret("")
        if not (keys / "runtime.secret").exists():
            make_runtime_secret(keys)
        edges = [edge.name for edge in file.job.spec.edges]
        if file.job.spec.security.tls and not (keys / "ca.pem").exists():
            make_credentials(keys, hosts=own_names(listen), edges=edges)
        return cls(file, folder, plan(file, local_placement(file, folder, listen=listen, port=port)))

    def only(self, *roles: str) -> LocalRun:
        """Return the same run with the workers of some roles alone."""
        kept = tuple(worker for worker in self.plan.workers if worker.role in roles)
        return replace(self, plan=replace(self.plan, workers=kept))

    def run(self, show: Callable[[RunView], None]) -> RunView:
        """Run the workers to the job's end; `show` is called whenever something happened.

        Raises
        ------
        SolarCoronaError
            If the job failed.
        KeyboardInterrupt
            If it was stopped.
        """
        view, served = RunView(), set[str]()
        earlier, offset = self.folder.events_from(0)
        view.take(earlier)

        def tick() -> None:
            nonlocal offset
            events, offset = self.folder.events_from(offset)
            view.take(events)
            # By this run's own processes: those that a resumed run had before are gone with what they had.
            served.update(event.edge for event in events if isinstance(event, EdgeFinished))
            show(view)

        launcher = LocalLauncher(self.folder, self.plan, cwd=self.file.path.resolve().parent)
        try:
            launcher.run(tick=tick, has_result=served.__contains__)
        except SolarCoronaError:
            tick()  # what happened last is shown before the error
            raise
        return view
