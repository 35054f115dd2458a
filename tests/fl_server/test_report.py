# SPDX-License-Identifier: Apache-2.0
"""The report of a run."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from solar_corona.core.events import (
    EdgeFinished,
    EdgeJoined,
    EdgeLeftOut,
    Event,
    JobFailed,
    JobFinished,
    JobStarted,
    RoundEvaluated,
    RoundFinished,
    RoundStarted,
    Warned,
)
from solar_corona.core.run_folder import RunFolder, RunState
from solar_corona.core.spec import FederatedLearningJob
from solar_corona.fl_server.report import write_report
from solar_corona.tests.fl_server.report_pages import Page


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    path = tmp_path / "digits" / "20260101-120000"
    path.mkdir(parents=True)
    return RunFolder(path)


def _job(edges: int = 2, rounds: int = 3, **spec: object) -> FederatedLearningJob:
    return FederatedLearningJob.model_validate(
        {
            "apiVersion": "solar-corona.io/v1alpha1",
            "kind": "FederatedLearningJob",
            "metadata": {"name": "digits"},
            "spec": {
                "script": "train.py",
                "aggregation": {"rounds": rounds},
                "edges": [{"name": f"edge-{i}", "trainData": f"data/{i}.npz"} for i in range(edges)],
                **spec,
            },
        }
    )


def _start(edges: int, rounds: int) -> list[Event]:
    names = [f"edge-{i}" for i in range(edges)]
    joined = [EdgeJoined(time=101, edge=e, samples=100 + i, eval_samples=50) for i, e in enumerate(names)]
    return [JobStarted(time=100, rounds=rounds, edges=names, algorithm="fedavg", min_edges=edges), *joined]


def _evaluated(number: int, edges: int, rounds: int) -> RoundEvaluated:
    scores = {"accuracy": 0.1 + 0.8 * number / rounds, "loss": 2.0 - number / rounds}
    each = {f"edge-{i}": {"num-examples": 50.0, **scores} for i in range(edges)}
    return RoundEvaluated(time=110 + number, round=number, metrics=scores, edges=each)


def _round(number: int, edges: int) -> list[Event]:
    return [
        RoundStarted(time=110 + number, round=number, edges=edges),
        RoundFinished(
            time=110.5 + number,
            round=number,
            asked=edges,
            replied=edges,
            metrics={},
            seconds=2.0,
            training_seconds=1.5,
            bytes_down=2048,
            bytes_up=1024,
        ),
    ]


def _whole_run(edges: int, rounds: int) -> list[Event]:
    events = _start(edges, rounds)
    for number in range(1, rounds + 1):
        events += [*_round(number, edges), _evaluated(number - 1, edges, rounds)]
    last = _evaluated(rounds, edges, rounds)
    events += [EdgeFinished(edge=e, metrics=m, alone={"accuracy": 0.5}) for e, m in last.edges.items()]
    return [*events, last, JobFinished(model="out/model.keras", seconds=42.0)]


def _written(folder: RunFolder, events: list[Event], job: FederatedLearningJob | None = None) -> Page:
    for event in events:
        folder.append(event)
    path = write_report(folder, job=job or _job())
    assert path == folder.report
    return Page(path.read_text(encoding="utf-8"))


def test_the_headline_says_how_a_run_went_in_one_sentence(folder: RunFolder) -> None:
    page = _written(folder, _whole_run(2, 3))
    assert (
        "digits trained one model over 2 edges with fedavg, 3 rounds in 42.0 s: "
        "accuracy went from 10.0% to 90.0%." in page.text
    )
    assert page.count("h1") == 1


def test_each_edge_has_its_line_with_what_it_gained(folder: RunFolder) -> None:
    page = _written(folder, _whole_run(2, 3))
    assert re.search(r"edge-1 101 50 10\.0% 90\.0% \+80\.0 50\.0% \+40\.0", page.text)
    assert re.search(r"All edges 201 100 10\.0% 90\.0% \+80\.0 50\.0% \+40\.0", page.text)
    assert page.count("td", "up") == 6


def test_the_curves_show_every_edge_and_all_of_them(folder: RunFolder) -> None:
    page = _written(folder, _whole_run(5, 4), _job(5, 4))
    assert page.count("figure") == 4
    assert page.count("path", "edge") == 10
    assert page.count("path", "global") == 2
    assert page.count("path", "lower") == page.count("path", "upper") == 2


def test_the_report_asks_for_nothing_from_elsewhere(folder: RunFolder) -> None:
    page = _written(folder, _whole_run(2, 3))
    assert not {"script", "link", "img", "iframe", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attrs in page.elements:
        assert not {"src", "href", "xlink:href", "style", "srcset", "data", "action"} & set(attrs), tag
        assert not any(name.startswith("on") for name in attrs), tag
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert not re.search(r"https?://", (folder.report).read_text(encoding="utf-8"))


def test_the_content_security_policy_allows_the_style_sheet_and_no_more(folder: RunFolder) -> None:
    page = _written(folder, _whole_run(2, 3))
    policy = next(a["content"] or "" for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy


def test_names_notes_and_errors_are_text_and_never_markup(folder: RunFolder) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    events = _whole_run(2, 3)
    events[-1:] = [
        EdgeJoined(edge=evil, samples=1, eval_samples=1),
        EdgeFinished(edge=evil, metrics={"accuracy": 0.5}),
        EdgeLeftOut(edge=evil, round=2, reason=evil),
        RoundEvaluated(round=3, metrics={"accuracy": 0.5}, edges={evil: {"accuracy": 0.5}}),
        Warned(message=evil),
        JobFailed(error=evil, exit_code=1),
    ]
    page = _written(folder, events)
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert page.text.count("<script>alert(1)</script>") >= 5


def test_control_characters_of_an_error_do_not_reach_the_page(folder: RunFolder) -> None:
    _written(folder, [*_start(2, 3), JobFailed(error="\x1b[31mred\x1b[0m and \x00 \x07", exit_code=1)])
    html = folder.report.read_text(encoding="utf-8")
    assert "red and � �" in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)


def test_values_that_may_be_secret_are_left_out_of_the_job_file(folder: RunFolder) -> None:
    job = _job(
        env={"AWS_THING": "hunter2"},
        parameters={"api_key": "hunter2", "epochs": 5},
        model="https://me:hunter2@models.example/a.keras?signature=hunter2",
    )
    page = _written(folder, _whole_run(2, 3), job)
    assert "hunter2" not in folder.report.read_text(encoding="utf-8")
    assert "epochs: 5" in page.text
    assert "AWS_THING: (hidden)" in page.text
    assert "https://models.example/a.keras" in page.text


def test_a_run_without_events_has_a_report(folder: RunFolder) -> None:
    page = _written(folder, [])
    assert "digits is not finished: the record ends before its first round." in page.text
    assert page.count("figure") == 0


def test_a_run_that_failed_before_its_first_round_says_why_and_what_to_do(folder: RunFolder) -> None:
    failure = JobFailed(time=105, error="no edge came; raise startDeadline", exit_code=1)
    page = _written(folder, [*_start(2, 3), failure])
    assert "digits failed before its first round, after 5.0 s." in page.text
    assert "no edge came; raise startDeadline" in page.text
    assert "Start again with solar-corona run JOB.yaml" in page.text


def test_a_run_that_failed_later_says_where_it_can_go_on(folder: RunFolder) -> None:
    events = [*_start(2, 3), *_round(1, 2), _evaluated(0, 2, 3), RoundStarted(round=2, edges=2)]
    page = _written(folder, [*events, JobFailed(error="edge-1 is gone", exit_code=1)])
    assert "digits failed in round 2 of 3" in page.text
    assert "go on after round 1 with solar-corona run --resume JOB.yaml" in page.text


def test_the_launchers_word_is_preferred_as_it_knows_whose_script_failed(folder: RunFolder) -> None:
    folder.write_state(
        RunState(job="digits", run="r", phase="failed", pid=1, error="edge-1's script failed: ValueError", exit_code=1)
    )
    page = _written(folder, [*_start(2, 3), JobFailed(error="an edge failed", exit_code=1)])
    assert "edge-1's script failed: ValueError" in page.text
    assert "an edge failed" not in page.text


def test_a_resumed_run_that_succeeded_is_no_failure(folder: RunFolder) -> None:
    failure = JobFailed(error="the disk is full", exit_code=4)
    again = JobStarted(rounds=3, edges=["edge-0", "edge-1"], algorithm="fedavg", min_edges=2, resumed_at=1)
    page = _written(folder, [*_start(2, 3), *_round(1, 2), failure, again, *_whole_run(2, 3)[3:]])
    assert "the disk is full" not in page.text
    assert "went on after round 1" in page.text


def test_a_run_of_one_round_has_curves(folder: RunFolder) -> None:
    page = _written(folder, _whole_run(1, 1), _job(1, 1))
    assert page.count("figure") == 4
    assert "1 edge with fedavg, 1 round in" in page.text
    assert "All edges" not in page.text


def test_a_run_of_many_edges_and_rounds_stays_small_and_shows_how_the_edges_spread(folder: RunFolder) -> None:
    page = _written(folder, _whole_run(300, 200), _job(300, 200))
    assert folder.report.stat().st_size < 2_000_000
    assert page.count("path", "edge") == 0
    assert page.count("path", "range") == page.count("path", "middle") == 2
    assert "edge-299" in page.text


def test_a_run_of_thousands_of_rounds_and_notes_stays_small(folder: RunFolder) -> None:
    events = _whole_run(2, 3000)
    events += [Warned(message=f"{i}: {'long ' * 200}") for i in range(1000)]
    page = _written(folder, events, _job(2, 3000))
    assert folder.report.stat().st_size < 2_000_000
    assert "each bar is the mean of 15 rounds" in page.text
    assert "600 entries from the middle are left out here" in page.text


def test_an_edge_that_is_left_out_again_and_again_is_told_of_once(folder: RunFolder) -> None:
    events = _whole_run(2, 3)
    events[-1:-1] = [EdgeLeftOut(edge="edge-1", round=n, reason="no reply within 60 s") for n in (1, 2, 3)]
    page = _written(folder, events)
    assert page.text.count("edge-1: no reply within 60 s") == 1
    assert "3 times in rounds 1 to 3" in page.text


def test_an_edge_that_joins_late_is_told_of_and_has_no_before(folder: RunFolder) -> None:
    events = _whole_run(2, 3)
    late = EdgeJoined(edge="edge-9", samples=1234, eval_samples=50)
    events[8:8] = [late]
    events.insert(-1, EdgeFinished(edge="edge-9", metrics={"accuracy": 0.9}))
    page = _written(folder, events)
    assert "edge-9 came with 1,234 samples" in page.text
    assert re.search(r"edge-9 1,234 50 – 90\.0% – – –", page.text)
    assert "An edge with – was not there for that evaluation" in page.text


def test_an_edge_that_was_lost_at_the_end_is_told_of(folder: RunFolder) -> None:
    events = _whole_run(2, 3)
    events[-3] = EdgeFinished(edge="edge-1", metrics={})
    page = _written(folder, events)
    assert "no evaluation of the final model came from edge-1" in page.text
    assert re.search(r"edge-1 101 50 10\.0% – – – –", page.text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_a_loss_that_is_no_usable_number_leaves_a_gap_in_the_curve(folder: RunFolder, value: float) -> None:
    events = _start(2, 3)
    # Written by hand, as what another version of the server may have written.
    for event in [*events, _evaluated(0, 2, 3), _evaluated(2, 2, 3)]:
        folder.append(event)
    record = _evaluated(1, 2, 3).model_dump_json().replace('"loss":1.6666666666666665', f'"loss":{_constant(value)}')
    with folder.events_file.open("a") as file:
        file.write(record + "\n")
    page = _written(folder, [])
    paths = [a.get("d") or "" for tag, a in page.elements if tag == "path"]
    assert not any("nan" in path or "inf" in path for path in paths)


def _constant(value: float) -> str:
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value), str(value))


@pytest.mark.parametrize("metrics", [{}, {"loss": 0.0}, {"accuracy": 0.0, "loss": 0.0}, {"mae": -3.0}])
def test_any_set_of_metrics_makes_a_report(folder: RunFolder, metrics: dict[str, float]) -> None:
    evaluations = [RoundEvaluated(round=n, metrics=metrics, edges={"edge-0": metrics}) for n in (0, 1)]
    page = _written(folder, [*_start(1, 1), *_round(1, 1), *evaluations, JobFinished(model=None, seconds=0.0)])
    assert "digits trained one model over 1 edge" in page.text


def test_every_table_has_a_caption_and_scopes_and_every_curve_a_text(folder: RunFolder) -> None:
    page = _written(folder, _whole_run(2, 3))
    assert page.count("caption") == page.count("table") == 2
    assert all(a.get("scope") in ("row", "col") for tag, a in page.elements if tag == "th")
    images = [a for _, a in page.elements if a.get("role") == "img"]
    assert len(images) == 4
    assert all(a.get("aria-label") for a in images)


def test_the_report_replaces_an_older_one_and_leaves_nothing_beside_it(folder: RunFolder) -> None:
    folder.report.write_text("old")
    _written(folder, _whole_run(2, 3))
    assert sorted(p.name for p in folder.path.iterdir()) == ["events.jsonl", "report.html"]


def test_importing_the_report_loads_no_template_engine() -> None:
    code = "import sys, solar_corona.fl_server.report; print('jinja2' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
