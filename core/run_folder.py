# SPDX-License-Identifier: Apache-2.0
"""The run folder: where a job's state, metrics, logs, checkpoints and models stay.

::

    .solar-corona/JOB/RUN/
      job.yaml          the job file, with what --set changed
      origin.json       the job file's own place, and what --set changed
      state.json        the launcher's view: phase, processes
      events.jsonl      what happened, one event a line
      contexts/         the workers' context documents
      logs/             one file a worker
      failures/         how a worker's script failed
      saved             all rounds are done, and the model is saved
      checkpoint/       the server's state after each round
      model*            what the job made
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import PlatformError, SpecError
from .events import Event, event_adapter
from .files import atomic_write, write_bytes_atomic
from .settings import RUNS_VARIABLE

__all__ = [
    "Phase",
    "ProcessState",
    "RunFolder",
    "RunOrigin",
    "RunState",
    "WorkerFailure",
    "find_run",
    "hold_job",
    "is_alive",
    "latest_run",
    "new_run",
]

Phase = Literal["starting", "running", "succeeded", "failed", "stopped"]


_ENDED = ("Z", "X")  # its parent has not asked for its end yet, which a parent that is no shell may never do


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


_R = TypeVar("_R", bound=_Record)


class ProcessState(_Record):
    """One worker's process."""

    pid: int = Field(gt=0, lt=2**31)
    started: float = Field(description="Seconds since 1970.")
    process_start: str = Field(default="", description="When it began, so that a reused pid is told apart.")
    restarts: int = 0
    exit_code: int | None = None


class RunState(_Record):
    """What the launcher knows of a run."""

    job: str
    run: str
    phase: Phase
    pid: int = Field(gt=0, lt=2**31, description="The launcher's own process.")
    process_start: str = Field(default="", description="When that process began, so that a reused pid is told apart.")
    address: str | None = None
    workers: dict[str, ProcessState] = Field(default_factory=dict)
    error: str | None = None
    exit_code: int | None = None


class RunOrigin(_Record):
    """How a run was begun, so that it can be taken up again without asking."""

    job_file: str
    overrides: tuple[str, ...] = ()
    command: tuple[str, ...] = Field(default=("run",), description="The command, then its own options.")

    def resume(self, program: str = "solar-corona") -> str:
        """Return the command line that takes the run up again.

        >>> RunOrigin(job_file="/srv/job.yaml", command=("server", "--port", "9092")).resume()
        'solar-corona server /srv/job.yaml --port 9092 --resume'
        """
        name, *options = self.command
        return shlex.join([program, name, self.job_file, *options, "--resume"])


class WorkerFailure(_Record):
    """How a worker's script failed."""

    error: str
    traceback: str = ""
    exit_code: int = 1
    told: bool = Field(default=False, description="The failure is elsewhere; this worker was only told of it.")


def is_alive(pid: int, process_start: str = "") -> bool:
    """Tell whether process `pid` runs, and is the one that began at `process_start` if that is given."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    stat = _stat_of(pid)
    if stat and stat[0] in _ENDED:
        return False
    return not process_start or not stat or stat[19] == process_start


def process_start_of(pid: int) -> str:
    """Return when a process began, in the kernel's own unit, or nothing where that cannot be told."""
    return (_stat_of(pid) or [""] * 20)[19]


