# SPDX-License-Identifier: Apache-2.0
"""Thresholds with a promise: it holds as often as it says, or is not made."""

from __future__ import annotations

import numpy as np
import pytest

from solar_corona.core.errors import ModelError
from solar_corona.joint_inference import Calibrated, Learned, Scores
from solar_corona.joint_inference.calibrated import calibration_file
from solar_corona.joint_inference.curves import accuracy_curve, area_under_curve, oracle_hardness
from solar_corona.joint_inference.drift import ConfidenceWatch
from solar_corona.joint_inference.promises import Labelled, at_least_accuracy, at_most_loss, at_most_upload
from solar_corona.joint_inference.registry import choose


def population(n, seed, shallow=0.75, deep=0.9):
    """Return samples whose confidence says something of the shallow model's errors."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(3, 1.2, n)
    right = rng.random(n) < np.clip(confidence * shallow / 0.7, 0, 1)
    return Labelled(confidence, right, rng.random(n) < deep)


TRUTH = population(400_000, 0)


def loss_at(threshold):
    return TRUTH.deep_right.mean() - TRUTH.accuracy_at(threshold)


@pytest.mark.parametrize("n", [400, 2000])
def test_the_loss_exceeds_what_was_promised_in_a_twentieth_of_all_samples_at_most(n):
    broken = sum(loss_at(at_most_loss(population(n, seed), 0.02).threshold) > 0.02 for seed in range(1, 301))
    assert broken / 300 <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5


def test_more_samples_need_fewer_uploads_for_the_same_promise():
    few, many = (np.mean([at_most_loss(population(n, s), 0.02).uploads for s in range(20)]) for n in (300, 4000))
    assert many < few


def test_an_accuracy_is_certified_or_refused():
    data = population(4000, 1)
    found = at_least_accuracy(data, 0.85)
    assert TRUTH.accuracy_at(found.threshold) >= 0.85
    assert 0 < found.uploads < 1
    with pytest.raises(ModelError, match=r"target_accuracy is 0\.95, and the deep model itself is right on 0\.\d+"):
        at_least_accuracy(data, 0.95)


def test_uploads_stay_within_a_budget_that_needs_no_labels():
    rng = np.random.default_rng(2)
    broken = 0
    for _ in range(400):
        found = at_most_upload(rng.beta(3, 1.2, 500), 0.1)
        broken += TRUTH.uploads_at(found.threshold) > 0.1
    assert broken / 400 <= 0.08
    assert found.uploads > 0.06


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: at_most_loss(population(200, 1), 0.01), "at least 299"),
        (lambda: at_most_loss(population(200, 1), 0), "expected a share between 0 and 1"),
        (lambda: at_most_upload(np.linspace(0, 1, 20), 0.01), "about 299 are needed"),
        (lambda: Labelled(np.array([0.5]), np.ones(2, bool), np.ones(1, bool)), "as many of each"),
        (lambda: Labelled(np.array([1.5]), np.ones(1, bool), np.ones(1, bool)), "between 0 and 1"),
        (lambda: Calibrated(max_loss=0.1, max_upload=0.1), "one promise"),
        (lambda: Calibrated().fit([Scores(np.array([0.5, 0.5]))] * 200), "no promise to calibrate for"),
        (lambda: Calibrated(max_loss=0.1).fit([Scores(np.array([0.5, 0.5]))] * 200), "which model was right"),
        (lambda: Calibrated(max_loss=0.1).fit([Scores(np.array([0.5, 0.5]))] * 50), "50 samples say nothing"),
        (lambda: Calibrated(max_loss=0.1).decide(Scores(np.array([0.5, 0.5]))), "no threshold yet"),
        (lambda: Learned(1.7), "upload_ratio is 1.7"),
    ],
)
def test_what_cannot_be_promised_is_told(make, says):
    with pytest.raises(ModelError, match=says):
        make()


def scores_like(confidence):
    """Return two-class probabilities with these margins."""
    return [Scores(np.array([(1 + c) / 2, (1 - c) / 2])) for c in confidence]


def fitted():
    data = population(2000, 3)
    return Calibrated(max_loss=0.02).fit(scores_like(data.confidence), data.shallow_right, data.deep_right)


def test_a_calibration_is_kept_beside_the_model_and_used_from_there(tmp_path):
    model = tmp_path / "small.tflite"
    model.write_bytes(b"model")
    fitted().save(calibration_file(model))
    found = choose("calibrated", None, model=model)
    assert found.describe()["promise"] == "at most 2.00% below the deep model's accuracy"
    threshold = found.calibration.threshold
    below, above = scores_like([threshold - 0.01, threshold + 0.01])
    assert found.decide(below).upload
    assert not found.decide(above).upload


@pytest.mark.parametrize(
    ("prepare", "asked", "says"),
    [
        (lambda path: None, Calibrated(), "solar-corona calibrate"),
        (lambda path: path.write_text("{}"), Calibrated(), "is no calibration"),
        (lambda path: fitted().save(path, model_sha256="other"), Calibrated(), "another model"),
        (lambda path: fitted().save(path), Calibrated(max_loss=0.5), "calibrate anew"),
    ],
)
def test_a_calibration_that_does_not_fit_is_told(tmp_path, prepare, asked, says):
    model = tmp_path / "small.tflite"
    model.write_bytes(b"model")
    prepare(calibration_file(model))
    with pytest.raises(ModelError, match=says):
        choose(asked, None, model=model)


def test_drift_voids_the_promise_and_is_told_once(caplog):
    calibrated, rng = fitted(), np.random.default_rng(4)
    for scores in scores_like(rng.beta(3, 1.2, 20_000)):
        decision = calibrated.decide(scores)
    assert not calibrated.describe()["void"]
    assert "voided" not in decision.reason
    for scores in scores_like(rng.beta(2, 2, 2000)):
        decision = calibrated.decide(scores)
    assert calibrated.describe()["void"]
    assert "voided" in decision.reason
    assert caplog.text.count("is not promised now") == 1


def test_false_alarms_are_rare():
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(50):
        cuts = np.quantile(sample := rng.random(2000), np.arange(1, 10) / 10)
        watch = ConfidenceWatch(cuts, np.bincount(np.searchsorted(cuts, sample, side="right"), minlength=10))
        alarms += any(watch.take(value) for value in rng.random(10_000))
    assert alarms == 0


def test_curves_begin_with_the_shallow_model_and_end_with_the_deep_one():
    data = population(3000, 6)
    curve = accuracy_curve(-data.confidence, data.shallow_right, data.deep_right)
    assert curve[0] == pytest.approx(data.shallow_right.mean())
    assert curve[-1] == pytest.approx(data.deep_right.mean())
    areas = {
        name: area_under_curve(hardness, data.shallow_right, data.deep_right)
        for name, hardness in (
            ("random", np.random.default_rng(0).random(3000)),
            ("margin", -data.confidence),
            ("oracle", oracle_hardness(data.shallow_right, data.deep_right)),
        )
    }
    assert areas["random"] < areas["margin"] < areas["oracle"]


def test_a_head_is_adopted_only_where_it_beats_margin(tmp_path):
    rng = np.random.default_rng(7)
    p = rng.dirichlet(np.ones(4) * 0.7, 4000)
    scores = [Scores(row) for row in p]
    # The deep model helps only where the third class is likely, which a margin cannot see.
    third = np.sort(p, axis=1)[:, 1]
    shallow, deep = rng.random(4000) < 0.7, rng.random(4000) < 0.4 + 2 * third
    learned = Learned(0.2)
    head = learned.fit(scores, shallow, deep)
    assert head.adopted
    assert head.gain_low > 0
    assert learned.describe()["ranks_by"] == "head"
    learned.save(tmp_path / "head.json")
    again = Learned(0.2, file=tmp_path / "head.json")
    assert [again.decide(s) for s in scores[:200]] == [learned.decide(s) for s in scores[:200]]
    unrelated = Learned(0.2)
    assert not unrelated.fit(scores, shallow, rng.random(4000) < 0.8).adopted
    assert unrelated.describe()["ranks_by"] == "margin"
