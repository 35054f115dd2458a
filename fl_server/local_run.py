# SPDX-License-Identifier: Apache-2.0
"""Runs a job on this machine: checks it, lays out its run folder, and watches its workers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import yaml

from ..core.errors import DatasetError, PlatformError, SolarCoronaError, SpecError
from ..core.job_file import JobFile, read_job_file
from ..core.local_launcher import LocalLauncher, free_port, port_is_free
from ..core.plan import plan
from ..core.run_folder import RunFolder, find_run, new_run, runs_of
from ..core.security import make_credentials, make_runtime_secret
from ..core.sources import is_absolute
from ..core.spec import DatasetSource, Edge
from ..core.workers import Placement, Plan
from .progress import RunView

__all__ = ["LocalRun", "check_inputs", "local_plan", "prepare"]

_LOCALHOST = "127.0.0.1"


def check_inputs(file: JobFile) -> None:
    """Check what a run on this machine needs: the script and the local data.

    Raises
    ------
    SpecError
        If the script is missing or is no Python.
    DatasetError
        If a dataset is missing.
    """
    folder = file.path.resolve().parent
    spec = file.job.spec
    if spec.command is None:
        if spec.script is None:
            raise SpecError(f"{file.path}: spec.script is missing; name the Python script that every edge runs")
        script = folder / spec.script
        if not script.is_file():
            raise SpecError(f"{file.path}: spec.script is {spec.script}, which does not exist{_near(script)}")
        try:
            compile(script.read_bytes(), str(script), "exec")
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            raise SpecError(f"{script}{f':{line}' if line else ''}: is no valid Python: {error}") from error
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
    place = Path(path) if is_absolute(path) else file.path.resolve().parent / path
    if "://" not in path and not place.exists():
        raise DatasetError(f"{file.path}: edge {edge.name}: {field} is {path}, which does not exist{_near(place)}")


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def local_plan(
    file: JobFile,
    folder: RunFolder,
    *,
    listen: str = _LOCALHOST,
    port: int | None = None,
    address: str | None = None,
) -> Plan:
    """Return the plan of a job on this machine.

    Parameters
    ----------
    listen, port
        Where the SuperLink listens; by default a free port of the loopback interface.
    address
        Where a SuperLink listens already, as HOST:PORT.
    """
    base = str(file.path.resolve().parent)
    if address is None:
        if port is not None and not port_is_free(listen, port):
            raise PlatformError(f"port {port} of {listen} is in use; give another with --port, or leave it out")
        address = f"{_LOCALHOST if listen == '0.0.0.0' else listen}:{port or free_port(listen)}"  # noqa: S104
    return plan(
        file,
        Placement(
            run=folder.path.name,
            python=sys.executable,
            superlink=shutil.which("flower-superlink", path=str(Path(sys.executable).parent)) or "flower-superlink",
            address=address,
            listen=listen,
            run_folder=lambda _: str(folder.path.resolve()),
            base=lambda _: base,
            keys=str(folder.secret("").resolve()),
        ),
    )


def prepare(job_file: Path, overrides: Sequence[str], *, resume: bool, root: Path | None) -> tuple[JobFile, RunFolder]:
    """Read and check a job, and return it with its run folder: a new one, or the last one to be resumed."""
    if resume and not (runs_of(job_file, _name(job_file, overrides), root)).exists():
        raise SpecError(f"there is no run of {job_file} to resume; start one with `solar-corona run {job_file}`")
    file = read_job_file(job_file, overrides)
    check_inputs(file)
    if resume:
        folder = find_run(str(job_file), root)
        if folder.phase() == "succeeded":
            raise SpecError(f"the last run of {job_file} succeeded, so there is nothing to resume ({folder.path})")
        folder.clear_failures()
    else:
        folder = new_run(job_file, file.job.metadata.name, root)
    document = file.job.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    folder.job_file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return file, folder


def _name(job_file: Path, overrides: Sequence[str]) -> str:
    return read_job_file(job_file, overrides).job.metadata.name


@dataclass(frozen=True)
class LocalRun:
    """A job that is ready to run on this machine."""

    file: JobFile
    folder: RunFolder
    plan: Plan

    @classmethod
    def of(cls, file: JobFile, folder: RunFolder, *, listen: str = _LOCALHOST, port: int | None = None) -> LocalRun:
        """Make the keys and the plan of a run."""
        keys = folder.secret("")
        if not (keys / "runtime.secret").exists():
            make_runtime_secret(keys)
        edges = [edge.name for edge in file.job.spec.edges]
        if file.job.spec.security.tls and not (keys / "ca.pem").exists():
            hosts = sorted({_LOCALHOST, "localhost", *([listen] if listen != "0.0.0.0" else _own_names())})  # noqa: S104
            make_credentials(keys, hosts=hosts, edges=edges)
        return cls(file, folder, local_plan(file, folder, listen=listen, port=port))

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


def _own_names() -> list[str]:
    """Return this machine's names and addresses, for a certificate that others check."""
    import socket

    names = {socket.gethostname(), socket.getfqdn()}
    try:
        names |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        pass
    return sorted(name.partition("%")[0] for name in names)
