# SPDX-License-Identifier: Apache-2.0
"""The mistakes a user makes: each gives one clear error, the right exit code, and leaves nothing behind."""

from __future__ import annotations

import socket

import numpy as np
import pytest

pytestmark = pytest.mark.system


def assert_one_error(done, code: int, *words: str, tracebacks: int = 0) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    assert done.stderr.count("Traceback") == tracebacks, done.stderr
    for word in words:
        assert word in done.stderr, f"{word!r} is not in: {done.stderr}"


def test_a_wrong_field_is_named_with_its_line_and_the_nearest_name(make_job):
    job = make_job()
    job.change(lambda spec: spec["aggregation"].update(round=3))
    assert_one_error(job.run(), 2, "job.yaml:", "spec.aggregation.round is not known", "did you mean rounds?")


def test_a_missing_script_is_found_before_anything_starts(make_job):
    job = make_job()
    job.change(lambda spec: spec.update(script="trian.py"))
    assert_one_error(job.run(), 2, "trian.py", "did you mean train.py?")
    assert not (job.folder / ".solar-corona").exists()


def test_missing_data_is_found_before_anything_starts(make_job):
    job = make_job()
    job.change(lambda spec: spec["edges"][1].update(trainData="data/edge-l.npz"))
    assert_one_error(job.run(), 3, "edge edge-1: trainData", "did you mean edge-1.npz?")


def test_an_unknown_strategy_is_no_mystery(make_job):
    job = make_job(algorithm="fedagv")
    done = job.run()
    assert_one_error(done, 2, "there is no strategy 'fedagv'", "did you mean 'fedavg'?")
    assert not (job.folder / ".solar-corona").exists(), "nothing was started"


@pytest.mark.parametrize("arguments", [(), ("--in-process",)], ids=["processes", "threads"])
def test_a_script_that_raises_ends_the_job_with_its_traceback_shown_once(make_job, arguments):
    job = make_job(edges=3, rounds=4)
    job.hook(
        """
        def before_training(model, round, edge):
            if edge == "edge-1" and round == 2:
                raise RuntimeError("the sensor is upside down")
        """
    )
    done = job.run(*arguments)
    assert_one_error(done, 1, "edge-1's script failed: RuntimeError: the sensor is upside down", tracebacks=1)
    assert 'train.py", line' in done.stderr
    assert "warm_node.py" not in done.stderr, "the frames between the script's own are of no use to its author"
    log = job.run_folder().log("edge-1").read_text()
    assert log.count("Traceback (most recent call last)") == 1
    assert "train.py" in log
    for other in ("edge-0", "edge-2"):
        assert "the sensor is upside down" in job.run_folder().log(other).read_text(), job.logs()
    assert job.state().exit_code == 1
    job.assert_no_leftovers()


@pytest.mark.parametrize("arguments", [(), ("--in-process",)], ids=["processes", "threads"])
def test_a_script_that_raises_before_fit_ends_the_job(make_job, arguments):
    job = make_job()
    job.hook('raise ValueError("no such sensor")', "# BEFORE FIT")
    done = job.run(*arguments)
    assert_one_error(done, 1, "ValueError: no such sensor", tracebacks=1)
    job.assert_no_leftovers()


def test_a_model_that_cannot_be_saved_is_found_before_round_1(make_job):
    job = make_job()
    job.change(lambda spec: spec["output"].update(model="out/model.npz"))
    job.hook(
        """
        def no_save(self, path):
            raise TypeError("this model has no file format")
        Softmax.save = no_save
        """,
        "# BEFORE FIT",
    )
    done = job.run()
    assert done.returncode in (1, 3)
    assert "this model has no file format" in done.stderr
    assert not job.events("round-started")


def test_nan_and_wrong_shapes_are_left_out_and_the_job_goes_on(make_job):
    job = make_job(edges=4, rounds=3, minEdges=2)
    job.hook(
        """
        def after_training(model, round, edge):
            if edge == "edge-1" and round == 2:
                model.weights["kernel"][0, 0] = float("nan")
            if edge == "edge-2" and round == 2:
                model.weights["bias"] = np.zeros(7, np.float32)
        """
    )
    done = job.run()
    assert done.returncode == 0, done.stderr + job.logs()
    reasons = {e.edge: e.reason for e in job.events("edge-left-out")}
    assert "NaN" in reasons["edge-1"]
    assert "bias float32[7]" in reasons["edge-2"]
    assert [e.replied for e in job.events("round-finished")] == [4, 2, 4]


