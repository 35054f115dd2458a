# SPDX-License-Identifier: Apache-2.0
"""Edges with similar tasks over a real SuperLink: found, trained apart, and none the worse for a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytestmark = pytest.mark.system

OPTIONS = {"base": "fedavg", "transfer": "auto", "guard_rounds": 2}


@pytest.fixture
def two_tasks(make_job):
    """Return a function that lays out a job whose edges with odd numbers name the classes differently."""

    def make(*, edges=4, rounds=5, options=OPTIONS, **more):
        job = make_job(edges=edges, rounds=rounds, algorithm="similarity-grouping", options=options, **more)
        for i in range(edges):
            for name, seed, count in ((f"edge-{i}", i, 90), (f"eval-{i}", 100 + i, 60)):
                rng = np.random.default_rng(seed)
                y = np.arange(count) % 3
                x = (rng.normal(scale=0.6, size=(count, 4)) + 2 * np.eye(4)[y]).astype(np.float32)
                np.savez(job.folder / "data" / f"{name}.npz", x=x, y=(y + i % 2) % 3)

        def evaluate_on_own(spec):
            for i, edge in enumerate(spec["edges"]):
                edge["evalData"] = f"data/eval-{i}.npz"
            spec["evaluation"] = {"alone": True}

        job.change(evaluate_on_own)
        return job

    return make


def groups_of(job):
    found = {}
    for task in job.events("tasks-grouped")[-1].tasks:
        found.setdefault(task.group, []).append(task.edge)
    return sorted(sorted(members) for members in found.values())


HALVES = [["edge-0", "edge-2"], ["edge-1", "edge-3"]]


def test_similar_tasks_are_found_and_each_edge_ends_with_its_groups_model(two_tasks):
    job = two_tasks(compression="int8")
    done = job.run()
    assert done.returncode == 0, done.stderr + job.logs()
    assert groups_of(job) == HALVES
    ends = job.events("edge-finished")
    assert min(e.metrics["accuracy"] for e in ends) > 0.9
    assert max(e.one_model["accuracy"] for e in ends) < 0.9, "one model cannot name the classes both ways"
    assert (job.folder / "out" / "model-group-1.npz").exists()
    assert (job.folder / "out" / "model-group-2.npz").exists()
    shown = job.run(command="tasks")
    assert shown.returncode == 0, shown.stderr
    assert "2 groups" in shown.stdout
    assert json.loads(job.run("--json", command="tasks").stdout)
    job.assert_no_leftovers()


@pytest.mark.parametrize("compression", ["none", "topk"])
def test_a_killed_server_goes_on_with_the_groups_it_had(two_tasks, compression):
    adaptive = {"base": "fedadam", "base_options": {"eta": 0.3}, "guard_rounds": 2}
    options = OPTIONS if compression == "none" else adaptive
    job = two_tasks(rounds=7, compression=compression, options=options)
    job.hook("def before_training(model, round, edge):\n    time.sleep(0.3)\n")
    process = job.start()
    job.wait_for_round(3)
    job.kill("server")
    job.wait_for_round(5)
    job.kill("edge-1")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err + job.logs()
    assert sorted(set(job.rounds())) == list(range(1, 8))
    assert groups_of(job) == HALVES
    asked = [e for e in job.events("tasks-grouped") if "signatures" in e.reason]
    assert len(asked) == 1, "signatures of edges that were known are not asked for again"
    assert min(e.metrics["accuracy"] for e in job.events("edge-finished")) > 0.9
    assert all(e.bytes_up > 0 < e.bytes_down for e in job.events("round-finished"))


def test_an_attribute_of_the_data_divides_an_edge_into_tasks(two_tasks):
    job = two_tasks(edges=3, rounds=4)
    for name in ("edge-2", "eval-2"):
        parts = [np.load(job.folder / "data" / f"{name.partition('-')[0]}-{i}.npz") for i in (0, 1)]
        np.savez(
            job.folder / "data" / f"{name}.npz",
            x=np.concatenate([p["x"] for p in parts]),
            y=np.concatenate([p["y"] for p in parts]),
            season=np.repeat(["summer", "winter"], [len(p["y"]) for p in parts]),
        )
    for i in (0, 1):
        for kind in ("edge", "eval"):
            path = job.folder / "data" / f"{kind}-{i}.npz"
            data = np.load(path)
            np.savez(path, x=data["x"], y=data["y"], season=np.full(len(data["y"]), "any"))
    job.change(lambda spec: spec.update(tasks={"taskAttribute": "season"}))
    (job.folder / "train.py").write_text(KERAS + AGAIN)
    job.change(lambda spec: spec["output"].update(model="out/model.keras"))
    done = job.run(timeout=170)
    assert done.returncode == 0, done.stderr + job.logs()
    groups = {(t.edge, t.task): t.group for t in job.events("tasks-grouped")[-1].tasks}
    assert groups["edge-2", "summer"] == groups["edge-0", "any"]
    assert groups["edge-2", "winter"] == groups["edge-1", "any"]
    said = json.loads((job.folder / "edge-2.json").read_text())
    assert said["tasks"] == ["summer", "winter"]
    assert said["accuracy"] > 0.9, "each season's samples go to its own model"
    assert (job.folder / "out" / "model.keras").exists()


@pytest.mark.timeout(300)
def test_edges_that_mix_tasks_find_them_and_keep_them_through_kills(two_tasks):
    job = two_tasks(edges=4, rounds=8, roundDeadline="90s", startDeadline="120s")
    for i in range(4):
        for kind, seed, chunks in (("edge", i, 40), ("eval", 100 + i, 12)):
            rng = np.random.default_rng(seed)
            task = np.repeat((rng.random(chunks) < 0.2 + 0.2 * i).astype(int), 10)
            y = np.arange(len(task)) % 3
            x = (rng.normal(scale=0.4, size=(len(y), 4)) + 2 * np.eye(4)[y]).astype(np.float32)
            np.savez(job.folder / "data" / f"{kind}-{i}.npz", x=x, y=(y + task) % 3)
    (job.folder / "train.py").write_text(KERAS)
    tasks = {"division": "discovery", "chunk": 10}
    job.change(lambda spec: spec.update(tasks=tasks, output={"model": "out/model.keras"}))
    process = job.start()
    job.wait_for(lambda: 2 in job.rounds(), "round 2 is finished", timeout=120)
    job.kill("edge-3")
    job.wait_for(lambda: 4 in job.rounds(), "round 4 is finished", timeout=120)
    job.kill("server")
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, out + err + job.logs()
    found = job.events("tasks-grouped")[-1].tasks
    assert len({task.group for task in found}) == 2
    assert {task.edge for task in found if task.task == "task-1"} & {t.edge for t in found if t.task == "task-2"}
    asked = [e for e in job.events("tasks-grouped") if "signatures" in e.reason]
    assert len(asked) == 1, "nobody is asked again for what is known"
    assert min(e.metrics["accuracy"] for e in job.events("edge-finished")) > 0.9


KERAS = """
import json, os
os.environ["KERAS_BACKEND"] = "jax"
import keras, numpy as np, solar_corona

keras.utils.set_random_seed(1)
train, test = solar_corona.load_train_dataset(), solar_corona.load_eval_dataset()
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
result = solar_corona.collaborative_training.fit(
    train, test, model, loss="sparse_categorical_crossentropy", metric="accuracy",
    optimizer=keras.optimizers.SGD(0.5), batch_size=30, epochs=5,
)
path = solar_corona.save_model(result)
"""

AGAIN = """
if solar_corona.context.get_edge_name() == "edge-2":
    again = solar_corona.load_model(path)
    found = again.predict(test.x, attribute=test.tasks, verbose=0).argmax(1)
    said = {"tasks": list(again.tasks), "accuracy": float((found == test.y).mean())}
    with open("edge-2.json", "w") as file:
        json.dump(said, file)
"""
