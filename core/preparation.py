# SPDX-License-Identifier: Apache-2.0
"""What a run on this machine needs before it starts: inputs that are there, a run folder, a place for its workers."""

from __future__ import annotations

import shutil
import socket
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from .errors import PlatformError, SolarCoronaError, SpecError
from .job_file import JobFile
from .local_launcher import free_port, port_is_free
from .run_folder import RunFolder, find_run, new_run, runs_of
from .sources import is_absolute
from .workers import Placement

__all__ = ["LOCALHOST", "check_place", "check_script", "local_placement", "open_run", "own_names"]

LOCALHOST = "127.0.0.1"
_ANYWHERE = "0.0.0.0"  # noqa: S104 - what a user may ask for


def check_script(file: JobFile[Any], field: str, script: str | None) -> None:
    """Check that the script that a field names is there and is Python.

    Raises
    ------
    SpecError
        If it is not.
    """
    if script is None:
        raise SpecError(f"{file.path}: {field} is missing; name the Python script that every edge runs")
    path = file.path.resolve().parent / script
    if not path.is_file():
        raise SpecError(f"{file.path}: {field} is {script}, which does not exist{_near(path)}")
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise SpecError(f"{path}{f':{line}' if line else ''}: is no valid Python: {error}") from error


def check_place(file: JobFile[Any], where: str, path: str, error: type[SolarCoronaError]) -> None:
    """Check that a path is there; a URL is left to whoever opens it."""
    place = Path(path) if is_absolute(path) else file.path.resolve().parent / path
    if "://" not in path and not place.exists():
        raise error(f"{file.path}: {where} is {path}, which does not exist{_near(place)}")


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def open_run(file: JobFile[Any], *, resume: bool, root: Path | None) -> RunFolder:
    """Return a job's run folder, with the job as it runs in it: a new one, or the last one to be resumed.

    Raises
    ------
    SpecError
        If there is no run to resume, or it succeeded.
    """
    if resume:
        if not runs_of(file.path, file.job.metadata.name, root).exists():
            raise SpecError(f"there is no run of {file.path} to resume; start one with `solar-corona run {file.path}`")
        folder = find_run(str(file.path), root)
        if folder.phase() == "succeeded":
            raise SpecError(f"the last run of {file.path} succeeded, so there is nothing to resume ({folder.path})")
        folder.clear_failures()
    else:
        folder = new_run(file.path, file.job.metadata.name, root)
    document = file.job.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    folder.job_file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return folder


def local_placement(
    file: JobFile[Any],
    folder: RunFolder,
    *,
    listen: str = LOCALHOST,
    port: int | None = None,
    address: str | None = None,
) -> Placement:
    """Return this machine as a place for a job's workers.

    Parameters
    ----------
    listen, port
        Where the SuperLink or the cloud worker listens; by default a free port of the loopback interface.
    address
        Where one listens already, as HOST:PORT.

    Raises
    ------
    PlatformError
        If the port is in use.
    """
    base = str(file.path.resolve().parent)
    if address is None:
        if port is not None and not port_is_free(listen, port):
            raise PlatformError(f"port {port} of {listen} is in use; give another with --port, or leave it out")
        address = f"{LOCALHOST if listen == _ANYWHERE else listen}:{port or free_port(listen)}"
    return Placement(
        run=folder.path.name,
        python=sys.executable,
        superlink=shutil.which("flower-superlink", path=str(Path(sys.executable).parent)) or "flower-superlink",
        address=address,
        listen=listen,
        run_folder=lambda _: str(folder.path.resolve()),
        base=lambda _: base,
        keys=str(folder.secret("").resolve()),
    )


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
