# SPDX-License-Identifier: Apache-2.0
"""A server finds the tasks that edges mix from what they answer, and is none the worse for those that do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solar_corona.core.errors import SolarCoronaError
from solar_corona.core.spec import Tasks
from solar_corona.fl_client.edge_data import EdgeData
from solar_corona.fl_client.task_discovery import Discovered, TaskDiscovery
from solar_corona.lib.discovery import Step
from solar_corona.lib.questions import Question, Response
from solar_corona.lib.signatures import SignatureSpec
from solar_corona.strategies.task_search import TaskSearch

CENTRES = np.random.default_rng(3).normal(size=(4, 5, 24)) * 1.6


def made(x, y, chunk):
    data = EdgeData((x, y), tasks=Tasks(division="discovery", chunk=chunk))
    data.discovery = TaskDiscovery()
    return data


def edge(tasks, seed, *, chunk=10, labels=True, strays=0.0):
    """An edge whose stream has a chunk of each of `tasks` in turn, and the task of each sample."""
    rng = np.random.default_rng(seed)
    task = np.repeat(tasks, 10)
    stray = rng.random(len(task)) < strays
    task[stray] = rng.permutation(task)[stray]
    y = rng.integers(0, 5, len(task))
    x = (CENTRES[task, y] + rng.normal(size=(len(task), 24))).astype(np.float32)
    data = made(x, y, chunk)
    if not labels:
        samples = data.samples
        data.samples = lambda which, anew=False: replace(samples(which, anew=anew), y=None)
    return data, task


def fleet(count=8, tasks=2, *, chunk=10, chunks=20, **more):
    """Edges that mix tasks, each in shares of its own."""
    found = {}
    for i in range(count):
        rng = np.random.default_rng(i)
        mixed = rng.permutation(tasks)[:2]
        found[f"edge-{i}"] = edge(
            mixed[(rng.random(chunks) < rng.uniform(0.25, 0.75)) % len(mixed)], i, chunk=chunk, **more
        )
    return found


def answer(question, data):
    """What comes back from an edge, by way of messages' contents."""
    try:
        response = data.discovery.answer(Question.from_content(question.to_content()), data)
    except SolarCoronaError as error:
        response = Response(question.kind, refused=str(error))
    return Response.from_content(response.to_content())


def search(edges, *, answers=lambda step, name, response: response, spec=None):
    """Go through a whole search and return it; `answers` may change or withhold what an edge says."""
    found = TaskSearch(spec or SignatureSpec())
    steps = []
    while not found.done:
        question = found.question()
        steps.append(question.step)
        asked = edges if found.edges is None else {n: edges[n] for n in edges if n in found.edges}
        said = {n: answers(question.step, n, answer(question.to_question(), data)) for n, (data, _) in asked.items()}
        found.take({name: response for name, response in said.items() if response is not None})
        assert len(steps) < 60
    found.steps = steps
    return found


def share_right(found, edges):
    """Share of samples that are of the task that most samples under the same name are of, and how many names."""
    named = {}
    for data, task in edges.values():
        samples = data.samples("train")
        for name, true in zip(
            Discovered(found.found, data.rules.chunk)(samples.x, samples.y).tolist(), task, strict=True
        ):
            named.setdefault(name, []).append(true)
    right = sum(np.bincount(tasks).max() for tasks in named.values())
    return right / sum(map(len, named.values())), len(named)


@pytest.mark.parametrize(("tasks", "count"), [(2, 6), (3, 10), (4, 16)])
def test_tasks_that_take_turns_in_chunks_are_found_with_their_number(tasks, count):
    edges = fleet(count, tasks)
    found = search(edges)
    assert share_right(found, edges) == (1.0, tasks)
    assert found.found.purity == 1.0


@pytest.mark.parametrize(("tasks", "count"), [(2, 10), (3, 16)])
def test_tasks_are_found_without_chunks_where_edges_mix_them_in_other_shares(tasks, count):
    edges = fleet(count, tasks, chunk=None, chunks=40)
    found = search(edges)
    right, names = share_right(found, edges)
    assert names == tasks
    assert right > 0.95
    assert Step.PULL not in found.steps


def test_strays_within_chunks_are_given_to_their_own_task():
    edges = fleet(10, 2, chunks=40, strays=0.4)  # two fifths drawn anew: about a fifth are of the other task
    found = search(edges)
    assert 0.7 < found.found.purity < 0.9
    right, names = share_right(found, edges)
    assert names == 2
    assert right > 0.95


def test_all_tasks_in_the_same_shares_on_every_edge_are_found_by_chunks_and_cannot_be_without():
    edges = {f"edge-{i}": edge(np.arange(24) % 3, i) for i in range(8)}
    assert share_right(search(edges), edges) == (1.0, 3)
    edges = {f"edge-{i}": edge(np.arange(24) % 3, i, chunk=None) for i in range(8)}
    assert search(edges).found is None


@pytest.mark.parametrize("chunk", [None, 10])
@pytest.mark.parametrize("count", [1, 2, 8, 30])
def test_one_task_is_none_to_be_told_apart(chunk, count):
    assert search({f"edge-{i}": edge(np.zeros(20, int), i, chunk=chunk) for i in range(count)}).found is None


