# SPDX-License-Identifier: Apache-2.0
"""The commands that show a run's groups, as they are called."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from solar_corona import cli
from solar_corona.core.events import Event, JobFailed, JobStarted
from solar_corona.core.run_folder import Phase, RunFolder, RunState, process_start_of
from solar_corona.tests.fl_server.grouped_runs import edges, grouped, run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the command; return its exit code and what it printed."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["solar-corona", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., str]:
    """Lay out the folder of a run, and return where it is."""

    def make(events: Sequence[Event], phase: Phase = "succeeded") -> str:
        path = tmp_path / "cameras" / "20260101-120000"
        path.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(path)
        folder.job_file.write_text("kind: FederatedLearningJob\n")
        for event in events:
            folder.append(event)
        mine = os.getpid()
        state = RunState(job="cameras", run=path.name, phase=phase, pid=mine, process_start=process_start_of(mine))
        folder.write_state(state)
        return str(path)

    return make


def _grouped_run(count: int = 6, **more: Any) -> list[Event]:
    return run(edges(count), [grouped(edges(count), [i % 3 for i in range(count)])], **more)


def test_tasks_prints_the_groups_of_a_run_that_has_ended(call: Call, run_folder: Callable[..., str]) -> None:
    code, out, err = call("tasks", run_folder(_grouped_run()))
    assert (code, err) == (0, "")
    assert out.startswith("cameras · run 20260101-120000 · succeeded, round 3 of 3\n6 edges, 3 groups found\n")
    assert "group-2  2 tasks, 205 samples" in out


def test_tasks_prints_the_groups_of_a_run_that_goes_on(call: Call, run_folder: Callable[..., str]) -> None:
    code, out, _ = call("tasks", run_folder(_grouped_run(finished=False), "running"))
    assert code == 0
    assert "running, round 3 of 3" in out
    assert "6 edges, 3 groups found" in out


def test_tasks_as_json_is_one_object_on_one_line(call: Call, run_folder: Callable[..., str]) -> None:
    code, out, err = call("tasks", run_folder(_grouped_run()), "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    told = json.loads(out)
    assert told["headline"] == "6 edges, 3 groups found"
    assert [group["members"] for group in told["groups"]] == [
        ["edge-0", "edge-3"],
        ["edge-1", "edge-4"],
        ["edge-2", "edge-5"],
    ]
    task = told["tasks"][1]
    assert (task["edge"], task["group"], task["own"]) == ("edge-1", "group-2", 0.01)
    assert task["why"] == f"0.01 from its group, {task['next']:.2f} from the next"
    assert told["edges"][0] == {
        "edge": "edge-0",
        "groups": ["group-1"],
        "model": 0.9,
        "group_model": 0.85,
        "one_model": 0.7,
        "alone": 0.8,
    }
    assert (told["job"], told["phase"], told["metric"], told["nothing"]) == ("cameras", "succeeded", "accuracy", None)


def test_a_run_without_groups_is_no_error_and_says_why(call: Call, run_folder: Callable[..., str]) -> None:
    folder = run_folder(run(edges(2), [], algorithm="fedavg"))
    code, out, _ = call("tasks", folder)
    assert code == 0
    assert "this run has no groups of tasks: it aggregates with fedavg" in " ".join(out.split())
    code, out, _ = call("tasks", folder, "--json")
    told = json.loads(out)
    assert (code, told["groups"], told["tasks"], told["headline"]) == (0, [], [], None)
    assert told["nothing"].startswith("this run has no groups of tasks")


def test_a_run_that_failed_before_edges_were_grouped_says_so(call: Call, run_folder: Callable[..., str]) -> None:
    started = JobStarted(rounds=3, edges=["a"], algorithm="similarity-grouping", min_edges=1)
    code, out, _ = call("tasks", run_folder([started, JobFailed(error="no edge came", exit_code=1)], "failed"))
    assert code == 0
    assert "no groups: the run ended before edges were grouped" in out


def test_a_job_that_never_ran_is_an_error_with_the_code_of_a_wrong_job(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("tasks", "cameras")
    assert (code, out) == (2, "")
    assert "there is no run of 'cameras'" in err
    code, out, _ = call("tasks", "cameras", "--json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)


def test_status_shows_the_groups_and_as_json_all_members(call: Call, run_folder: Callable[..., str]) -> None:
    folder = run_folder(_grouped_run(60))
    code, out, _ = call("status", folder)
    assert code == 0
    assert "each edge under its group's model: accuracy 0.6000" in out
    assert "group-1: 20 tasks: edge-0, edge-3," in out
    assert "and 12 more" in " ".join(out.split())
    told = json.loads(call("status", folder, "--json")[1])
    assert [len(members) for members in told["groups"].values()] == [20, 20, 20]


def test_status_of_a_thousand_groups_is_short(call: Call, run_folder: Callable[..., str]) -> None:
    folder = run_folder(run(edges(1000), [grouped(edges(1000), list(range(1000)))]))
    code, out, _ = call("status", folder)
    assert code == 0
    assert "and 988 more groups: see `solar-corona tasks`" in out
    assert len(out.splitlines()) < 30
