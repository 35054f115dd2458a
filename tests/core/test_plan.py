# SPDX-License-Identifier: Apache-2.0
"""The plan: spec in, workers out."""

from __future__ import annotations

import builtins
import os
from dataclasses import replace
from pathlib import Path

import pytest

from solar_corona.core.context_document import ContextDocument
from solar_corona.core.errors import SpecError
from solar_corona.core.job_file import JobFile
from solar_corona.core.plan import plan
from solar_corona.core.sources import is_absolute
from solar_corona.core.spec import API_VERSION, Dataset, FederatedLearningJob, Model
from solar_corona.core.workers import Placement, Plan

PLACE = Placement(
    run="r1",
    python="/bin/python",
    superlink="flower-superlink",
    address="10.0.0.1:9092",
    listen="0.0.0.0",
    run_folder=lambda name: f"/run/{name}",
    base=lambda role: "/job" if role == "edge" else "/srv",
    keys="/keys",
)


def _document(kind, name, spec):
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _file(*, datasets=(), models=(), edges=None, **spec) -> JobFile:
    edges = edges or [{"name": "a", "trainData": "a.npz"}, {"name": "b", "trainData": "b.npz", "evalData": "e.npz"}]
    body = {"script": "train.py", "edges": edges, **spec}
    return JobFile(
        Path("/job/job.yaml"),
        FederatedLearningJob.model_validate(_document("FederatedLearningJob", "digits", body), by_name=False),
        {name: Dataset.model_validate(_document("Dataset", name, spec), by_name=False) for name, spec in datasets},
        {name: Model.model_validate(_document("Model", name, spec), by_name=False) for name, spec in models},
    )


def _context(made: Plan, name: str) -> ContextDocument:
    context = next(w for w in made.workers if w.name == name).context
    assert context is not None
    return context


def test_a_job_needs_a_superlink_a_server_and_its_edges():
    made = plan(_file(), PLACE)
    assert [(w.name, w.role) for w in made.workers] == [
        ("superlink", "superlink"),
        ("server", "server"),
        ("a", "edge"),
        ("b", "edge"),
    ]
    assert [w.name for w in made.of_role("edge")] == ["a", "b"]
    assert (made.job, made.run, made.tls) == ("digits", "r1", False)


def test_the_same_input_gives_the_same_plan():
    assert plan(_file(), PLACE) == plan(_file(), PLACE)


def test_planning_touches_no_disk_and_reads_no_environment(monkeypatch):
    file = _file(security={"tls": True})

    def refuse(*args, **kwargs):
        raise AssertionError("the plan touched the machine")

    with monkeypatch.context() as m:
        for name in ("open", "stat", "listdir", "scandir", "mkdir", "getcwd"):
            m.setattr(os, name, refuse)
        m.setattr(builtins, "open", refuse)
        m.setattr(os, "environ", None)
        plan(file, PLACE)


def test_an_edges_parameters_win_over_the_jobs():
    edges = [{"name": "a", "trainData": "a", "parameters": {"epochs": 9, "own": True}}, {"name": "b", "trainData": "b"}]
    made = plan(_file(edges=edges, parameters={"epochs": 1, "size": 2}), PLACE)
    assert _context(made, "a").parameters == {"epochs": 9, "size": 2, "own": True}
    assert _context(made, "b").parameters == {"epochs": 1, "size": 2}


def test_a_script_is_told_the_algorithm_that_the_job_really_uses():
    spec = {"aggregation": {"algorithm": "fedadam"}, "parameters": {"aggregation_algorithm": "fedavg"}}
    edge = {"name": "a", "trainData": "a", "parameters": {"aggregation_algorithm": "krum"}}
    assert _context(plan(_file(**spec), PLACE), "a").parameters["aggregation_algorithm"] == "fedadam"
    assert _context(plan(_file(edges=[edge]), PLACE), "a").parameters["aggregation_algorithm"] == "fedavg"
    assert "aggregation_algorithm" not in _context(plan(_file(), PLACE), "a").parameters


def test_the_parameter_names_the_strategy_where_the_aggregation_does_not():
    made = plan(_file(parameters={"aggregation_algorithm": "krum"}), PLACE)
    aggregation = _context(made, "server").aggregation
    assert aggregation is not None
    assert aggregation.algorithm == "krum"


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("a.npz", "/job/a.npz"),
        ("./d/../a.npz", "/job/a.npz"),
        ("../other/a.npz", "/other/a.npz"),
        ("/data/a.npz", "/data/a.npz"),
        ("s3://bucket/a/../b.npz", "s3://bucket/a/../b.npz"),
        ("https://host/a.npz?x=1", "https://host/a.npz?x=1"),
        ("simplecache::s3://bucket/a.npz", "simplecache::s3://bucket/a.npz"),
        ("a:b.npz", "/job/a:b.npz"),
    ],
)
def test_relative_paths_belong_to_the_job_file_and_urls_stay(path, seen):
    made = plan(_file(edges=[{"name": "a", "trainData": path, "evalData": {"path": path, "x": "q"}}]), PLACE)
    context = _context(made, "a")
    assert context.train_data is not None
    assert context.eval_data is not None
    assert context.train_data.path == context.eval_data.path == seen
    assert context.eval_data.x == "q"
    assert is_absolute(path) == (path == seen)


