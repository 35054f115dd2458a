# SPDX-License-Identifier: Apache-2.0
"""How a run stands, as an operator reads it: from the folder alone, whatever has been killed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from solar_corona.core.events import EdgeJoined, JobStarted, RoundEvaluated, RoundFinished, RoundStarted, Warned
from solar_corona.core.run_folder import ProcessState, RunFolder, RunOrigin, RunState, process_start_of
from solar_corona.core.run_status import follow_logs
from solar_corona.fl_server.status import describe, status_of


@pytest.fixture
def folder(tmp_path):
    found = RunFolder(tmp_path / "digits" / "r1")
    (found.path / "logs").mkdir(parents=True)
    found.append(JobStarted(rounds=9, edges=["a", "b"], algorithm="fedavg", min_edges=1))
    found.append(EdgeJoined(edge="a", samples=5, eval_samples=1))
    found.append(RoundStarted(round=1, edges=1))
    found.append(
        RoundFinished(round=1, asked=1, replied=1, metrics={}, seconds=1, training_seconds=1, bytes_down=1, bytes_up=1)
    )
    found.append(RoundEvaluated(round=1, metrics={"loss": 0.5, "num-examples": 3}, edges={}))
    found.append(Warned(message="b is slow"))
    return found


def _state(folder, phase="running", *, pid=None, begun=None, **workers):
    pid = pid or os.getpid()
    folder.write_state(
        RunState(
            job="digits",
            run="r1",
            phase=phase,
            pid=pid,
            process_start=process_start_of(pid) if begun is None else begun,
            workers=workers,
        )
    )


def _printed(folder) -> str:
    out = io.StringIO()
    describe(status_of(folder), Console(file=out, width=60))
    return out.getvalue()


def _ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_running_job_says_where_it_is_and_when_it_last_moved(folder):
    _state(folder, a=ProcessState(pid=os.getpid(), started=0.0))
    status = status_of(folder)
    assert (status.phase, status.round, status.rounds, status.edges_here) == ("running", 1, 9, ["a"])
    assert status.last_event is not None
    assert abs(status.last_event.timestamp() - time.time()) < 60
    text = _printed(folder)
    assert "digits · run r1 · running" in text
    assert "round 1 of 9, 1 edges came" in text
    assert "global model: loss 0.5000\n" in text
    assert " s ago" in text
    assert f"{status.last_event:%Y-%m-%d}" in next(line for line in text.splitlines() if "b is slow" in line)


def test_what_an_edge_calls_its_metrics_is_no_markup(folder):
    _state(folder)
    folder.append(RoundEvaluated(round=2, metrics={"[/red]": 0.25, "[bold]acc": 0.5}, edges={}))
    assert "global model: [/red] 0.2500, [bold]acc 0.5000" in _printed(folder)


def test_a_killed_launcher_is_a_failed_run_with_the_very_command_that_takes_it_up(folder):
    folder.write_origin(RunOrigin(job_file="/srv/my jobs/job.yaml", overrides=("spec.aggregation.rounds=9",)))
    pid = _ended_process()
    _state(folder, pid=pid, begun="1", server=ProcessState(pid=pid, started=0.0))
    status = status_of(folder)
    assert status.phase == "failed"
    assert status.error is not None
    assert "solar-corona run '/srv/my jobs/job.yaml' --resume" in status.error
    assert not status.workers["server"].alive
    text = _printed(folder)
    assert "server         gone" in text
    assert "'/srv/my jobs/job.yaml' --resume" in text, "a path must not be broken over two lines"


def test_a_pid_that_another_process_got_is_no_living_worker(folder):
    _state(folder, a=ProcessState(pid=os.getpid(), started=0.0, process_start="1"))
    assert not status_of(folder).workers["a"].alive


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "done"), (3, "failed with exit status 3"), (-9, "ended by SIGKILL"), (-35, "by signal 35"), (130, "stopped")],
)
def test_how_a_worker_ended_is_said_in_words(folder, code, words):
    _state(folder, "failed", a=ProcessState(pid=os.getpid(), started=0.0, exit_code=code, restarts=2))
    line = next(line for line in _printed(folder).splitlines() if line.startswith("  a "))
    assert words in line
    assert "started again 2×" in line


def test_a_log_is_followed_until_the_run_is_over(folder):
    _state(folder)
    folder.log("a").write_text("one\ntwo\n")
    lines = follow_logs(folder, ["a"], lines=1, follow=True)
    assert next(lines) == ("a", "two")
    with folder.log("a").open("a") as log:
        log.write("three\nhalf")
    assert next(lines) == ("a", "three")
    _state(folder, "succeeded")
    assert list(lines) == [("a", "half")]
