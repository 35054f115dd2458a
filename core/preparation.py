# SPDX-License-Identifier: Apache-2.0
"""What a run on this machine needs before it starts: inputs that are there, a run folder, a place for its workers."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .documents import Job
from .errors import DatasetError, ModelError, PlatformError, SolarCoronaError, SpecError
from .files import atomic_write, local_path
from .job_file import JobFile
from .local_launcher import check_port, free_port
from .run_folder import RunFolder, RunOrigin, hold_job, latest_run, new_run, runs_of
from .spec_parts import Dataset, DatasetSource, Model, ModelSource
from .workers import Lasting, Placement

__all__ = [
    "LOCALHOST",
    "check_dataset",
    "check_exists",
    "check_model",
    "check_script",
    "local_placement",
    "make_private_folder",
    "own_names",
    "place_of",
    "prepared",
    "socket_folder",
    "source_path",
]

LOCALHOST = "127.0.0.1"
_ANYWHERE = "0.0.0.0"  # noqa: S104 - what a user may ask for
_J = TypeVar("_J", bound=Job)


def place_of(file: JobFile[Any], path: str | None) -> Path | None:
    """Return where a path of the job file is on this machine; None for no path, and for a URL."""
    here = local_path(path) if path is not None else None
    return Path(os.path.normpath(file.path.resolve().parent / here)) if here is not None else None


def check_script(file: JobFile[Any], field: str, script: str | None) -> None:
    """Check that the script that a field names is there and is Python.

    Raises
    ------
    SpecError
        If it is not.
    """
    if script is None:
        raise SpecError(f"{file.path}: {field} is missing; name the Python script that every edge runs")
    path = place_of(file, script)
    if path is None or not path.is_file():
        raise SpecError(f"{file.path}: {field} is {script}, which does not exist{_near(path)}")
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise SpecError(f"{path}{f':{line}' if line else ''}: is no valid Python: {error}") from error


def check_exists(file: JobFile[Any], where: str, path: str | None, error: type[SolarCoronaError]) -> None:
    """Check that what a field names is there; a URL is left to whoever opens it."""
    place = place_of(file, path)
    if place is not None and not place.exists():
        raise error(f"{file.path}: {where} is {path}, which does not exist{_near(place)}")


def source_path(
    source: str | DatasetSource | ModelSource | None, kind: str, documents: Mapping[str, Dataset | Model]
) -> str | None:
    """Return the path or URL of a source, or None where there is none, or no document of that name: plan() says so."""
    if not isinstance(source, str):
        return source.path if source is not None else None
    prefix, _, name = source.partition(":")
    if prefix != kind:
        return source
    return documents[name].spec.path if name in documents else None


def check_dataset(file: JobFile[Any], where: str, source: str | DatasetSource | None) -> None:
    """Check that a dataset is there; raises `DatasetError`."""
    check_exists(file, where, source_path(source, "dataset", file.datasets), DatasetError)


def check_model(file: JobFile[Any], where: str, source: str | ModelSource | None) -> None:
    """Check that a model is there; raises `ModelError`."""
    check_exists(file, where, source_path(source, "model", file.models), ModelError)


def _near(path: Path | None) -> str:
    if path is None:
        return ""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def prepared(
    job_file: Path,
    overrides: Sequence[str],
    *,
    read: Callable[[Path, Sequence[str]], JobFile[_J]],
    check: Callable[[JobFile[_J]], None],
    resume: bool,
    root: Path | None,
    command: Sequence[str] = ("run",),
) -> Iterator[tuple[JobFile[_J], RunFolder]]:
    """Read and check a job, hold it for this process, and give it with its run folder.

    A new run gets a folder of its own, which is gone again if nothing was started in it. A run that is resumed keeps
    its folder, and what `--set` changed when it was begun; `overrides` come on top.

    Parameters
    ----------
    job_file, overrides, resume, root
        What the command line said.
    read, check
        Read the file's job, and check what it needs beside the file.
    command
        The command's name and its own options, for whoever takes the run up again.

    Raises
    ------
    SolarCoronaError
        If the job file or something that it names is wrong, the job is running already, or there is nothing to resume.
    """
    file = read(job_file, overrides)
    job = file.job.metadata.name
    runs = runs_of(job_file, job, root)
    if resume and latest_run(runs) is None:
        raise SpecError(f"there is no run of {job_file} to resume; start one with `solar-corona run {job_file}`")
    if not resume:
        check(file)
    with hold_job(runs):
        if resume:
            folder, changes = _to_resume(job_file, overrides, runs)
            file = read(job_file, changes)
            check(file)
            folder.clear_outcome()
            _lay_out(file, folder, changes, command)
            yield file, folder
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


def _to_resume(job_file: Path, overrides: Sequence[str], runs: Path) -> tuple[RunFolder, tuple[str, ...]]:
    """Return the run to go on with, and all that `--set` changed, then and now."""
    folder = latest_run(runs)
    assert folder is not None
    if folder.phase() == "succeeded":
        raise SpecError(f"the last run of {job_file} succeeded, so there is nothing to resume ({folder.path})")
    origin = folder.read_origin()
    anew = {_field_of(override) for override in overrides}
    kept = [o for o in (origin.overrides if origin is not None else ()) if _field_of(o) not in anew]
    return folder, (*kept, *overrides)


def _field_of(override: str) -> str:
    return override.partition("=")[0].strip()


def _lay_out(file: JobFile[Any], folder: RunFolder, overrides: Sequence[str], command: Sequence[str]) -> None:
    folder.write_origin(
        RunOrigin(job_file=str(file.path.resolve()), overrides=tuple(overrides), command=tuple(command))
    )
    documents = (file.job, *file.datasets.values(), *file.models.values())
    dumped = [
        each.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True) for each in documents
    ]
    with atomic_write(folder.job_file) as temporary:
        temporary.write_text(yaml.safe_dump_all(dumped, sort_keys=False), encoding="utf-8")


def local_placement(
    file: JobFile[Any],
    folder: RunFolder,
    *,
    listen: str = LOCALHOST,
    port: int | None = None,
    address: str | None = None,
    lasting: Path | None = None,
) -> Placement:
    """Return this machine as a place for a job's workers.

    Parameters
    ----------
    listen, port
        Where the SuperLink or the cloud worker listens; by default a free port of the loopback interface.
    address
        Where one listens already, as HOST:PORT.
    lasting
        Folder of what outlives the run: its keys, and a folder for each worker.

    Raises
    ------
    PlatformError
        If the port is in use.
    """
    base = str(file.path.resolve().parent)
    if address is None:
        if port is not None:
            check_port(listen, port)
        address = f"{LOCALHOST if listen == _ANYWHERE else listen}:{port or free_port(listen)}"
    return Placement(
        run=folder.path.name,
        python=sys.executable,
        superlink=shutil.which("flower-superlink", path=str(Path(sys.executable).parent)) or "flower-superlink",
        address=address,
        listen=listen,
        run_folder=lambda _: str(folder.path.resolve()),
        base=lambda _: base,
        keys=str((lasting / "keys" if lasting is not None else folder.secret("")).resolve()),
        lasting=_lasting_in(lasting.resolve()) if lasting is not None else None,
    )


def _lasting_in(folder: Path) -> Lasting:
    sockets = socket_folder(folder)
    return Lasting(folder=lambda worker: str(folder / worker), socket=lambda edge: str(sockets / f"{edge}.sock"))


def socket_folder(of: Path) -> Path:
    """Return where the sockets of what is kept in a folder are: a short path, for the system allows 108 bytes."""
    digest = hashlib.sha256(str(of.resolve()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"solar-corona-{os.getuid()}-{digest}"


def make_private_folder(path: Path) -> None:
    """Make a folder that this user alone may enter, if it is not there.

    Raises
    ------
    PlatformError
        If another user has made it, or may enter it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat(follow_symlinks=False)
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or path.is_symlink():
        raise PlatformError(f"{path} is not this user's alone; remove it, or set TMPDIR to a folder of your own")


def own_names(listen: str) -> list[str]:
    """Return the names and addresses under which this machine is reached, for a certificate that others check."""
    names = {LOCALHOST, "localhost"}
    if listen != _ANYWHERE:
        return sorted(names | {listen})
    names |= {socket.gethostname(), socket.getfqdn()}
    try:
        names |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        pass
    return sorted(name.partition("%")[0] for name in names)
