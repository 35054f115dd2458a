# SPDX-License-Identifier: Apache-2.0
"""Samples are given to tasks by themselves or with their chunk, and small numbers of samples cannot be told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solar_corona.core.errors import WireError
from solar_corona.lib.signature_features import SignatureSpec
from solar_corona.lib.task_directions import Axes, Evidence
from solar_corona.lib.task_mixture import TaskModel, clusters, gather, posterior

SPEC = SignatureSpec(dimension=6)
PLACES = np.array([[-2.0], [2.0]])


def model(purity=1.0, names=("a", "b")):
    """Two tasks that move both classes along the first feature, one up and one down."""
    axes = np.zeros((1, 2, 6))
    axes[0, :, 0] = 1.0, -1.0
    return TaskModel(
        SPEC, Axes(axes, np.zeros((2, 6))).frame(np.array([0, 1]), np.zeros((2, 6)), np.eye(6)), PLACES, purity, names
    )


def stream(tasks, *, strays=0.0, seed=0, chunk=10, noise=1.0):
    rng = np.random.default_rng(seed)
    task = np.repeat(tasks, chunk)
    task = np.where(rng.random(len(task)) < strays, 1 - task, task)
    y = rng.integers(0, 2, len(task))
    x = noise * rng.normal(size=(len(task), 6))
    x[:, 0] += PLACES[task, 0] * np.where(y == 0, 1, -1)
    return x, y, task


def test_samples_alone_go_where_they_are_likely_and_chunks_go_whole():
    x, y, task = stream(np.arange(40) % 2, noise=1.5)
    alone = model().divide(x, y, None)
    assert 0.85 < (alone == task).mean() < 1
    np.testing.assert_array_equal(model().divide(x, y, 10), task)


def test_strays_in_a_chunk_are_told_from_it_one_by_one():
    x, y, task = stream(np.arange(200) % 2, strays=0.2, noise=1.5)
    strict, soft = model().divide(x, y, 10), model(purity=0.8).divide(x, y, 10)
    assert (strict == task).mean() < 0.85
    assert (soft == task).mean() > 0.9
    assert (soft == task).mean() > (model().divide(x, y, None) == task).mean()


def test_how_pure_chunks_are_is_learned_from_the_samples():
    for strays in (0.0, 0.1, 0.25):
        x, y, _ = stream(np.arange(80) % 2, strays=strays)
        purity = 0.8
        for _ in range(5):
            purity = model(purity=min(purity, 0.949)).sums(x, y, 10, least=3).purity
        assert purity == pytest.approx(1 - strays, abs=0.04)


def test_an_edge_of_one_task_has_no_other_though_some_of_its_samples_are_unusual():
    x, y, _ = stream(np.zeros(40, int), noise=1.2)
    shares = model().taken(x, y, None).shares
    assert (shares.argmax(1) == 1).any()
    assert not model().divide(x, y, None).any()
    x, y, task = stream(np.array([0] * 39 + [1]))
    np.testing.assert_array_equal(model().divide(x, y, 10), task)  # a chunk is no unusual sample


def test_a_chunk_with_no_class_that_is_known_goes_with_what_the_edge_has_most_of():
    x, y, task = stream(np.array([1, 1, 1, 0, 1]))
    y[40:] = 99
    found = model().divide(x, y, 10)
    np.testing.assert_array_equal(found, task)


@pytest.mark.parametrize("chunk", [None, 10])
@pytest.mark.parametrize("purity", [1.0, 0.8])
def test_no_samples_and_one_sample_are_no_reason_to_fail(chunk, purity):
    x, y, _ = stream(np.zeros(1, int))
    assert model(purity).divide(x[:0], y[:0], chunk).shape == (0,)
    assert model(purity).divide(x[:1], y[:1], chunk).tolist() == [0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 5), st.sampled_from([1.0, 0.9, 0.6]))
@settings(max_examples=40, deadline=None)
def test_shares_are_probabilities_however_unlikely_samples_are(seed, count, tasks, purity):
    rng = np.random.default_rng(seed)
    likely = rng.normal(size=(count, tasks)) * 10.0 ** rng.integers(-2, 5)
    for units in (None, np.arange(count) // 7):
        taken = posterior(likely, units, purity)
        np.testing.assert_allclose(taken.shares.sum(1), 1, atol=1e-6)
        assert taken.shares.min() >= 0
        np.testing.assert_allclose(taken.weights.sum(), 1)
        assert -1e-6 <= taken.loyal <= count + 1e-6


@given(st.integers(0, 2**32 - 1), st.integers(0, 80), st.sampled_from([None, 10]), st.sampled_from([1.0, 0.8]))
@settings(max_examples=40, deadline=None)
def test_no_task_is_said_to_have_some_samples_but_fewer_than_the_least(seed, count, chunk, purity):
    rng = np.random.default_rng(seed)
    x, y, _ = stream(rng.integers(0, 2, 8), seed=seed)
    sums = model(purity).sums(x[:count], y[:count], chunk, least=3)
    assert all(each >= 3 or each < 1e-9 for each in sums.samples) or count < 3
    np.testing.assert_allclose(sums.samples.sum(), count)


def test_places_come_from_the_sums_of_all_edges():
    streams = [stream(np.arange(20) % 2, seed=seed) for seed in range(6)]
    start = TaskModel(SPEC, model().frame, PLACES * 0.3, 1.0, ())
    places = start.places
    for _ in range(5):
        now = TaskModel(SPEC, start.frame, places, 1.0, ())
        sums = [now.sums(x, y, 10, least=3) for x, y, _ in streams]
        total = sums[0]
        for each in sums[1:]:
            total = total + each
        places = total.places()
    np.testing.assert_allclose(places, PLACES, atol=0.2)
    assert total.scaled(2.0).samples.sum() == pytest.approx(2 * total.samples.sum())


def evidence_of(points, sharpness=25.0):
    points = np.asarray(points, float)
    square = np.tile(sharpness * np.eye(points.shape[1]), (len(points), 1, 1))
    return Evidence(sharpness * points, square)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_units_gather_at_as_many_places_as_there_are(count):
    rng = np.random.default_rng(count)
    true = np.array([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])[:count]
    points = true[np.arange(60) % count] + 0.2 * rng.normal(size=(60, 2))
    places, shares = clusters(evidence_of(points), 5, seed=0)
    assert len(places) == count
    assert shares.sum() == pytest.approx(1)
    assert max(np.abs(places - t).max(1).min() for t in true) < 0.2


def test_a_place_with_hardly_a_unit_is_not_told():
    points = np.array([[0.0]] * 58 + [[9.0]] * 2) + 0.1 * np.random.default_rng(0).normal(size=(60, 1))
    assert len(clusters(evidence_of(points), 4, seed=0)[0]) == 2
    places, shares = clusters(evidence_of(points), 4, seed=0, least=0.05)
    assert shares.tolist() == [1.0]
    assert abs(places[0, 0]) < 0.2


@pytest.mark.parametrize("units", [1, 2])
def test_as_few_units_as_there_can_be_gather_somewhere(units):
    places, shares = clusters(evidence_of(np.zeros((units, 2))), 5, seed=0)
    assert len(places) == 1
    assert shares.tolist() == [1.0]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_points_that_lie_in_heaps_are_gathered_whatever_their_order(seed):
    rng = np.random.default_rng(seed)
    heaps = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = heaps[rng.integers(0, 3, 40)] + rng.normal(size=(40, 2)) * 0.5
    points[:3] = heaps
    weights = rng.uniform(0.1, 50, 40)
    order = rng.permutation(40)
    found = [gather(points[o], weights[o], 3, seed=1) for o in (np.arange(40), order)]
    for centres in found:
        assert max(np.linalg.norm(centres - heap, axis=1).min() for heap in heaps) < 1


def test_the_same_point_many_times_is_gathered_without_end():
    centres = gather(np.ones((5, 2)), np.ones(5), 3, seed=0)
    np.testing.assert_allclose(centres, 1.0)


def test_a_model_is_the_same_after_its_journey():
    x, y, _ = stream(np.arange(10) % 2)
    before = model(purity=0.8)
    after = TaskModel.of_arrays(before.to_arrays(), spec=SPEC, purity=0.8, names=("a", "b"))
    np.testing.assert_array_equal(before.divide(x, y, 10), after.divide(x, y, 10))


@pytest.mark.parametrize(
    "broken",
    [
        {"axes": None},
        {"centre": np.zeros((2, 5))},
        {"axes": np.full((2, 6, 1), np.nan)},
        {"gram": np.zeros((2, 2, 2))},
        {"places": np.zeros((3, 1))},
        {"places": np.zeros(2)},
        {"classes": np.zeros((2, 2), np.int64)},
        {"axes": np.array(["x"])},
        {"axes": np.zeros((2, 6, 0)), "gram": np.zeros((2, 0, 0)), "places": np.zeros((2, 0))},
    ],
)
def test_a_model_that_is_not_whole_is_refused(broken):
    arrays = {**model().to_arrays(), **broken}
    with pytest.raises(WireError, match="model of tasks"):
        TaskModel.of_arrays({k: v for k, v in arrays.items() if v is not None}, spec=SPEC, names=("a", "b"))
