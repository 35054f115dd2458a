# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from solar_corona.core.errors import SpecError
from solar_corona.core.incremental_plan import controller_of, plan_incremental
from solar_corona.core.incremental_spec import IncrementalLearningJob
from solar_corona.core.job_file import JobFile, read_job_file
from solar_corona.core.preparation import local_placement, make_private_folder, socket_folder
from solar_corona.core.run_folder import RunFolder
from solar_corona.core.workers import Plan

JOB = """
apiVersion: solar-corona.io/v1alpha1
kind: IncrementalLearningJob
metadata: {name: digits}
spec:
  model: {name: digits, path: digits.keras}
  inference:
    script: infer.py
    parameters: {rate: 5}
    edges: [{name: a}, {name: b, parameters: {rate: 9}}]
  hardSamples: {maxRate: 50000, quietHours: "08:00-18:00"}
  training: {script: train.py, baseData: base.npz}
"""


def job_file(folder: Path, text: str = JOB) -> JobFile[IncrementalLearningJob]:
    path = folder / "job.yaml"
    path.write_text(text)
    return read_job_file(path, [], IncrementalLearningJob)


def planned(folder: Path, text: str = JOB) -> Plan:
    file = job_file(folder, text)
    here = RunFolder(folder / "runs" / "1")
    return plan_incremental(file, local_placement(file, here, address="127.0.0.1:9", lasting=folder / "kept"))


def test_each_edge_has_a_controller_beside_its_script_and_the_hub_comes_first(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [worker.name for worker in plan.workers] == ["hub", "a-controller", "a", "b-controller", "b"]
    hub, controller, script = plan.workers[:3]
    assert hub.ready is not None
    assert controller.ready is None
    assert controller.node == script.node == "a"


def test_an_edge_finds_its_controller_and_its_model_where_the_controller_keeps_them(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    by_name = {worker.name: worker for worker in plan.workers}
    command, context = by_name[controller_of("b")].command, by_name["b"].context
    assert context is not None
    options = dict(zip(command[4::2], command[5::2], strict=False))
    assert options["--socket"] == context.controller
    assert context.live_model == f"{options['--state']}/models/digits/active.json"
    assert options["--max-rate"] == "50000"
    assert options["--quiet-hours"] == "08:00-18:00"
    assert context.parameters == {"rate": 9}


def test_a_controller_has_its_own_token_and_no_key_to_sign_with(tmp_path: Path) -> None:
    commands = {worker.name: " ".join(worker.command) for worker in planned(tmp_path).workers}
    assert "hub-a.token" in commands["a-controller"]
    assert "hub-b.token" not in commands["a-controller"]
    assert "hub.sign.pub" in commands["a-controller"]
    assert "hub.sign.key" not in commands["a-controller"]


def test_sockets_are_short_wherever_the_job_is(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 10)
    folder.mkdir(parents=True)
    context = next(worker.context for worker in planned(folder).workers if worker.name == "a")
    assert context is not None
    assert context.controller is not None
    assert len(context.controller.encode()) < 100


def test_a_socket_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    make_private_folder(folder)
    make_private_folder(folder)
    folder.chmod(0o755)
    with pytest.raises(OSError, match="not this user's alone"):
        make_private_folder(folder)
    assert socket_folder(tmp_path) == socket_folder(tmp_path / "x" / "..")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rollout: {canary: 3}", "rollout.canary is 3, but the job has 2 edge"),
        ("trigger: {any: [{labelled: 5, manual: true}]}", "a rule has one reason, and this one has 2"),
        ("trigger: {any: [{schedule: '0 3 * *'}]}", "has 4 fields, expected 5"),
        ("labelling: {source: Page}", "labelling.source"),
        ("gate: {minLabels: 10}", "gate.minLabels is 10, expected a number from 50"),
        ("rollouts: {canary: 1}", "did you mean rollout"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(SpecError, match=r"job\.yaml") as error:
        job_file(tmp_path, f"{JOB}  {change}\n")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["hub", "cloud"])
def test_an_edge_may_not_be_called_like_a_worker_of_the_jobs_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="is the name of a worker that each job has"):
        job_file(tmp_path, JOB.replace("{name: a}", f"{{name: {name}}}"))


def test_a_rule_on_few_labels_lowers_the_labels_that_a_training_needs(tmp_path: Path) -> None:
    few = job_file(tmp_path, f"{JOB}  trigger: {{any: [{{labelled: 60}}, {{drift: both}}]}}\n")
    many = job_file(tmp_path, f"{JOB}  trigger: {{any: [{{labelled: 900}}]}}\n")
    assert few.job.spec.trigger.labels_needed == 60
    assert many.job.spec.trigger.labels_needed == 200
