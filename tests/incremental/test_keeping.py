# SPDX-License-Identifier: Apache-2.0
"""From `predict` to the node's LocalController, over a real unix socket, whatever that one does."""

from __future__ import annotations

import time

import numpy as np
import pytest

from solar_corona import incremental
from solar_corona.core.context_document import ContextDocument
from solar_corona.core.errors import DatasetError, ModelError
from solar_corona.joint_inference.deep_model import DeepModel
from solar_corona.joint_inference.edge_model import EdgeModel
from solar_corona.joint_inference.threshold import Threshold as UploadBelow
from solar_corona.lib import context
from solar_corona.lib.endpoints.callable_endpoint import CallableEndpoint
from solar_corona.lib.hard_samples.budget import Budget
from solar_corona.lib.hard_samples.collector import Collector
from solar_corona.lib.hard_samples.controller_client import ControllerClient
from solar_corona.lib.hard_samples.detector import Seen, Verdict
from solar_corona.lib.hard_samples.opening import open_collector, open_sender
from solar_corona.lib.hard_samples.sender import Sender
from solar_corona.lib.runners.batches import BatchRunner
from solar_corona.lib.sample_records import sample_id_of
from solar_corona.lib.tensors import TensorSpec
from solar_corona.tests.incremental.edge_controller import running_controller, until

SURE, TORN = np.array([9, 0, 0], np.float32), np.array([1, 1, 1], np.float32)


class Softmax(BatchRunner):
    platform = "numpy"

    def __init__(self):
        spec = (TensorSpec("logits", "FP32", (-1, 3)),), (TensorSpec("p", "FP32", (-1, 3)),)
        super().__init__(self._softmax, inputs=spec[0], outputs=spec[1], model="softmax")

    @staticmethod
    def _softmax(inputs):
        powers = np.exp(inputs["logits"])
        return {"p": (powers / powers.sum(1, keepdims=True)).astype(np.float32)}


class All:
    """Finds all hard."""

    def __init__(self, raises=None):
        self.seen, self.raises = [], raises

    def judge(self, seen):
        self.seen.append(seen)
        if self.raises is not None:
            raise self.raises
        return Verdict(True, 0.5)

    def describe(self):
        return {"name": "all"}


@pytest.fixture
def controller(monkeypatch):
    # These models answer in microseconds, and yet each of their samples is to be looked at.
    monkeypatch.setattr("solar_corona.lib.hard_samples.collector._COST", 1e9)
    with running_controller() as running:
        yield running


def kept_by(controller, detector=None, *, timeout=10.0, per_hour=100_000):
    client = ControllerClient(controller.path, timeout=timeout) if controller is not None else None
    return Collector(detector or All(), Sender(client, "edge-1"), budget=Budget(per_hour), edge="edge-1")


