# SPDX-License-Identifier: Apache-2.0
"""The loop beside its hub: over HTTP, and with real trainings."""

from __future__ import annotations

import sys
import threading
import time

import httpx
import pytest
import uvicorn

from solar_corona.core.errors import PlatformError, TemporaryError
from solar_corona.core.local_tasks import LocalTasks
from solar_corona.incremental.hub.accounts import Accounts
from solar_corona.incremental.hub.app import create_app
from solar_corona.incremental.loop.command import serve_hub
from solar_corona.incremental.loop.service import LoopService
from solar_corona.incremental.loop.status import LoopStatus
from solar_corona.incremental.tables import TrainingRun

ADMIN, EDGE = "admin-token-0123456789", "edge-one-0123456789abc"

TRAIN = """
import time
import numpy as np, solar_corona
from pathlib import Path

x, y = solar_corona.load_train_dataset()
held_out, _ = solar_corona.load_eval_dataset()
assert len(x) > len(held_out) > 0
Path("began").touch()
end = time.monotonic() + 30
while not Path("go").exists() and time.monotonic() < end:
    time.sleep(0.01)
import onnx
from onnx import numpy_helper
model = onnx.load(solar_corona.context.get_model_path())
weights = 9 * np.stack([x[y == c].mean(0) for c in range(4)], 1)
model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights.astype(np.float32), "w"))

class Saved:
    def save(self, path):
        onnx.save(model, path)

solar_corona.save_model(Saved(), metrics={"accuracy": 0.5})
"""


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


@pytest.fixture
def served(canary):
    world = canary()
    service = LoopService(world.hub, world.loop, labelling=lambda: "", labels_come=False)
    app = create_app(world.hub, Accounts(ADMIN, {"e1": EDGE}), extensions=[service])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with httpx.Client(base_url=address, timeout=20, headers={"authorization": f"Bearer {ADMIN}"}) as client:
        yield world, client
    server.should_exit = True
    thread.join()


def test_status_commands_and_reports_are_served_to_the_operator_alone(served):
    world, client = served

    def status():
        return LoopStatus.model_validate_json(client.get("/v1/status").content)

    until(lambda: status().canary is not None and status().canary.edges == ["e1"])
    found = status()
    assert found.phase == "canary"
    assert [(each.version, each.state) for each in found.versions] == [(2, "canary"), (1, "promoted")]
    assert found.triggers[0].text == "0 of 40 new labels"
    assert found.decisions[0].what == "canary"
    page = client.get("/report/2")
    assert page.status_code == 200
    assert "99.5 % confidence" in page.text
    assert client.get("/report/9").status_code == 404
    page = client.get("/hub")
    assert page.status_code == 200
    assert "The loop is watching canaries" in page.text
    assert "0 of 40 new labels" in page.text
    answer = client.post("/v1/loop/rollback", json={"why": "a customer called"})
    assert answer.json() == {"said": "version 2 is taken back"}
    assert "a customer called" in status().decisions[0].why
    assert client.post("/v1/loop/fly", json={}).status_code == 404
    assert client.post("/v1/loop/resume", json={}).status_code == 409
    del client.headers["authorization"]
    for path in ("/v1/status", "/report/2", "/hub"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": f"Bearer {EDGE}"}).status_code == 403
    assert client.post("/v1/loop/train", json={}, headers={"authorization": f"Bearer {EDGE}"}).status_code == 403
    assert world.version(2).state == "rolled-back"


def test_a_database_that_is_away_stops_nothing_but_the_step(canary, monkeypatch, caplog):
    world = canary()
    service = LoopService(world.hub, world.loop, labelling=lambda: "", labels_come=False)
    monkeypatch.setattr("solar_corona.incremental.loop.service._AFTER_TROUBLE", 0.01)
    steps = iter([TemporaryError("the database does not answer")] * 3 + [ZeroDivisionError("a detector's own")])
    real, tried = world.loop.step, []

    def step():
        tried.append(1)
        if (error := next(steps, None)) is not None:
            raise error
        return real()

    monkeypatch.setattr(world.loop, "step", step)
    service.start()
    try:
        until(lambda: len(tried) > 4 and "edges" in world.row.data)
    finally:
        service.stop()
    assert caplog.text.count("the database does not answer") == 1, "the same trouble is told once"
    assert "ZeroDivisionError" in caplog.text


def really(world, folder):
    """Give a world a loop whose tasks are processes, as one that has just been started has it."""
    world.tasks, world.python = LocalTasks(folder / "tasks", cwd=folder), sys.executable
    world.loop = world.fresh()
    return world.tasks


@pytest.mark.system
def test_a_real_training_outlives_a_loop_that_is_killed_and_its_candidate_is_judged(make_world, tmp_path):
    world = make_world()
    (tmp_path / "train.py").write_text(TRAIN)
    first = really(world, tmp_path)
    world.follow()
    world.add(160)
    world.until("training")
    world.loop.step()
    until((tmp_path / "began").exists)
    second = really(world, tmp_path)
    world.loop.step()
    assert world.phase == "training"
    (tmp_path / "go").touch()
    until(lambda: world.loop.step() == "canary")
    assert world.version(2).metrics["accuracy_new"] == 1.0
    assert world.version(2).metrics["training_accuracy"] == 0.5
    assert world.hub.database.read(lambda s: s.get(TrainingRun, 1)).attempt == 1
    for each in (first, second):
        each.stop("training-1-1")
        each.stop("evaluation-2-1")


@pytest.mark.system
def test_a_script_that_raises_is_told_in_its_own_words_and_the_loop_goes_on(make_world, tmp_path):
    world = make_world()
    (tmp_path / "train.py").write_text("raise ValueError('the GPU is on fire')\n")
    tasks = really(world, tmp_path)
    world.add(40)
    world.until("training")
    until(lambda: world.loop.step() == "collecting")
    what, why = world.decisions()[-1]
    assert what == "training-failed"
    assert "ValueError: the GPU is on fire" in why
    world.loop.step()
    assert tasks.state("training-1-1").phase == "unknown", "nothing is left lying about"
    assert not list((tmp_path / "work").glob("training-*"))


def test_a_hub_without_its_tokens_says_which_is_missing(world, tmp_path):
    with pytest.raises(PlatformError, match=r"hub.token: the token cannot be read"):
        serve_hub(
            world.file,
            base=tmp_path,
            state=tmp_path / "state",
            keys=tmp_path / "keys",
            run=tmp_path,
            host="127.0.0.1",
            port=1,
        )
