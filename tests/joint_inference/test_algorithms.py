# SPDX-License-Identifier: Apache-2.0
"""What each offload algorithm looks at, and how it is chosen."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import ModelError
from solar_corona.core.inference_spec import Offload
from solar_corona.joint_inference import IBT, Decision, Entropy, Margin, OffloadAlgorithm, Scores, Threshold
from solar_corona.joint_inference.checks import check_offload_algorithm
from solar_corona.joint_inference.registry import ALGORITHMS, choose, create
from solar_corona.lib.scores import box_scores, class_scores, scores_of

UNCALIBRATED = sorted(set(ALGORITHMS) - {"calibrated"})


def classes(*values):
    return Scores(np.array(values, float))


def boxes(*values):
    return Scores(np.array(values, float), boxes=True)


def test_each_confidence_is_the_one_it_is_named_after():
    p = classes(0.6, 0.3, 0.1)
    assert Margin().confidence(p) == pytest.approx(0.3)
    assert Threshold().confidence(p) == pytest.approx(0.6)
    entropy = -sum(v * math.log(v) for v in (0.6, 0.3, 0.1)) / math.log(3)
    assert Entropy().confidence(p) == pytest.approx(1 - entropy)


@given(st.lists(st.floats(0, 1), max_size=20), st.booleans(), st.sampled_from(UNCALIBRATED))
def test_every_algorithm_decides_on_whatever_a_model_gives(values, as_boxes, name):
    decision = create(name, {}).decide(Scores(np.array(values, float), boxes=as_boxes))
    assert isinstance(decision.upload, bool)
    assert 0 <= decision.confidence <= 1
    assert decision.reason


def test_a_threshold_uploads_what_is_below_it():
    assert Threshold(0.7).decide(classes(0.69, 0.31)).upload
    assert not Threshold(0.7).decide(classes(0.7, 0.3)).upload


@pytest.mark.parametrize("name", UNCALIBRATED)
def test_any_score_can_be_held_to_a_ratio(name):
    rng = np.random.default_rng(0)
    algorithm = create(name, {"upload_ratio": 0.2})
    uploads = [algorithm.decide(Scores(rng.dirichlet(np.ones(5)))).upload for _ in range(5000)]
    assert sum(uploads) / 5000 == pytest.approx(0.2, abs=0.004)
    assert algorithm.describe()["upload_ratio"] == 0.2


def test_ibt_asks_about_images_with_many_unsure_boxes():
    ibt = IBT(threshold_box=0.7, threshold_img=0.5)
    assert ibt.decide(boxes(0.9, 0.6, 0.5)).upload
    assert not ibt.decide(boxes(0.9, 0.8, 0.5)).upload


def test_ibt_takes_an_empty_image_for_an_easy_one():
    assert not IBT(threshold_img=1.0).decide(boxes()).upload
    ibt = IBT(upload_ratio=0.3)
    for i in range(1000):
        decision = ibt.decide(boxes() if i % 2 else boxes(0.3, 0.4))
        assert not (decision.upload and i % 2 and i > 100)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Margin(threshold=0.3, upload_ratio=0.1), "either a threshold or an upload_ratio"),
        (lambda: Margin(upload_ratio=1.7), "upload_ratio is 1.7"),
        (lambda: Threshold(7), "threshold is 7"),
        (lambda: IBT(threshold_box=-1), "threshold_box is -1"),
        (lambda: create("margn", {}), "did you mean 'margin'"),
        (lambda: create("margin", {"ratio": 0.1}), "does not take these options"),
        (lambda: create("numpy:nothing", {}), "cannot be loaded"),
        (lambda: create("numpy:pi", {}), "is no class"),
        (lambda: create("builtins:dict", {}), "has not the methods"),
        (lambda: choose(3, None), "is a int"),
        (lambda: choose(Margin, None), r"is the class Margin; make one of it: Margin\("),
        (lambda: Margin(upload_ratio="0.1"), "upload_ratio is '0.1'"),
        (lambda: Margin(upload_ratio=True), "upload_ratio is True"),
        (lambda: Threshold("low"), "threshold is 'low'"),
        (lambda: IBT(threshold_img=None), "threshold_img is None"),
    ],
)
def test_a_wrong_algorithm_is_told_what_to_do(make, says):
    with pytest.raises(ModelError, match=says):
        make()


def test_numbers_of_numpy_are_described_in_json():
    made = [Margin(upload_ratio=np.float32(0.5)), Threshold(np.float32(0.5)), IBT(upload_ratio=np.float32(0.5))]
    assert "0.5" in json.dumps([algorithm.describe() for algorithm in made])


def test_a_script_chooses_before_the_job_and_the_job_before_the_default():
    mine, job = IBT(upload_ratio=0.5), Offload(algorithm="threshold", options={"threshold": 0.9})
    assert choose(mine, job) is mine
    assert choose("entropy", job).describe()["name"] == "entropy"
    assert choose(None, job).describe() == {"name": "threshold", "threshold": 0.9}
    assert choose(None, None).describe()["name"] == "margin"
    assert isinstance(choose(None, None), OffloadAlgorithm)


def test_probabilities_logits_and_quantised_outputs_say_the_same():
    p = np.array([0.7, 0.2, 0.1], np.float32)
    assert class_scores(p).values == pytest.approx(p)
    assert class_scores(np.log(p) + 3).values == pytest.approx(p, abs=1e-6)
    assert class_scores(np.array([179, 51, 25], np.uint8)).values == pytest.approx(p, abs=0.005)
    assert class_scores(np.array([179, 51, 25], np.int16).astype(np.int8) - np.int8(0)).values.sum() == pytest.approx(1)
    assert class_scores(np.array([0.9])).values == pytest.approx([0.1, 0.9])
    assert class_scores(np.array([5000.0])).values == pytest.approx([0, 1])


@pytest.mark.parametrize(
    "found",
    [
        [[0, 0, 1, 1, 0.9, 2], [0, 0, 1, 1, 0.4, 1]],
        [{"score": 0.9, "box": 1}, {"score": 0.4}],
        [np.array([0, 0, 1, 1, 0.9]), np.array([0, 0, 1, 1, 0.4])],
    ],
)
def test_boxes_of_any_usual_form_have_scores(found):
    scores = scores_of([np.zeros(4), np.zeros(4)], found, None)
    assert scores.boxes
    assert scores.values.tolist() == [0.9, 0.4]


def test_a_users_own_confidence_counts():
    assert scores_of([], "text", lambda result: 0.8).values.tolist() == pytest.approx([0.8, 0.2])
    assert scores_of([], "text", lambda result: [0.5, 0.9]).boxes
    for wrong in ("x", 2, [[0.1]], [1.5], None):
        with pytest.raises(ModelError, match="confidence_fun returned"):
            scores_of([], "text", lambda result, wrong=wrong: wrong)


def test_a_model_whose_confidence_nobody_can_tell_is_told():
    with pytest.raises(ModelError, match="pass load_model a confidence_fun"):
        scores_of([np.zeros(3), np.zeros(3)], {"a": 1}, None)
    with pytest.raises(ModelError, match="box 1 has no score"):
        box_scores([[0, 0, 1, 1, 0.5], [0, 0]])


@pytest.mark.parametrize("name", UNCALIBRATED)
def test_every_algorithm_keeps_the_contract(name):
    check_offload_algorithm(lambda: create(name, {}))
    check_offload_algorithm(lambda: create(name, {"upload_ratio": 0.05, "hold": "strict"}))


class Own:
    """Keeps the contract."""

    told: ClassVar[dict] = {"name": "own"}
    decision = Decision(False, 0.5, "never")

    def decide(self, scores):
        return self.decision

    def describe(self):
        return self.told


class Changes(Own):
    def decide(self, scores):
        scores.values[:] = 0
        return self.decision


class Chance(Own):
    def decide(self, scores):
        return Decision(bool(np.random.default_rng().integers(2)), 0.5, "chance")


def own(**changes):
    return type("Changed", (Own,), changes)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (object, "has not decide"),
        (own(told={}), "no dict with a 'name'"),
        (own(told={"name": "x", "at": object()}), "which is no JSON"),
        (own(decision=True), "returned a bool"),
        (own(decision=Decision(1, 0.5, "x")), "upload is 1"),
        (own(decision=Decision(True, 1.5, "x")), "confidence is 1.5"),
        (own(decision=Decision(True, 0.5, "")), "reason is empty"),
        (own(told={"name": "x", "upload_ratio": 0.5}), "uploads off in a window"),
        (Changes, "changed the scores"),
        (Chance, "decide differently"),
    ],
)
def test_a_broken_promise_is_named(kind, says):
    check_offload_algorithm(Own)
    with pytest.raises(ModelError, match=says):
        check_offload_algorithm(kind)
