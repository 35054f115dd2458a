# SPDX-License-Identifier: Apache-2.0
"""What ends `solar-corona run`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from solar_corona.core.events import EdgeFinished, EdgeJoined, Event, JobStarted, RoundEvaluated
from solar_corona.fl_server.outcomes import Outcomes
from solar_corona.fl_server.progress import RunView
from solar_corona.fl_server.summary import print_summary


def _view(
    after: dict[str, float],
    *,
    before: float | None = 0.1,
    alone: float | None = None,
    metric: str = "accuracy",
    weights: dict[str, int] | None = None,
) -> RunView:
    names = list(after)
    events: list[Event] = [JobStarted(rounds=1, edges=names, algorithm="fedavg", min_edges=1)]
    for name in names:
        events.append(EdgeJoined(edge=name, samples=1000, eval_samples=(weights or {}).get(name, 100)))
        score = {"num-examples": 100.0, metric: after[name]}
        events.append(EdgeFinished(edge=name, metrics=score, alone={} if alone is None else {metric: alone}))
    if before is not None:
        events.append(RoundEvaluated(round=0, metrics={metric: before}, edges={n: {metric: before} for n in names}))
    view = RunView()
    view.take(events)
    return view


def _printed(view: RunView, *, width: int = 80, terminal: bool = False, **more: object) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, highlight=False, color_system="standard" if terminal else None
    )
    options: dict[str, object] = {"model": None, "report": None, "next_commands": [], **more}
    print_summary(view, console=console, **options)  # type: ignore[arg-type]
    return file.getvalue()


def test_each_edge_has_its_samples_and_its_accuracy_before_and_after() -> None:
    lines = [line.split() for line in _printed(_view({"edge-1": 0.9, "edge-2": 0.8})).splitlines()]
    assert ["edge-1", "1,000", "10.0%", "90.0%", "+80.0"] in lines
    assert ["edge-2", "1,000", "10.0%", "80.0%", "+70.0"] in lines


def test_all_edges_are_weighted_by_what_they_evaluate_on() -> None:
    view = _view({"edge-1": 0.9, "edge-2": 0.5}, weights={"edge-1": 300, "edge-2": 100})
    assert ["all", "edges", "2,000", "10.0%", "80.0%", "+70.0"] in [
        line.split() for line in _printed(view).splitlines()
    ]


def test_an_edge_that_came_late_does_not_distort_the_gain_of_all() -> None:
    view = _view({"edge-1": 0.9})
    view.take(
        [
            EdgeJoined(edge="late", samples=1, eval_samples=100),
            EdgeFinished(edge="late", metrics={"accuracy": 0.1}),
        ]
    )
    outcomes = Outcomes.of(view)
    assert outcomes.overall.after == pytest.approx(0.5)
    assert outcomes.overall.gain == pytest.approx(0.8)
    assert outcomes.has_gaps


def test_training_alone_is_shown_where_it_was_measured() -> None:
    assert "alone" not in _printed(_view({"edge-1": 0.9}))
    text = _printed(_view({"edge-1": 0.9}, alone=0.95))
    assert ["edge-1", "1,000", "10.0%", "90.0%", "+80.0", "95.0%", "-5.0"] in [
        line.split() for line in text.splitlines()
    ]


@pytest.mark.parametrize("width", [60, 120])
def test_every_line_of_the_table_fits_the_terminal(width: int) -> None:
    names = {"a-camera-with-a-name-as-long-as-kubernetes-lets-a-name-be-63-ch": 0.9, "edge-2": 0.8}
    text = _printed(_view(names, alone=0.7), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "".join(line.split()[0] for line in text.splitlines() if line.strip()).count("be-63-ch") == 1
    assert "+20.0" in text


def test_without_a_terminal_there_are_no_colours_and_no_rules() -> None:
    view = _view({"edge-1": 0.9, "edge-2": 0.8})
    plain = _printed(view)
    assert "\x1b" not in plain
    assert "─" not in plain
    assert "\x1b[32m+80.0" in _printed(view, terminal=True)


def test_paths_and_commands_are_printed_in_one_piece() -> None:
    path = "/a/very/long/path/" + "x" * 90
    text = _printed(
        _view({"edge-1": 0.9}), width=60, model=path, report=Path("r/[bold]report.html"), next_commands=[f"run {path}"]
    )
    assert f"model   {path}\n" in text
    assert "report  r/[bold]report.html\n" in text
    assert f"\nnext\n  run {path}\n" in text


def test_of_many_edges_the_weakest_are_shown() -> None:
    view = _view({f"edge-{i:03}": i / 1000 for i in range(300)})
    text = _printed(view)
    assert "edge-009" in text
    assert "edge-010" not in text
    assert "the 10 weakest edges; 290 more are in the report" in text
    assert "300,000" in text


def test_of_another_metric_nobody_says_what_is_a_gain() -> None:
    text = _printed(_view({"edge-1": 3.25}, before=5.0, metric="mae"), terminal=True)
    assert "change" in text
    assert "-1.75" in text
    assert "\x1b[31m" not in text


def test_a_run_that_measured_nothing_still_has_a_summary() -> None:
    assert _printed(RunView(), model="m.keras") == "\nmodel   m.keras\n"
    view = RunView()
    view.take([JobStarted(rounds=1, edges=["edge-1"], algorithm="fedavg", min_edges=1)])
    assert ["edge-1", "–"] in [line.split() for line in _printed(view).splitlines()]
