# SPDX-License-Identifier: Apache-2.0
"""An edge answers questions about the tasks that it mixes, whatever its samples are, and divides them by what comes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import RecordDict

from solar_corona.core.errors import DatasetError, PlatformError, WireError
from solar_corona.core.spec import Tasks
from solar_corona.fl_client.edge_data import EdgeData
from solar_corona.fl_client.node import Node
from solar_corona.fl_client.task_discovery import Discovered, TaskDiscovery
from solar_corona.lib import exchange
from solar_corona.lib.discovery import ClassSums, Clusters, DiscoveryQuestion, Step, pulls_of, sums_of
from solar_corona.lib.exchange import Instruction, ModelOrder, Verb, WorkOrder
from solar_corona.lib.questions import Question, Response
from solar_corona.lib.signatures import SignatureSpec, embed_samples
from solar_corona.lib.survey import SurveyAnswer, SurveyQuestion
from solar_corona.lib.task_directions import Axes, whitening
from solar_corona.lib.task_mixture import TaskModel

SPEC = SignatureSpec(dimension=32)
CENTRES = np.random.default_rng(3).normal(size=(2, 4, 20)) * 1.5


def stream(tasks, seed=0, chunk=10):
    """Samples in chunks, each chunk of the task that `tasks` names."""
    rng = np.random.default_rng(seed)
    task = np.repeat(tasks, chunk)
    y = rng.integers(0, 4, len(task))
    return (CENTRES[task, y] + rng.normal(size=(len(task), 20))).astype(np.float32), y.astype(np.int64), task


def known():
    """The model that a fleet would find, made from samples whose task is known."""
    x, y, task = stream(np.arange(200) % 2, seed=99)
    z, _ = embed_samples(x, y, SPEC)
    means = np.array([[z[(task == t) & (y == c)].mean(0) for c in range(4)] for t in (0, 1)])
    spread = z - means[task, y]
    white = whitening(spread.T @ spread / len(z))
    axes = Axes(((means[1] - means[0]) / 2 @ white)[None], np.zeros((4, SPEC.dimension)))
    frame = axes.frame(np.arange(4), means.mean(0), white)
    return TaskModel(SPEC, frame, np.array([[-1.0], [1.0]]), 1.0, ("task-1", "task-2"))


MODEL = known()


def data(x, y, chunk=10):
    return EdgeData((x, y), (x[:0], y[:0]), tasks=Tasks(division="discovery", chunk=chunk))


class Unlabelled(EdgeData):
    """An edge whose loader gives inputs alone."""

    def samples(self, which, *, anew=False):
        return replace(super().samples(which, anew=anew), y=None)


def ask(step, samples, **more):
    question = DiscoveryQuestion(step, SPEC, **more).to_question()
    return TaskDiscovery().answer(question, samples)


def test_each_step_is_answered_with_what_the_next_one_needs():
    x, y, _ = stream(np.arange(40) % 2)
    edge = data(x, y)
    sums = ClassSums.of_response(ask(Step.SUMS, edge), 32)
    assert sums.counts.sum() == 400
    assert sums.chunk == 10
    first, second = pulls_of(ask(Step.PULL, edge, frames=(MODEL.frame, MODEL.frame)), (MODEL.frame,) * 2, 32)
    assert first.samples == second.samples == 200
    clusters = Clusters.of_response(ask(Step.CLUSTERS, edge, frames=(MODEL.frame,), tasks=3), 1)
    np.testing.assert_allclose(np.sort(clusters.places[:, 0]), [-1, 1], atol=0.2)
    assert clusters.samples.tolist() == [200, 200]
    fit = sums_of(ask(Step.FIT, edge, frames=(MODEL.frame,), places=MODEL.places, purity=0.8), 2, 1)
    assert fit.samples.sum() == pytest.approx(400)
    assert fit.purity > 0.95


def test_samples_are_given_to_the_tasks_that_the_fleet_found():
    x, y, task = stream(np.array([1, 1, 0, 1, 0]), seed=9)
    found = Discovered(MODEL, 10)(x, y)
    assert found.tolist() == [f"task-{t + 1}" for t in task]
    assert (Discovered(MODEL, None)(x, y) == found).mean() > 0.8


def test_without_labels_nothing_is_known_of_a_class_and_all_is_one_task():
    x, _, _ = stream(np.arange(10) % 2)
    assert len(set(Discovered(MODEL, 10)(x, None))) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("chunk", [None, 10])
def test_an_edge_with_hardly_a_sample_says_nothing_of_them_and_divides_nothing(count, chunk):
    x, y, _ = stream(np.arange(6) % 2)
    edge = data(x[:count], y[:count], chunk)
    with pytest.raises(DatasetError, match="takes no part in finding tasks"):
        ask(Step.SUMS, edge)
    assert len(edge.split(Discovered(MODEL, chunk)).names) == 1


@pytest.mark.parametrize("chunk", [None, 10])
def test_one_class_and_constant_features_are_answered_with_numbers(chunk):
    x, _, _ = stream(np.arange(20) % 2)
    for edge in (
        data(x, np.zeros(200, np.int64), chunk),
        data(np.ones((200, 20), np.float32), np.zeros(200, np.int64), chunk),
        Unlabelled((x, np.zeros(200, np.int64)), tasks=Tasks(division="discovery", chunk=chunk)),
    ):
        ClassSums.of_response(ask(Step.SUMS, edge), 32)
        pulls_of(ask(Step.PULL, edge, frames=(MODEL.frame,)), (MODEL.frame,), 32)
        Clusters.of_response(ask(Step.CLUSTERS, edge, frames=(MODEL.frame,), tasks=4), 1)
        sums_of(ask(Step.FIT, edge, frames=(MODEL.frame,), places=MODEL.places), 2, 1)


def test_fewer_samples_than_tasks_are_answered_too():
    x, _, _ = stream(np.zeros(1, int))
    edge = data(x[:3], np.zeros(3, np.int64), None)
    Clusters.of_response(ask(Step.CLUSTERS, edge, frames=(MODEL.frame,), tasks=5), 1)
    many = np.linspace(-1, 1, 9)[:, None]
    assert sums_of(ask(Step.FIT, edge, frames=(MODEL.frame,), places=many), 9, 1).samples.sum() == pytest.approx(3)


def test_inputs_that_are_no_numbers_are_told():
    with pytest.raises(DatasetError, match="NaN or infinite"):
        ask(Step.SUMS, data(np.full((100, 4), np.nan, np.float32), np.zeros(100, np.int64)))
    with pytest.raises(WireError, match="no axes for its step"):
        TaskDiscovery().answer(DiscoveryQuestion(Step.FIT, SPEC).to_question(), data(*stream(np.zeros(2, int))[:2]))


def test_a_large_edge_looks_at_whole_chunks_spread_over_all_samples(monkeypatch):
    from solar_corona.fl_client import task_discovery

    monkeypatch.setattr(task_discovery, "_MOST_SAMPLES", 100)
    x, y, _ = stream(np.arange(40) % 2)
    assert ClassSums.of_response(ask(Step.SUMS, data(x, y)), 32).counts.sum() <= 100


def test_what_is_made_of_samples_is_made_anew_when_they_change():
    x, y, _ = stream(np.arange(40) % 2)
    edge, discovery = data(x, y), TaskDiscovery()
    question = DiscoveryQuestion(Step.SUMS, SPEC).to_question()
    before = ClassSums.of_response(discovery.answer(question, edge), 32)
    x[:] = stream(np.zeros(40, int), seed=5)[0]
    edge.samples("train", anew=True)
    after = ClassSums.of_response(discovery.answer(question, edge), 32)
    assert np.abs(before.means - after.means).max() > 0.01


class Recorder:
    """A model that notes which samples it was to use."""

    def __init__(self):
        self.used = None

    def get_weights(self):
        return {"w": np.zeros(1)}

    def set_weights(self, weights):
        pass

    def use_samples(self, train, evaluate):
        if train is not None:
            self.used = train

    def evaluate_on_train(self, indices):
        return {"loss": 1.0}

    def train(self, config):
        return 1, {"loss": 1.0}

    def evaluate(self):
        return 0, {}


def node(tmp_path, samples, *, warm):
    model = Recorder()
    return model, Node("edge-0", model, samples=200, eval_samples=0, data=samples, warm=warm, folder=tmp_path)


def message(content, verb):
    return exchange.attach(content, Instruction(verb=verb, round=1))


@pytest.mark.parametrize("warm", [True, False])
def test_a_process_that_comes_later_knows_the_tasks_that_were_found(tmp_path, warm):
    """After a restart, or with a stock SuperNode, which starts a process for each message."""
    x, y, task = stream(np.arange(20) % 2)
    _, first = node(tmp_path, data(x, y), warm=warm)
    question = SurveyQuestion(spec=SignatureSpec()).to_question(MODEL)
    answer = SurveyAnswer.of(Response.from_content(first.answer(message(question.to_content(), Verb.QUERY))))
    assert [about.name for about in answer.tasks] == ["task-1", "task-2"]
    model, second = node(tmp_path, data(x, y), warm=warm)
    order = WorkOrder(models=(ModelOrder(key="arrays/a", tasks=(1,)),))
    content = exchange.ordered(RecordDict({"arrays/a": exchange.to_arrays({"w": np.zeros(1)})}), order)
    second.answer(message(content, Verb.TRAIN))
    np.testing.assert_array_equal(model.used, np.flatnonzero(task == 1))


def test_a_survey_without_tasks_leaves_the_edge_whole_and_forgets_those_of_before(tmp_path):
    x, y, _ = stream(np.arange(20) % 2)
    _, first = node(tmp_path, data(x, y), warm=True)
    names = []
    for found in (MODEL, None):
        question = SurveyQuestion(spec=SignatureSpec()).to_question(found)
        answer = SurveyAnswer.of(Response.from_content(first.answer(message(question.to_content(), Verb.QUERY))))
        names.append([about.name for about in answer.tasks])
    assert names == [["task-1", "task-2"], ["all"]]
    _, second = node(tmp_path, data(x, y), warm=True)
    second.settle("")
    assert second.survey.split().names == ("all",)


def test_a_disk_that_is_full_costs_a_question_and_not_the_job(tmp_path, monkeypatch):
    from solar_corona.lib import sealed

    def full(path, data):
        raise PlatformError("no space left")

    monkeypatch.setattr(sealed, "write_bytes_atomic", full)
    x, y, _ = stream(np.arange(20) % 2)
    question = message(SurveyQuestion(spec=SignatureSpec()).to_question(MODEL).to_content(), Verb.QUERY)
    for warm in (True, False):
        _, edge = node(tmp_path, data(x, y), warm=warm)
        assert not Response.from_content(edge.answer(question)).refused


def test_a_question_of_another_kind_is_still_refused(tmp_path):
    _, edge = node(tmp_path, data(*stream(np.zeros(4, int))[:2]), warm=True)
    said = Response.from_content(edge.answer(message(Question("other").to_content(), Verb.QUERY)))
    assert "no edge knows questions of the kind 'other'" in said.refused
