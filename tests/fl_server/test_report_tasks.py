# SPDX-License-Identifier: Apache-2.0
"""The report's section on similar tasks."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from solar_corona.core.events import Event, JobFailed, TasksGrouped, TransferChosen, Warned
from solar_corona.core.run_folder import RunFolder
from solar_corona.core.spec import FederatedLearningJob
from solar_corona.fl_server.report import write_report
from solar_corona.tests.fl_server.grouped_runs import edges, grouped, run
from solar_corona.tests.fl_server.report_pages import Page

Floats = NDArray[np.floating[Any]]
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\n\u202e"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    path = tmp_path / "cameras" / "20260101-120000"
    path.mkdir(parents=True)
    return RunFolder(path)


def _page(folder: RunFolder, events: Sequence[Event]) -> Page:
    job = {
        "apiVersion": "solar-corona.io/v1alpha1",
        "kind": "FederatedLearningJob",
        "metadata": {"name": "cameras"},
        "spec": {"script": "train.py", "edges": [{"name": "edge-0", "trainData": "d.npz"}]},
    }
    with folder.events_file.open("w") as file:
        file.writelines(event.model_dump_json() + "\n" for event in events)
    write_report(folder, job=FederatedLearningJob.model_validate(job))
    return Page(folder.report.read_text(encoding="utf-8"))


def _images(folder: RunFolder) -> list[ET.Element]:
    """Return the page's SVG images; each is well-formed XML by itself."""
    html = folder.report.read_text(encoding="utf-8")
    found, depth, begin = [], 0, 0
    for tag in re.finditer(r"<svg\b[^>]*?(/?)>|</svg>", html):
        if tag[0] == "</svg>":
            depth -= 1
        elif not tag[1]:
            begin = tag.start() if depth == 0 else begin
            depth += 1
        if depth == 0:
            found.append(ET.fromstring(html[begin : tag.end()]))
    return found


def test_the_page_says_how_many_groups_were_found_and_shows_map_tree_and_tables(folder: RunFolder) -> None:
    names = edges(12)
    page = _page(folder, run(names, [grouped(names, [i % 3 for i in range(12)])]))
    assert "cameras trained 3 models, one for each group of similar tasks, over 12 edges" in page.text
    assert "12 edges, 3 groups found." in page.text
    assert "Each edge sent a signature of its data, 1,000 bytes" in page.text
    headings = [a.get("id") for tag, a in page.elements if tag == "h3"]
    assert [name for name in headings if name and name.startswith("task-")] == ["task-map", "task-tree"]
    assert re.search(r"edge-4 group-2 104 0\.01 \d\.\d\d 85\.0% 70\.0% 80\.0%", page.text)
    assert re.search(r"edge-4 2 104 50 – 90\.0% – 70\.0% 80\.0%", page.text), "the edges' table names groups too"
    assert len(_images(folder)) > 40


def test_each_group_has_a_card_with_its_members_scores_and_choice(folder: RunFolder) -> None:
    names = edges(6)
    chosen = TransferChosen(
        round=2, group="group-2", choice="shared-layers", reason="+0.12 ± 0.02 over one model for all"
    )
    page = _page(folder, run(names, [grouped(names, [0, 0, 0, 0, 1, 1]), chosen]))
    assert re.search(
        r"group-2 2 tasks, 209 samples edge-4, edge-5 .*?Its group’s model 85\.0% One model 70\.0% Alone 80\.0% "
        r"each at most 0\.01 from the rest, at least \d\.\d\d from the next "
        r"shares its early layers with groups of like inputs \+0\.12 ± 0\.02 over one model for all",
        page.text,
    )
    widths = [a.get("width") for tag, a in page.elements if tag == "rect" and "part" in (a.get("class") or "")]
    assert widths == ["85%", "70%", "80%"] * 2


def test_changes_are_drawn_and_told(folder: RunFolder) -> None:
    names = edges(6)
    told = [grouped(names, [0, 0, 0, 1, 1, 1]), grouped(names, [0, 0, 1, 1, 1, 1], at_round=3, reason="data changed")]
    page = _page(folder, run(names, told))
    assert "How groups changed" in page.text
    assert "round 3: data changed: 2 groups; edge-2 group-1 → group-2" in page.text
    assert page.count("path", "flow moved c0") == 1


def test_a_run_without_groups_has_no_such_section(folder: RunFolder) -> None:
    page = _page(folder, run(edges(2), [], algorithm="fedavg"))
    assert "Similar tasks" not in page.text
    assert ".tree" not in page.style
    assert "trained one model over 2 edges" in page.text


