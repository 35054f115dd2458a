# SPDX-License-Identifier: Apache-2.0
"""Edges that have little to say, say what cannot be, or what is not theirs: the job goes on, and all are told."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks._simulation import Edge, Mlp, simulate
from solar_corona.core.errors import StrategySpecError, WireError
from solar_corona.core.events import TasksGrouped
from solar_corona.fl_client import survey
from solar_corona.lib.questions import Response
from solar_corona.lib.signature_format import UNLABELLED
from solar_corona.lib.signatures import InputMoments, Signature, SignatureSpec, sign
from solar_corona.lib.survey import SurveyAnswer, TaskAbout
from solar_corona.strategies import create
from solar_corona.strategies.task_groups import TaskGroups
from solar_corona.tests.strategies.fleets import by_task, edge, finals, fleet, groups_in, samples, warnings_in


def ours(rounds=2, **options):
    return create("similarity-grouping", options, min_edges=1, job={"rounds": rounds})


@pytest.fixture
def answers(monkeypatch):
    """Let an edge answer otherwise than it would; count who is asked how often."""
    changes, asked = {}, []
    real, looks = survey.Survey.respond, survey.Survey.look_again

    def respond(self, question):
        asked.append(self._edge)
        response = real(self, question)
        return changes[self._edge](response) if self._edge in changes else response

    def look_again(self, known=None):
        return None if self._edge in changes else looks(self, known)

    monkeypatch.setattr(survey.Survey, "respond", respond)
    monkeypatch.setattr(survey.Survey, "look_again", look_again)
    changes["asked"] = asked
    return changes


def signed(**changes):
    """An answer whose signatures are changed."""

    def change(response):
        parts = [Signature.from_bytes(part) for part in response.parts]
        with np.errstate(over="ignore"):
            new = tuple(replace(s, **{k: f(getattr(s, k)) for k, f in changes.items()}).to_bytes() for s in parts)
        return Response("survey", response.text, parts=new)

    return change


class Bare:
    def to_content(self):
        return RecordDict({"x": ConfigRecord({"no": "answer"})})


BROKEN = {
    "cut": (lambda r: Response("survey", r.text, parts=tuple(p[:-3] for p in r.parts)), "it was cut on its way"),
    "noise": (lambda r: Response("survey", r.text, parts=tuple(b"\xff" * len(p) for p in r.parts)), "begins with"),
    "version": (
        lambda r: Response("survey", r.text, parts=tuple(p[:4] + b"\x02" + p[5:] for p in r.parts)),
        "version 2, expected b'SCSG' version 1; update both sides to the same version",
    ),
    "another spec": (signed(identity=lambda i: i ^ 1), "was made in another way than the job's"),
    "dimension": (
        signed(means=lambda m: m[:, :16].astype(np.float16).astype(np.float32)),
        "was made in another way than the job's",
    ),
    "length": (lambda r: Response("survey", r.text, parts=tuple(p + p for p in r.parts)), "bytes, expected"),
    "NaN": (signed(means=lambda m: m * np.float32("nan")), "has means that are not finite numbers"),
    "absurd means": (signed(means=lambda m: m + np.float32(1e6)), "has means beyond what a cosine can give"),
    "absurd spread": (signed(traces=lambda t: t + np.float32(99)), "has a variance beyond what a cosine can give"),
    "absurd noise": (signed(noise=lambda n: n - np.float32(1)), "has a negative or absurd noise"),
    "absurd counts": (signed(counts=lambda n: n * 1000), "samples, and it has 120"),
    "no parts": (lambda r: Response("survey", r.text, parts=()), "0 signatures came for 1 tasks"),
    "no JSON": (lambda r: Response("survey", "{", parts=r.parts), "cannot be read"),
    "no task": (lambda _: Response("survey", '{"tasks": []}'), "it named no task"),
    "refusal": (lambda _: Response("survey", refused="this edge will not say"), "this edge will not say"),
    "no answer": (lambda _: Bare(), "a message holds no question"),
    "moments": (
        lambda _: SurveyAnswer(tasks=(), moments=True).to_response([InputMoments.of(np.eye(12)).to_bytes()]),
        "it sent moments where a signature was asked for",
    ),
}


@pytest.mark.parametrize(("broken", "told"), BROKEN.values(), ids=BROKEN)
def test_a_signature_that_cannot_be_used_is_refused_the_edge_is_told_and_the_job_goes_on(broken, told, answers, caplog):
    answers["edge-3"] = broken
    with caplog.at_level(logging.WARNING, "solar_corona.fl_client.node"):
        run = simulate(fleet(4), ours(), rounds=2)
    (text,) = [text for text in warnings_in(run) if text.startswith("edge-3 ")]
    assert text.startswith("edge-3 gave no signature that can be used, and goes with the largest group: ")
    assert told in text
    assert "\n" not in text
    assert [r.message for r in caplog.records if r.name.endswith("fl_client.node")] == [text], "the edge hears it, once"
    assert [e.replied for e in run.events if e.event == "round-finished"] == [4, 4]
    assert finals(run).keys() == {f"edge-{i}" for i in range(4)}


def test_an_edge_whose_signature_was_refused_moves_to_the_group_that_its_updates_fit(answers):
    answers["edge-3"] = BROKEN["cut"][0]
    run = simulate(fleet(), ours(rounds=6), rounds=6)
    assert groups_in(run)["edge-3", "all"] == groups_in(run)["edge-1", "all"]
    assert answers["asked"].count("edge-3") == 1


def test_an_edge_that_lost_what_it_signed_is_asked_again(answers):
    answers["edge-3"] = lambda _: SurveyAnswer(tasks=(), lost=True).to_response([])
    asked = answers["asked"]

    def then_as_it_is(number):
        if number == 1:
            del answers["edge-3"]

    run = simulate(fleet(4), ours(rounds=3), rounds=3, each_round=then_as_it_is)
    assert asked.count("edge-3") == 2
    assert asked.count("edge-1") == 1
    first, second = by_task(run)
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.parametrize("kind", ["another task", "poison"])
def test_an_edge_that_sends_anothers_signature_is_found_by_its_updates(kind, answers):
    stolen = []
    answers["edge-0"] = lambda response: stolen.append(response) or response
    answers["edge-11"] = lambda _: stolen[0]
    x, y = samples(0, 120, 77)
    thief = Mlp(x, 3 - y, *samples(0, 60, 78), hidden=16, classes=4) if kind == "poison" else edge("", 1, 77).model
    run = simulate([*fleet(11), Edge("edge-11", thief)], ours(rounds=6), rounds=6)
    told = [text for text in warnings_in(run) if "do not fit" in text]
    assert len(told) == 1, "it is told once, and of no other edge"
    assert "edge-11's updates do not fit its group-1 (cosine " in told[0]
    assert "and fit group-2 better" in told[0]
    assert told[0].endswith("its data may have changed, or its signature may not be its own; it is asked for it again")
    assert answers["asked"].count("edge-11") == 2


@pytest.mark.parametrize("count", [1, 2])
def test_an_edge_with_hardly_a_sample_joins_and_does_not_found(count):
    tiny = Edge("edge-8", Mlp(*samples(0, count, 5), *samples(0, 20, 6), hidden=16, classes=4))
    run = simulate([*fleet(), tiny], ours(), rounds=2)
    assert len(set(groups_in(run).values())) == 2
    assert "edge-8" in finals(run)


def test_a_fleet_of_edges_with_hardly_a_sample_trains_together():
    edges = [Edge(f"edge-{i}", Mlp(*samples(0, 2, i), *samples(0, 20, 6), hidden=16, classes=4)) for i in range(4)]
    run = simulate(edges, ours(), rounds=2)
    assert set(groups_in(run).values()) == {"group-1"}


@pytest.mark.parametrize("task", [0, 1])
def test_an_edge_with_one_class_goes_with_the_task_of_its_samples(task):
    x, y = samples(task, 400, 5)
    only = Edge("edge-8", Mlp(x[y == 2], y[y == 2], *samples(task, 20, 6), hidden=16, classes=4))
    run = simulate([*fleet(), only], ours(), rounds=2)
    assert groups_in(run)["edge-8", "all"] == groups_in(run)[f"edge-{task}", "all"]


@pytest.mark.parametrize("name", ["similarity-grouping", "pacfl", "cfl", "fl-hc", "ifca"])
def test_constant_features_do_not_stop_the_job(name):
    odd = Mlp(np.ones((90, 12), np.float32), np.zeros(90, np.int64), *samples(0, 20, 6), hidden=16, classes=4)
    nothing = Mlp(np.zeros((90, 12), np.float32), np.zeros(90, np.int64), *samples(0, 20, 6), hidden=16, classes=4)
    strategy = create(name, {}, min_edges=1, job={"rounds": 5})
    run = simulate([*fleet(4), Edge("edge-8", odd), Edge("edge-9", nothing)], strategy, rounds=5)
    assert {"edge-8", "edge-9"} <= finals(run).keys()


class Unlabelled(Mlp):
    """Has inputs alone, and so trains nothing."""

    def __init__(self, x, y, *held_out, **more):
        super().__init__(x, y, *held_out, **more)
        self.train_data = x, None

    def train(self, config):
        return len(self.train_data[0]), {"loss": 0.0}


@pytest.mark.parametrize("task", [0, 1])
def test_an_edge_without_labels_is_compared_by_inputs_and_that_is_said(task):
    run = simulate([*fleet(), edge("edge-8", task, 321, kind=Unlabelled)], ours(), rounds=2)
    told = [text for text in warnings_in(run) if "no labels" in text]
    assert told == ["edge-8 has no labels: where it is compared, only inputs count"]
    assert groups_in(run)["edge-8", "all"] == groups_in(run)[f"edge-{task}", "all"]
    assert {t.edge for e in run.events if e.event == "tasks-grouped" for t in e.tasks if not t.labelled} == {"edge-8"}


def test_one_edge_without_labels_does_not_take_those_of_the_others_away():
    """Tasks whose inputs are alike differ by their labels only."""
    edges = [*fleet(swap=True), edge("edge-8", 0, 321, kind=Unlabelled, swap=True)]
    run = simulate(edges, ours(), rounds=2)
    groups = groups_in(run)
    assert len({groups[f"edge-{i}", "all"] for i in (0, 2, 4, 6)}) == 1
    assert len({groups[f"edge-{i}", "all"] for i in (1, 3, 5, 7)}) == 1
    assert len(set(groups.values())) == 2


def test_edges_without_labels_are_grouped_by_inputs_where_most_have_none():
    edges = [edge(f"edge-{i}", i % 2, i, kind=Unlabelled if i < 6 else Mlp) for i in range(8)]
    run = simulate(edges, ours(), rounds=2)
    first, second = by_task(run)
    assert len(first) == len(second) == 1
    assert first != second


def test_labels_of_minus_one_are_labels():
    edges = fleet()
    for each in edges:
        each.model.train_data[1][:] = np.where(each.model.train_data[1] < 2, -1, 1)
    only = edge("edge-8", 0, 88)
    only.model.train_data[1][:] = -1
    run = simulate([*edges, only], ours(), rounds=1)
    assert not [text for text in warnings_in(run) if "no labels" in text]


def test_a_few_edges_with_units_of_their_own_do_not_choose_the_scale_of_all():
    def shifted(each):
        for x, _ in (each.model.train_data, each.model.eval_data):
            x[:, 0] = 1000 * x[:, 0] + 5000
        return each

    strategy = ours(rounds=4)
    late = shifted(edge("edge-9", 1, 99, here=lambda r: r >= 2))
    run = simulate([*fleet(), shifted(edge("edge-8", 0, 88)), late], strategy, rounds=4)
    assert not strategy._groups.spec.centre
    groups = groups_in(run)
    assert len({groups[f"edge-{i}", "all"] for i in (0, 2, 4, 6)}) == 1
    assert len({groups[f"edge-{i}", "all"] for i in (1, 3, 5, 7)}) == 1
    assert {"edge-8", "edge-9"} <= finals(run).keys()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dimension": 0}, "dimension is 0: input should be greater than or equal to 1; set it under aggregation"),
        ({"noise": -1}, "noise is -1: input should be greater than or equal to 0; set it under aggregation.options"),
        ({"min_count": 1}, "min_count is 1: input should be greater than or equal to 3; set it under"),
        ({"embedding": "cosine"}, "embedding is 'cosine', expected one of random, model; set it under aggregation"),
        ({"warm_rounds": -1}, "warm_rounds is -1, expected a whole number from 0; set it under aggregation.options"),
    ],
)
def test_options_of_signatures_that_make_no_sense_are_told_in_one_sentence(options, told):
    with pytest.raises(StrategySpecError) as caught:
        ours(**options)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


SPEC = SignatureSpec(dimension=8)


@st.composite
def hostile(draw):
    """What passes every check of a signature's form, at its limits."""
    classes = sorted(draw(st.sets(st.integers(1 - 2**31, 2**31 - 1), min_size=1, max_size=4)))
    labelled = draw(st.booleans())
    classes = classes if labelled else [UNLABELLED]

    def column(*values):
        return np.array([draw(st.sampled_from(values)) for _ in classes])

    signs = np.array([[draw(st.sampled_from([-1.0, 0.0, 1.0])) for _ in range(8)] for _ in classes])
    return Signature(
        identity=SPEC.identity,
        labelled=labelled,
        classes=np.array(classes, np.int64),
        counts=column(1, 3, 10**6, 2**38),
        means=(signs * np.sqrt(2 / 8)).astype(np.float32),
        traces=column(0.0, 1e-30, 1e-6, 0.3, 1.0, 7.9).astype(np.float32),
        squares=column(0.0, 1e-30, 1e-6, 0.3, 1.0, 63.0).astype(np.float32),
        noise=column(0.0, 1e-12, 1.0, 1e12).astype(np.float32),
    )


