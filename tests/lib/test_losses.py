# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from solar_corona.core import errors
from solar_corona.lib.losses import ADifferentCategoricalCrossentropy

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(16, 4)).astype("float32")
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)).astype("float32")
LABELS = RNG.integers(0, 4, size=16)
ONE_HOT = np.eye(4, dtype="float32")[LABELS]
COUNTS = [90, 9, 1, 0]

finite = st.floats(-20, 20, width=32)


def value(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def reference(logits, one_hot, counts, *, tau=1.0, smoothing=0.0):
    prior = np.asarray(counts, float) + 1
    adjusted = logits.astype(float) + tau * np.log(prior / prior.sum())
    logarithms = adjusted - np.log(np.exp(adjusted).sum(-1, keepdims=True))
    target = one_hot * (1 - smoothing) + smoothing / logits.shape[-1]
    return -(target * logarithms).sum(-1).mean()


def plain(*, from_logits, **arguments):
    return keras.losses.CategoricalCrossentropy(from_logits=from_logits, **arguments)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("from_logits", [True, False])
def test_without_counts_it_is_plain_cross_entropy(from_logits, smoothing):
    outputs = LOGITS if from_logits else PROBABILITIES
    expected = plain(from_logits=from_logits, label_smoothing=smoothing)(ONE_HOT, outputs)
    for choice in (from_logits, "auto"):
        ours = ADifferentCategoricalCrossentropy(from_logits=choice, label_smoothing=smoothing)
        np.testing.assert_allclose(value(ours(ONE_HOT, outputs)), value(expected), rtol=1e-5)


@pytest.mark.parametrize("outputs", [LOGITS, PROBABILITIES], ids=["logits", "probabilities"])
@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
def test_with_counts_it_follows_the_formula_for_logits_and_probabilities_alike(outputs, tau):
    loss = ADifferentCategoricalCrossentropy(tau, label_smoothing=0.1)
    loss.set_class_counts(COUNTS)
    expected = reference(LOGITS, ONE_HOT, COUNTS, tau=tau, smoothing=0.1)
    np.testing.assert_allclose(value(loss(ONE_HOT, outputs)), expected, rtol=1e-5)


def test_counts_given_to_the_constructor_count_from_the_start():
    loss = ADifferentCategoricalCrossentropy(1.0, class_counts=COUNTS)
    np.testing.assert_allclose(value(loss(ONE_HOT, LOGITS)), reference(LOGITS, ONE_HOT, COUNTS), rtol=1e-5)


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], LABELS.astype("uint8"), ONE_HOT.astype("int64")])
def test_whole_number_labels_and_one_hot_labels_give_the_same(labels):
    loss = ADifferentCategoricalCrossentropy(class_counts=COUNTS)
    np.testing.assert_allclose(value(loss(labels, LOGITS)), value(loss(ONE_HOT, LOGITS)), rtol=1e-6)


def test_sample_weights_and_reductions_are_those_of_keras():
    weights = RNG.random(16).astype("float32")
    for reduction in ("sum", "sum_over_batch_size", "mean_with_sample_weight", None):
        ours = ADifferentCategoricalCrossentropy(from_logits=True, reduction=reduction)
        expected = plain(from_logits=True, reduction=reduction)(ONE_HOT, LOGITS, sample_weight=weights)
        np.testing.assert_allclose(value(ours(ONE_HOT, LOGITS, sample_weight=weights)), value(expected), rtol=1e-5)


def test_labels_of_every_pixel_or_step_are_accepted():
    logits, labels = LOGITS.reshape(2, 8, 4), LABELS.reshape(2, 8)
    loss = ADifferentCategoricalCrossentropy(class_counts=COUNTS, reduction=None)
    flat = value(loss(LABELS, LOGITS))
    np.testing.assert_allclose(value(loss(labels, logits)).reshape(-1), flat, rtol=1e-5)


def test_evaluation_reports_the_plain_loss_and_training_goes_on_adjusted():
    loss = ADifferentCategoricalCrossentropy(class_counts=COUNTS)
    adjusted = value(loss(ONE_HOT, LOGITS))
    loss.set_training(False)
    evaluated = value(loss(ONE_HOT, LOGITS))
    loss.set_training(True)
    np.testing.assert_allclose(evaluated, value(plain(from_logits=True)(ONE_HOT, LOGITS)), rtol=1e-5)
    assert abs(adjusted - evaluated) > 0.02
    np.testing.assert_allclose(value(loss(ONE_HOT, LOGITS)), adjusted, rtol=1e-6)


