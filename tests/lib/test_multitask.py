# SPDX-License-Identifier: Apache-2.0
"""One model that serves several tasks: routing, saving, loading, converting."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

from solar_corona.core.errors import ModelError
from solar_corona.lib.keras_multitask import KerasMultitaskModel
from solar_corona.lib.models import (
    card_path,
    check_saveable,
    load_model,
    load_weights,
    model_bytes,
    read_card,
    save_model,
    write_model_bytes,
)
from solar_corona.lib.multitask import ROUTER_FILE, Multitask, make_multitask
from solar_corona.lib.routers import AttributeRouter, GaussianRouter
from solar_corona.tests.lib.test_routers import gaussian

NAMES = ("left", "right", "up")
SEASONS = AttributeRouter.from_mapping({"winter": "left", "summer": "right", "spring": "up", "may": "up"})
X = np.random.default_rng(5).normal(size=(40, 2, 3, 1)).astype(np.float32)


def _router(embedding="linear", tasks=3) -> GaussianRouter:
    # Means about as far apart as the embedding reaches, so that each task gets samples.
    scale = {"linear": 3.0, "cosine": 0.7}[embedding]
    means = scale * np.random.default_rng(3).normal(size=(tasks, 2, 4))
    flat = {"log_variances": np.zeros((tasks, 2, 4)), "log_weights": np.zeros((tasks, 2))}
    return gaussian(tasks=tasks, embedding=embedding, task_names=NAMES[:tasks], seed=2, means=means, **flat)


def _sequential():
    return keras.Sequential(
        [
            keras.Input((2, 3, 1)),
            keras.layers.Conv2D(2, 2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )


@keras.saving.register_keras_serializable("tests-multitask")
class Net(keras.Model):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.flatten, self.out = keras.layers.Flatten(), keras.layers.Dense(width)

    def call(self, x):
        return self.out(self.flatten(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def _subclassed():
    model = Net(4)
    model(X[:1])
    return model


def _functional():
    x = keras.Input((2, 3, 1))
    flat = keras.layers.Flatten()(x)
    return keras.Model(x, keras.layers.Dense(4)(keras.layers.Concatenate()([flat, keras.layers.Dense(3)(flat)])))


def _weights(model, tasks=3):
    """As KerasTrainable gives them: named, in a mapping whose order says nothing."""
    rng = np.random.default_rng(8)
    given = [{f"{i:04d}/w": rng.normal(size=w.shape) for i, w in enumerate(model.get_weights())} for _ in range(tasks)]
    return [dict(reversed(each.items())) for each in given]


def _made(model=None, router=None, tasks=3):
    model, router = model or _sequential(), router or _router(tasks=tasks)
    return make_multitask(model, _weights(model, len(router.task_names)), router=router, names=router.task_names)


def _by_hand(made, tasks, x=X):
    return np.stack([np.asarray(made.models[task](x[i : i + 1]))[0] for i, task in enumerate(tasks)])


@pytest.fixture(scope="module")
def made():
    return _made()


# Making


@pytest.mark.parametrize("make", [_sequential, _functional, _subclassed])
def test_each_tasks_model_has_that_tasks_weights_and_the_users_model_stays_as_it_is(make):
    model = make()
    before = copy.deepcopy(model.get_weights())
    made = _made(model)
    assert isinstance(made, Multitask)
    assert made.tasks == NAMES
    for task, given in zip(NAMES, _weights(model), strict=True):
        for mine, name in zip(made.model_for(task).get_weights(), sorted(given), strict=True):
            np.testing.assert_allclose(mine, given[name], rtol=1e-6)
    for mine, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, old)


def test_weights_and_names_that_do_not_fit_are_told():
    model = _sequential()
    weights = _weights(model)
    with pytest.raises(ModelError, match=r"got weights of 2 tasks, the names left, right, up, and a router for left"):
        make_multitask(model, weights[:2], router=_router(), names=NAMES)
    with pytest.raises(ModelError, match=r"weights of task 'left' have the shapes .* and the model takes"):
        make_multitask(model, [list(each.values()) for each in weights], router=_router(), names=NAMES)
    with pytest.raises(ModelError, match=r"learned on samples of 7 numbers, and the model takes 6"):
        make_multitask(model, weights, router=gaussian(features=7, task_names=NAMES), names=NAMES)


class _Own:
    def save(self, path):
        pass


def _two_inputs():
    a, b = keras.Input((2,)), keras.Input((2,))
    return keras.Model([a, b], keras.layers.Add()([a, b]))


@keras.saving.register_keras_serializable("tests-multitask")
class OwnRule(Net):
    def __init__(self, rule, **kwargs):
        super().__init__(4)


def _no_config():
    model = OwnRule(rule=abs)
    model(X[:1])
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_Own, r"a _Own cannot become a model of several tasks; that is there for Keras models and torch modules"),
        (_two_inputs, r"has 2 inputs, expected one for a model of several tasks"),
        (lambda: Net(4), "has no weights yet"),
        (_no_config, r"(?s)OwnRule.*write the class so"),
        (
            lambda: keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x, name="same")]),
            "has a lambda in Lambda 'same'",
        ),
    ],
    ids=["own", "inputs", "unbuilt", "no-config", "lambda"],
)
def test_what_cannot_become_one_of_several_is_found_before_training(make, message):
    with pytest.raises(ModelError, match=message):
        check_saveable(make(), "m.keras", multitask=True)


@pytest.mark.parametrize("path", ["m.keras", "m"])
def test_what_can_passes(path):
    check_saveable(_sequential(), path, multitask=True)


# Predicting


@pytest.mark.parametrize("embedding", ["linear", "cosine"])
@pytest.mark.parametrize("make", [_sequential, _functional, _subclassed])
def test_each_sample_is_predicted_by_the_model_of_its_task(make, embedding):
    made = _made(make(), _router(embedding))
    tasks = _router(embedding).route(X)
    assert len(set(tasks)) > 1  # else nothing is shown
    assert made.route(X).tolist() == tasks.tolist()
    wanted = _by_hand(made, tasks)
    np.testing.assert_allclose(made.predict(X, verbose=0), wanted, atol=1e-5)
    np.testing.assert_allclose(made(X), wanted, atol=1e-5)


def test_what_is_missing_is_routed_in_the_graph_as_outside_it():
    x = X.copy()
    x[::2, 0, 0, 0], x[1::2, 1, 2, 0] = np.nan, np.inf
    assert _made().router.route(x).tolist() == _router().route(x).tolist()
    routing = _made().get_layer("router")
    assert np.asarray(routing(x)).tolist() == _router().route(x).tolist()


def test_one_models_nan_is_not_the_others(made):
    broken = _made()
    broken.model_for("left").set_weights([np.full_like(w, np.nan) for w in broken.model_for("left").get_weights()])
    tasks = _router().route(X)
    np.testing.assert_array_equal(np.isnan(np.asarray(broken(X))).any(axis=1), tasks == 0)


def test_a_task_can_be_given_by_name_index_or_for_each_sample(made):
    wanted = _by_hand(made, [1] * len(X))
    for task in ("right", 1, np.int64(1), ["right"] * len(X), np.full(len(X), 1), np.array([b"right"] * len(X))):
        np.testing.assert_allclose(made.predict(X, task=task, verbose=0), wanted, atol=1e-5)
    mixed = [i % 3 for i in range(len(X))]
    np.testing.assert_allclose(made.predict(X, task=mixed, verbose=0), _by_hand(made, mixed), atol=1e-5)


def test_only_models_with_samples_compute(made, monkeypatch):
    asked = []
    for name in made.tasks:
        model = made.model_for(name)
        monkeypatch.setattr(
            model, "predict", lambda x, name=name, **_: asked.append((name, len(x))) or np.zeros((len(x), 1))
        )
    made.predict(X[:10], task=["up"] * 6 + ["left"] * 4)
    assert asked == [("left", 4), ("up", 6)]


def test_a_chunk_is_routed_as_one(made):
    router = _router()
    for chunk, ids in ((10, np.arange(40) // 10), (7, np.arange(40) // 7), (1000, np.zeros(40))):
        tasks = router.route(X, chunks=ids)
        assert made.route(X, chunk=chunk).tolist() == tasks.tolist()
        np.testing.assert_allclose(made.predict(X, chunk=chunk, verbose=0), _by_hand(made, tasks), atol=1e-5)
    assert made.route(X, chunk=ids).tolist() == tasks.tolist()
    assert made.route(X, chunk=10).tolist() != made.route(X).tolist()


def test_no_sample_gives_an_empty_prediction_and_one_task_is_a_model_too(made):
    assert made.predict(X[:0]).shape == (0, 4)
    assert made.predict(X[:0], chunk=5).shape == (0, 4)
    single = _made(tasks=1)
    np.testing.assert_allclose(single.predict(X, verbose=0), _by_hand(single, [0] * 40), atol=1e-5)


def test_a_dataset_is_predicted_as_its_samples_are(made):
    import tensorflow as tf

    wanted = made.predict(X, chunk=8, verbose=0)
    data = tf.data.Dataset.from_tensor_slices((X, np.zeros(40))).batch(6)
    np.testing.assert_allclose(made.predict(data, chunk=8, verbose=0), wanted, atol=1e-6)
    np.testing.assert_allclose(
        made.predict(data.repeat(), steps=4, task=0, verbose=0), _by_hand(made, [0] * 24), atol=1e-5
    )
    with pytest.raises(ModelError, match="the dataset has no batch"):
        made.predict(data.take(0))


def test_an_attribute_chooses_the_task():
    made = _made(router=SEASONS)
    seasons = ["winter", "summer", "spring", "may"] * 10
    np.testing.assert_allclose(
        made.predict(X, attribute=seasons, verbose=0), _by_hand(made, [0, 1, 2, 2] * 10), atol=1e-5
    )
    np.testing.assert_allclose(made.predict(X, attribute="may", verbose=0), _by_hand(made, [2] * 40), atol=1e-5)
    tasks = SEASONS.route(seasons)
    np.testing.assert_allclose(made.predict([X, tasks], verbose=0), _by_hand(made, tasks), atol=1e-5)
    with pytest.raises(ModelError, match=r"no attribute value 'summr'; did you mean summer\?"):
        made.predict(X, attribute="summr")
    with pytest.raises(ModelError, match=r"chooses the task by an attribute; give attribute=, one of winter, summer"):
        made.predict(X)
    default = AttributeRouter.from_mapping({"winter": "left"}, task_names=("left", "right"), default="right")
    made = _made(router=default)
    np.testing.assert_allclose(made.predict(X, verbose=0), _by_hand(made, [1] * 40), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "lft"}, r"no task 'lft'; did you mean left\?"),
        ({"task": 3}, r"no task 3; expected a name, or an index from 0 to 2"),
        ({"task": -1}, r"no task -1"),
        ({"task": True}, r"no task True"),
        ({"task": ["left"]}, r"task has shape \(1,\), expected one value, or one for each of 40 samples"),
        ({"attribute": "summer"}, "router is learned and knows no attribute"),
        ({"chunk": 0}, "chunk is 0, expected a number of samples from 1"),
        ({"chunk": 2.5}, r"chunk is 2\.5"),
        ({"chunk": [1, 2]}, r"chunk ids of shape \(2,\)"),
        ({"chunk": 2, "task": 0}, "three ways to choose the task; give one"),
    ],
)
def test_what_chooses_no_task_is_told(made, given, message):
    with pytest.raises(ModelError, match=message):
        made.predict(X, **given)


def test_it_evaluates_and_trains_as_the_users_model_was_compiled():
    model = _sequential()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    made = _made(model)
    y = np.argmax(_by_hand(made, _router().route(X)), axis=1)
    found = made.evaluate(X, y, verbose=0, return_dict=True)
    assert found["accuracy"] == 1
    before = made.router.scores(X)
    made.fit(X, y, verbose=0)
    np.testing.assert_array_equal(made.router.scores(X), before)


def test_a_copy_that_keras_makes_computes_the_same():
    model = _functional()
    model.compile("adam", "mse")
    made = _made(model)
    copied = keras.models.clone_model(made)
    copied.set_weights(made.get_weights())
    np.testing.assert_array_equal(copied(X), made(X))


# Saving


@pytest.mark.parametrize("make", [_sequential, _functional, _subclassed])
@pytest.mark.parametrize("router", [_router("cosine"), SEASONS], ids=["gaussian", "attribute"])
def test_one_file_holds_the_models_and_the_router(tmp_path, make, router):
    model = make()
    model.compile("adam", "mse")
    made = _made(model, router)
    check_saveable(made, "m.keras")
    path = save_model(made, tmp_path / "m.keras")
    card = read_card(path)
    assert (card.tasks, card.router) == (NAMES, router.kind)
    loaded = load_model(path)
    task = None if router.kind == "gaussian" else [0, 1] * 20
    np.testing.assert_array_equal(loaded.predict(X, task=task, verbose=0), made.predict(X, task=task, verbose=0))
    assert loaded.tasks == NAMES
    assert loaded.compiled
    assert isinstance(keras.saving.load_model(path), KerasMultitaskModel)
    # Its iterations and learning rate: an optimizer that has no state takes no room.
    assert len(loaded.optimizer.variables) == 2


def test_an_optimizers_state_comes_back(tmp_path):
    model = _sequential()
    model.compile("adam", "mse")
    made = _made(model)
    made.fit(X, np.zeros((40, 4)), verbose=0)
    loaded = load_model(save_model(made, tmp_path / "m.keras"))
    assert int(loaded.optimizer.iterations) == int(made.optimizer.iterations) == 2
    assert len(loaded.optimizer.variables) == len(made.optimizer.variables)


def test_a_saved_model_folder_routes_as_the_model_does(tmp_path, made):
    path = save_model(made, tmp_path / "served")
    assert read_card(path).tasks == NAMES
    loaded = load_model(path)
    np.testing.assert_allclose(loaded.serve(X), made(X), atol=1e-5)
    made = _made(router=SEASONS)
    loaded = load_model(save_model(made, tmp_path / "by_season"))
    tasks = SEASONS.route(["may", "winter"])
    np.testing.assert_allclose(loaded.serve([X[:2], tasks.astype(np.int32)]), _by_hand(made, tasks, X[:2]), atol=1e-5)


def test_the_server_writes_the_card_without_any_engine(tmp_path, made):
    (tmp_path / "sent").write_bytes(model_bytes(made, ".keras"))
    script = (
        "import sys; from pathlib import Path; from solar_corona.lib.models import read_card, write_model_bytes\n"
        "card = read_card(write_model_bytes(Path(sys.argv[1]).read_bytes(), sys.argv[2]))\n"
        "assert (card.tasks, card.router) == (('left', 'right', 'up'), 'gaussian'), card\n"
        "assert not {'keras', 'tensorflow', 'torch', 'jax', 'flwr'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "sent", tmp_path / "m.keras"], check=True)


def _rewritten(path, target, *, config=None, weights=None):
    """Copy a .keras file with another config, or with weights changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json" and config is not None:
                document = json.loads(data)
                config(document["config"])
                data = json.dumps(document).encode()
            if name == "model.weights.h5" and weights is not None:
                place = target.with_suffix(".h5")
                place.write_bytes(data)
                with h5py.File(place, "r+") as file:
                    weights(file)
                data = place.read_bytes()
            new.writestr(name, data)
    return target