@pytest.mark.parametrize("chunk", [None, 10])
def test_edges_of_one_task_each_show_the_tasks_as_well(chunk):
    edges = {f"edge-{i}": edge(np.full(20, i % 2), i, chunk=chunk) for i in range(8)}
    found = search(edges)
    assert share_right(found, edges) == (1.0, 2)


def test_without_labels_inputs_tell():
    edges = fleet(10, 2, labels=False, chunks=30)
    right, names = share_right(search(edges), edges)
    assert names == 2
    assert right > 0.9


def test_where_only_some_edges_have_labels_inputs_tell():
    edges = {**fleet(10, 2, chunks=30), "edge-3": edge(np.arange(30) % 2, 3, labels=False)}
    found = search(edges)
    assert found.spec.use_labels is False
    assert found.steps[:2] == [Step.SUMS, Step.SUMS]
    assert share_right(found, edges)[1] == 2


def test_the_order_in_which_edges_answer_changes_nothing():
    edges = fleet(6)
    one, other = search(edges).found, search(dict(reversed(edges.items()))).found
    np.testing.assert_allclose(one.places, other.places, rtol=1e-6)


def test_names_go_on_from_those_that_were_given_before():
    found = TaskSearch(SignatureSpec(), first=5)
    edges = fleet(6)
    while not found.done:
        question = found.question().to_question()
        found.take({name: answer(question, data) for name, (data, _) in edges.items()})
    assert found.found.names == ("task-5", "task-6")


def gone(step, name, response, *, missing, at):
    return None if name in missing and step is at else response


@pytest.mark.parametrize("at", [Step.SUMS, Step.PULL, Step.CLUSTERS, Step.FIT])
def test_the_rest_of_a_fleet_finds_the_tasks_when_half_of_it_leaves(at):
    edges = fleet(12)
    missing = {f"edge-{i}" for i in range(6)}
    found = search(edges, answers=lambda *args: gone(*args, missing=missing, at=at))
    assert share_right(found, edges) == (1.0, 2)
    assert not found.edges & missing, "who has not answered is not waited for again"


@pytest.mark.parametrize("at", list(Step))
def test_a_search_that_nobody_answers_ends_with_nothing(at):
    edges = fleet(4)
    found = search(edges, answers=lambda *args: gone(*args, missing=set(edges), at=at))
    assert found.found is None


BROKEN = {
    "refused": lambda r: Response("discovery", refused="this edge will not say"),
    "nothing": lambda r: Response("discovery"),
    "not finite": lambda r: Response(
        "discovery", "{}", {n: np.full_like(v, np.nan) if v.dtype.kind == "f" else v for n, v in r.arrays.items()}
    ),
    "other shape": lambda r: Response("discovery", "{}", {n: v[..., :-1] for n, v in r.arrays.items()}),
    "absurd": lambda r: Response(
        "discovery", "{}", {n: v * -1e4 if v.dtype.kind == "f" else v for n, v in r.arrays.items()}
    ),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("at", list(Step))
def test_answers_that_cannot_be_used_are_left_out_and_told(how, at):
    edges = fleet(8)

    def broken(step, name, response):
        return BROKEN[how](response) if name == "edge-2" and step is at else response

    found = search(edges, answers=broken)
    assert share_right(found, edges) == (1.0, 2)
    if how != "absurd" or at is not Step.CLUSTERS:
        assert found.refused.keys() == {"edge-2"}


def test_an_edge_that_claims_a_million_samples_does_not_drown_the_others():
    edges = fleet(12)

    def giant(step, name, response):
        if name != "edge-2":
            return response
        grown = {
            n: v * 10_000 if n in ("counts", "samples", "square", "loyal") else v for n, v in response.arrays.items()
        }
        return Response("discovery", "{}", grown)

    found = search(edges, answers=giant)
    assert share_right(found, edges)[0] > 0.98


def test_edges_that_divide_their_stream_otherwise_take_no_part():
    edges = {**fleet(8), "edge-8": edge(np.arange(20) % 2, 8, chunk=5)}
    found = search(edges)
    assert "edge-8" not in found.edges
    assert share_right(found, {n: e for n, e in edges.items() if n != "edge-8"}) == (1.0, 2)


@pytest.mark.parametrize("chunk", [None, 10])
def test_odd_edges_do_not_stop_the_search(chunk):
    edges = fleet(12, chunk=chunk, chunks=40)
    x, y = edges["edge-0"][0].samples("train").x, edges["edge-0"][0].samples("train").y
    odd = {
        "one-sample": made(x[:1], y[:1], chunk),
        "no-sample": made(x[:0], y[:0], chunk),
        "one-class": made(x[y == 0], y[y == 0], chunk),
        "constant": made(np.ones((90, 24), np.float32), np.zeros(90, np.int64), chunk),
        "own-classes": made(x, y + 50, chunk),
    }
    found = search({**edges, **{name: (data, None) for name, data in odd.items()}})
    right, names = share_right(found, edges)
    assert right > 0.85
    assert names >= 2
    assert found.refused.keys() >= {"one-sample", "no-sample"}