@pytest.mark.parametrize("count", [1, 2])
def test_few_tasks_in_one_group_are_one_model(folder: RunFolder, count: int) -> None:
    page = _page(folder, run(edges(count), [grouped(edges(count), [0] * count)]))
    assert f"{count} edge{'s' * (count > 1)}, 1 group found. " in page.text
    assert "one model serves all" in page.text
    assert "trained one model over" in page.text
    assert page.count("figure") == 4 + (2 if count > 1 else 0)


def test_what_edges_reached_before_they_went_on_alone_is_told(folder: RunFolder) -> None:
    page = _page(folder, run(edges(2), [grouped(edges(2), [0, 0])]))
    assert "Accuracy of each edge’s own model" in page.text
    assert "2 edges went on alone at the end; with the one model as it was, all edges have 85.0%." in page.text
    page = _page(folder, run(edges(2), [grouped(edges(2), [0, 1])]))
    assert "with the groups’ models as they were, all edges have 85.0%." in page.text


def test_groups_that_gained_nothing_apart_are_said_to_have_been_tried(folder: RunFolder) -> None:
    names = edges(4)
    told = [grouped(names, [0, 0, 1, 1]), grouped(names, [0] * 4, at_round=2)]
    chosen = [TransferChosen(round=2, group=f"group-{i}", choice="one", reason="+0.00 ± 0.01") for i in (1, 2)]
    page = _page(folder, run(names, [*told, *chosen]))
    assert "Held-out samples were no better off with groups apart, so one model serves all." in page.text
    assert "group-2 joined group-1" in page.text


def test_a_thousand_tasks_make_a_page_that_is_readable_and_small(folder: RunFolder) -> None:
    names = edges(1000)
    page = _page(folder, run(names, [grouped(names, [i % 7 for i in range(1000)])]))
    assert folder.report.stat().st_size < 1_500_000
    assert sum(1 for tag, a in page.elements if tag == "svg" and (a.get("class") or "").startswith("point")) == 1000
    assert "These are the 500 tasks nearest to another group; 500 more are left out." in page.text


def test_a_fleet_of_ten_thousand_groups_makes_a_small_page(folder: RunFolder) -> None:
    names = edges(10_000)
    first = grouped(names[:2], [0, 1])
    tasks = [first.tasks[0].model_copy(update={"edge": n, "group": f"group-{i}"}) for i, n in enumerate(names)]
    page = _page(folder, run(names, [first.model_copy(update={"tasks": tasks, "tree": []})], rounds=1))
    assert folder.report.stat().st_size < 2_000_000
    assert "9,988 smaller ones are in the table below" in page.text