def samples(count, *, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def test_hard_samples_arrive_with_what_is_known_of_them_and_easy_ones_stay(controller):
    with EdgeModel(Softmax(), collector=kept_by(controller, incremental.Threshold(0.7, random=0)), version=3) as model:
        model.predict(SURE)
        with incremental.subject("ann"):
            story = model.infer(TORN)
        assert model.predict(np.stack([SURE, TORN * 2])).shape == (2, 3)
        until(lambda: len(controller.samples) == 2)
    (record, sample), (other, _) = controller.samples
    np.testing.assert_array_equal(sample, TORN)
    assert story.kept
    assert story.sample_id == record.id == incremental.sample_id(TORN)
    assert (record.edge, record.model, record.reason, record.prediction) == ("edge-1", 3, "hard", 0)
    assert record.confidence == pytest.approx(1 / 3, abs=1e-4)
    assert record.probabilities == pytest.approx([1 / 3] * 3, abs=1e-4)
    assert record.embedding == [1, 1, 1]
    assert (record.subject, other.subject) == ("ann", None)
    assert time.time() - 60 < record.taken_at <= time.time()
    last = controller.states[-1]
    assert (last.seen, last.hard, last.kept, last.dropped) == (4, 2, 2, 0)
    assert last.version == 3


def test_easy_samples_have_no_id(controller):
    with EdgeModel(Softmax(), collector=kept_by(controller, incremental.Threshold(0.7, random=0))) as model:
        story = model.infer(SURE)
    assert not story.kept
    assert story.sample_id is None


def test_what_arrives_is_what_was_seen_although_the_script_uses_its_buffer_anew(controller):
    buffer = TORN.copy()
    controller.hung.set()
    with EdgeModel(Softmax(), collector=kept_by(controller)) as model:
        for number in range(5):
            buffer[:] = number, 0, 1
            model.predict(buffer)
        buffer[:] = -1
        controller.hung.clear()
        until(lambda: len(controller.samples) == 5)
    assert [sample.tolist() for _, sample in controller.samples] == [[number, 0, 1] for number in range(5)]


def test_the_same_sample_is_kept_once(controller):
    collector = kept_by(controller)
    with EdgeModel(Softmax(), collector=collector) as model:
        for _ in range(5):
            model.predict(TORN)
        counts = collector.counts
    assert (counts.kept, counts.near_duplicates, counts.hard) == (1, 4, 5)
    assert len(controller.samples) == 1


def test_no_more_is_kept_than_the_budget_allows(controller):
    collector = kept_by(controller, per_hour=10)
    with EdgeModel(Softmax(), collector=collector) as model:
        model.predict(samples(100))
        counts = collector.counts
    assert 1 <= counts.kept <= 4
    assert counts.over_budget == 100 - counts.kept
    assert len(controller.samples) == counts.kept


class Sleeper(Softmax):
    """Answers as slowly as it is told, as the clock says that detection goes by."""

    def __init__(self, seconds):
        super().__init__()
        self._run = lambda inputs, run=self._run: (self._wait(seconds), run(inputs))[1]

    @staticmethod
    def _wait(seconds):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.0, 30, 600), (0.01, 120, 120)])
def test_only_where_a_model_answers_faster_than_samples_are_looked_at_some_are_left_out(seconds, least, most):
    detector, count = All(), 120 if seconds else 1000
    collector = kept_by(None, detector, per_hour=1)
    with EdgeModel(Sleeper(seconds), collector=collector) as model:
        for sample in samples(count):
            model.predict(sample)
        counts = collector.counts
    assert counts.seen == count
    assert least <= len(detector.seen) <= most


def test_samples_that_are_looked_at_stand_for_those_that_are_not(monkeypatch):
    detector = All()
    collector = kept_by(None, detector)
    monkeypatch.setattr(collector, "_share", 0.25)
    monkeypatch.setattr(collector._budget, "rate", lambda came: 0.1)
    assert 650 < sum(collector.passes() for _ in range(1000)) < 850
    one, other = Seen(None), Seen(None)
    collector.see(one, SURE, 0, came=0)
    collector.see(other, SURE, 0)
    assert (one.rate, other.rate) == (0.4, 0.1)
    assert collector.counts.seen == 1001


# --- the controller is in trouble


def test_predict_waits_for_no_controller_that_hangs_and_all_arrives_when_it_is_back(controller):
    collector = kept_by(controller)
    with EdgeModel(Softmax(), collector=collector) as model:
        model.predict(TORN)
        until(lambda: controller.samples)
        controller.hung.set()
        slowest = 0.0
        for sample in samples(100):
            begin = time.perf_counter()
            model.predict(sample)
            slowest = max(slowest, time.perf_counter() - begin)
        assert slowest < 1.0  # the controller's silence lasts 10 s
        controller.hung.clear()
        until(lambda: len(controller.samples) == 101)
    assert collector.counts.dropped == 0


def test_a_controller_that_starts_later_or_anew_gets_all_of_it(controller):
    controller.stop()
    with EdgeModel(Softmax(), collector=kept_by(controller)) as model:
        model.predict(samples(3))
        controller.start()
        until(lambda: len(controller.samples) == 3)
        controller.stop()
        model.predict(samples(3, seed=1))
        controller.start()
        until(lambda: len({record.id for record, _ in controller.samples}) == 6)


def test_a_full_disk_on_the_node_is_waited_for(controller, caplog):
    controller.status = 507
    with EdgeModel(Softmax(), collector=kept_by(controller)) as model:
        model.predict(samples(3))
        until(lambda: controller.requests >= 2)
        controller.status = 200
        until(lambda: len(controller.samples) == 3)
    assert sum("says 507" in record.getMessage() for record in caplog.records) == 1


