# SPDX-License-Identifier: Apache-2.0
"""Which task each sample of an edge is of, as the data, a function, or nobody says."""

from __future__ import annotations

import numpy as np
import pytest

from solar_corona.core.errors import DatasetError, SpecError
from solar_corona.core.spec import Tasks
from solar_corona.fl_client.edge_data import EdgeData, named_division

X = np.arange(60, dtype=np.float32).reshape(30, 2)
Y = np.arange(30) % 3
SEASONS = np.array(["summer"] * 12 + ["winter"] * 18)


def data(*, train=(X, Y), test=(X[:6], Y[:6]), tasks=None, seasons=None, eval_seasons=None, **rules):
    return EdgeData(train, test, tasks=Tasks(**rules), train_tasks=seasons, eval_tasks=eval_seasons)


def test_without_a_rule_an_edge_is_one_task():
    split = data().split(None)
    assert split.names == ("all",)
    assert not split.train.any()
    assert split.indices("train", (0,)) is None, "all samples, with no copy"


def test_the_datas_own_attribute_names_the_tasks():
    edge = data(task_attribute="season", min_samples=5, seasons=SEASONS, eval_seasons=SEASONS[9:15])
    split = edge.split(None)
    assert split.names == ("summer", "winter")
    assert split.indices("train", (1,)).tolist() == list(range(12, 30))
    assert split.indices("evaluate", (0,)).tolist() == [0, 1, 2]
    assert split.indices("train", (0, 1)) is None


def test_a_task_with_few_samples_joins_the_largest():
    edge = data(task_attribute="season", min_samples=15, seasons=SEASONS, eval_seasons=SEASONS[:6])
    split = edge.split(None)
    assert split.names == ("winter",)
    assert not split.train.any()
    assert not split.evaluate.any(), "also one that occurs in evaluation alone"


def test_a_function_gives_numbers_or_names():
    edge = data(min_samples=1)
    assert edge.split(lambda x, y: y).names == ("0", "1", "2")
    assert edge.split(lambda x, y: np.where(y == 0, "a", "b")).names == ("a", "b")


@pytest.mark.parametrize("wrong", [lambda x, y: y[:-1], lambda x, y: x, lambda x, y: y * 0.5, lambda x, y: None])
def test_a_function_that_gives_something_else_is_told(wrong):
    with pytest.raises(DatasetError, match="expected one whole number or name for each sample"):
        data().split(wrong)


def test_samples_of_a_chunk_have_the_task_of_most_of_them():
    tasks = np.array([0, 0, 1, 0, 0] + [1, 1, 1, 0, 1] + [0] * 20)
    split = data(min_samples=1, chunk=5).split(lambda x, y: tasks[: len(x)])
    assert split.train.tolist() == [0] * 5 + [1] * 5 + [0] * 20


def test_an_attribute_that_does_not_fit_the_loader_is_told_with_what_to_pass():
    for seasons in (None, SEASONS[:-1]):
        with pytest.raises(DatasetError, match="not known which of the 30 samples"):
            data(task_attribute="season", seasons=seasons).split(None)


def test_batches_are_read_as_arrays_in_their_order():
    batches = [(X[i : i + 7], Y[i : i + 7]) for i in range(0, 30, 7)]
    samples = data(train=batches).samples("train")
    np.testing.assert_array_equal(samples.x, X)
    np.testing.assert_array_equal(samples.y, Y)


def test_samples_of_several_inputs_cannot_be_divided():
    with pytest.raises(DatasetError, match="tasks can be told apart only where"):
        data(train=[((X, X), Y)]).samples("train")


def test_changed_samples_have_another_digest():
    x = X.copy()
    edge = data(train=(x, Y))
    before = edge.samples("train").digest()
    assert edge.samples("train", anew=True).digest() == before
    x[3, 0] += 1
    assert edge.samples("train", anew=True).digest() != before


def test_discovery_keeps_a_chunk_together_only_as_far_as_it_found_it_pure():
    tasks = np.array(["a", "b", "a", "a", "a", "b"] * 5)
    split = data(min_samples=1, chunk=5, division="discovery").split(lambda x, y: tasks[: len(x)])
    np.testing.assert_array_equal(np.array(split.names)[split.train], tasks[: len(split.train)])


def test_an_edge_without_samples_has_one_task():
    empty = (np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    assert data(train=empty, test=None).split(lambda x, y: y).names == ("all",)


@pytest.mark.parametrize(
    ("name", "what"),
    [("no_such_module:f", "ModuleNotFoundError"), ("math:nope", "AttributeError"), ("math:pi", "no function")],
)
def test_a_division_that_is_not_there_is_told(name, what):
    with pytest.raises(SpecError, match=what):
        named_division(name)


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        ({"task_attribute": "season", "division": "discovery", "chunk": 5}, "keep one"),
        ({"division": "by season"}, "division"),
        ({"chunk": 1}, "chunk"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules, what):
    with pytest.raises(ValueError, match=what):
        Tasks(**rules)