def test_hostile_names_are_text_and_never_markup(folder: RunFolder) -> None:
    tasks = [("edge-0", EVIL), ("edge-1", EVIL), ("edge-2", "all")]
    event = grouped(tasks, [0, 0, 1])
    event = event.model_copy(
        update={"reason": EVIL, "tasks": [t.model_copy(update={"group": EVIL + t.group}) for t in event.tasks]}
    )
    moved = event.model_copy(
        update={"round": 2, "tasks": [t.model_copy(update={"group": event.tasks[2].group}) for t in event.tasks]}
    )
    chosen = TransferChosen(round=2, group=event.tasks[2].group, choice=EVIL, reason=EVIL)
    page = _page(folder, [*run(edges(3), [event, moved, chosen]), Warned(message=f"has no labels {EVIL}")])
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert page.text.count("<script>alert(1)</script>") >= 5
    for tag, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs), tag
        assert not {"src", "href", "style"} & set(attrs), tag
    _images(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_distances_that_are_no_usable_numbers_do_not_reach_a_picture(folder: RunFolder, value: float) -> None:
    names = edges(4)
    event = grouped(names, [0, 0, 1, 1])
    first = event.tasks[0].model_copy(update={"own": value, "next": value, "map": (value, value)})
    event = event.model_copy(update={"tasks": [first, *event.tasks[1:]], "tree": [(0, 1, value), (2, 3, 0.0)]})
    _page(folder, run(names, [event]))
    for image in _images(folder):
        for element in image.iter():
            told = " ".join(
                v for k, v in element.attrib.items() if k in ("x", "y", "x1", "x2", "y1", "y2", "d", "width")
            )
            assert not re.search(r"nan|inf|e\+", told)


def test_a_run_that_failed_shows_its_groups_and_the_scores_of_its_last_round(folder: RunFolder) -> None:
    names = edges(4)
    events = run(names, [grouped(names, [0, 0, 1, 1])], finished=False)
    page = _page(folder, [*events, JobFailed(error="edge-1 is gone", exit_code=1)])
    assert "cameras failed in round 3 of 3" in page.text
    assert "Accuracy after round 3, as no edge has got the final model." in page.text
    assert re.search(r"Its group’s model 60\.0% (?!One)", page.text)


def test_groups_found_by_updates_have_neither_map_nor_tree(folder: RunFolder) -> None:
    names = edges(4)
    event = grouped(names, [0, 0, 1, 1])
    event = TasksGrouped(round=1, reason="updates were clustered", tasks=event.tasks)
    page = _page(folder, run(names, [event], algorithm="fl-hc"))
    assert "there are no signatures to compare" in page.text
    assert "Map of task signatures" not in page.text
    assert "To its group" not in page.text


def test_tasks_without_labels_or_signatures_are_marked_in_the_table(folder: RunFolder) -> None:
    names = edges(4)
    event = grouped(names, [0, 0, 1, 1])
    tasks = [
        event.tasks[0].model_copy(update={"labelled": False}),
        event.tasks[1].model_copy(update={"signed": False, "own": 0.0, "next": None}),
        *event.tasks[2:],
    ]
    page = _page(folder, run(names, [event.model_copy(update={"tasks": tasks})]))
    assert "edge-0 no labels: only inputs are compared group-1" in page.text
    assert "edge-1 no signature: goes by its updates group-1 101 – –" in page.text


def test_an_edge_with_several_tasks_has_a_line_and_a_score_for_each(folder: RunFolder) -> None:
    tasks = [("a", "summer"), ("a", "winter"), ("b", "winter")]
    page = _page(folder, run(["a", "b"], [grouped(tasks, [0, 1, 1])], tasks=tasks))
    assert re.search(r"a/summer group-1 100 – \d\.\d\d 91\.0% 70\.0%\* 80\.0%\*", page.text)
    assert re.search(r"a/winter group-2 101 0\.01 \d\.\d\d 92\.0% 70\.0%\* 80\.0%\*", page.text)
    assert "*: over all tasks of the edge" in page.text


def test_pictures_have_texts_and_the_policy_covers_the_whole_style_sheet(folder: RunFolder) -> None:
    names = edges(6)
    told = [grouped(names, [0, 0, 0, 1, 1, 1]), grouped(names, [0, 0, 1, 1, 1, 1], at_round=2)]
    page = _page(folder, run(names, told))
    images = [a.get("aria-label") or "" for _, a in page.elements if a.get("role") == "img"]
    assert len(images) == 7
    assert all(images)
    assert page.count("caption") == page.count("table")
    assert all(a.get("scope") in ("row", "col") for tag, a in page.elements if tag == "th")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    labelled = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(labelled) <= set(ids)
    policy = next(a["content"] or "" for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in policy
    assert "url(" not in page.style


def test_every_class_of_the_pictures_has_a_rule_in_the_style_sheet(folder: RunFolder) -> None:
    names = edges(8)
    told = [grouped(names, [i % 7 for i in range(8)]), grouped(names, [i % 6 for i in range(8)], at_round=2)]
    page = _page(folder, run(names, told))
    used = {name for _, attrs in page.elements for name in (attrs.get("class") or "").split()}
    ruled = set(re.findall(r"\.([a-z][\w-]*)", page.style))
    assert used - ruled <= {"key", "disc", "sun", "warning", "left-out"}


# How colours look to who lacks one kind of cones (Machado, Oliveira and Fernandes 2009), on linear RGB.
_SIGHTS = {
    "all cones": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _linear(colour: str) -> Floats:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(linear: Floats) -> Floats:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x = to_xyz @ np.clip(linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_groups_stand_out_and_differ_for_every_kind_of_sight(folder: RunFolder, scheme: str) -> None:
    style = _page(folder, run(edges(2), [grouped(edges(2), [0, 1])])).style
    part = style.partition("@media")[2 if scheme == "dark" else 0]
    card, *colours = [
        re.findall(rf"--{name}: (#\w{{6}})", part)[0] for name in ("card", "c0", "c1", "c2", "c3", "c4", "c5")
    ]
    light = [float(_linear(colour) @ [0.2126, 0.7152, 0.0722]) + 0.05 for colour in (card, *colours)]
    assert min(max(light[0], one) / min(light[0], one) for one in light[1:]) >= 3, "WCAG 2.2, 1.4.11"
    for sight, matrix in _SIGHTS.items():
        seen = [_lab(np.array(matrix) @ _linear(colour)) for colour in colours]
        apart = min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))
        assert apart > 20, sight