def test_what_does_not_fit_the_queue_is_dropped_and_counted(controller):
    controller.hung.set()
    collector = kept_by(controller)
    with EdgeModel(Softmax(), collector=collector) as model:
        model.predict(samples(400))
        assert collector.counts.dropped >= 400 - 256
        assert collector.counts.kept + collector.counts.dropped == 400
        controller.hung.clear()
        until(lambda: len(controller.samples) == collector.counts.kept)


def test_large_samples_are_bounded_in_bytes(controller, monkeypatch):
    monkeypatch.setattr("solar_corona.lib.hard_samples.sender._MOST_BYTES", 1 << 20)
    controller.hung.set()
    runner = BatchRunner(
        lambda inputs: {"p": np.full((len(inputs["x"]), 2), 0.5, np.float32)},
        inputs=(TensorSpec("x", "FP32", (-1, -1)),), outputs=(TensorSpec("p", "FP32", (-1, 2)),), model="wide",
    )  # fmt: skip
    collector = kept_by(controller)
    with EdgeModel(runner, collector=collector) as model:
        for number in range(9):
            model.predict(np.full(1 << 16, number, np.float32))
        assert (collector.counts.kept, collector.counts.dropped) == (4, 5)
        controller.hung.clear()


@pytest.mark.parametrize("how", ["status", "receipt"])
def test_a_refusal_is_final_counted_and_told_once(controller, caplog, how):
    if how == "status":
        controller.status = 400
    else:
        controller.refuse = "another edge's"
    collector = kept_by(controller)
    with EdgeModel(Softmax(), collector=collector) as model:
        model.predict(samples(2))
        until(lambda: collector.counts.dropped == 2)
        controller.status, controller.refuse = 200, ""
        model.predict(samples(1, seed=5))
        until(lambda: any(record.id for record, _ in controller.samples[-1:]) and collector.counts.kept == 3)
    told = [record.getMessage() for record in caplog.records if "hard samples" in record.getMessage()]
    assert 1 <= len(told) <= 2  # a refused report tells of itself


def test_a_sample_that_has_no_form_costs_no_answer_and_is_told_once(controller, caplog):
    class Odd:
        def __init__(self, value):
            self.value = value

    collector = kept_by(controller)
    with EdgeModel(Softmax(), lambda odd: odd.value, collector=collector) as model:
        for sample in samples(3):
            assert model.predict(Odd(sample)).shape == (3,)
        model.infer(Odd(TORN))
        until(lambda: collector.counts.dropped == 4)
    assert sum("cannot be kept" in record.getMessage() for record in caplog.records) == 1


def test_a_detector_that_raises_costs_no_answer_and_is_told_once(controller, caplog):
    with EdgeModel(Softmax(), collector=kept_by(controller, All(raises=RuntimeError("odd")))) as model:
        for sample in samples(3):
            assert model.predict(sample).shape == (3,)
    assert [r.getMessage() for r in caplog.records if "odd" in r.getMessage()] == [
        "hard samples: All or what keeps its samples raised RuntimeError: odd; answers go on"
    ]


def test_a_model_whose_scores_nobody_knows_still_answers_and_is_sampled_by_chance(controller, caplog):
    runner = BatchRunner(
        lambda inputs: {"a": inputs["x"], "b": inputs["x"]},
        inputs=(TensorSpec("x", "FP32", (-1, 3)),),
        outputs=(TensorSpec("a", "FP32", (-1, 3)), TensorSpec("b", "FP32", (-1, 3))), model="two",
    )  # fmt: skip
    collector = kept_by(controller, incremental.Mixed(random=1.0, seed=1))
    with EdgeModel(runner, collector=collector) as model:
        for sample in samples(50):
            model.predict(sample)
        until(lambda: len(controller.samples) == collector.counts.kept > 0)
    assert {record.reason for record, _ in controller.samples} == {"random"}
    assert sum("cannot be told" in record.getMessage() for record in caplog.records) == 1


# --- joint inference


