# SPDX-License-Identifier: Apache-2.0
"""Runs tasks as processes of this machine, which go on when whoever started them is killed, and are found again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import task_guard
from .errors import PlatformError
from .files import write_bytes_atomic
from .run_folder import RunFolder, is_alive
from .settings import CONTEXT_VARIABLE, python_first, worker_environment
from .tasks import TaskState
from .workers import Worker

__all__ = ["LocalTasks"]

_END_WITHIN = 5.0
_TAIL = 2_000


class LocalTasks:
    """A `core.tasks.TaskLauncher` whose tasks are processes.

    Each task has a folder, in which a guard process holds a lock while it runs and leaves word of how it ended. So
    another LocalTasks on the same folder knows a task, whoever started it, and never starts it a second time.

    Parameters
    ----------
    folder
        Where tasks and their logs are; made if it is not there.
    cwd
        Working folder of the tasks.
    logs
        Where their logs go; by default a folder among the others.

    Examples
    --------
    >>> import tempfile
    >>> LocalTasks(Path(tempfile.mkdtemp()), cwd=Path("/")).state("training-1").phase
    'unknown'
    """

    def __init__(self, folder: Path, *, cwd: Path, logs: Path | None = None) -> None:
        self._folder, self._cwd, self._logs = folder, cwd, logs or folder / "logs"
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> Path:
        """Return the path of a task's log; it stays when the task is stopped."""
        return self._logs / f"{name}.log"

    def start(self, worker: Worker) -> None:
        """Start a worker; one of that name that runs, or has ended, is left as it is.

        Raises
        ------
        PlatformError
            If no process can be started, or the folder cannot be written.
        """
        if self.state(worker.name).phase != "unknown":
            return
        place, log = self._place(worker.name), self.log(worker.name)
        environment = dict(worker.env)
        if worker.context is not None:
            path = place / "context.json"
            write_bytes_atomic(path, worker.context.model_dump_json(indent=1).encode())
            environment[CONTEXT_VARIABLE] = str(path)
            write_bytes_atomic(place / "run_folder", worker.context.run_folder.encode())
        try:
            for folder in (place, log.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as out:
                self._started[worker.name] = subprocess.Popen(
                    [sys.executable, "-S", task_guard.__file__, str(place), *worker.command],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=self._cwd,
                    env=python_first(worker_environment(environment)),
                    start_new_session=True,  # what ends this process by its terminal or group leaves the task alone
                )
        except OSError as error:
            raise PlatformError(
                f"{worker.name} cannot be started: {error.strerror}; see that {self._folder} may be written and that "
                f"the machine has memory left"
            ) from error

    def state(self, name: str) -> TaskState:
        """Return how the task of that name stands."""
        place = self._place(name)
        if not place.is_dir():
            return TaskState("unknown")
        popen = self._started.get(name)
        starting = popen is not None and popen.poll() is None
        # In this order: a task that ends meanwhile has left its word before it lets the lock go.
        running = _is_locked(place / "lock")
        began, ended = _read(place / "began.json"), _read(place / "ended.json")
        if ended is not None:
            if popen is not None:
                self._started.pop(name).wait()
            return self._ended(name, int(ended["code"]))
        if running or (starting and began is None):
            return TaskState("running")
        if began is not None:
            return TaskState(
                "failed", "its process is gone without a word: it was killed, or the machine was restarted", killed=True
            )
        return TaskState("unknown")

    def stop(self, name: str) -> None:
        """End it, if it runs; nothing is left of it but its log."""
        place = self._place(name)
        began = _read(place / "began.json")
        popen = self._started.pop(name, None)
        group = int(began["pid"]) if began is not None else popen.pid if popen is not None else None
        if group is not None and (popen is not None or is_alive(group, str((began or {})["process_start"]))):
            _end(group, place / "lock", popen)
        if popen is not None:
            popen.wait()
        shutil.rmtree(place, ignore_errors=True)

    def _place(self, name: str) -> Path:
        return self._folder / name

    def _ended(self, name: str, code: int) -> TaskState:
        if code == 0:
            return TaskState("succeeded")
        try:
            run_folder = RunFolder(Path((self._place(name) / "run_folder").read_text()))
            failure = run_folder.read_failure(name)
        except (OSError, PlatformError):
            failure = None
        if failure is not None:
            return TaskState("failed", f"{failure.error} (log: {self.log(name)})")
        if code < 0:
            why = f"it was ended by {_signal_name(-code)}"
            if -code == signal.SIGKILL:
                why += "; the machine may have run out of memory"
            return TaskState("failed", f"{why} (log: {self.log(name)})", killed=True)
        return TaskState("failed", f"it ended with exit status {code}; its log ends with:\n{_tail(self.log(name))}")


def _is_locked(path: Path) -> bool:
    """Tell whether a process holds the lock; it goes with its process, however that ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return True
        raise
    finally:
        os.close(descriptor)
    return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise PlatformError(f"{path}: is damaged ({error}); stop the task, which removes it") from error
    return value


def _end(group: int, lock: Path, popen: subprocess.Popen[bytes] | None) -> None:
    """Ask a group of processes to end, wait, then kill them."""
    end = time.monotonic() + _END_WITHIN
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):
            return
        while time.monotonic() < end and (_is_locked(lock) or (popen is not None and popen.poll() is None)):
            time.sleep(0.02)
        end = time.monotonic() + _END_WITHIN


def _signal_name(number: int) -> str:
    try:
        return f"signal {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"


def _tail(log: Path) -> str:
    try:
        return log.read_bytes()[-_TAIL:].decode("utf-8", "replace").strip() or "(nothing)"
    except OSError:
        return "(no log)"
