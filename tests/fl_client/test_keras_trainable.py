# SPDX-License-Identifier: Apache-2.0
"""A Keras model in rounds: whatever its loader, with a fresh optimizer, and told what it lacks."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from solar_corona.core.errors import ModelError
from solar_corona.fl_client.keras_trainable import KerasTrainable
from solar_corona.lib.losses import ADifferentCategoricalCrossentropy
from solar_corona.lib.optimizers import ADifferentAdam

X = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")


class Batches(keras.utils.PyDataset):
    """Four batches of five."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[5 * index : 5 * index + 5], Y[5 * index : 5 * index + 5]


LOADERS = {
    "a pair of arrays": lambda: (X, Y),
    "a tf.data.Dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(20).batch(5),
    "a PyDataset": Batches,
}


def _model():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.layers.Dense(2)])


def _trainable(loader=(X, Y), **options):
    given = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "metric": "accuracy"}
    given |= {"optimizer": keras.optimizers.Adam(0.05), "batch_size": 5, "epochs": 3}
    return KerasTrainable(_model(), train_loader=loader, test_loader=loader, **(given | options))


@pytest.mark.parametrize("name", LOADERS)
def test_a_model_learns_from_each_kind_of_loader_and_keras_warns_of_none(name):
    trainable = _trainable(LOADERS[name]())
    before = trainable.evaluate()
    samples, metrics = trainable.train({})
    after = trainable.evaluate()
    assert (samples, before[0], after[0]) == (20, 20, 20)
    assert metrics.keys() == after[1].keys() == {"loss", "accuracy"}
    assert after[1]["loss"] < before[1]["loss"]


def test_a_round_starts_with_a_fresh_optimizer_unless_its_moments_are_to_stay():
    def steps(**options):
        trainable = _trainable(**options)
        for _ in range(2):
            trainable.train({})
        return int(trainable.model.optimizer.iterations)

    assert steps() == 3 * 4
    assert steps(keep_optimizer_state=True) == 2 * 3 * 4


def test_weights_go_by_place_so_that_the_same_model_built_twice_fits():
    first, second = _trainable(), _trainable()
    first.train({})
    second.set_weights(first.get_weights())
    assert list(first.get_weights()) == list(second.get_weights())
    for mine, theirs in zip(first.get_weights().values(), second.get_weights().values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_fedproxs_pull_keeps_the_model_nearer_to_the_rounds_first():
    def moved(config):
        trainable = _trainable(optimizer=keras.optimizers.SGD(0.5), epochs=10)
        start = list(trainable.get_weights().values())
        trainable.train(config)
        return sum(np.abs(a - b).sum() for a, b in zip(trainable.get_weights().values(), start, strict=True))

    assert moved({"proximal-mu": 1.0}) < 0.7 * moved({})
    assert moved({"proximal-mu": 0.0}) == pytest.approx(moved({}), rel=1e-5)


def test_the_parts_for_skewed_labels_learn_what_they_need_from_the_loader():
    loss, optimizer = ADifferentCategoricalCrossentropy(from_logits=True), ADifferentAdam(0.05)
    skewed = (X[Y == 1], Y[Y == 1])
    trainable = _trainable(skewed, loss=loss, optimizer=optimizer)
    trainable.train({})
    np.testing.assert_array_equal(trainable.summary.class_counts, [0, len(skewed[0])])
    assert np.isfinite(trainable.evaluate()[1]["loss"])


def test_a_model_without_a_loss_is_told_to_give_one():
    with pytest.raises(
        ModelError, match=r"no loss, and the model is not compiled; pass loss=…, or call model\.compile"
    ):
        KerasTrainable(_model(), train_loader=(X, Y))


def test_a_model_that_cannot_be_built_is_told_to_name_its_inputs():
    with pytest.raises(ModelError, match="the model is not built, and there is no sample to build it from"):
        _trainable((X[:0], Y[:0]))
