# SPDX-License-Identifier: Apache-2.0
"""Each numbered example does what its README says, with few rounds."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from solar_corona.core.job_file import read_any_job_file, read_job_file
from solar_corona.tests.docs.pages import ROOT, copy_examples, shell

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("[0-9][0-9]_*") if (path / "job.yaml").is_file())
KINDS = {name: read_any_job_file(ROOT / "examples" / name / "job.yaml").job.kind for name in EXAMPLES}
# Example 09, an incremental learning job, is what the tutorial on it runs.
SERVICES = [name for name, kind in KINDS.items() if kind == "JointInferenceService"]
TRAINED = [name for name, kind in KINDS.items() if kind == "FederatedLearningJob"]
_FEW_ROUNDS = "--set spec.aggregation.rounds=2"
# The other examples are about something else than processes, so their edges may share one.
_OWN_PROCESSES = ("01_digits", "05_own_trainable")
_NEEDS = {"03_torch": "torch"}
# What signatures must find in the data of examples about similar tasks: sets of tasks, each within one group.
_ALIKE = {
    "06_phone_and_watch": [{f"person-{i}/watch" for i in (1, 2, 3, 4, 7, 8)}, {"person-5/phone", "person-7/phone"}],
    "07_writers": [{f"{kind}-{i}/all" for i in range(3)} for kind in ("employees", "students")],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples and their data."""
    place = tmp_path_factory.mktemp("reader")
    copy_examples(place)
    shell("\n".join(f"python examples/{name}/prepare_data.py" for name in EXAMPLES), place)
    return place


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_one_page(name: str) -> None:
    page = ROOT / "examples" / name / "README.md"
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_job_of_an_example_validates(name: str, folder: Path) -> None:
    assert "is valid" in shell(f"solar-corona validate examples/{name}/job.yaml", folder)


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TRAINED)
def test_an_example_runs_to_its_end(name: str, folder: Path) -> None:
    if name in _NEEDS and importlib.util.find_spec(_NEEDS[name]) is None:
        pytest.skip(f"{_NEEDS[name]} is not installed; scripts/install-torch .venv installs it")
    how = "" if name in _OWN_PROCESSES else "--in-process"
    job = folder / "examples" / name / "job.yaml"
    printed = shell(f"solar-corona run {job} --json {how} {_FEW_ROUNDS} 2>{folder}/errors.txt", folder, timeout=290)
    records = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert records[-1]["result"] == "succeeded"
    spec = read_job_file(job).job.spec
    finished = [r for r in records if r.get("event") == "round-finished"]
    assert [r["round"] for r in finished] == [1, 2]
    evaluated = [r for r in records if r.get("event") == "round-evaluated"]
    first, last = evaluated[0]["metrics"], evaluated[-1]["metrics"]
    assert last["loss"] < first["loss"]
    assert spec.output.model is not None
    assert (job.parent / spec.output.model).is_file()
    if name in _ALIKE:
        told = next(r for r in records if r.get("event") == "tasks-grouped")
        group_of = {f"{task['edge']}/{task['task']}": task["group"] for task in told["tasks"]}
        found = [{group_of[task] for task in tasks} for tasks in _ALIKE[name]]
        assert all(len(groups) == 1 for groups in found), f"tasks that are alike are apart: {group_of}"
        assert len(set.union(*found)) == len(found), f"tasks that differ are together: {group_of}"


@pytest.mark.system
@pytest.mark.parametrize("name", SERVICES)
def test_an_example_answers_every_sample(name: str, folder: Path) -> None:
    job = folder / "examples" / name / "job.yaml"
    printed = shell(f"solar-corona run {job} --json 2>{folder}/errors.txt", folder)
    records = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert records[-1]["result"] == "succeeded"
    edges = json.loads(shell(f"solar-corona status {job} --json", folder))["edges"]
    for edge in edges.values():
        assert edge["frames"] > 100
        assert edge["degraded"] == 0
        assert edge["sources"]["cloud"]["answers"] == edge["uploads"] > 0


@pytest.mark.system
def test_the_tests_of_the_strategy_example_pass_where_its_user_runs_them(folder: Path) -> None:
    assert "passed" in shell("python -m pytest -q examples/02_own_strategy", folder)


INTERRUPTED = """
import os, runpy, signal, sys, types

preparing = types.ModuleType("prepare_data")
preparing.prepare = lambda folder: os.kill(os.getpid(), signal.SIGINT)
sys.modules["prepare_data"] = preparing
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_a_demo_that_is_interrupted_while_it_prepares_shows_no_traceback() -> None:
    demo = ROOT / "examples" / "01_digits" / "demo.py"
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(demo)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "")
