# SPDX-License-Identifier: Apache-2.0
"""Runs a plan's workers as processes of this machine.

A worker that is killed is started again; one whose script raised ends the job. Every process ends with the launcher,
however the launcher ends.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import tether
from .errors import ExitCode, JobFailedError, PlatformError
from .probes import answers
from .run_folder import Phase, ProcessState, RunFolder, RunState, process_start_of
from .script_failure import error_of
from .settings import CONTEXT_VARIABLE, python_first, worker_environment
from .workers import Plan, Worker

__all__ = ["LocalLauncher", "check_port", "free_port"]

_TICK = 0.05
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.2, 5.0
_TOLD_WITHIN = 8.0  # how long the server may take to tell the edges why the job failed
_END_WITHIN = 5.0
_LEFT_WITHIN = 10.0  # how long the server may take to say that an edge which ended has its result
_READY_WITHIN = 120.0
_FINAL = (ExitCode.BAD_JOB, ExitCode.BAD_INPUT)
_EARLY, _EARLY_DEATHS = 5.0, 3  # a worker that dies so soon, so often, never came up


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of `host` that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Check that `port` of `host` can be listened on.

    Raises
    ------
    PlatformError
        If it is in use, or not this user's or this machine's; the message says which.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise PlatformError(f"port {port} needs rights that this user lacks; give one from 1024 on") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PlatformError(
                    f"port {port} of {host} is in use; give another with --port, or leave it out"
                ) from error
            raise PlatformError(
                f"this machine cannot listen on {host} ({error.strerror}); give an address of its own with --host, or "
                f"0.0.0.0 for all of them"
            ) from error


@dataclass
class _Process:
    worker: Worker
    popen: subprocess.Popen[bytes]
    started: float
    at: float = field(default_factory=time.time)
    process_start: str = ""
    restarts: int = 0
    early_deaths: int = 0
    restart_at: float | None = None
    buried: bool = False


class LocalLauncher:
    """Starts, watches and ends the processes of one run.

    Parameters
    ----------
    folder
        The run's folder; logs and state go there.
    plan
        The workers.
    cwd
        Working folder of the workers: the job file's.
    """

    def __init__(self, folder: RunFolder, plan: Plan, *, cwd: Path) -> None:
        self._folder, self._plan, self._cwd = folder, plan, cwd
        self._processes: dict[str, _Process] = {}
        self._waiting = list(plan.workers)
        self._awaited: Worker | None = None
        self._all_left: float | None = None

    def run(
        self,
        *,
        tick: Callable[[], object],
        has_result: Callable[[str], bool],
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run the workers until the job is over, and end every process.

        Parameters
        ----------
        tick
            Called about every 50 ms, to show progress.
        has_result
            Whether a worker has what it needs to go on by itself once the server is done.
        busy
            Whether there is more to do once the server, or all edges, are done.

        Raises
        ------
        JobFailedError
            If a script or the server failed; its `exit_code` is the failure's.
        PlatformError
            If a worker cannot be started.
        """
        self._save("running")
        try:
            self._watch(tick, has_result, busy)
        except KeyboardInterrupt:
            self._end_all()
            self._save("stopped", error="stopped on request", code=ExitCode.INTERRUPTED)
            raise
        except BaseException as error:
            self._end_all()
            self._save("failed", error=str(error), code=getattr(error, "exit_code", ExitCode.INTERNAL))
            raise
        self._end_all()
        self._save("succeeded", code=ExitCode.OK)

    def _start(self, worker: Worker) -> _Process:
        environment: dict[str, str] = dict(worker.env)
        if worker.context is not None:
            path = self._folder.context(worker.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(worker.context.model_dump_json(indent=1), encoding="utf-8")
            environment[CONTEXT_VARIABLE] = str(path)
        log = self._folder.log(worker.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-S", tether.__file__, str(os.getpid()), *worker.command]
        with log.open("ab") as out:
            try:
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=self._cwd,
                    env=python_first(worker_environment(environment)),
                    start_new_session=True,  # Ctrl-C reaches us alone; we end the workers in order
                )
            except OSError as error:
                raise PlatformError(f"{worker.name} cannot be started: {error.strerror}") from error
        return _Process(worker, popen, time.monotonic(), process_start=process_start_of(popen.pid))

    def _watch(self, tick: Callable[[], object], has_result: Callable[[str], bool], busy: Callable[[], bool]) -> None:
        while True:
            self._start_waiting()
            tick()
            deciders = self._plan.of_role("server") or self._plan.of_role("edge")
            done = not self._waiting and all(self._processes[w.name].popen.poll() == 0 for w in deciders)
            done = done and not busy()
            waiting = [p for p in self._processes.values() if p.worker.role == "edge" and p.popen.poll() is None]
            if done and not [p for p in waiting if has_result(p.worker.name)]:
                tick()
                return
            for process in self._processes.values():
                _bury(process)
                if process.popen.poll() not in (None, 0) and not done:
                    self._after_death(process, tick)
                elif done and process.worker.role == "edge" and (process.popen.poll() or 0) != 0:
                    self._fail_if_reported(process, tick)
            if not done:
                self._fail_if_all_left(has_result)
            time.sleep(_TICK)

    def _start_waiting(self) -> None:
        """Start the workers that are not yet, up to one that has to be ready before the others come."""
        if self._awaited is not None:
            if not answers(self._plan.address, self._awaited.ready or "/", ca=self._ca()):
                self._fail_if_never_ready(self._processes[self._awaited.name])
                return
            self._awaited = None
        started = False
        while self._waiting and self._awaited is None:
            worker = self._waiting.pop(0)
            self._processes[worker.name] = self._start(worker)
            self._awaited = worker if worker.ready is not None else None
            started = True
        if started:
            self._save("running")

    def _ca(self) -> Path | None:
        return self._folder.secret("ca.pem") if self._plan.tls else None

    def _fail_if_never_ready(self, process: _Process) -> None:
        worker = process.worker
        if process.popen.poll() is None and time.monotonic() - process.started > _READY_WITHIN:
            raise PlatformError(
                f"{worker.name} is not ready after {_READY_WITHIN:.0f} s; its log {self._folder.log(worker.name)} ends "
                f"with:\n{_tail(self._folder.log(worker.name))}"
            )

    def _fail_if_all_left(self, has_result: Callable[[str], bool]) -> None:
        """End a job whose scripts all ended well without taking part: its server would wait in vain."""
        edges = [] if self._waiting or not self._plan.of_role("server") else self._plan.of_role("edge")
        left = edges and all(self._processes[w.name].popen.poll() == 0 and not has_result(w.name) for w in edges)
        left = left and not self._folder.is_saved()  # else they may have left with the final model
        self._all_left = (self._all_left or time.monotonic()) if left else None
        if self._all_left is not None and time.monotonic() - self._all_left > _LEFT_WITHIN:
            raise JobFailedError(
                f"the scripts of all edges ended before the job was done (log: {self._folder.log(edges[0].name)}); "
                f"call solar_corona.collaborative_training.fit() in them"
            )

    def _after_death(self, process: _Process, tick: Callable[[], object]) -> None:
        worker, now = process.worker, time.monotonic()
        self._fail_if_reported(process, tick)
        if worker.role == "cloud" and process.popen.returncode in _FINAL:
            # A wrong model or option is the same at the next start.
            raise _failure(
                f"{worker.name} cannot serve; its log {self._folder.log(worker.name)} ends with:\n"
                f"{_tail(self._folder.log(worker.name))}",
                process.popen.returncode,
            )
        if process.restart_at is None:
            early = now - process.started < _EARLY
            process.early_deaths = process.early_deaths + 1 if early else 0
            if process.restarts >= worker.restarts or process.early_deaths >= _EARLY_DEATHS:
                raise PlatformError(
                    f"{worker.name} ended {process.restarts + 1} times, the last time with "
                    f"{_how(process.popen.returncode)}; its log {self._folder.log(worker.name)} ends with:\n"
                    f"{_tail(self._folder.log(worker.name))}"
                )
            process.restart_at = now + min(_FIRST_BACKOFF * 2**process.restarts, _LONGEST_BACKOFF)
        elif now >= process.restart_at:
            fresh = self._start(worker)
            process.popen, process.started, process.restart_at = fresh.popen, fresh.started, None
            process.at, process.process_start = fresh.at, fresh.process_start
            process.buried = False
            process.restarts += 1
            self._save("running")

    def _fail_if_reported(self, process: _Process, tick: Callable[[], object]) -> None:
        failure = self._folder.read_failure(process.worker.name)
        if failure is None:
            return
        # The server has been told by the edge itself and now tells the others; it is given the time for that.
        servers = [self._processes[w.name].popen for w in self._plan.of_role("server")]
        end = time.monotonic() + _TOLD_WITHIN
        while process.worker.role == "edge" and any(s.poll() is None for s in servers) and time.monotonic() < end:
            tick()
            time.sleep(_TICK)
        # Who was only told of a failure is not its cause: the server says whose it is, and whether there is one. An
        # edge that the job went on without is told so as well.
        if process.worker.role == "edge" and failure.told and servers and all(s.poll() == 0 for s in servers):
            return
        if process.worker.role == "edge" and not failure.told:
            raise error_of(process.worker.name, failure, self._folder.log(process.worker.name))
        failure = self._folder.read_failure("server") or failure
        raise _failure(failure.error, failure.exit_code)

    def _end_all(self) -> None:
        """End every process: ask, wait, then kill; edges first, so that the SuperLink hears of it."""
        with _undisturbed():
            self._end()

    def _end(self) -> None:
        alive = [p.popen for p in reversed(self._processes.values()) if p.popen.poll() is None]
        for popen in alive:
            _signal_group(popen, signal.SIGTERM)
        end = time.monotonic() + _END_WITHIN
        while any(p.poll() is None for p in alive) and time.monotonic() < end:
            time.sleep(0.02)
        for popen in alive:
            _signal_group(popen, signal.SIGKILL)
            popen.wait()
        for process in self._processes.values():
            _bury(process)

    def _save(self, phase: Phase, *, error: str | None = None, code: int | None = None) -> None:
        self._folder.write_state(
            RunState(
                job=self._plan.job,
                run=self._plan.run,
                phase=phase,
                pid=os.getpid(),
                process_start=process_start_of(os.getpid()),
                address=self._plan.address,
                error=error,
                exit_code=int(code) if code is not None else None,
                workers={
                    name: ProcessState(
                        pid=p.popen.pid,
                        started=p.at,
                        process_start=p.process_start,
                        restarts=p.restarts,
                        exit_code=p.popen.poll(),
                    )
                    for name, p in self._processes.items()
                },
            )
        )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off a further Ctrl-C: whoever presses it again wants the processes gone, not left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _signal_group(popen: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(popen.pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _bury(process: _Process) -> None:
    """End what a worker started, once the worker itself has ended; at once, while its number is still its own."""
    if process.popen.poll() is not None and not process.buried:
        process.buried = True
        _signal_group(process.popen, signal.SIGKILL)


def _failure(message: str, code: int) -> JobFailedError:
    return JobFailedError(message, exit_code=ExitCode(code) if code in list(ExitCode) else ExitCode.JOB_FAILED)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"


def _tail(path: Path, lines: int = 8) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            return b"\n".join(file.read().splitlines()[-lines:]).decode(errors="replace")
    except OSError:
        return "(no log)"
