# SPDX-License-Identifier: Apache-2.0
"""The edge's model: a drop-in for the one it replaces, whatever the cloud does."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from solar_corona.core.errors import ModelError, TemporaryError
from solar_corona.joint_inference.deep_model import DeepModel
from solar_corona.joint_inference.edge_model import EdgeModel
from solar_corona.joint_inference.link import LinkBudget
from solar_corona.joint_inference.offload import Decision
from solar_corona.joint_inference.samples import user_function
from solar_corona.joint_inference.threshold import Threshold
from solar_corona.joint_inference.uploads import Upload
from solar_corona.lib.endpoints.callable_endpoint import CallableEndpoint
from solar_corona.lib.endpoints.endpoint import Description, Reply
from solar_corona.lib.runners.batches import BatchRunner
from solar_corona.lib.tensors import TensorSpec

SURE, UNSURE = np.array([9, 0, 0], np.float32), np.array([1, 1, 1], np.float32)


class Softmax(BatchRunner):
    """A classifier of three classes whose inputs are its logits."""

    platform = "numpy"

    def __init__(self):
        spec = (TensorSpec("logits", "FP32", (-1, 3)),), (TensorSpec("p", "FP32", (-1, 3)),)
        super().__init__(self._softmax, inputs=spec[0], outputs=spec[1], model="softmax")

    @staticmethod
    def _softmax(inputs):
        powers = np.exp(inputs["logits"])
        return {"p": (powers / powers.sum(1, keepdims=True)).astype(np.float32)}


class Detector(BatchRunner):
    """Gives boxes and scores; each sample is its own scores."""

    platform = "numpy"

    def __init__(self):
        outputs = (TensorSpec("boxes", "FP32", (-1, 3, 4)), TensorSpec("scores", "FP32", (-1, 3)))
        super().__init__(
            lambda inputs: {"boxes": np.zeros((len(inputs["x"]), 3, 4), np.float32), "scores": inputs["x"]},
            inputs=(TensorSpec("x", "FP32", (-1, 3)),),
            outputs=outputs,
            model="detector",
        )


class Cloud:
    """A deep model that says class 2 for sure, or fails as it is told."""

    def __init__(self, outputs=None, description=None):
        self.error, self.asked, self.outputs = None, [], outputs
        self.description = description or Description((TensorSpec("logits", "FP32", (-1, 3)),))

    def describe(self, *, deadline):
        if self.error is not None:
            raise self.error
        return self.description

    def infer(self, inputs, *, deadline, encodings=None):
        self.asked.append({name: value.copy() for name, value in inputs.items()})
        if self.error is not None:
            raise self.error
        count = len(next(iter(inputs.values())))
        outputs = {"p": np.tile(np.array([0, 0, 1], np.float32), (count, 1))} if self.outputs is None else self.outputs
        return Reply(outputs, "large", "3", bytes_up=10, bytes_down=5)

    def close(self):
        pass


def edge_model(cloud=None, *, pre=None, post=None, link=None, runner=None, **options):
    deep = DeepModel(cloud, deadline=5, link=link) if cloud is not None else None
    return EdgeModel(
        runner or Softmax(),
        user_function(pre),
        user_function(post),
        algorithm=Threshold(0.7) if cloud is not None else None,
        deep_model=deep,
        name="small",
        **options,
    )


def test_without_a_cloud_it_answers_as_the_model_does():
    model = edge_model()
    batch = np.stack([SURE, UNSURE])
    expected = Softmax().run({"logits": batch})["p"]
    np.testing.assert_array_equal(model.predict(batch), expected)
    np.testing.assert_array_equal(model.predict(SURE), expected[0])
    story = model.infer(SURE)
    assert (story.source, story.confidence, story.degraded, story.cloud_seconds) == ("edge", None, False, None)


def test_a_hard_sample_is_answered_by_the_deep_model():
    cloud = Cloud()
    model = edge_model(cloud)
    assert model.predict(SURE).argmax() == 0
    assert model.predict(UNSURE).tolist() == [0, 0, 1]
    story = model.infer(UNSURE)
    assert (story.source, story.deep_model, story.model, story.degraded) == ("cloud", "large 3", "small", False)
    assert story.confidence == pytest.approx(1 / 3)
    assert story.cloud_seconds > 0
    found = model.statistics
    assert (found.frames, found.uploads, found.bytes_up, found.bytes_down) == (3, 2, 20, 10)


def test_of_a_batch_only_the_hard_samples_are_sent_and_go_back_to_their_places():
    cloud = Cloud()
    model = edge_model(cloud)
    batch = np.stack([SURE, UNSURE, SURE, UNSURE])
    found = model.predict(batch)
    assert found.shape == (4, 3)
    assert found.argmax(1).tolist() == [0, 2, 0, 2]
    assert [call["logits"].shape for call in cloud.asked] == [(2, 3)]
    stories = model.infer(batch)
    assert [story.source for story in stories] == ["edge", "cloud", "edge", "cloud"]
    assert stories[1].result.tolist() == [0, 0, 1]


def test_nothing_is_made_ready_for_a_cloud_that_is_not_asked(monkeypatch):
    cloud = Cloud()
    model = edge_model(cloud)
    model.predict(UNSURE)
    cloud.error = TemporaryError("gone")
    for _ in range(3):
        assert model.infer(UNSURE).degraded
    monkeypatch.setattr(Upload, "of", None)  # a call of it would raise
    story = model.infer(UNSURE)
    assert (story.source, story.degraded) == ("edge", True)
    assert "not asked" in story.reason


def test_what_comes_before_and_after_is_called_as_it_was():
    seen = []

    def pre(sample):
        seen.append(sample)
        return sample * 2

    model = edge_model(Cloud(), pre=pre, post=lambda p: int(p.argmax(-1)))
    assert model.predict(SURE / 2) == 0
    assert model.predict(UNSURE) == 2
    assert len(seen) == 2


def test_functions_that_take_or_return_nothing_leave_data_as_it_is():
    model = edge_model(pre=lambda: None, post=lambda result: None)
    np.testing.assert_array_equal(model.predict(SURE), Softmax().run({"logits": SURE[None]})["p"][0])


def test_a_pre_fun_that_adds_the_batch_axis_keeps_its_form():
    model = edge_model(Cloud(), pre=lambda sample: np.asarray(sample, np.float32)[None])
    assert model.predict([9, 0, 0]).shape == (1, 3)
    (story,) = model.infer([1, 1, 1])
    assert story.source == "cloud"


@pytest.mark.parametrize(
    ("error", "says"),
    [(TemporaryError("gone"), "gone"), (ModelError("wrong shape"), "wrong shape")],
)
def test_with_the_cloud_away_the_shallow_answer_comes_with_a_mark(error, says, caplog):
    cloud = Cloud()
    cloud.error = error
    model = edge_model(cloud)
    for _ in range(3):
        story = model.infer(UNSURE)
        assert (story.source, story.degraded) == ("edge", True)
        assert says in story.reason
    assert caplog.text.count("answers alone") == 1
    assert model.statistics.degraded == 3


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ({}, "without any output"),
        ({"p": np.full((1, 3), np.nan, np.float32)}, "no numbers"),
        ({"p": np.ones((2, 3), np.float32)}, "expected 1 samples first"),
        ({"p": np.ones((1, 7), np.float32)}, "another model than meant"),
        ({"p": np.array([["a", "b", "c"]])}, "another model than meant"),
        ({"p": np.ones((1, 3), bool)}, "another model than meant"),
    ],
)
def test_an_answer_that_does_not_fit_is_not_taken(outputs, says):
    story = edge_model(Cloud(outputs)).infer(UNSURE)
    assert story.degraded
    assert says in story.reason
    assert story.result.shape == (3,)


def test_a_deep_model_of_another_form_has_its_own_post_fun():
    model = edge_model(
        Cloud({"p": np.array([[5]], np.int64)}), post=lambda p: int(p.argmax()), big_model_post_fun=lambda p: int(p[0])
    )
    assert (model.predict(SURE), model.predict(UNSURE)) == (0, 5)


def test_a_post_fun_that_fails_on_the_deep_models_outputs_degrades():
    def post(p):
        assert p.max() < 1
        return p

    story = edge_model(Cloud(), post=post).infer(UNSURE)
    assert story.degraded
    assert "post_fun did not take" in story.reason


def test_a_full_link_is_a_degraded_answer_and_no_upload():
    model = edge_model(Cloud(), link=LinkBudget(1e-6, clock=lambda: 0.0))
    stories = [model.infer(UNSURE) for _ in range(3)]
    assert [story.degraded for story in stories] == [False, True, True]
    assert "the link is full" in stories[1].reason
    assert model.statistics.uploads == 1


def test_a_wrong_sample_is_told_and_counts_for_nothing():
    model = edge_model(Cloud())
    with pytest.raises(ModelError, match=r"expected \[-1, 3\]"):
        model.predict(np.zeros((2, 4), np.float32))
    with pytest.raises(ModelError, match="expected FP32"):
        model.predict(np.array(["a", "b", "c"]))
    with pytest.raises(ModelError, match=r"a NoneType is no sample of this model, which takes '.*' FP32 \[-1, 3\]"):
        model.predict(None)
    assert model.statistics.frames == 0


def test_numbers_are_brought_to_the_models_dtype_as_frameworks_do():
    assert edge_model().predict([9, 0, 0]).argmax() == 0
    assert edge_model().predict(SURE.astype(np.float64)).dtype == np.float32


def boxes_of(outputs):
    return [[*box, score] for box, score in zip(outputs["boxes"].tolist(), outputs["scores"].tolist(), strict=True)]


def test_a_detectors_boxes_decide_and_the_deep_models_replace_them():
    deep = {"boxes": np.ones((1, 5, 4), np.float32), "scores": np.full((1, 5), 0.95, np.float32)}
    model = edge_model(Cloud(deep, Description((TensorSpec("x", "FP32", (-1, 3)),))), runner=Detector(), post=boxes_of)
    sure, unsure = np.full(3, 0.9, np.float32), np.full(3, 0.2, np.float32)
    assert len(model.predict(sure)) == 3
    story = model.infer(unsure)
    assert story.source == "cloud"
    assert len(story.result) == 5


class Alternate:
    """Uploads every second sample."""

    def __init__(self):
        self.count = 0

    def decide(self, scores):
        self.count += 1
        return Decision(self.count % 2 == 0, 0.5, "its turn")

    def describe(self):
        return {"name": "alternate"}


def streaming(function, deadline=10.0):
    return EdgeModel(
        Softmax(), algorithm=Alternate(), deep_model=DeepModel(CallableEndpoint(function), deadline=deadline), name="s"
    )


def test_a_stream_keeps_its_order_and_goes_on_while_the_cloud_answers():
    release, pulled = threading.Event(), []

    def slow(batch):
        release.wait(10)
        return np.tile(np.array([0, 0, 1], np.float32), (len(batch), 1))

    def frames():
        for i in range(20):
            pulled.append(i)
            if i == 19:
                release.set()  # the camera came to its end while the cloud had not answered once
            yield SURE

    stories = list(streaming(slow).stream(frames(), at_once=4))
    assert len(stories) == 20
    assert [story.source for story in stories[:8:2]] == ["edge"] * 4
    assert [story.source for story in stories[1:8:2]] == ["cloud"] * 4
    assert any(story.degraded and "as many uploads" in story.reason for story in stories)
    assert pulled == list(range(20))


def test_a_slow_cloud_costs_no_more_than_the_deadline():
    release = threading.Event()
    model = streaming(lambda batch: release.wait(10), deadline=0.05)
    model.infer(SURE)
    story = model.infer(SURE)
    release.set()
    assert story.degraded
    assert "no answer within" in story.reason
    assert story.cloud_seconds < 2


def test_an_event_loop_goes_on_while_it_predicts():
    async def both():
        return await asyncio.gather(*(edge_model(Cloud()).predict_async(UNSURE) for _ in range(3)))

    assert [found.tolist() for found in asyncio.run(both())] == [[0, 0, 1]] * 3


def test_threads_may_share_it():
    model = edge_model(Cloud())
    threads = [threading.Thread(target=lambda: [model.predict(UNSURE) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.statistics.frames == 400


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf"), "1s"])
def test_what_is_no_deadline_is_told(deadline):
    with pytest.raises(ModelError, match="deadline"):
        DeepModel(Cloud(), deadline=deadline)


def test_what_is_no_form_of_upload_is_told():
    with pytest.raises(ModelError, match=r"upload is 'jpeg', expected an UploadForm"):
        DeepModel(Cloud(), deadline=1, form="jpeg")


def test_rows_of_several_lengths_are_told():
    with pytest.raises(ModelError, match="expected rows of one length"):
        edge_model(Cloud()).predict([[1, 2, 3], [4]])


def test_a_stream_yields_what_it_owes_before_it_raises_what_the_camera_raised():
    def camera():
        yield from [SURE] * 5
        raise OSError("the camera is gone")

    stream = streaming(lambda batch: batch).stream(camera())
    assert len([next(stream) for _ in range(5)]) == 5
    with pytest.raises(OSError, match="the camera is gone"):
        next(stream)


def test_a_batch_is_no_frame_of_a_stream():
    with pytest.raises(ModelError, match="a batch of 2; expected one sample a frame"):
        list(streaming(lambda batch: batch).stream([np.stack([SURE, SURE])]))


@pytest.mark.parametrize("at_once", [0, -1, True, 1.5])
def test_a_stream_needs_room_for_a_frame(at_once):
    with pytest.raises(ModelError, match=r"at_once is .*expected a whole number from 1"):
        list(streaming(lambda batch: batch).stream([SURE], at_once=at_once))
