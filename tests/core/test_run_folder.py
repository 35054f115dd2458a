# SPDX-License-Identifier: Apache-2.0
"""The run folder, also after a kill at the worst moment."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from solar_corona.core.errors import PlatformError, SpecError
from solar_corona.core.events import JobFinished, RoundEvaluated, RoundStarted, Warned
from solar_corona.core.run_folder import (
    RunFolder,
    RunState,
    WorkerFailure,
    find_run,
    hold_job,
    is_alive,
    new_run,
    process_start_of,
    runs_of,
)

JOB = """\
apiVersion: solar-corona.io/v1alpha1
kind: FederatedLearningJob
metadata: {name: digits}
spec: {script: t.py, edges: [{name: a, trainData: x}]}
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "digits" / "r1"
    path.mkdir(parents=True)
    return RunFolder(path)


def _state(pid, phase="running", **more):
    return RunState(job="digits", run="r1", phase=phase, pid=pid, **more)


def _sleeper():
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])


# --- events


def test_events_are_read_back_in_order_and_from_where_one_left_off(folder):
    folder.append(RoundStarted(round=1, edges=2))
    first, offset = folder.events_from(0)
    folder.append(RoundStarted(round=2, edges=2))
    second, _ = folder.events_from(offset)
    assert [e.round for e in [*first, *second]] == [1, 2]
    assert folder.events() == [*first, *second]


def test_there_are_no_events_before_the_first(folder):
    assert folder.events_from(0) == ([], 0)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_by_a_kill_is_left_out_and_costs_no_later_one(folder, cut):
    folder.append(RoundStarted(round=1, edges=2))
    whole = folder.events_file.read_bytes()
    folder.append(RoundStarted(round=2, edges=2))
    line = folder.events_file.read_bytes()[len(whole) :]
    folder.events_file.write_bytes(whole + line[:-cut])
    found, offset = folder.events_from(0)
    assert ([e.round for e in found], offset) == ([1], len(whole))
    folder.append(RoundStarted(round=3, edges=2))
    # Where the newline alone was missing, the event is whole.
    assert [e.round for e in folder.events()] == ([1, 2, 3] if cut == 1 else [1, 3])


def test_a_damaged_line_or_an_event_of_a_newer_version_costs_no_other(folder):
    folder.append(RoundStarted(round=1, edges=2))
    with folder.events_file.open("ab") as file:
        file.write(b'{"event": "from-the-future"}\n\xff\xfe\n\n{}\n')
    folder.append(RoundStarted(round=2, edges=2))
    assert [e.round for e in folder.events()] == [1, 2]


def test_a_metric_that_is_not_a_number_survives(folder):
    folder.append(RoundEvaluated(round=1, metrics={"loss": math.nan, "top": math.inf}, edges={"a": {"loss": math.nan}}))
    (event,) = folder.events()
    assert math.isnan(event.metrics["loss"])
    assert event.metrics["top"] == math.inf
    assert math.isnan(event.edges["a"]["loss"])


def test_an_event_with_line_breaks_is_one_line(folder):
    folder.append(Warned(message="one\ntwo\r\nthree\u2028four"))
    assert folder.events()[0].message == "one\ntwo\r\nthree\u2028four"


def test_events_that_cannot_be_written_are_told_as_the_machines_fault(folder):
    folder.events_file.symlink_to("/dev/full")
    with pytest.raises(PlatformError, match=r"cannot be written \(No space left on device\); free some space"):
        folder.append(JobFinished(model=None, seconds=1))


# --- state


def test_a_run_without_a_word_is_starting(folder):
    assert folder.read_state() is None
    assert folder.phase() == "starting"
    assert folder.stop() is False


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff", b'{"job": 1}', b'{"job":"a","run":"b","phase":"running","pid":0}']
)
def test_a_damaged_state_is_told_and_not_guessed(folder, damage):
    folder.write_state(_state(os.getpid()))
    (folder.path / "state.json").write_bytes(damage)
    with pytest.raises(PlatformError, match=r"state\.json is damaged"):
        folder.phase()


def test_a_process_number_that_would_mean_a_whole_group_is_damage(folder):
    text = _state(os.getpid()).model_dump_json()
    for pid in (0, -1, 2**40):
        (folder.path / "state.json").write_text(json.dumps({**json.loads(text), "pid": pid}))
        with pytest.raises(PlatformError, match="is damaged"):
            folder.stop()


def test_a_run_whose_launcher_was_killed_is_failed(folder):
    process = _sleeper()
    folder.write_state(_state(process.pid, process_start=process_start_of(process.pid)))
    assert folder.phase() == "running"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert folder.phase() == "failed"  # also while nobody has asked for its end
    process.wait()
    assert folder.phase() == "failed"
    assert folder.stop() is False


@pytest.mark.parametrize("phase", ["succeeded", "failed", "stopped"])
def test_a_run_that_ended_stays_what_it_was(folder, phase):
    folder.write_state(_state(os.getpid(), phase))
    assert folder.phase() == phase


def test_a_process_number_that_another_got_since_is_not_the_launcher(folder):
    folder.write_state(_state(os.getpid(), process_start="1"))
    assert not is_alive(os.getpid(), "1")
    assert is_alive(os.getpid(), process_start_of(os.getpid()))
    assert is_alive(os.getpid())
    assert folder.phase() == "failed"
    assert folder.stop() is False


