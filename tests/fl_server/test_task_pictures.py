# SPDX-License-Identifier: Apache-2.0
"""The map of signatures, the group tree, and how groups changed."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.events import TaskPlace, TasksGrouped
from solar_corona.fl_server.task_flows import task_flows
from solar_corona.fl_server.task_map import task_map
from solar_corona.fl_server.task_pictures import Marks, fitting
from solar_corona.fl_server.task_tree import task_tree
from solar_corona.fl_server.task_view import TaskView
from solar_corona.tests.fl_server.grouped_runs import edges, grouped

numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


def _marks(view: TaskView) -> Marks:
    return Marks(place.group for event in view.told for place in event.tasks)


def _view(*told: TasksGrouped) -> TaskView:
    return TaskView.of(told)


@st.composite
def events(draw: st.DrawFn) -> TasksGrouped:
    """Events that a server of another version, or a broken one, may have written."""
    count = draw(st.integers(0, 12))
    places = [
        TaskPlace(
            edge=draw(st.sampled_from(["a", "b", "c", "<b>"])),
            task=draw(st.sampled_from(["all", "x", "y", "\n"])),
            group=f"group-{draw(st.integers(1, 4))}",
            samples=draw(st.integers(0, 5)),
            own=draw(numbers),
            next=draw(st.none() | numbers),
            map=(draw(numbers), draw(numbers)),
            signed=draw(st.booleans()),
        )
        for _ in range(count)
    ]
    node = st.integers(-1, 2 * count + 1)
    tree = draw(st.lists(st.tuples(node, node, numbers), max_size=2 * count))
    return TasksGrouped(round=draw(st.integers(1, 5)), reason="r", tasks=places, tree=tree, signature_bytes=9)


@given(st.lists(events(), min_size=1, max_size=4))
def test_whatever_a_record_says_nothing_is_drawn_outside_its_plot(told: list[TasksGrouped]) -> None:
    view = _view(*told)
    marks = _marks(view)
    found = task_map(view, marks)
    for point in found.points if found is not None else ():
        assert 0 <= float(point.x) <= 100
        assert 0 <= float(point.y) <= 100
    tree = task_tree(view, marks)
    for line in tree.lines if tree is not None else ():
        assert 0 <= float(line.x1) <= float(line.x2) <= 100
        assert tree is not None
        assert {float(line.y1), float(line.y2)} <= {y / 10 for y in range(int(10 * float(tree.height)) + 1)}
    flows = task_flows(view, marks)
    for band in flows.bands if flows is not None else ():
        assert not re.search("nan|inf", band.path)
        assert all(-0.1 <= float(y) <= 240.1 for y in re.findall(r",(-?[\d.]+)", band.path))


# --- marks


def test_36_groups_have_marks_that_differ_and_neighbours_differ_in_colour_and_shape() -> None:
    names = [f"group-{i + 1}" for i in range(36)]
    found = [Marks(names)[name] for name in names]
    assert len(set(found)) == 36
    for one, other in pairwise(found):
        assert one.colour != other.colour
        assert one.path != other.path


def test_a_group_has_the_same_mark_whatever_order_it_is_met_in() -> None:
    assert (
        Marks(["group-2", "group-10", "group-1"])["group-10"] == Marks(["group-1", "group-2", "group-10"])["group-10"]
    )


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    assert fitting("camera-harbour-north/summer", 16) == "camera-…h/summer"
    assert all(len(fitting("x" * n, 9)) <= 9 for n in range(30))


# --- the map


def test_tasks_that_are_alike_lie_near_each_other_and_others_far() -> None:
    view = _view(grouped(edges(8), [i % 2 for i in range(8)]))
    found = task_map(view, _marks(view))
    assert found is not None
    at = [(4.8 * float(p.x), 3.2 * float(p.y)) for p in found.points]
    assert max(math.dist(at[0], at[i]) for i in (2, 4, 6)) < 30 < 150 < min(math.dist(at[0], at[i]) for i in (1, 3))
    assert [label.text for label in found.labels if label.kind == "group"] == ["group-1", "group-2"]
    assert {p.mark.colour for p in found.points} == {"c0", "c1"}


def test_each_task_of_a_few_that_lie_apart_is_named() -> None:
    view = _view(grouped(edges(4), [0, 1, 2, 3]))
    found = task_map(view, _marks(view))
    assert found is not None
    assert sorted(label.text for label in found.labels if label.kind == "task") == edges(4)


def test_tasks_that_lie_too_close_to_be_named_apart_are_named_together() -> None:
    names = edges(6)
    event = grouped(names, [0] * 3 + [1] * 3)
    tasks = [place.model_copy(update={"map": (float(i // 3), 0.001 * i)}) for i, place in enumerate(event.tasks)]
    view = _view(event.model_copy(update={"tasks": tasks}))
    found = task_map(view, _marks(view))
    assert found is not None
    assert sorted(label.text for label in found.labels if label.kind == "task") == [
        "edge-0, edge-1, edge-2",
        "edge-3, edge-4, edge-5",
    ]


def test_no_two_names_on_the_map_cover_each_other() -> None:
    view = _view(grouped(edges(30), [i % 9 for i in range(30)]))
    found = task_map(view, _marks(view))
    assert found is not None
    boxes = []
    for label in found.labels:
        x, y, wide = 4.8 * float(label.x), 3.2 * float(label.y), 6.5 * len(label.text)
        left = {"start": x, "middle": x - wide / 2, "end": x - wide}[label.anchor]
        boxes.append((left, y - 10, left + wide, y))
    for i, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:i])


def test_a_map_of_thousands_is_thinned_evenly_over_groups_and_says_so() -> None:
    names = edges(3000)
    event = grouped(names[:2], [0, 1])
    tasks = [
        event.tasks[0].model_copy(update={"edge": name, "group": f"group-{1 + (i < 300)}", "map": (i / 3000, i % 7)})
        for i, name in enumerate(names)
    ]
    view = _view(event.model_copy(update={"tasks": tasks, "tree": []}))
    found = task_map(view, _marks(view))
    assert found is not None
    assert len(found.points) == 1000
    assert 95 <= sum(1 for point in found.points if point.mark.colour == "c1") <= 105
    assert found.dense
    assert "1,000 of 3,000 tasks are drawn" in found.note


def test_one_task_has_no_map_and_no_tree() -> None:
    view = _view(grouped(edges(1), [0]))
    assert task_map(view, _marks(view)) is None
    assert task_tree(view, _marks(view)) is None


def test_two_tasks_at_one_place_are_drawn() -> None:
    event = grouped(edges(2), [0, 0])
    view = _view(event.model_copy(update={"tasks": [t.model_copy(update={"map": (0.5, 0.5)}) for t in event.tasks]}))
    found = task_map(view, _marks(view))
    assert found is not None
    assert [(p.x, p.y) for p in found.points] == [("50", "50")] * 2


@pytest.mark.parametrize("value", [1.7e308, -math.inf, math.nan])
def test_a_place_that_is_no_place_is_left_out(value: float) -> None:
    event = grouped(edges(4), [0, 0, 1, 1])
    tasks = [event.tasks[0].model_copy(update={"map": (value, value)}), *event.tasks[1:]]
    view = _view(event.model_copy(update={"tasks": tasks}))
    found = task_map(view, _marks(view))
    assert found is not None
    assert len(found.points) == 3
    assert all(0 < float(p.x) < 100 for p in found.points)


def test_a_task_without_a_signature_is_not_on_the_map() -> None:
    event = grouped(edges(4), [0, 0, 1, 1])
    tasks = [event.tasks[0].model_copy(update={"signed": False}), *event.tasks[1:]]
    view = _view(event.model_copy(update={"tasks": tasks}))
    found = task_map(view, _marks(view))
    assert found is not None
    assert len(found.points) == 3
    assert found.note == "1 task is left out, without a signature"


# --- the tree


def test_the_tree_joins_tasks_below_the_threshold_and_groups_above_it() -> None:
    view = _view(grouped(edges(6), [0, 0, 0, 1, 1, 1]))
    tree = task_tree(view, _marks(view))
    assert tree is not None
    assert sorted(row.text for row in tree.rows) == edges(6)
    joins = [line for line in tree.lines if line.x1 == line.x2]
    assert len(joins) == 5
    beyond = [line for line in joins if float(line.x1) > float(tree.threshold)]
    assert [line.kind for line in beyond] == ["above"]
    assert {line.kind for line in joins} - {"above"} == {"c0", "c1"}
    assert "0.1" in [tick.text for tick in tree.ticks]


def test_rows_of_one_group_stand_together() -> None:
    view = _view(grouped(edges(12), [i % 3 for i in range(12)]))
    tree = task_tree(view, _marks(view))
    assert tree is not None
    colours = [row.mark.colour for row in tree.rows]
    assert len([1 for a, b in pairwise(colours) if a != b]) == 2


def test_a_tree_of_a_thousand_tasks_has_a_row_for_each_group() -> None:
    view = _view(grouped(edges(1000), [i % 7 for i in range(1000)]))
    tree = task_tree(view, _marks(view))
    assert tree is not None
    assert sorted(row.title for row in tree.rows) == sorted(f"group-{i + 1}: {143 - (i > 5)} tasks" for i in range(7))
    assert len([line for line in tree.lines if line.kind.startswith("bundle")]) == 7


def test_a_tree_of_a_thousand_groups_is_cut_to_what_a_page_can_show() -> None:
    view = _view(grouped(edges(1000), list(range(1000))))
    tree = task_tree(view, _marks(view))
    assert tree is not None
    assert len(tree.rows) == 40
    counts = [
        int(found[1].replace(",", "")) if (found := re.search(r": ([\d,]+) task", row.title)) else 1
        for row in tree.rows
    ]
    assert sum(counts) == 1000


def test_groups_that_share_no_class_are_trees_of_their_own() -> None:
    event = grouped(edges(5), [0, 0, 1, 1, 2]).model_copy(update={"tree": [(0, 1, 0.01), (2, 3, 0.02)]})
    tree = task_tree(_view(event), _marks(_view(event)))
    assert tree is not None
    assert len(tree.rows) == 4
    assert [line.text for line in tree.lines if line.kind == "open"] == ["shares no class with the others"] * 2
    assert tree.note.startswith("not in the tree: edge-4 (")


def test_what_was_merged_later_is_drawn_no_nearer() -> None:
    event = grouped(edges(3), [0, 0, 0]).model_copy(update={"tree": [(0, 1, 0.05), (3, 2, 0.01)]})
    tree = task_tree(_view(event), _marks(_view(event)))
    assert tree is not None
    assert all(float(line.x1) <= float(line.x2) for line in tree.lines)


@pytest.mark.parametrize(
    "tree",
    [[(0, 0, 0.1)], [(0, 9, 0.1)], [(0, 1, 0.1), (0, 2, 0.1)], [(0, 4, 0.1), (1, 2, 0.1)], [(-1, 0, 0.1)]],
    ids=["itself", "unknown", "twice", "before-it-is-made", "negative"],
)
def test_merges_that_are_no_tree_are_not_drawn(tree: list[tuple[int, int, float]]) -> None:
    view = _view(grouped(edges(3), [0, 0, 1]).model_copy(update={"tree": tree}))
    assert task_tree(view, _marks(view)) is None


def test_a_chain_of_merges_a_thousand_deep_is_drawn() -> None:
    chain = [(0, 1, 0.001), *((1000 + i - 1, i + 1, 0.001 * (i + 1)) for i in range(1, 999))]
    event = grouped(edges(2), [0, 0])
    tasks = [event.tasks[0].model_copy(update={"edge": name, "group": name}) for name in edges(1000)]
    view = _view(event.model_copy(update={"tasks": tasks, "tree": chain}))
    tree = task_tree(view, _marks(view))
    assert tree is not None
    assert len(tree.rows) == 40


# --- how groups changed


def test_groups_that_never_changed_are_not_drawn_again_and_again() -> None:
    told = [grouped(edges(4), [0, 0, 1, 1], at_round=i) for i in (1, 4, 9)]
    assert task_flows(_view(*told), _marks(_view(*told))) is None


def test_each_way_that_tasks_went_is_a_band_as_high_as_they_are_many() -> None:
    told = [grouped(edges(4), [0, 0, 0, 1]), grouped(edges(4), [0, 0, 1, 1], at_round=6)]
    flows = task_flows(_view(*told), _marks(_view(*told)))
    assert flows is not None
    bands = {band.text.partition(": ")[2]: band for band in flows.bands if "flow" in band.kind}
    assert set(bands) == {
        "2 tasks stay in group-1: edge-0, edge-1",
        "1 task from group-1 to group-2: edge-2",
        "1 task stay in group-2: edge-3",
    }
    assert bands["1 task from group-1 to group-2: edge-2"].kind == "flow moved c0"
    assert [label.text for label in flows.left] == ["group-1 · 3", "group-2 · 1"]
    assert [label.text for label in flows.right] == ["group-1 · 2", "group-2 · 2"]
    assert [label.text for label in flows.times] == ["1", "6"]
    assert "1 task moved on the way" in flows.description


def test_bands_that_leave_one_group_lie_below_each_other() -> None:
    told = [grouped(edges(4), [0, 0, 0, 0]), grouped(edges(4), [0, 0, 1, 1], at_round=6)]
    flows = task_flows(_view(*told), _marks(_view(*told)))
    assert flows is not None
    starts = [band.path.partition("C")[0] for band in flows.bands if "flow" in band.kind]
    assert starts == ["M14,0", "M14,120"]


def test_of_many_changes_the_first_the_last_and_the_largest_are_drawn() -> None:
    told = [grouped(edges(9), [0] * 9)]
    told += [grouped(edges(9), [int(i % 10 == k) for k in range(9)], at_round=i) for i in range(2, 30)]
    told.append(grouped(edges(9), [1] * 9, at_round=40))
    flows = task_flows(_view(*told), _marks(_view(*told)))
    assert flows is not None
    assert len(flows.times) == 8
    assert (flows.times[0].text, flows.times[-1].text) == ("1", "40")
    assert "of" in flows.note


def test_groups_beyond_the_largest_are_drawn_as_one() -> None:
    told = [
        grouped(edges(40), [i % 20 for i in range(40)]),
        grouped(edges(40), [i % 19 for i in range(40)], at_round=2),
    ]
    flows = task_flows(_view(*told), _marks(_view(*told)))
    assert flows is not None
    assert len([band for band in flows.bands if band.kind.startswith("node")]) == 22
    assert any("other groups" in band.text for band in flows.bands)