def _stat_of(pid: int) -> list[str]:
    """Return what the kernel says of a process from its state on, or nothing where it does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    return fields if len(fields) >= 20 else []


class RunFolder:
    """One run's folder; every file in it is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def job_file(self) -> Path:
        """The job file as it was run."""
        return self.path / "job.yaml"

    @property
    def events_file(self) -> Path:
        """What happened, one event a line."""
        return self.path / "events.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The server's state after each round."""
        return self.path / "checkpoint"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    def context(self, worker: str) -> Path:
        """Return the path of a worker's context document."""
        return self.path / "contexts" / f"{worker}.json"

    def log(self, worker: str) -> Path:
        """Return the path of a worker's log."""
        return self.path / "logs" / f"{worker}.log"

    def secret(self, name: str) -> Path:
        """Return the path of a key or certificate of this run."""
        return self.path / "keys" / name

    def workers(self) -> list[str]:
        """Return the names of the workers that have a log."""
        return sorted(path.stem for path in (self.path / "logs").glob("*.log"))

    def write_state(self, state: RunState) -> None:
        """Replace the launcher's state."""
        self._write("state.json", state)

    def read_state(self) -> RunState | None:
        """Return the launcher's state, or None if there is none yet."""
        return self._read("state.json", RunState)

    def write_origin(self, origin: RunOrigin) -> None:
        """Note how the run was begun."""
        self._write("origin.json", origin)

    def read_origin(self) -> RunOrigin | None:
        """Return how the run was begun, or None if nothing was noted."""
        return self._read("origin.json", RunOrigin)

    def begin(self, job: str) -> None:
        """Say that this process begins the run; should it end without another word, the run has failed."""
        self.write_state(
            RunState(
                job=job,
                run=self.path.name,
                phase="starting",
                pid=os.getpid(),
                process_start=process_start_of(os.getpid()),
            )
        )

    def phase(self) -> Phase:
        """Return how the run stands; a run whose launcher is gone without a word is `failed`."""
        state = self.read_state()
        if state is None:
            return "starting"
        if state.phase in ("starting", "running") and not is_alive(state.pid, state.process_start):
            return "failed"
        return state.phase

    def write_failure(self, worker: str, failure: WorkerFailure) -> None:
        """Leave word of how a worker's script failed."""
        self._write(f"failures/{worker}.json", failure)

    def read_failure(self, worker: str) -> WorkerFailure | None:
        """Return how a worker's script failed, or None."""
        return self._read(f"failures/{worker}.json", WorkerFailure)

    def note_saved(self) -> None:
        """Note that all rounds are done and the model is saved: edges are let go, and may not come again."""
        write_bytes_atomic(self._saved, b"")

    def is_saved(self) -> bool:
        """Tell whether all rounds are done and the model is saved."""
        return self._saved.exists()

    @property
    def _saved(self) -> Path:
        return self.path / "saved"

    def clear_outcome(self) -> None:
        """Forget how the run ended, before it is resumed with every edge started anew."""
        for path in (self.path / "failures").glob("*.json"):
            path.unlink()
        self._saved.unlink(missing_ok=True)

    def _write(self, name: str, record: _Record) -> None:
        with atomic_write(self.path / name) as temporary:
            temporary.write_text(record.model_dump_json(indent=1), encoding="utf-8")

    def _read(self, name: str, kind: type[_R]) -> _R | None:
        try:
            return kind.model_validate_json((self.path / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValidationError as error:
            raise PlatformError(
                f"{self.path / name} is damaged ({error.error_count()} errors); start the job anew"
            ) from error

    def append(self, event: Event) -> None:
        """Add an event. One write of one line, so that a killed process leaves at most one cut line.

        Raises
        ------
        PlatformError
            If the disk is full or the folder is gone.
        """
        line = event.model_dump_json().encode() + b"\n"
        try:
            with self.events_file.open("a+b") as file:
                # Behind a line that a killed process cut, another would be lost with it.
                if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b"\n":
                    line = b"\n" + line
                file.write(line)
        except OSError as error:
            raise PlatformError(
                f"{self.events_file}: cannot be written ({error.strerror}); free some space, then go on with "
                f"`solar-corona run --resume`"
            ) from error

    def events(self) -> list[Event]:
        """Return all events so far; a cut last line is left out."""
        return self.events_from(0)[0]

    def events_from(self, offset: int) -> tuple[list[Event], int]:
        """Return the events after byte `offset`, and the offset to go on from."""
        try:
            with self.events_file.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValidationError):
                found.append(event_adapter.validate_json(line))
        return found, offset + len(whole)

    def stop(self) -> bool:
        """Ask the run's launcher to end; False if none runs."""
        state = self.read_state()
        if state is None or state.phase not in ("starting", "running") or not is_alive(state.pid, state.process_start):
            return False
        os.kill(state.pid, signal.SIGTERM)  # not SIGINT, which a job in the background may ignore
        return True


@contextlib.contextmanager
def hold_job(folder: Path) -> Iterator[None]:
    """Hold the job whose runs are in `folder` for this process; another run of the same job is told so.

    Raises
    ------
    PlatformError
        If the job is running already, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PlatformError(
                f"job {folder.name} is running already ({_holder(lock)}); stop it with `solar-corona stop`, "
                f"or give this one another metadata.name"
            ) from None
        try:
            lock.seek(0)
            lock.truncate()
            lock.write(f"process {os.getpid()}")
            lock.flush()
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield


def _unwritable(folder: Path, error: OSError) -> PlatformError:
    return PlatformError(
        f"the run folder {folder} cannot be written: {error.strerror}; "
        f"name another place for run folders in {RUNS_VARIABLE}"
    )


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read().strip() or "another process"


def runs_of(job_file: Path, job: str, root: Path | None) -> Path:
    """Return the folder that holds the runs of a job."""
    return (root or job_file.resolve().parent / ".solar-corona") / job


def new_run(job_file: Path, job: str, root: Path | None) -> RunFolder:
    """Return the folder for a new run; it is named by the time, UTC, and made."""
    base = runs_of(job_file, job, root)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for i in range(1000):
        path = base / (stamp if not i else f"{stamp}-{i:03}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _unwritable(path, error) from error
        for name in ("contexts", "logs"):
            (path / name).mkdir()
        return RunFolder(path)
    raise PlatformError(f"{base} has a thousand runs of this second; remove some")


def find_run(what: str, root: Path | None) -> RunFolder:
    """Find a run folder by a job file, a run folder or a job's name.

    Raises
    ------
    SpecError
        If there is none.
    """
    path = Path(what)
    if (path / "job.yaml").is_file():
        return RunFolder(path.resolve())
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        from .job_file import read_any_job_file

        base = runs_of(path, read_any_job_file(path).job.metadata.name, root)
    else:
        base = (root or Path(".solar-corona")) / what
    latest = latest_run(base)
    if latest is None:
        raise SpecError(f"there is no run of {what!r} (looked in {base}); start one with `solar-corona run`")
    return latest


def latest_run(base: Path) -> RunFolder | None:
    """Return the last of a job's runs, or None if there is none."""
    found = sorted((p for p in base.glob("*") if (p / "job.yaml").is_file()), key=lambda p: p.name)
    return RunFolder(found[-1]) if found else None