def test_stop_asks_the_launcher_to_end(folder):
    process = _sleeper()
    folder.write_state(_state(process.pid, process_start=process_start_of(process.pid)))
    assert folder.stop() is True
    assert process.wait(10) == -signal.SIGTERM


def test_that_the_model_is_saved_is_kept_until_the_run_is_resumed(folder):
    assert not folder.is_saved()
    folder.note_saved()
    folder.note_saved()
    assert folder.is_saved()
    folder.clear_outcome()
    assert not folder.is_saved()


def test_failures_are_kept_and_forgotten(folder):
    assert folder.read_failure("a") is None
    folder.clear_outcome()
    folder.write_failure("a", WorkerFailure(error="ValueError: x", traceback="t", exit_code=3))
    assert folder.read_failure("a") == WorkerFailure(error="ValueError: x", traceback="t", exit_code=3)
    folder.clear_outcome()
    assert folder.read_failure("a") is None


def test_a_state_written_by_a_newer_version_is_read(folder):
    folder.write_state(_state(1, "succeeded"))
    path = folder.path / "state.json"
    path.write_text(path.read_text().replace("{", '{"new": 1,', 1))
    assert folder.phase() == "succeeded"


BEGIN = """
import os, signal, sys
from pathlib import Path
from solar_corona.core.run_folder import RunFolder
RunFolder(Path(sys.argv[1])).begin("digits")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_whose_launcher_died_before_it_started_anything_has_failed(folder):
    dying = subprocess.run([sys.executable, "-c", BEGIN, str(folder.path)], check=False)
    assert dying.returncode == -signal.SIGKILL
    assert folder.phase() == "failed"
    folder.begin("digits")
    assert folder.phase() == "starting"


# --- the lock

HOLD = """
import sys
from pathlib import Path
from solar_corona.core.run_folder import hold_job
with hold_job(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_job_runs_once_at_a_time_and_again_after_a_kill(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(PlatformError, match=rf"job digits is running already.*process {holder.pid}.*stop"),
            hold_job(folder.path.parent),
        ):
            pass
        holder.kill()
        holder.wait()
    with hold_job(folder.path.parent):
        pass


def test_the_lock_is_free_again_after_an_error(folder):
    with pytest.raises(RuntimeError), hold_job(folder.path.parent):
        raise RuntimeError
    with hold_job(folder.path.parent):
        pass


# --- finding runs


def test_a_run_is_found_by_job_file_by_folder_and_by_name(tmp_path, monkeypatch):
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    runs = [new_run(job, "digits", None) for _ in range(3)]
    for run in runs[:2]:
        run.job_file.write_text(JOB)  # the third was killed before it began
    monkeypatch.chdir(tmp_path)
    assert find_run(str(job), None).path == runs[1].path
    assert find_run("digits", None).path.resolve() == runs[1].path
    assert find_run(str(runs[0].path), None).path == runs[0].path
    monkeypatch.chdir(runs[0].path)
    assert find_run(".", None).path == runs[0].path


def test_runs_of_one_second_keep_their_order(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    runs = [new_run(job, "digits", None) for _ in range(12)]
    for run in runs:
        run.job_file.write_text(JOB)
    assert [r.path.name for r in runs] == sorted(r.path.name for r in runs)
    assert find_run(str(job), None).path == runs[-1].path


def test_runs_may_be_kept_elsewhere(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    run = new_run(job, "digits", tmp_path / "runs")
    run.job_file.write_text(JOB)
    assert run.path.parent == runs_of(job, "digits", tmp_path / "runs") == tmp_path / "runs" / "digits"
    assert find_run("digits", tmp_path / "runs").path == run.path


def test_what_there_is_no_run_of_is_told(tmp_path):
    with pytest.raises(SpecError, match=r"there is no run of 'digits'.*start one with `solar-corona run`"):
        find_run("digits", tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    with pytest.raises(SpecError, match="there is no run of"):
        find_run(str(tmp_path / "job.yaml"), None)
    with pytest.raises(SpecError, match=r"jbo\.yaml: does not exist; did you mean .*job\.yaml"):
        find_run(str(tmp_path / "jbo.yaml"), None)


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "runs").write_text("a file")
    told = r"cannot be written: Not a directory; name another place for run folders in SOLAR_CORONA_RUNS"
    with pytest.raises(PlatformError, match=told):
        new_run(tmp_path / "job.yaml", "digits", tmp_path / "runs")
    with pytest.raises(PlatformError, match=told), hold_job(tmp_path / "runs" / "digits"):
        pass


def test_the_workers_of_a_run_are_those_with_a_log(tmp_path):
    run = new_run(tmp_path / "job.yaml", "digits", None)
    for name in ("server", "edge-0"):
        run.log(name).write_text("")
    assert run.workers() == ["edge-0", "server"]


def test_when_a_process_began_is_told_apart(tmp_path):
    process = _sleeper()
    try:
        end = time.monotonic() + 10
        while not process_start_of(process.pid) and time.monotonic() < end:
            pass
        assert process_start_of(process.pid) != process_start_of(os.getpid())
    finally:
        process.kill()
        process.wait()
    assert process_start_of(process.pid) == ""
    assert not is_alive(process.pid)
