# SPDX-License-Identifier: Apache-2.0
"""Keras models and torch modules as what an edge trains: parts of its samples, and what the last layer gets of them."""

from __future__ import annotations

import numpy as np
import pytest

from solar_corona.core.errors import DatasetError, ModelError
from solar_corona.core.spec import Tasks
from solar_corona.fl_client.edge_data import EdgeData
from solar_corona.fl_client.embedding import embedding_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5)).astype(np.float32)
Y = np.arange(60) % 3


def keras_trainable(loader, model=None):
    import keras

    from solar_corona.fl_client.keras_trainable import KerasTrainable

    model = model or keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(7, activation="relu", name="hidden"), keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return KerasTrainable(model, train_loader=loader, test_loader=loader, loss=loss, metric="accuracy")


def torch_trainable(loader, model=None):
    torch = pytest.importorskip("torch")
    from solar_corona.fl_client.torch_trainable import TorchTrainable

    model = model or torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    return TorchTrainable(model, train_loader=loader, test_loader=loader, loss=torch.nn.CrossEntropyLoss())


def keras_loader(*, mixed):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, Y))
    return (data.shuffle(60, seed=1) if mixed else data).batch(8)


def torch_loader(*, mixed):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(data, batch_size=8, shuffle=mixed)


FRAMEWORKS = pytest.mark.parametrize(
    ("make", "loader"), [(keras_trainable, keras_loader), (torch_trainable, torch_loader)], ids=["keras", "torch"]
)


@FRAMEWORKS
def test_the_samples_of_a_task_are_the_same_for_who_divides_and_who_trains(make, loader):
    work = make(loader(mixed=True))
    data = EdgeData(*work.parts, tasks=Tasks(division="own:division", min_samples=1))
    split = data.split(lambda x, y: y)
    for task in range(3):
        _, labels = work.parts[0].of(split.indices("train", (task,)))
        assert set(labels.tolist()) == {task}
    work.use_samples(split.indices("train", (1,)), split.indices("evaluate", (1,)))
    assert work.train({})[0] == 20
    assert work.evaluate()[0] == 20


@FRAMEWORKS
@pytest.mark.parametrize("rules", [{"task_attribute": "season"}, {"chunk": 5}])
def test_a_loader_that_mixes_is_refused_where_the_order_of_samples_counts(make, loader, rules):
    seasons = np.repeat(["summer", "winter"], 30)
    fields = {"tasks": Tasks(**rules), "train_tasks": seasons, "eval_tasks": seasons}
    assert len(EdgeData(*make(loader(mixed=False)).parts, **fields).samples("train")) == 60
    with pytest.raises(DatasetError, match="train loader gives its samples in another order each time, and tasks"):
        EdgeData(*make(loader(mixed=True)).parts, **fields).samples("train")


@pytest.mark.parametrize("make", [keras_trainable, torch_trainable])
def test_a_pair_of_arrays_is_trained_on_and_evaluated(make):
    work = make((X, Y))
    assert work.train({})[0] == work.evaluate()[0] == 60
    before = work.evaluate()[1]["loss"]
    for _ in range(20):
        work.train({})
    assert work.evaluate()[1]["loss"] < before


@pytest.mark.parametrize("make", [keras_trainable, torch_trainable])
def test_samples_are_embedded_by_the_given_weights_and_the_model_keeps_its_own(make):
    work = make((X, Y))
    given = {name: np.array(value) for name, value in work.get_weights().items()}
    work.train({})
    own = {name: np.array(value) for name, value in work.get_weights().items()}
    found = embedding_of(work, given)(X)
    names = sorted(given)
    kernel, bias = given[names[0]], given[names[1]]
    if bias.ndim > 1:  # torch names the bias first
        kernel, bias = bias.T, kernel
    np.testing.assert_allclose(found, np.maximum(X @ kernel + bias, 0), rtol=1e-4, atol=1e-5)
    for name, value in work.get_weights().items():
        np.testing.assert_array_equal(value, own[name])


def test_a_convolutional_layers_output_is_embedded_as_one_row_a_sample():
    import keras

    x = RNG.normal(size=(12, 8, 8, 1)).astype(np.float32)
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(2, 6)])
    work = keras_trainable((x, np.zeros((12, 1, 1, 2), np.float32)), model)
    assert work.embed(x).shape == (12, 6 * 6 * 4)


def _subclassed():
    import keras

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = keras.layers.Dense(4), keras.layers.Dense(3)

        def call(self, x):
            return self.two(self.one(x))

    return Own()


def _without_hidden_layer():
    import keras

    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (_subclassed, "Own sees them: it is no Sequential or functional model with one input and one output"),
        (_without_hidden_layer, "Sequential sees them, for it has one layer with weights and no hidden one"),
    ],
)
def test_a_keras_model_without_a_hidden_layer_to_be_found_is_told(model, told):
    with pytest.raises(ModelError, match=told):
        keras_trainable((X, Y), model()).embed(X)


def test_a_torch_module_without_a_hidden_layer_is_told():
    torch = pytest.importorskip("torch")
    with pytest.raises(ModelError, match=r"Linear sees them, for it has 1 layer\(s\) with weights and no hidden one"):
        torch_trainable((X, Y), torch.nn.Linear(5, 3)).embed(X)


def test_an_object_that_cannot_embed_is_told_what_it_lacks():
    with pytest.raises(ModelError, match=r"and object has no method embed\(x\) that returns it; add it, pass fit"):
        embedding_of(object(), {})


def test_a_keras_model_is_pulled_towards_the_anchor_and_then_no_more():
    work = keras_trainable((X, Y))
    work.model.optimizer.learning_rate = 0.1
    anchor = {name: np.full_like(value, 3) for name, value in work.get_weights().items()}
    work.pull_towards(anchor)
    work.train({"proximal-mu": 10.0})  # a step of the whole way
    for name, value in work.get_weights().items():
        np.testing.assert_allclose(value, anchor[name], atol=1e-5)
    work.pull_towards(None)
    work.train({"proximal-mu": 0.0})
    assert np.abs(next(iter(work.get_weights().values())) - 3).max() > 1e-4


def test_a_torch_module_is_pulled_towards_the_anchor():
    work = torch_trainable((X, Y))
    anchor = {name: np.full_like(value, 3) for name, value in work.get_weights().items()}
    apart = []
    for mu in (0.0, 50.0):
        work.set_weights({name: np.zeros_like(value) for name, value in anchor.items()})
        work.pull_towards(anchor)
        work.train({"proximal-mu": mu})
        apart.append(max(np.abs(value - 3).max() for value in work.get_weights().values()))
    assert apart[1] < 1 < apart[0]
