# SPDX-License-Identifier: Apache-2.0
"""Runs a federated job on this machine: checks it, lays out its run folder, and watches its workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import DatasetError, SolarCoronaError
from ..core.job_file import JobFile, read_job_file
from ..core.local_launcher import LocalLauncher
from ..core.plan import plan
from ..core.preparation import LOCALHOST, check_place, check_script, local_placement, open_run, own_names
from ..core.run_folder import RunFolder
from ..core.security import make_credentials, make_runtime_secret
from ..core.spec import DatasetSource, Edge
from ..core.workers import Plan
from .progress import RunView

__all__ = ["LocalRun", "check_inputs", "prepare"]


def check_inputs(file: JobFile) -> None:
    """Check what a run on this machine needs: the script and the local data.

    Raises
    ------
    SpecError
        If the script is missing or is no Python.
    DatasetError
        If a dataset is missing.
    """
    spec = file.job.spec
    if spec.command is None:
        check_script(file, "spec.script", spec.script)
    for edge in spec.edges:
        for field, source in (("trainData", edge.train_data), ("evalData", edge.eval_data)):
            _check_dataset(file, edge, field, source)


def _check_dataset(file: JobFile, edge: Edge, field: str, source: str | DatasetSource | None) -> None:
    if source is None:
        return
    path = source if isinstance(source, str) else source.path
    if isinstance(source, str) and source.startswith("dataset:"):
        dataset = file.datasets.get(source.partition(":")[2])
        if dataset is None:
            return  # plan() says which Dataset documents there are
        path = dataset.spec.path
    check_place(file, f"edge {edge.name}: {field}", path, DatasetError)


def prepare(job_file: Path, overrides: Sequence[str], *, resume: bool, root: Path | None) -> tuple[JobFile, RunFolder]:
    """Read and check a job, and return it with its run folder: a new one, or the last one to be resumed."""
    file = read_job_file(job_file, overrides)
    check_inputs(file)
    return file, open_run(file, resume=resume, root=root)


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
        view, offset = RunView(), 0

        def tick() -> None:
            nonlocal offset
            events, offset = self.folder.events_from(offset)
            view.take(events)
            show(view)

        launcher = LocalLauncher(self.folder, self.plan, cwd=self.file.path.resolve().parent)
        try:
            launcher.run(tick=tick, has_result=lambda name: name in view.finished_edges)
        except SolarCoronaError:
            tick()  # what happened last is shown before the error
            raise
        return view