def test_the_deep_models_scores_reach_the_detector(controller):
    detector = All()
    deep = DeepModel(CallableEndpoint(lambda batch: np.tile(np.float32([0, 0, 1]), (len(batch), 1))), deadline=5)
    with EdgeModel(
        Softmax(), algorithm=UploadBelow(0.7), deep_model=deep, collector=kept_by(controller, detector)
    ) as model:
        stories = model.infer(np.stack([SURE, TORN]))
        until(lambda: len(controller.samples) == 2)
    easy, hard = detector.seen
    assert easy.deep is None
    assert hard.deep.values.tolist() == [0, 0, 1]
    assert hard.scores.values == pytest.approx([1 / 3] * 3)
    assert [story.kept for story in stories] == [True, True]
    assert [record.reason for record, _ in controller.samples] == ["hard", "hard"]


def test_samples_that_the_deep_model_should_have_answered_are_kept_as_degraded(controller):
    def away(batch):
        raise RuntimeError("away")

    detector = incremental.Threshold(0.0, random=0)  # finds nothing hard by itself
    deep = DeepModel(CallableEndpoint(away), deadline=5)
    with EdgeModel(
        Softmax(), algorithm=UploadBelow(0.7), deep_model=deep, collector=kept_by(controller, detector)
    ) as model:
        assert model.predict(TORN).shape == (3,)
        assert model.predict(SURE).shape == (3,)
        until(lambda: controller.samples)
    assert [(record.reason, sample.tolist()) for record, sample in controller.samples] == [("degraded", [1, 1, 1])]


# --- what the job says, and labels


def document(controller, **more):
    return ContextDocument(
        job="j", kind="IncrementalLearningJob", run="r", role="edge", worker="edge-9", run_folder="/nowhere",
        controller=controller.path, **more,
    )  # fmt: skip


def test_the_jobs_detector_encoding_and_budget_hold(controller):
    hard = {"detection": "threshold", "options": {"threshold": 0.9, "random": 0}, "encode": {"format": "png"}}
    with context.using(document(controller, hard_samples={**hard, "maxPerHour": 100_000})):
        collector = open_collector(None)
        image = np.arange(81, dtype=np.uint8).reshape(9, 9)
        with EdgeModel(Softmax(), lambda image: TORN, collector=collector) as model:
            story = model.infer(image)
            until(lambda: controller.samples)
        assert story.sample_id == incremental.sample_id(image)
    ((record, sample),) = controller.samples
    assert (record.media_type, record.edge, record.id) == ("image/png", "edge-9", story.sample_id)
    np.testing.assert_array_equal(sample, image)


def test_truth_that_arrives_later_reaches_the_controller_also_when_that_is_away(controller):
    controller.stop()
    name = sample_id_of(b"x")
    with context.using(document(controller)):
        incremental.report_label(name, np.int64(4))
        incremental.report_label(name, "cat")
        controller.start()
        until(lambda: len(controller.labels) == 2)
        open_sender().close()
    assert [label.value for label in controller.labels] == [4, "cat"]
    assert {(label.sample, label.by) for label in controller.labels} == {(name, "edge-9")}


@pytest.mark.parametrize(
    ("sample", "label", "said"),
    [
        ("abc", 1, "id of 64 hexadecimal digits"),
        (np.zeros(3), 1, "id of 64 hexadecimal digits"),
        ("0" * 64, None, "no label"),
        ("0" * 64, object(), "type object"),
        ("0" * 64, float("nan"), "type float"),
        ("0" * 64, "x" * 70_000, "70002 characters"),
    ],
)
def test_labels_that_nobody_could_use_are_refused(sample, label, said):
    with pytest.raises(DatasetError, match=said):
        incremental.report_label(sample, label)


def test_a_script_that_runs_alone_counts_and_keeps_nothing():
    collector = open_collector(incremental.Threshold(0.7, random=0))
    with EdgeModel(Softmax(), collector=collector) as model:
        story = model.infer(TORN)
        model.predict(SURE)
        counts = collector.counts
    incremental.report_label(incremental.sample_id(TORN), 2)
    assert story.sample_id == incremental.sample_id(TORN)
    assert (counts.seen, counts.hard) == (2, 1)


def test_without_a_detector_no_sample_is_kept():
    assert open_collector(None) is None


def test_samples_leave_the_node_through_its_own_controller_alone():
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:PORT"):
        ControllerClient("http://example.org:80")
