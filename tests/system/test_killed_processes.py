# SPDX-License-Identifier: Apache-2.0
"""`kill -9` and Ctrl-C, at every process, while a job runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress

import pytest

pytestmark = pytest.mark.system

# Long enough for a kill to land inside a round, short enough for a test.
SLOW = """
def before_training(model, round, edge):
    time.sleep(0.4)
"""


@pytest.fixture
def slow_job(make_job):
    def make(**options):
        job = make_job(**{"edges": 2, "rounds": 6, **options})
        job.hook(SLOW)
        return job

    return make


def finish(job, process) -> None:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err + job.logs()
    job.assert_no_leftovers()


def assert_each_round_counts_once(job, rounds: int) -> None:
    done = job.rounds()
    assert sorted(set(done)) == list(range(1, rounds + 1))
    assert len(done) <= rounds + 1  # at most one is repeated


def test_a_killed_edge_is_started_again_and_takes_part_again(slow_job):
    job = slow_job()
    process = job.start()
    job.wait_for_round(2)
    job.kill("edge-1")
    finish(job, process)
    assert_each_round_counts_once(job, 6)
    assert job.state().workers["edge-1"].restarts == 1
    assert [e.edge for e in job.events("edge-joined") if e.back] == ["edge-1"]
    assert all(e.replied == 2 for e in job.events("round-finished"))


def test_a_round_goes_on_without_a_killed_edge_where_enough_are_left(slow_job):
    job = slow_job(edges=3, minEdges=2, rounds=4)
    job.hook(
        """
        def after_training(model, round, edge):
            if edge == "edge-2" and round == 2 and not os.path.exists("died"):
                open("died", "w").close()
                os.kill(os.getpid(), 9)
        """
    )
    finish(job, job.start())
    assert_each_round_counts_once(job, 4)


def test_a_killed_server_resumes_at_the_round_it_was_in(slow_job):
    job = slow_job()
    process = job.start()
    job.wait_for_round(3)
    job.kill("server")
    finish(job, process)
    assert_each_round_counts_once(job, 6)
    resumed = [e.resumed_at for e in job.events("job-started")]
    assert resumed[0] == 0
    assert resumed[1] >= 2


def test_a_killed_superlink_comes_back_and_the_job_goes_on(slow_job):
    job = slow_job()
    process = job.start()
    job.wait_for_round(2)
    job.kill("superlink")
    finish(job, process)
    assert_each_round_counts_once(job, 6)
    assert job.state().workers["superlink"].restarts == 1


def test_a_killed_launcher_takes_everything_with_it_and_the_run_can_be_resumed(slow_job):
    job = slow_job()
    process = job.start()
    job.wait_for_round(2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    job.assert_no_leftovers()
    status = json.loads(job.run("--json", command="status").stdout)
    assert status["phase"] == "failed"
    assert "--resume" in status["error"]
    again = job.run("--resume")
    assert again.returncode == 0, again.stderr + job.logs()
    assert_each_round_counts_once(job, 6)


@pytest.mark.parametrize("background", [False, True])
def test_stop_ends_every_process_and_the_run_can_be_resumed(slow_job, background):
    job = slow_job()
    process = job.start(background=background)
    job.wait_for_round(2)
    assert "is stopped" in job.run(command="stop").stdout
    process.communicate(timeout=30)
    assert process.returncode == 130
    job.assert_no_leftovers()
    assert json.loads(job.run("--json", command="status").stdout)["phase"] == "stopped"
    again = job.run("--resume")
    assert again.returncode == 0, again.stderr
    assert_each_round_counts_once(job, 6)


@pytest.mark.parametrize("moment", ["at once", "while workers start", "in a round"])
def test_ctrl_c_ends_every_process(slow_job, moment):
    job = slow_job()
    process = job.start()
    if moment == "while workers start":
        job.wait_for(lambda: len(job.state().workers) == 4, "the workers are started")
    elif moment == "in a round":
        job.wait_for(lambda: job.events("round-started"), "the first round has begun")
    else:
        job.wait_for(job.run_folder, "the run folder is there")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    job.assert_no_leftovers()


def test_a_request_to_stop_ends_a_job_in_the_background(slow_job):
    job = slow_job()
    process = job.start(background=True)
    job.wait_for_round(1)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "job.yaml --resume" in err
    job.assert_no_leftovers()


def test_ctrl_c_again_and_again_still_ends_what_a_script_started(slow_job):
    job = slow_job()
    job.hook(
        """
        import signal, subprocess, sys
        signal.signal(signal.SIGTERM, lambda *_: None)  # this script takes its time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", solar_corona.context.get_edge_name()])
        """,
        "# BEFORE FIT",
    )
    process = job.start()
    job.wait_for_round(1)
    end = time.monotonic() + 3
    while process.poll() is None and time.monotonic() < end:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.3)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    job.assert_no_leftovers()
    assert job.run_folder().phase() == "stopped"


def test_a_run_that_failed_after_its_model_was_saved_gives_every_edge_its_own_when_it_is_resumed(slow_job):
    job = slow_job(rounds=2)
    job.hook(
        """
        if solar_corona.context.get_edge_name() == "edge-1" and not os.path.exists("fetched"):
            open("fetched", "w").close()
            raise OSError("this edge's disk is full")
        """,
        "# AFTER FIT",
    )
    failed = job.run()
    assert failed.returncode == 1
    assert "edge-1's script failed: OSError: this edge's disk is full" in failed.stderr
    assert (job.folder / "out/model.npz").exists()
    again = job.run("--resume", timeout=60)
    assert again.returncode == 0, again.stderr + job.logs()
    assert job.rounds() == [1, 2]
    for edge in ("edge-0", "edge-1"):
        assert (job.run_folder().path / "edges" / edge / "model.npz").exists(), job.logs()
    job.assert_no_leftovers()


def test_a_server_killed_while_it_lets_the_edges_go_has_its_model_already(slow_job):
    job = slow_job(rounds=2)
    job.hook(
        """
        def evaluate_slowly(self, evaluate=Softmax.evaluate):
            if os.path.exists("out/model.npz"):
                time.sleep(3)
            return evaluate(self)
        Softmax.evaluate = evaluate_slowly
        """,
        "# BEFORE FIT",
    )
    process = job.start()
    job.wait_for((job.folder / "out/model.npz.card.json").exists, "the model is saved")
    job.kill("server")
    finish(job, process)
    assert job.rounds() == [1, 2]
    assert len(job.events("job-finished")) == 1