def _router_weights(file):
    found = []
    file.visititems(
        lambda name, item: (
            found.append(item) if "gaussian_routing/vars/" in name and isinstance(item, h5py.Dataset) else None
        )
    )
    return found


# Keras says where it looked in vain, before it raises.
@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: [w.write_direct(np.full(w.shape, np.nan, w.dtype)) for w in _router_weights(f)[:1]], "not finite"),
        (lambda f: f.pop(_router_weights(f)[1].name), "offset is missing"),
    ],
    ids=["nan", "missing"],
)
def test_hostile_router_arrays_are_not_loaded(tmp_path, made, change, message):
    path = save_model(made, tmp_path / "m.keras")

    def weights(file):
        assert len(_router_weights(file)) == 5
        change(file)

    with pytest.raises(ModelError, match=message):
        load_model(_rewritten(path, tmp_path / "bad.keras", weights=weights))


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": 12, "dimensions": 2}, "12 numbers, and the model takes 6"),
        ({"components": 3}, r"shape \(3, 2, 4\), expected shape \(3, 3, 4\)"),
        ({"task_names": ["a", "a", "b"]}, "no two alike"),
        ({"task_names": ["a", "b"]}, "shape"),
        ({"kind": "other"}, "its card cannot be read"),
        ({"dimensions": 1 << 40}, "its card cannot be read"),
        ({"features": 1 << 27}, "more than 134,217,728 numbers|the model takes 6"),
    ],
    ids=str,
)
def test_hostile_router_cards_are_not_loaded(tmp_path, made, change, message):
    path = save_model(made, tmp_path / "m.keras")
    bad = _rewritten(path, tmp_path / "bad.keras", config=lambda config: config["router"].update(change))
    with pytest.raises(ModelError, match=message):
        load_model(bad)


