# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from solar_corona.core import errors
from solar_corona.lib.metrics import ADifferentCategoricalAccuracy

RNG = np.random.default_rng(11)


def value(tensor):
    return float(np.asarray(ops.convert_to_numpy(tensor)))


def scores(answers, classes):
    return np.eye(classes, dtype="float32")[np.asarray(answers, int)]


def reference(labels, answers, weights=None):
    labels, answers = np.asarray(labels), np.asarray(answers)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights)
    recalls = [
        (weights * (answers == label))[labels == label].sum() / weights[labels == label].sum()
        for label in np.unique(labels)
        if weights[labels == label].sum() > 0
    ]
    return float(np.mean(recalls)) if recalls else 0.0


def test_always_answering_the_common_class_scores_no_better_than_chance():
    labels = np.array([0] * 90 + [1] * 10)
    balanced, plain = ADifferentCategoricalAccuracy(), keras.metrics.SparseCategoricalAccuracy()
    assert value(plain(labels, scores(np.zeros(100), 2))) == pytest.approx(0.9)
    assert value(balanced(labels, scores(np.zeros(100), 2))) == pytest.approx(0.5)


def test_with_equally_frequent_classes_it_is_plain_accuracy():
    labels = np.repeat(np.arange(5), 8)
    outputs = RNG.normal(size=(40, 5)).astype("float32")
    expected = value(keras.metrics.SparseCategoricalAccuracy()(labels, outputs))
    assert value(ADifferentCategoricalAccuracy()(labels, outputs)) == pytest.approx(expected)


@given(data=st.data(), classes=st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_many_batches_give_what_all_samples_at_once_give(data, classes):
    one = st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1), st.integers(0, 4))
    batches = data.draw(st.lists(st.lists(one, min_size=1, max_size=8), min_size=1, max_size=4))
    metric = ADifferentCategoricalAccuracy()
    for batch in batches:
        labels, answers, weights = (np.array(column) for column in zip(*batch, strict=True))
        metric.update_state(labels, scores(answers, classes), sample_weight=weights)
    labels, answers, weights = (
        np.array(column) for column in zip(*[s for batch in batches for s in batch], strict=True)
    )
    assert value(metric.result()) == pytest.approx(reference(labels, answers, weights), abs=1e-5)


def test_a_class_that_does_not_occur_has_no_say():
    assert value(ADifferentCategoricalAccuracy(10)([1, 1, 2], scores([1, 1, 2], 10))) == pytest.approx(1.0)


@pytest.mark.parametrize("form", ["flat", "column", "one-hot", "soft"])
def test_every_form_of_labels_gives_the_same(form):
    labels = np.array([0, 1, 2, 1])
    one_hot = scores(labels, 3)
    given_labels = {
        "flat": labels,
        "column": labels[:, None],
        "one-hot": one_hot,
        "soft": one_hot * 0.8 + 0.05,
    }
    metric = ADifferentCategoricalAccuracy()
    assert value(metric(given_labels[form], scores([0, 1, 2, 2], 3))) == pytest.approx((1 + 0.5 + 1) / 3)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_sample_of_weight_two_counts_like_two_samples(shape):
    weights = np.array([2.0, 1.0, 1.0, 1.0]).reshape(shape)
    weighted = ADifferentCategoricalAccuracy()([0, 0, 1, 1], scores([0, 1, 1, 1], 2), sample_weight=weights)
    doubled = ADifferentCategoricalAccuracy()([0, 0, 0, 1, 1], scores([0, 0, 1, 1, 1], 2))
    assert value(weighted) == pytest.approx(value(doubled))


def test_without_samples_it_is_zero_and_reset_begins_anew():
    metric = ADifferentCategoricalAccuracy()
    assert value(metric.result()) == 0
    metric.reset_state()
    metric.update_state([0, 1], scores([0, 0], 2))
    assert value(metric.result()) == pytest.approx(0.5)
    metric.reset_state()
    assert value(metric.result()) == 0
    metric.update_state([1], scores([1], 2))
    assert value(metric.result()) == pytest.approx(1.0)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_fit_and_evaluate_report_it_under_accuracy(num_classes):
    features = RNG.normal(size=(50, 4)).astype("float32")
    labels = RNG.choice(3, size=50, p=[0.8, 0.1, 0.1])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(
        optimizer=keras.optimizers.SGD(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[ADifferentCategoricalAccuracy(num_classes)],
    )
    history = model.fit(features, labels, batch_size=16, epochs=2, verbose=0).history
    assert len(history["accuracy"]) == 2
    for _ in range(2):
        found = model.evaluate(features, labels, batch_size=16, verbose=0, return_dict=True)["accuracy"]
        answers = model.predict(features, batch_size=16, verbose=0).argmax(-1)
        assert found == pytest.approx(reference(labels, answers), abs=1e-5)


def test_its_configuration_survives_json():
    metric = ADifferentCategoricalAccuracy(7, name="balanced")
    again = keras.metrics.deserialize(json.loads(json.dumps(keras.metrics.serialize(metric))))
    assert isinstance(again, ADifferentCategoricalAccuracy)
    assert again.get_config() == metric.get_config()


def test_outputs_and_labels_of_the_wrong_form_are_refused():
    with pytest.raises(errors.ModelError, match="BinaryAccuracy"):
        ADifferentCategoricalAccuracy()([0, 1], np.ones((2, 1)))
    with pytest.raises(errors.ModelError, match="expected 3"):
        ADifferentCategoricalAccuracy(3)([0, 1], np.ones((2, 4)))
    with pytest.raises(errors.ModelError, match="one column for each of 4 classes"):
        ADifferentCategoricalAccuracy()(np.eye(3)[[0, 1]], np.ones((2, 4)))
    with pytest.raises(ValueError, match="num_classes"):
        ADifferentCategoricalAccuracy(1)