@settings(max_examples=60)
@given(st.lists(hostile(), min_size=1, max_size=3), st.data())
def test_signatures_at_their_limits_break_nothing(signatures, data):
    groups = TaskGroups(SPEC)
    for i in range(4):
        honest = sign(*samples(i % 2, 90, i), SPEC)
        about = SurveyAnswer(tasks=(TaskAbout(name="all", samples=90),))
        groups.take(f"edge-{i}", about, (honest.to_bytes(),))
    groups.regroup()
    for i, signature in enumerate(signatures):
        raw = bytearray(signature.to_bytes())
        if data.draw(st.booleans()):
            raw[data.draw(st.integers(14, len(raw) - 1))] ^= data.draw(st.integers(0, 255))
        answer = SurveyAnswer(tasks=(TaskAbout(name="all", samples=10**12, labelled=signature.labelled),))
        try:
            groups.take(f"odd-{i}", answer, (bytes(raw),))
        except WireError as error:
            groups.refuse(f"odd-{i}", str(error))
    groups.regroup()
    told = groups.event(1, "test", {})
    assert {t.edge for t in told.tasks} == groups.tasks.keys()
    assert TasksGrouped.model_validate_json(told.model_dump_json()) == told
    assert np.isfinite([[*t.map, t.own] for t in told.tasks]).all()
    again = TaskGroups(SPEC)
    again.restore(groups.state())
    for edge_name in groups.tasks:
        assert again.of_edge(edge_name) == groups.of_edge(edge_name)