def test_code_in_an_inner_model_is_never_run(tmp_path, made):
    path = save_model(made, tmp_path / "m.keras")
    unsafe = {"class_name": "__lambda__", "config": {"value": "4wAAAA==", "defaults": None, "closure": None}}

    def config(outer):
        outer["architecture"]["config"]["layers"][1]["config"]["activation"] = unsafe

    with pytest.raises(ModelError, match="is a lambda, code inside the file, which is not run"):
        load_model(_rewritten(path, tmp_path / "bad.keras", config=config))


def test_a_card_without_tasks_is_what_another_model_has(tmp_path):
    assert read_card(save_model(_sequential(), tmp_path / "m.keras")).tasks == ()
    path = write_model_bytes(b"own", tmp_path / "m.own")
    assert (read_card(path).tasks, read_card(path).router) == ((), None)


# LiteRT


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("make", [_sequential, _functional, _subclassed])
@pytest.mark.parametrize("router", [_router(), _router("cosine"), SEASONS], ids=["linear", "cosine", "attribute"])
def test_a_litert_file_routes_as_the_model_does(router, make):
    import tensorflow as tf

    made = _made(make(), router)
    x = X.copy()
    x[3, 0, 0, 0] = np.nan
    data = tf.lite.TFLiteConverter.from_keras_model(made).convert()
    interpreter = tf.lite.Interpreter(model_content=data)
    run = interpreter.get_signature_runner("serving_default")
    by_attribute = router is SEASONS
    tasks = SEASONS.route(["may", "winter"] * 20) if by_attribute else router.route(x)
    inputs = {"x": x, "task": tasks.astype(np.int32)} if by_attribute else {"x": x}
    (found,) = run(**inputs).values()
    np.testing.assert_allclose(found, _by_hand(made, tasks, x), atol=1e-4)
    for i in range(5):
        (one,) = run(**{name: value[i : i + 1] for name, value in inputs.items()}).values()
        np.testing.assert_allclose(one[0], found[i], atol=1e-5)
    # Operations of LiteRT alone, none of TensorFlow's.
    assert not [each["op_name"] for each in interpreter._get_ops_details() if each["op_name"].startswith("Flex")]


# Torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def _module(torch, width=4):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, width), torch.nn.BatchNorm1d(width))


def _torch_made(torch, router=None, width=4):
    router = router or _router()
    states = [_module(torch, width).state_dict() for _ in router.task_names]
    weights = [{name: value.numpy() for name, value in state.items()} for state in states]
    return make_multitask(_module(torch, width), weights, router=router, names=router.task_names)


@pytest.mark.parametrize("router", [_router("cosine"), SEASONS], ids=["gaussian", "attribute"])
def test_a_torch_module_for_several_tasks_comes_back_from_one_file(tmp_path, torch, router):
    made = _torch_made(torch, router)
    assert isinstance(made, Multitask)
    check_saveable(_module(torch), "m.npz", multitask=True)
    check_saveable(made, "m.npz")
    path = save_model(made, tmp_path / "m.npz")
    assert (read_card(path).tasks, read_card(path).router) == (NAMES, router.kind)
    loaded = load_model(path, module=_module(torch))
    chosen = {"attribute": ["may", "winter"] * 20} if router is SEASONS else {"chunk": 10}
    wanted = made.predict(X, **chosen)
    np.testing.assert_array_equal(loaded.predict(X, **chosen), wanted)
    tasks = SEASONS.route(chosen["attribute"]) if router is SEASONS else made.route(X, chunk=10)
    made.eval()
    with torch.no_grad():
        by_hand = [made.models[int(t)](torch.from_numpy(X[i : i + 1]))[0].numpy() for i, t in enumerate(tasks)]
        forward = made(torch.from_numpy(X), torch.from_numpy(tasks)).numpy()
    np.testing.assert_allclose(wanted, by_hand, atol=1e-5)
    np.testing.assert_allclose(forward, by_hand, atol=1e-5)
    assert loaded.predict(X[:0], task=0).shape == (0, 4)
    again = _torch_made(torch, router)
    load_weights(again, path)
    np.testing.assert_array_equal(again.predict(X, **chosen), wanted)