@given(
    logits=hnp.arrays("float32", (5, 3), elements=finite),
    count=st.integers(0, 10_000),
    tau=st.floats(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_equal_counts_change_nothing(logits, count, tau):
    one_hot = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1]]
    loss = ADifferentCategoricalCrossentropy(tau, from_logits=True, class_counts=[count] * 3)
    expected = value(plain(from_logits=True)(one_hot, logits))
    np.testing.assert_allclose(value(loss(one_hot, logits)), expected, rtol=1e-4, atol=1e-4)


@given(
    logits=hnp.arrays("float32", (4, 3), elements=st.floats(-8, 8, width=32)),
    counts=hnp.arrays("int64", 3, elements=st.integers(0, 1000)),
    tau=st.floats(0, 2),
)
@settings(max_examples=100, deadline=None)
def test_logits_and_their_softmax_give_the_same_loss(logits, counts, tau):
    # A batch of logits that is itself one of probabilities is the one that cannot be told.
    assume((logits < 0).any() or (np.abs(logits.sum(-1) - 1) > 0.01).any())
    probabilities = value(ops.softmax(logits))
    loss = ADifferentCategoricalCrossentropy(tau, class_counts=counts)
    labels = np.array([0, 1, 2, 0])
    np.testing.assert_allclose(value(loss(labels, logits)), value(loss(labels, probabilities)), rtol=1e-3, atol=1e-3)


@given(
    probabilities=hnp.arrays("float32", (3, 4), elements=st.floats(0, 1, width=32)),
    counts=hnp.arrays("float64", 4, elements=st.floats(0, 1e6)),
)
@settings(max_examples=60, deadline=None)
def test_the_loss_of_any_outputs_is_finite_and_not_negative(probabilities, counts):
    loss = ADifferentCategoricalCrossentropy(class_counts=counts, reduction=None)
    losses = value(loss(np.array([0, 1, 3]), probabilities))
    assert np.isfinite(losses).all()
    assert (losses >= -1e-5).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_probabilities_rounded_by_a_coarse_type_are_still_told_from_logits(dtype):
    coarse = ops.cast(ops.convert_to_tensor(PROBABILITIES), dtype)
    ours = value(ADifferentCategoricalCrossentropy()(ONE_HOT, coarse))
    np.testing.assert_allclose(ours, value(plain(from_logits=False)(ONE_HOT, PROBABILITIES)), rtol=0.02)


def test_a_confident_mistake_of_a_softmax_output_still_has_a_gradient():
    if keras.config.backend() != "tensorflow":
        pytest.skip("gradients are taken with TensorFlow here")
    import tensorflow as tf

    logits = tf.Variable([[40.0, 0.0, 0.0]])
    loss = ADifferentCategoricalCrossentropy()
    with tf.GradientTape() as tape:
        result = loss(np.array([1]), tf.nn.softmax(logits))
    np.testing.assert_allclose(tape.gradient(result, logits).numpy(), [[1, -1, 0]], atol=1e-5)