def test_an_edge_with_another_model_is_left_out_and_told_why(make_job):
    job = make_job(edges=3, rounds=2, minEdges=2)
    job.hook(
        """
        if solar_corona.context.get_edge_name() == "edge-2":
            model.weights["bias"] = np.zeros(5, np.float32)
        """,
        "# BEFORE FIT",
    )
    done = job.run()
    assert done.returncode == 0, done.stderr + job.logs()
    reasons = {e.edge: e.reason for e in job.events("edge-left-out")}
    assert "edge-2" in reasons
    assert "every edge must build the same model" in reasons["edge-2"]


def test_an_edge_with_no_samples_takes_no_part_and_gets_the_final_model(make_job):
    job = make_job(edges=3, rounds=2, minEdges=2)
    np.savez(job.folder / "data/edge-2.npz", x=np.zeros((0, 4), np.float32), y=np.zeros(0, np.int64))
    done = job.run()
    assert done.returncode == 0, done.stderr + job.logs()
    assert [e.replied for e in job.events("round-finished")] == [2, 2]
    assert any("edge-2 has no samples" in e.message for e in job.events("warned"))
    assert {e.edge for e in job.events("edge-finished")} == {"edge-0", "edge-1", "edge-2"}


def test_too_few_edges_is_said_with_who_is_missing(make_job):
    job = make_job(edges=2, startDeadline="3s", roundDeadline="3s")
    job.hook("time.sleep(600) if solar_corona.context.get_edge_name() == 'edge-1' else None", "# BEFORE FIT")
    done = job.run()
    assert_one_error(done, 1, "only 1 of the 2 edges", "not here: edge-1")
    job.assert_no_leftovers()


def test_a_slow_edge_is_left_out_and_comes_back(make_job):
    job = make_job(edges=3, rounds=4, minEdges=2, roundDeadline="2s")
    job.hook(
        """
        def before_training(model, round, edge):
            time.sleep(4 if edge == "edge-2" and round == 2 else 0.5)
        """
    )
    done = job.run()
    assert done.returncode == 0, done.stderr + job.logs()
    replied = [e.replied for e in job.events("round-finished")]
    assert replied[1] == 2
    assert any(e.edge == "edge-2" and "no reply within 2 s" in e.reason for e in job.events("edge-left-out"))


def test_a_strategy_that_raises_is_named_with_its_step(make_job):
    job = make_job(algorithm="mine:Broken")
    (job.folder / "mine.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Broken(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        list(replies)\n"
        "        raise ZeroDivisionError('nothing to divide by')\n"
    )
    done = job.run()
    assert_one_error(done, 1, "strategy Broken raised in aggregate_train", "nothing to divide by")
    job.assert_no_leftovers()


def test_the_same_job_twice_at_once_is_refused_and_two_jobs_are_not(make_job):
    first, second = make_job(rounds=4), make_job(name="other", rounds=2)
    first.hook("def before_training(model, round, edge):\n    time.sleep(1)\n")
    running = first.start()
    first.wait_for(lambda: first.events("round-started"), "the first job runs")
    assert_one_error(first.run(), 4, "is running already", "solar-corona stop")
    assert first.run_folder().phase() == "running", "what was refused must not be taken for the last run"
    assert second.run().returncode == 0
    running.communicate(timeout=60)
    assert running.returncode == 0


def test_a_port_in_use_is_said(make_job):
    job = make_job()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = job.run("--port", str(port), command="server")
    assert_one_error(done, 4, f"port {port}", "in use", "--port")
    assert not list(job.folder.glob(".solar-corona/*/*/job.yaml")), "nothing was started"


def test_a_full_disk_while_checkpointing_is_one_clear_error(make_job):
    job = make_job(edges=2, rounds=3, algorithm="small_disk:SmallDisk")
    job.hook('model.weights["large"] = np.random.rand(500_000).astype(np.float32)', "# BEFORE FIT")
    # A strategy works in the server's process alone, and so does the limit that it sets there.
    (job.folder / "small_disk.py").write_text(
        "import resource\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "class SmallDisk(FedAvg):\n"
        "    def configure_train(self, *arguments):\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "        return super().configure_train(*arguments)\n"
    )
    done = job.run()
    assert_one_error(done, 4, "checkpoint", "the disk is full")
    assert not list((job.run_folder().checkpoint).glob("*"))
    job.assert_no_leftovers()