def test_a_dataset_is_found_by_its_name():
    file = _file(
        edges=[{"name": "a", "trainData": "dataset:digits", "evalData": "dataset:digits"}],
        datasets=[("digits", {"path": "d.csv", "y": "label"})],
    )
    source = _context(plan(file, PLACE), "a").train_data
    assert source is not None
    assert (source.path, source.y) == ("/job/d.csv", "label")


def test_a_name_that_is_not_in_the_file_is_told_with_those_that_are():
    file = _file(edges=[{"name": "a", "trainData": "dataset:digit"}], datasets=[("digits", {"path": "d"})])
    with pytest.raises(SpecError) as caught:
        plan(file, PLACE)
    assert str(caught.value) == (
        "/job/job.yaml: edge a: trainData names the Dataset 'digit', which is not in this file; it has: digits. "
        "Add it after a line ---"
    )
    with pytest.raises(SpecError, match=r"spec\.model names the Model 'x', which is not in this file; it has none"):
        plan(_file(model="model:x"), PLACE)


def test_a_model_to_start_from_is_a_path_a_name_or_a_source():
    for model in ("m.keras", "model:start", {"path": "m.keras"}):
        found = _context(plan(_file(model=model, models=[("start", {"path": "m.keras"})]), PLACE), "a").model
        assert found is not None
        assert found.path == "/job/m.keras"


def test_tls_adds_keys_and_turns_off_what_is_insecure():
    plain, secure = plan(_file(), PLACE), plan(_file(security={"tls": True}), PLACE)
    assert "--insecure" in plain.workers[0].command
    assert "--insecure" not in secure.workers[0].command
    assert {"--enable-supernode-auth", "/keys/ca.pem", "/keys/server.pem", "/keys/server.key"} <= {
        *secure.workers[0].command
    }
    assert _context(secure, "server").edge_keys == {"a": "/keys/edge-a.pub", "b": "/keys/edge-b.pub"}
    assert _context(plain, "server").edge_keys == {}
    link, plain_link = _context(secure, "a").superlink, _context(plain, "a").superlink
    assert link is not None
    assert plain_link is not None
    assert (link.root_certificates, link.private_key) == ("/keys/ca.pem", "/keys/edge-a.key")
    assert (plain_link.root_certificates, plain_link.private_key) == (None, None)


def test_the_servers_secret_reaches_the_server_and_the_superlink_alone():
    made = plan(_file(), PLACE)
    secrets = {w.name: w.context.superlink.runtime_secret for w in made.workers if w.context and w.context.superlink}
    assert secrets == {"server": "/keys/runtime.secret", "a": None, "b": None}
    assert "/keys/runtime.secret" in made.workers[0].command


def test_the_server_may_reach_the_superlink_by_another_way_than_the_edges():
    made = plan(_file(), replace(PLACE, server_address="127.0.0.1:7000"))
    server, edge = _context(made, "server").superlink, _context(made, "a").superlink
    assert server is not None
    assert edge is not None
    assert (server.address, edge.address) == ("127.0.0.1:7000", "10.0.0.1:9092")
    assert made.workers[0].command[made.workers[0].command.index("--port") + 1] == "7000"


def test_each_edge_saves_its_model_into_its_own_folder():
    made = plan(_file(output={"model": "out/digits.keras/"}), PLACE)
    assert [_context(made, name).output_model for name in ("server", "a", "b")] == [
        "/srv/out/digits.keras",
        "/run/a/edges/a/digits.keras",
        "/run/b/edges/b/digits.keras",
    ]
    assert _context(plan(_file(), PLACE), "server").output_model is None


def test_the_command_is_the_script_or_what_the_job_says():
    assert plan(_file(), PLACE).workers[-1].command == (
        "/bin/python",
        "-m",
        "solar_corona.lib.script_worker",
        "/job/train.py",
    )
    assert plan(_file(command=["python", "x.py"]), PLACE).workers[-1].command == ("python", "x.py")
    assert plan(_file(), replace(PLACE, script_base="")).workers[-1].command[-1] == "train.py"


def test_an_edges_environment_wins_over_the_jobs():
    edges = [{"name": "a", "trainData": "a", "env": {"X": "2"}}]
    made = plan(_file(edges=edges, env={"X": "1", "Y": "1"}), PLACE)
    assert dict(made.workers[-1].env) == {"X": "2", "Y": "1"}


def test_an_edge_runs_on_its_node_which_is_its_name_by_default():
    made = plan(_file(edges=[{"name": "a", "trainData": "a", "node": "rpi"}, {"name": "b", "trainData": "b"}]), PLACE)
    assert [w.node for w in made.of_role("edge")] == ["rpi", "b"]


def test_every_context_document_is_read_back_from_json_as_it_was():
    made = plan(
        _file(
            security={"tls": True},
            parameters={"a": [1, {"b": None}], "c": 1.0},
            aggregation={"roundDeadline": "1m30s", "options": {"eta": 0.1}},
            model="s3://m.keras",
        ),
        PLACE,
    )
    for worker in made.workers:
        if worker.context is not None:
            assert ContextDocument.model_validate_json(worker.context.model_dump_json()) == worker.context


@pytest.mark.parametrize(("edges", "fraction", "asked"), [(4, 1.0, 4), (4, 0.5, 2), (3, 0.1, 1), (10, 0.29, 2)])
def test_by_default_all_that_are_asked_must_reply(edges, fraction, asked):
    listed = [{"name": f"e{i}", "trainData": "x"} for i in range(edges)]
    made = plan(_file(edges=listed, aggregation={"fraction": fraction}), PLACE)
    assert _context(made, "server").min_edges == asked