def test_a_traced_fit_follows_counts_and_switch_that_are_set_later():
    if keras.config.backend() != "tensorflow":
        pytest.skip("only TensorFlow's traced steps follow; the docstring says so")
    features = RNG.normal(size=(16, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    loss = ADifferentCategoricalCrossentropy(1.0)
    # With this learning rate the weights stay as they are, so that only the loss can change.
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=loss)
    fit = lambda: model.fit(features, LABELS, batch_size=16, verbose=0, shuffle=False).history["loss"][0]  # noqa: E731
    logits = value(model(features))
    before = fit()
    step = model.train_function
    loss.set_class_counts(COUNTS)
    after = fit()
    loss.set_training(False)
    evaluated = model.evaluate(features, LABELS, batch_size=16, verbose=0)
    switched_off = fit()
    loss.set_class_counts([1, 1, 1, 500])
    loss.set_training(True)
    other_counts = fit()
    assert model.train_function is step
    np.testing.assert_allclose(before, reference(logits, ONE_HOT, [1, 1, 1, 1]), rtol=1e-4)
    np.testing.assert_allclose(after, reference(logits, ONE_HOT, COUNTS), rtol=1e-4)
    np.testing.assert_allclose([evaluated, switched_off], [before, before], rtol=1e-4)
    np.testing.assert_allclose(other_counts, reference(logits, ONE_HOT, [1, 1, 1, 500]), rtol=1e-4)


def test_counts_and_switch_set_before_the_first_step_hold_on_every_backend():
    features = RNG.normal(size=(16, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="softmax")])
    loss = ADifferentCategoricalCrossentropy(1.0)
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=loss)
    logits = np.log(value(model(features)))
    loss.set_class_counts(COUNTS)
    for _ in range(2):
        loss.set_training(True)
        trained = model.fit(features, LABELS, batch_size=16, verbose=0).history["loss"][0]
        loss.set_training(False)
        evaluated = model.evaluate(features, LABELS, batch_size=16, verbose=0)
        np.testing.assert_allclose(trained, reference(logits, ONE_HOT, COUNTS), rtol=1e-4)
        np.testing.assert_allclose(evaluated, reference(logits, ONE_HOT, [1, 1, 1, 1]), rtol=1e-4)


def test_its_configuration_survives_json_and_gives_the_same_loss():
    loss = ADifferentCategoricalCrossentropy(
        0.7, from_logits=True, label_smoothing=0.1, class_counts=COUNTS, reduction="sum", name="mine"
    )
    again = keras.losses.deserialize(json.loads(json.dumps(keras.losses.serialize(loss))))
    assert isinstance(again, ADifferentCategoricalCrossentropy)
    assert again.get_config() == loss.get_config()
    np.testing.assert_allclose(value(again(ONE_HOT, LOGITS)), value(loss(ONE_HOT, LOGITS)), rtol=1e-6)


def test_an_edges_counts_do_not_leave_it_in_a_configuration():
    loss = ADifferentCategoricalCrossentropy()
    loss.set_class_counts(COUNTS)
    assert loss.get_config()["class_counts"] is None


@pytest.mark.parametrize("counts", [[1, -1, 2, 3], [1, float("nan"), 2, 3], [[1, 2], [3, 4]], []])
def test_counts_that_are_not_counts_are_refused(counts):
    with pytest.raises(errors.DatasetError, match=r"numpy\.bincount"):
        ADifferentCategoricalCrossentropy().set_class_counts(counts)


def test_an_edge_without_the_last_classes_may_count_the_others_alone():
    short, full = ADifferentCategoricalCrossentropy(), ADifferentCategoricalCrossentropy()
    short.set_class_counts([5, 7])
    full.set_class_counts([5, 7, 0, 0])
    np.testing.assert_allclose(value(short(ONE_HOT, LOGITS)), value(full(ONE_HOT, LOGITS)), rtol=1e-6)
    short.set_class_counts([9])
    full.set_class_counts([9, 0, 0, 0])
    np.testing.assert_allclose(value(short(ONE_HOT, LOGITS)), value(full(ONE_HOT, LOGITS)), rtol=1e-6)


def test_counts_of_more_classes_than_the_model_has_are_refused():
    loss = ADifferentCategoricalCrossentropy()
    loss.set_class_counts([1, 2, 3, 4, 5])
    with pytest.raises(errors.ModelError, match="5 classes, but the model has 4 outputs"):
        loss(ONE_HOT, LOGITS)


def test_outputs_and_labels_of_the_wrong_form_are_refused():
    loss = ADifferentCategoricalCrossentropy()
    with pytest.raises(errors.ModelError, match="BinaryCrossentropy"):
        loss(np.ones((4, 1)), np.ones((4, 1)))
    with pytest.raises(errors.ModelError, match="one column for each of 4 classes"):
        loss(np.eye(3)[[0, 1]], LOGITS[:2])


@pytest.mark.parametrize(
    "arguments", [{"tau": -1}, {"tau": float("inf")}, {"label_smoothing": 1.0}, {"from_logits": "maybe"}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ADifferentCategoricalCrossentropy(**arguments)
