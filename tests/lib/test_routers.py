# SPDX-License-Identifier: Apache-2.0
"""Routers: which task a sample belongs to, by what it looks like or by an attribute."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from solar_corona.core.errors import ModelError
from solar_corona.lib.multitask import parsed_router_card
from solar_corona.lib.routers import AttributeRouter, GaussianRouter, RouterCard, router_from


def gaussian(tasks=3, components=2, dimensions=4, features=6, seed=0, **given):
    rng = np.random.default_rng(seed)
    arrays = {
        "projection": rng.normal(size=(features, dimensions)),
        "offset": rng.normal(size=dimensions),
        "means": 3 * rng.normal(size=(tasks, components, dimensions)),
        "log_variances": rng.normal(size=(tasks, components, dimensions)),
        "log_weights": rng.normal(size=(tasks, components)),
        "task_names": tuple(f"task-{i}" for i in range(tasks)),
    }
    return GaussianRouter(**{**arrays, **given})


def plain_score(router, sample, task):
    """The formula, one sample, one task."""
    z = sample.astype(float) @ router.projection + router.offset
    if router.embedding == "cosine":
        z = np.sqrt(2 / len(z)) * np.cos(z)
    means, logs = router.means[task].astype(float), router.log_variances[task].astype(float)
    return np.log(
        np.sum(np.exp(router.log_weights[task] - 0.5 * np.sum((z - means) ** 2 / np.exp(logs) + logs, axis=1)))
    )


# By what a sample looks like


@pytest.mark.parametrize("embedding", ["linear", "cosine"])
def test_scores_are_what_the_formula_says_also_far_from_the_origin(embedding):
    router = gaussian(embedding=embedding, offset=np.full(4, 50.0))
    router = GaussianRouter(**{**vars(router), "means": router.means + (50 if embedding == "linear" else 0)})
    x = np.random.default_rng(1).normal(size=(20, 2, 3)).astype(np.float32)
    wanted = [[plain_score(router, sample.reshape(-1), task) for task in range(3)] for sample in x]
    np.testing.assert_allclose(router.scores(x), wanted, rtol=1e-4, atol=1e-4)
    assert router.route(x).tolist() == np.argmax(wanted, axis=1).tolist()


def test_samples_in_many_blocks_score_as_alone(monkeypatch):
    router, x = gaussian(), np.random.default_rng(1).normal(size=(50, 6))
    whole = router.scores(x)
    monkeypatch.setattr("solar_corona.lib.routers._BLOCK_NUMBERS", 20)
    np.testing.assert_allclose(router.scores(x), whole, rtol=1e-6)


def test_a_chunk_goes_where_its_samples_go_on_average():
    names = ("left", "right")
    router = gaussian(
        projection=np.eye(1),
        offset=np.zeros(1),
        means=[[[-1.0]], [[1.0]]],
        log_variances=np.zeros((2, 1, 1)),
        log_weights=np.zeros((2, 1)),
        task_names=names,
    )
    x = np.array([[3.0], [-1.0], [-1.0], [-3.0], [1.0]])
    assert router.route(x).tolist() == [1, 0, 0, 0, 1]
    assert router.route(x, chunks=["a", "a", "a", "b", "b"]).tolist() == [1, 1, 1, 0, 0]
    means = [router.scores(x[:3]).mean(axis=0), router.scores(x[3:]).mean(axis=0)]
    np.testing.assert_allclose(router.scores(x, chunks=[0, 0, 0, 1, 1]), np.repeat(means, [3, 2], axis=0))
    # A chunk's samples need not be neighbours.
    assert router.route(x, chunks=[7, 9, 9, 9, 7]).tolist() == [1, 0, 0, 0, 1]


def test_no_samples_have_no_tasks():
    router = gaussian()
    assert router.route(np.zeros((0, 6))).shape == (0,)
    assert router.route(np.zeros((0, 2, 3)), chunks=[]).shape == (0,)


@given(
    x=hnp.arrays(np.float64, (4, 6), elements=st.floats(width=64)),
    embedding=st.sampled_from(["linear", "cosine"]),
)
def test_any_numbers_have_a_task_and_finite_scores(x, embedding):
    scores = gaussian(embedding=embedding).scores(x)
    assert np.isfinite(scores).all()


def test_what_is_missing_counts_as_zero():
    router, x = gaussian(), np.random.default_rng(1).normal(size=(3, 6))
    x[:, 2] = 0
    wanted = router.scores(x)
    for missing in (np.nan, np.inf, -np.inf, 1e13):
        x[:, 2] = missing
        np.testing.assert_array_equal(router.scores(x), wanted)


def test_a_component_that_is_not_there_changes_nothing_and_a_task_without_any_gets_no_sample():
    router, x = gaussian(components=1), np.random.default_rng(1).normal(size=(9, 6))
    padded = {
        name: np.concatenate([value, np.ones_like(value)], axis=1)
        for name, value in router.to_arrays().items()
        if name in ("means", "log_variances")
    }
    weights = np.concatenate([router.log_weights, np.full((3, 1), -np.inf)], axis=1)
    wider = gaussian(components=2, **padded, log_weights=weights)
    np.testing.assert_allclose(wider.scores(x), router.scores(x), rtol=1e-6)
    weights[1] = -np.inf
    assert 1 not in gaussian(components=2, **padded, log_weights=weights).route(x)


@pytest.mark.parametrize("embedding", ["linear", "cosine"])
def test_a_router_comes_back_from_its_arrays_and_card(embedding):
    router, x = gaussian(embedding=embedding), np.random.default_rng(1).normal(size=(9, 6))
    card = RouterCard.model_validate_json(json.dumps(router.card().model_dump(mode="json")))
    again = router_from(card, router.to_arrays())
    assert (again.task_names, again.embedding, again.features) == (router.task_names, embedding, 6)
    np.testing.assert_array_equal(again.scores(x), router.scores(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": np.zeros(5)}, r"offset has shape \(5,\), expected \(4,\)"),
        ({"means": np.zeros((3, 2))}, r"means is float64 of shape \(3, 2\), expected numbers of 3 axes"),
        ({"means": np.zeros((2, 2, 4))}, r"means of 2 tasks and 3 task names"),
        ({"means": np.zeros((3, 0, 4))}, r"components"),
        ({"log_weights": np.full((3, 2), np.nan)}, r"log_weights holds a number that is not finite"),
        ({"log_weights": np.full((3, 2), np.inf)}, r"log_weights holds a number that is not finite"),
        ({"projection": np.full((6, 4), np.inf)}, r"projection holds a number that is not finite"),
        ({"log_variances": np.full((3, 2, 4), 21.0)}, r"log_variances holds .* beyond ±20"),
        ({"offset": np.array(["a"] * 4)}, r"offset is <U1"),
        ({"task_names": ("a", "a", "b")}, r"no two alike"),
        ({"task_names": ("a", "", "b")}, r"a text of 1 to 200 characters"),
        ({"embedding": "sine"}, r"expected 'linear' or 'cosine'"),
    ],
)
def test_arrays_that_do_not_fit_are_told(change, message):
    with pytest.raises(ModelError, match=message):
        gaussian(**change)


def test_arrays_of_a_file_must_be_those_of_its_card():
    router = gaussian()
    arrays = router.to_arrays()
    with pytest.raises(ModelError, match=r"means is missing, expected shape \(3, 2, 4\), as its card says"):
        router_from(router.card(), {name: value for name, value in arrays.items() if name != "means"})
    with pytest.raises(ModelError, match=r"means has shape \(3, 2, 5\), expected shape \(3, 2, 4\)"):
        router_from(router.card(), {**arrays, "means": np.zeros((3, 2, 5))})
    large = router.card().model_copy(update={"features": 1 << 27})
    with pytest.raises(ModelError, match=r"projection would be \(134217728, 4\), more than"):
        router_from(large, arrays)


@pytest.mark.parametrize(
    "card",
    [
        "",
        "[]",
        "{}",
        '{"kind": "pickle", "task_names": ["a"]}',
        '{"kind": "gaussian", "task_names": []}',
        '{"kind": "gaussian", "task_names": ["a"], "features": 0}',
        '{"kind": "gaussian", "task_names": ["a"], "dimensions": 1e9}',
        '{"kind": "attribute", "task_names": ["a"], "values": [null], "tasks": [0]}',
        f'{{"kind": "gaussian", "task_names": {json.dumps(["a"] * 1001)}}}',
    ],
)
def test_a_hostile_card_is_told(card):
    with pytest.raises(ModelError, match="its card cannot be read"):
        parsed_router_card(card)


def test_samples_of_another_form_are_told():
    router = gaussian()
    with pytest.raises(ModelError, match=r"shape \(5,\) has 5 numbers, and this router was learned on 6"):
        router.route(np.zeros((2, 5)))
    with pytest.raises(ModelError, match="expected numbers"):
        router.route(np.array([["a"] * 6]))
    with pytest.raises(ModelError, match=r"chunk ids of shape \(2,\), expected one for each sample: \(3,\)"):
        router.route(np.zeros((3, 6)), chunks=[1, 2])


# By an attribute


def test_attributes_of_every_spelling_find_their_task():
    router = AttributeRouter.from_mapping({"winter": "cold", "summer": "warm", "autumn": "cold", 3: "warm"})
    assert router.task_names == ("cold", "warm")
    assert router.route(["summer", b"winter", np.str_("autumn"), 3, np.int8(3), 3.0]).tolist() == [1, 0, 0, 1, 1, 1]
    assert router.route(np.array(["summer", "winter"])).tolist() == [1, 0]
    assert router.route([]).shape == (0,)
    card = RouterCard.model_validate_json(router.card().model_dump_json())
    assert router_from(card, router.to_arrays()) == router


def test_an_unknown_attribute_is_told_with_near_ones_or_goes_to_the_default():
    seasons = {"winter": "cold", "summer": "warm"}
    router = AttributeRouter.from_mapping(seasons)
    with pytest.raises(ModelError, match=r"no attribute value 'wintr'; did you mean winter\?"):
        router.route(["summer", "wintr"])
    with pytest.raises(ModelError, match=r"no attribute value 'x'; known are winter, summer"):
        router.route(["x"])
    with pytest.raises(ModelError, match=r"no attribute value '3'; '3' is a text, and this router's values are not"):
        AttributeRouter.from_mapping({3: "cold"}).route(["3"])
    with pytest.raises(ModelError, match=r"an attribute value is 0\.5, expected a text or a whole number"):
        router.route([0.5])
    assert AttributeRouter.from_mapping(seasons, default="warm").route(["x"]).tolist() == [1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": ("a", "a"), "tasks": (0, 0)}, "twice"),
        ({"values": ("a",), "tasks": (0, 1)}, "1 values and 2 tasks"),
        ({"values": ("a",), "tasks": (2,)}, "task 2 is not one of 0 to 1"),
        ({"values": ("a",), "tasks": (0,), "default": -1}, "task -1 is not one of 0 to 1"),
    ],
)
def test_a_table_that_does_not_fit_is_told(given, message):
    with pytest.raises(ModelError, match=message):
        AttributeRouter(task_names=("x", "y"), **given)


def test_a_task_that_there_is_not_is_told_with_near_ones():
    with pytest.raises(ModelError, match=r"no task 'wrm'; did you mean warm\?"):
        AttributeRouter.from_mapping({"summer": "wrm"}, task_names=("cold", "warm"))
