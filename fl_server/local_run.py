# SPDX-License-Identifier: Apache-2.0
"""Runs a job on this machine: checks it, lays out its run folder, and watches its workers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ..core.errors import SolarCoronaError, SpecError
from ..core.events import EdgeFinished
from ..core.files import atomic_write
from ..core.job_file import JobFile, read_job_file
from ..core.local_launcher import LocalLauncher, check_port, free_port
from ..core.plan import Placement, Plan, plan
from ..core.run_folder import RunFolder, RunOrigin, hold_job, latest_run, new_run, runs_of
from ..core.security import make_credentials, make_runtime_secret
from .job_checks import check_job
from .progress import RunView

__all__ = ["LocalRun", "local_plan", "prepared"]

_LOCALHOST = "127.0.0.1"


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
        if port is not None:
            check_port(listen, port)
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


@contextmanager
def prepared(
    job_file: Path,
    overrides: Sequence[str],
    *,
    resume: bool,
    root: Path | None,
    command: Sequence[str] = ("run",),
    edges_here: bool = True,
) -> Iterator[tuple[JobFile, RunFolder]]:
    """Read and check a job, hold it for this process, and give it with its run folder.

    A new run gets a folder of its own, which is gone again if nothing was started in it. A run that is resumed keeps
    its folder, and what `--set` changed when it was begun; `overrides` come on top.

    Parameters
    ----------
    job_file, overrides, resume, root
        What the command line said.
    command
        The command's name and its own options, for whoever takes the run up again.
    edges_here
        See `check_job`.

    Raises
    ------
    SolarCoronaError
        If the job file or something that it names is wrong, the job is running already, or there is nothing to resume.
    """
    file = read_job_file(job_file, overrides)
    job = file.job.metadata.name
    runs = runs_of(job_file, job, root)
    if resume and latest_run(runs) is None:
        raise SpecError(f"there is no run of {job_file} to resume; start one with `solar-corona run {job_file}`")
    if not resume:
        check_job(file, edges_here=edges_here)
    with hold_job(runs):
        if resume:
            yield _taken_up(job_file, overrides, runs, command=command, edges_here=edges_here)
            return
        folder = new_run(job_file, job, root)
        folder.begin(job)
        try:
            _lay_out(file, folder, overrides, command)
            yield file, folder
        except BaseException:
            if folder.phase() == "starting":
                shutil.rmtree(folder.path, ignore_errors=True)
            raise


def _taken_up(
    job_file: Path, overrides: Sequence[str], runs: Path, *, command: Sequence[str], edges_here: bool
) -> tuple[JobFile, RunFolder]:
    folder = latest_run(runs)
    assert folder is not None
    if folder.phase() == "succeeded":
        raise SpecError(f"the last run of {job_file} succeeded, so there is nothing to resume ({folder.path})")
    origin = folder.read_origin()
    anew = {_field_of(override) for override in overrides}
    kept = [o for o in (origin.overrides if origin is not None else ()) if _field_of(o) not in anew]
    changes = (*kept, *overrides)
    file = read_job_file(job_file, changes)
    check_job(file, edges_here=edges_here)
    folder.clear_outcome()
    _lay_out(file, folder, changes, command)
    return file, folder


def _field_of(override: str) -> str:
    return override.partition("=")[0].strip()


def _lay_out(file: JobFile, folder: RunFolder, overrides: Sequence[str], command: Sequence[str]) -> None:
    folder.write_origin(
        RunOrigin(job_file=str(file.path.resolve()), overrides=tuple(overrides), command=tuple(command))
    )
    document = file.job.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    with atomic_write(folder.job_file) as temporary:
        temporary.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


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


def _own_names() -> list[str]:
    """Return this machine's names and addresses, for a certificate that others check."""
    import socket

    names = {socket.gethostname(), socket.getfqdn()}
    try:
        names |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        pass
    return sorted(name.partition("%")[0] for name in names)
