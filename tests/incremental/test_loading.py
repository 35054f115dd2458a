# SPDX-License-Identifier: Apache-2.0
"""`load_model` in a job of incremental learning: the ordered version, the job's detector, and versions that follow."""

from __future__ import annotations

import json
import logging
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import solar_corona
from solar_corona.core.context_document import ContextDocument
from solar_corona.core.errors import ModelError
from solar_corona.core.files import sha256_of, write_bytes_atomic
from solar_corona.core.spec_parts import ModelSource
from solar_corona.lib import context
from solar_corona.tests.incremental.edge_controller import running_controller, until

X = np.array([1, 0], np.float32)


def onnx_model(path, favourite):
    """Write a classifier of three classes that favours one."""
    weights = np.zeros((2, 3), np.float32)
    weights[:, favourite] = 1
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"]), helper.make_node("Softmax", ["logits"], ["p"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


class Job:
    """A node with versions of a model, its LocalController, and the script's context."""

    def __init__(self, folder, controller):
        self.folder, self.controller = folder, controller
        self.model = onnx_model(folder / "m.onnx", 0)

    def order(self, version, favourite, *, shadow=None, sha256=None):
        path = onnx_model(self.folder / f"{version}.onnx", favourite)
        before = {"version": shadow, "path": f"{shadow}.onnx"} if shadow is not None else None
        said = {
            "version": version,
            "path": str(path),
            "sha256": sha256 or sha256_of(path),
            "canary": shadow is not None,
        }
        write_bytes_atomic(self.folder / "active.json", json.dumps({**said, "shadow": before}).encode())

    def document(self):
        return ContextDocument(
            job="j", kind="IncrementalLearningJob", run="r", role="edge", worker="edge-1", run_folder=str(self.folder),
            model=ModelSource(path=str(self.model)), controller=self.controller.path,
            live_model=str(self.folder / "active.json"), state_folder=str(self.folder / "state"),
            hard_samples={"detection": "threshold", "options": {"threshold": 0.9, "random": 0}, "maxPerHour": 10_000},
        )  # fmt: skip


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr("solar_corona.lib.live_model._EVERY", 0.01)
    monkeypatch.setattr("solar_corona.lib.hard_samples.sender._EVERY", 0.02)
    with running_controller() as controller:
        job = Job(tmp_path, controller)
        with context.using(job.document()):
            yield job


def test_a_script_begins_with_the_jobs_model_keeps_samples_as_the_job_says_and_follows_its_versions(job):
    with solar_corona.load_model(job.model) as model:
        assert model.version == 1
        assert model.predict(X).argmax() == 0
        until(lambda: job.controller.samples)
        job.order(2, 1)
        until(lambda: model.version == 2)
        story = model.infer(2 * X)
        assert story.result.argmax() == 1
        until(lambda: len(job.controller.samples) == 2)
        until(lambda: job.controller.states[-1].version == 2)
    assert [record.model for record, _ in job.controller.samples] == [1, 2]
    assert job.controller.samples[1][0].id == story.sample_id


def test_a_script_that_starts_anew_begins_with_the_version_that_is_ordered(job):
    job.order(5, 2)
    with solar_corona.load_model(job.model, hard_sample_detection="margin") as model:
        assert model.version == 5
        assert model.predict(X).argmax() == 2
        assert model.hard_samples.seen == 1


def test_what_an_hour_had_left_is_left_to_the_scripts_next_process(job):
    with solar_corona.load_model(job.model) as model:
        model.predict(X)
        until(lambda: job.controller.states and job.controller.states[-1].kept == 1)
    said = json.loads((job.folder / "state" / "hard-samples.json").read_text())
    assert said["used"] == 1


def test_a_version_with_another_fingerprint_is_reported_and_never_answers(job):
    with solar_corona.load_model(job.model) as model:
        job.order(2, 1, sha256="0" * 64)
        until(lambda: job.controller.states and job.controller.states[-1].load_error is not None)
        assert model.predict(X).argmax() == 0
    error = job.controller.states[-1].load_error
    assert error.version == 2
    assert "has the SHA-256" in error.error


def test_a_canarys_observations_reach_the_controller_with_the_id_of_what_was_kept(job):
    onnx_model(job.folder / "1.onnx", 0)
    job.order(2, 1, shadow=1)
    with solar_corona.load_model(job.model) as model:
        until(lambda: model._model.beside is not None)
        story = model.infer(X)
        until(lambda: job.controller.observations)
    (one,) = job.controller.observations
    assert (one.version, one.reference, one.answer, one.reference_answer, one.agrees) == (2, 1, 1, 0, False)
    assert one.sample == story.sample_id
    assert (job.folder / "state" / "observations.seq").read_text() == "1000\n"


def test_another_model_of_the_script_is_its_own(job):
    other = onnx_model(job.folder / "other.onnx", 2)
    job.order(7, 1)
    with solar_corona.load_model(other) as model:
        assert model.version == 0
        assert model.hard_samples is None
        assert model.predict(X).argmax() == 2


def test_a_wrong_detector_leaves_nothing_loaded(job):
    with pytest.raises(ModelError, match="no hard-sample detector 'thresold'; did you mean 'threshold'"):
        solar_corona.load_model(job.model, hard_sample_detection="thresold")


def test_the_script_of_the_issue_runs_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = onnx_model(tmp_path / "m.onnx", 1)

    def pre_fun(sample):
        return sample * 2

    with solar_corona.load_model(
        path, pre_fun, None, hard_sample_detection=solar_corona.incremental.Threshold(0.7)
    ) as model:
        begin = time.monotonic()
        assert model.predict(X).argmax() == 1
        story = model.infer(X / 10)
        solar_corona.incremental.report_label(solar_corona.incremental.sample_id(X / 10), 2)
    assert story.kept
    assert time.monotonic() - begin < 2
    assert model.hard_samples.version == 0
