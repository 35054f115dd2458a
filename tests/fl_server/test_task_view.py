# SPDX-License-Identifier: Apache-2.0
"""Similar tasks on a terminal and for programs."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence

import pytest
from rich.console import Console

from solar_corona.core.events import (
    Event,
    JobStarted,
    TaskPlace,
    TasksGrouped,
    TransferChosen,
    Warned,
    event_adapter,
)
from solar_corona.core.run_folder import Phase
from solar_corona.fl_server.outcomes import Outcomes
from solar_corona.fl_server.progress import RunView
from solar_corona.fl_server.summary import print_summary
from solar_corona.fl_server.task_text import print_groups, print_tasks, tasks_status
from solar_corona.fl_server.task_view import TaskView
from solar_corona.tests.fl_server.grouped_runs import edges, grouped, run

EVIL = "<script>\n\x1b[31m[bold]\u202e"


def _view(events: Sequence[Event]) -> RunView:
    view = RunView()
    view.take(events)
    return view


def _printed(view: RunView, *, width: int = 80, phase: Phase = "succeeded") -> str:
    file = io.StringIO()
    print_tasks(view, Console(file=file, width=width, highlight=False), run="cameras · run r", phase=phase)
    return file.getvalue()


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def _changes(*told: TasksGrouped) -> list[str]:
    return TaskView.of(told).changes


def _placed(**groups: str) -> TasksGrouped:
    tasks = [TaskPlace(edge=edge, task="all", group=group, samples=9, own=0.0) for edge, group in groups.items()]
    return TasksGrouped(round=1, reason="why", tasks=tasks)


def _altered(event: TasksGrouped, index: int, **changes: object) -> TasksGrouped:
    tasks = list(event.tasks)
    tasks[index] = tasks[index].model_copy(update=changes)
    return event.model_copy(update={"tasks": tasks})


# --- the view


def test_the_headline_counts_edges_and_groups_and_tasks_where_edges_have_several() -> None:
    assert TaskView.of([grouped(edges(12), [i % 3 for i in range(12)])]).headline == "12 edges, 3 groups found"
    assert TaskView.of([grouped(edges(1), [0])]).headline == "1 edge, 1 group found"
    several = [("a", "summer"), ("a", "winter"), ("b", "winter")]
    assert TaskView.of([grouped(several, [0, 1, 1])]).headline == "2 edges with 3 tasks, 2 groups found"


def test_groups_are_in_the_order_of_their_numbers() -> None:
    view = TaskView.of([grouped(edges(11), list(range(11))[::-1])])
    assert [group.name for group in view.groups] == [f"group-{i}" for i in range(1, 12)]


def test_a_group_says_how_sure_it_is_by_its_least_sure_tasks() -> None:
    event = _altered(_altered(grouped(edges(4), [0, 0, 1, 1]), 1, own=0.07), 0, next=0.31)
    first, second = TaskView.of([event]).groups
    assert first.distances == "each at most 0.07 from the rest, at least 0.31 from the next"
    assert second.furthest == 0.01


def test_a_task_alone_in_its_group_has_no_distance_to_it() -> None:
    view = TaskView.of([grouped(edges(3), [0, 0, 1])])
    assert view.groups[1].furthest is None
    assert view.groups[1].distances.startswith("alone, ")
    assert view.why(view.places[2], 1).startswith("alone in its group, ")


def test_a_task_without_a_signature_is_not_said_to_be_near_its_group() -> None:
    event = _altered(grouped(edges(4), [0, 0, 1, 1]), 1, signed=False, own=0.0, next=None, samples=0)
    view = TaskView.of([event])
    assert view.why(view.places[1], 2) == "no signature: goes by its updates, at first with the largest group"
    assert view.why(view.places[0], 2).startswith("0.01 from its group, ")
    assert view.groups[0].furthest == 0.01


def test_groups_that_were_found_by_updates_claim_no_distances() -> None:
    view = TaskView.of([_placed(a="group-1", b="group-1", c="group-2")])
    assert not view.compared
    assert view.why(view.places[0], 2) == ""
    assert [group.distances for group in view.groups] == ["", ""]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_distance_that_is_no_number_is_kept_in_the_record_and_shown_as_unknown(value: float) -> None:
    event = _altered(grouped(edges(4), [0, 0, 1, 1]), 0, own=value, next=value, map=(value, value))
    read = event_adapter.validate_json(event.model_dump_json())
    assert isinstance(read, TasksGrouped)
    assert str(read.tasks[0].own) == str(value)
    view = _view(run(edges(4), [read]))
    row = next(line for line in _lines(_printed(view)) if line[:1] == ["edge-0"])
    assert row[2:4] == ["–", "–"] if value != -math.inf else row[3] == "–"
    status = tasks_status(view, job="j", run="r", phase="succeeded").model_dump(mode="json")
    json.loads(json.dumps(status, allow_nan=False))


def test_what_a_group_takes_from_others_is_the_last_choice_and_its_reason() -> None:
    chosen = [
        TransferChosen(round=2, group="group-1", choice="none", reason="first"),
        TransferChosen(round=5, group="group-1", choice="borrow", reason="+0.02 ± 0.01"),
    ]
    first, second = TaskView.of([grouped(edges(2), [0, 1]), *chosen]).groups
    assert (first.transfer, first.reason) == ("borrow", "+0.02 ± 0.01")
    assert second.transfer is None


# --- what changed


def test_a_task_that_moves_is_named_with_its_groups() -> None:
    before, after = _placed(a="group-1", b="group-1", c="group-2"), _placed(a="group-1", b="group-2", c="group-2")
    assert _changes(before, after)[1] == "round 1: why: 2 groups; b group-1 → group-2"


def test_a_group_that_goes_into_another_is_told_as_one_change() -> None:
    before = _placed(a="group-1", b="group-2", c="group-2", d="group-3")
    after = _placed(a="group-1", b="group-1", c="group-1", d="group-1")
    assert _changes(before, after)[1] == "round 1: why: 1 group; group-2 joined group-1; group-3 joined group-1"


def test_tasks_that_go_together_to_a_new_group_have_moved_and_not_joined() -> None:
    before, after = _placed(a="group-1", b="group-2", c="group-2"), _placed(a="group-1", b="group-3", c="group-3")
    assert _changes(before, after)[1].endswith("2 groups; b group-2 → group-3; c group-2 → group-3")


def test_many_moves_are_counted_by_their_ways() -> None:
    before = _placed(**{f"e{i}": "group-1" for i in range(9)}, x="group-1", y="group-2")
    after = _placed(**{f"e{i}": f"group-{2 + i % 2}" for i in range(9)}, x="group-1", y="group-2")
    assert _changes(before, after)[1].endswith("9 moved (5 group-1 → group-2, 4 group-1 → group-3)")


def test_newcomers_and_the_gone_are_named() -> None:
    told = _changes(_placed(a="group-1", b="group-1"), _placed(a="group-1", c="group-1"))
    assert told[1] == "round 1: why: 1 group; new: c; gone: b"


def test_a_time_without_a_change_says_so() -> None:
    assert _changes(_placed(a="group-1"), _placed(a="group-1"))[1].endswith("no task moved")


# --- on a terminal


def test_each_task_is_printed_with_its_distances_and_what_its_edge_reaches() -> None:
    view = _view(run(edges(4), [grouped(edges(4), [0, 0, 1, 1])]))
    near = f"{view.tasks.places[1].next:.2f}"
    assert ["edge-1", "101", "0.01", near, "85.0%", "70.0%", "80.0%"] in _lines(_printed(view))


def test_a_run_that_goes_on_shows_the_scores_of_its_last_round() -> None:
    text = _printed(_view(run(edges(4), [grouped(edges(4), [0, 0, 1, 1])], finished=False)), phase="running")
    assert "cameras · run r · running, round 3 of 3" in text
    assert "after round 3" in text
    assert "60.0%" in text
    assert "alone" not in text


def test_an_edge_with_several_tasks_has_a_line_and_a_score_for_each() -> None:
    tasks = [("a", "summer"), ("a", "winter"), ("b", "winter")]
    text = _printed(_view(run(["a", "b"], [grouped(tasks, [0, 1, 1])], tasks=tasks)))
    lines = _lines(text)
    assert next(line for line in lines if line[:1] == ["a/summer"])[4:] == ["91.0%", "70.0%*", "80.0%*"]
    assert next(line for line in lines if line[:1] == ["a/winter"])[4:] == ["92.0%", "70.0%*", "80.0%*"]
    assert "over all tasks of the edge" in " ".join(text.split())


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_every_line_fits_the_terminal(width: int) -> None:
    names = [*edges(30), "a-camera-with-a-name-as-long-as-kubernetes-lets-a-name-be-63-ch"]
    tasks = [(name, task) for name in names for task in ("summer", "a winter that is long")]
    view = _view(run(names, [grouped(tasks, [i % 2 for i in range(len(tasks))])], tasks=tasks))
    view.take([TransferChosen(round=3, group="group-1", choice="none", reason="+0.0100 ± 0.0010 over one model")])
    assert max(map(len, _printed(view, width=width).splitlines())) <= width
    file = io.StringIO()
    print_groups(view.tasks, Console(file=file, width=width))
    assert max(map(len, file.getvalue().splitlines())) <= width


def test_of_many_tasks_and_groups_a_terminal_shows_the_largest_and_says_what_is_left_out() -> None:
    labels = [0] * 50 + [1 + i for i in range(30)]
    text = _printed(_view(run(edges(80), [grouped(edges(80), labels)])))
    assert "and 10 more; --json has them all" in text
    assert "and 19 groups with 19 tasks, each of 1" in text
    assert len(text.splitlines()) < 150


def test_many_changes_are_cut_to_the_last_ones() -> None:
    told = [grouped(edges(2), [0, i % 2], at_round=i, reason=f"reason {i}") for i in range(1, 21)]
    text = _printed(_view(run(edges(2), told, rounds=20)))
    assert "8 earlier times are left out here" in text
    assert "reason 20" in text
    assert "reason 8:" not in text


def test_names_from_other_machines_are_one_line_of_plain_text() -> None:
    tasks = [("a", EVIL), ("b", EVIL)]
    view = _view([*run(["a", "b"], [grouped(tasks, [0, 1])]), Warned(message=f"a has no labels: {EVIL}")])
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system=None)
    print_tasks(view, console, run="r", phase="succeeded")
    print_summary(view, console=console, model=None, report=None, next_commands=[])
    text = file.getvalue()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a/<script>�[bold]�" in text


def test_refused_signatures_and_missing_labels_are_told_below() -> None:
    notes = ["edge-1 gave no signature that can be used, and goes with the largest group: it is damaged"]
    notes += ["edge-2 has no labels: where it is compared, only inputs count", "the disk is nearly full"]
    event = _altered(grouped(edges(4), [0, 0, 1, 1]), 1, signed=False, own=0.0, next=None)
    text = _printed(_view([*run(edges(4), [event]), *(Warned(message=note) for note in notes)]), width=120)
    assert "it is damaged" in text
    assert "only inputs count" in text
    assert "disk" not in text
    assert next(line for line in _lines(text) if line[:1] == ["edge-1"])[2:4] == ["–", "–"]


def _started(algorithm: str) -> list[Event]:
    return [JobStarted(rounds=3, edges=["a"], algorithm=algorithm, min_edges=1)]


def test_a_run_without_groups_says_how_they_are_made() -> None:
    text = " ".join(_printed(_view(_started("fedavg"))).split())
    assert "this run has no groups of tasks: it aggregates with fedavg" in text
    assert "aggregation.algorithm: similarity-grouping" in text


def test_a_run_whose_edges_have_not_come_says_that_groups_are_still_to_be_found() -> None:
    view = _view(_started("similarity-grouping"))
    assert "no groups yet: they are found when the first edges have come" in _printed(view, phase="running")
    assert "the run ended before edges were grouped" in _printed(view, phase="failed")


# --- at the end of a run, while it goes on, and for programs


def test_a_run_ends_with_who_is_in_which_group_and_why() -> None:
    names = edges(12)
    view = _view(run(names, [grouped(names, [i % 3 for i in range(12)])]))
    view.take([TransferChosen(round=3, group="group-2", choice="none", reason="+0.20 ± 0.03 over one model for all")])
    file = io.StringIO()
    print_summary(view, console=Console(file=file, width=100), model=None, report=None, next_commands=[])
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[1] == "12 edges, 3 groups found"
    assert lines[2] == "  group-1  edge-0, edge-3, edge-6, edge-9"
    assert lines[3].strip().startswith("each at most 0.01 from the rest, at least ")
    assert "           a model of its own: +0.20 ± 0.03 over one model for all" in lines
    assert ["edge-4", "2", "104", "–", "90.0%", "–", "70.0%", "80.0%", "+10.0"] in [line.split() for line in lines]
    assert "12 edges went on alone at the end" in " ".join(file.getvalue().split())


@pytest.mark.parametrize("width", [40, 60, 72, 80, 120])
@pytest.mark.parametrize("terminal", [True, False])
def test_every_edge_is_named_on_a_terminal_of_any_width(width: int, terminal: bool) -> None:
    names = edges(12)
    view = _view(run(names, [grouped(names, [i % 3 for i in range(12)])]))
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_summary(view, console=console, model=None, report=None, next_commands=[])
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines if line.startswith("edge-")]
    assert [row[0] for row in rows] == names
    assert all({"90.0%", "70.0%", "80.0%"} <= set(row) for row in rows), "what groups gained is never left out"


def test_edges_that_all_have_the_same_two_tasks_are_still_shown_with_their_groups() -> None:
    tasks = [(edge, task) for edge in ("a", "b") for task in ("x", "y")]
    outcomes = Outcomes.of(_view(run(["a", "b"], [grouped(tasks, [0, 1, 0, 1])], tasks=tasks)))
    assert outcomes.has_groups
    assert [edge.group for edge in outcomes.edges] == ["1, 2", "1, 2"]
    assert [(t.task, t.group, t.after) for t in outcomes.edges[0].tasks] == [
        ("x", "group-1", 0.91),
        ("y", "group-2", 0.92),
    ]


def test_the_live_table_says_how_many_groups_there_are_and_what_they_chose() -> None:
    view = _view(run(edges(4), [grouped(edges(4), [0, 0, 1, 1])], finished=False))
    view.take([TransferChosen(round=3, group="group-1", choice="one", reason="-0.01 ± 0.02 over one model")])
    file = io.StringIO()
    Console(file=file, width=70).print(view.table())
    text = file.getvalue()
    assert "  4 edges, 2 groups found" in text
    assert "trained together, as it gains nothing apart" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 70


def test_programs_get_every_task_and_edge() -> None:
    names = edges(100)
    view = _view(run(names, [grouped(names, [i % 3 for i in range(100)])]))
    status = tasks_status(view, job="cameras", run="r", phase="succeeded")
    assert (status.headline, status.metric, status.round, status.nothing) == (
        "100 edges, 3 groups found",
        "accuracy",
        3,
        None,
    )
    assert [len(group.members) for group in status.groups] == [34, 33, 33]
    assert len(status.tasks) == 100
    edge = status.edges[7]
    assert (edge.groups, edge.model, edge.group_model, edge.one_model, edge.alone) == (["group-2"], 0.9, 0.85, 0.7, 0.8)
    assert status.signature_bytes == 100_000


def test_a_group_whose_name_only_a_plug_in_knows_is_shown_as_it_is() -> None:
    view = _view(run(["a", "b"], [_placed(a="north", b="group-")]))
    assert view.tasks.group_of("a") == "north"
    assert view.tasks.group_of("b") == "group-"
    assert view.tasks.group_of("nobody") is None
    assert "north  1 task" in _printed(view)