def test_a_torch_file_is_told_from_one_tasks_weights(tmp_path, torch):
    path = save_model(_torch_made(torch), tmp_path / "m.npz")
    with pytest.raises(ModelError, match=r"load_model\(path, module=module\) if it is a model of several tasks"):
        load_model(path)
    with pytest.raises(ModelError, match=r"make the module with the same sizes|has shape"):
        load_model(path, module=_module(torch, 5))
    one = save_model(_module(torch), tmp_path / "one.npz")
    with pytest.raises(ModelError, match=rf"is no model of several tasks, for it has no {ROUTER_FILE}"):
        load_model(one, module=_module(torch))
    with pytest.raises(
        ModelError, match=r"is for the tasks left, right, up \(gaussian router\), and this model for left, right \("
    ):
        load_weights(_torch_made(torch, _router(tasks=2), width=4), path)


def _with_member(path, name, data):
    card_path(path).unlink(missing_ok=True)
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    members[name] = data
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in members.items():
            archive.writestr(each, content)


def _npy(array):
    import io

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("router/means.npy", _npy(np.full((3, 2, 4), np.nan, np.float32)), "means holds a number that is not finite"),
        ("router/means.npy", _npy(np.zeros((3, 2, 5), np.float32)), r"'router/means' has shape \(3, 2, 5\)"),
        (ROUTER_FILE, b'{"kind": "gaussian"}', "its card cannot be read"),
        (ROUTER_FILE, b'{"kind": "gaussian", "task_names": ["a"], "features": 1000000}', "more than the file has"),
        ("../../out.npy", _npy(np.zeros(1, np.float32)), r"has a weight '../../out'"),
        ("router/means.npy", b"\x93NUMPY no", "is no .npz file of weights, or is damaged"),
    ],
    ids=["nan", "shape", "card", "large", "up", "damaged"],
)
def test_a_hostile_torch_file_changes_nothing(tmp_path, torch, name, data, message):
    made = _torch_made(torch)
    path = save_model(made, tmp_path / "in" / "m.npz")
    _with_member(path, name, data)
    with pytest.raises(ModelError, match=message):
        load_model(path, module=_module(torch))
    other = _torch_made(torch)
    before = other.predict(X)
    with pytest.raises(ModelError):
        load_weights(other, path)
    np.testing.assert_array_equal(other.predict(X), before)
    shutil.rmtree(tmp_path / "in")
    assert list(tmp_path.iterdir()) == []
