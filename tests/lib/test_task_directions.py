# SPDX-License-Identifier: Apache-2.0
"""The directions in which tasks differ are found from sums, and chance is taken for none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solar_corona.lib.task_directions import (
    Axes,
    Evidence,
    agreement,
    better_axes,
    fit_between,
    fit_together,
    pull,
    whitening,
)

CLASSES, SIZE = 6, 40
# Classes are spread unlike in different directions, and each in its own way: what chance likes to be taken for.
SPREAD = np.random.default_rng(5).uniform(0.5, 2.0, size=(CLASSES, SIZE))
CENTRES = np.random.default_rng(6).normal(size=(CLASSES, SIZE)) * 3
SHIFTS = np.random.default_rng(7).normal(size=(3, CLASSES, SIZE)) * 0.6


def stream(rng, tasks, chunk=10):
    """Whitened features, class ids and the task of each sample, chunk by chunk."""
    task = np.repeat(tasks, chunk)
    y = rng.integers(0, CLASSES, len(task))
    return CENTRES[y] + SHIFTS[task, y] + SPREAD[y] * rng.normal(size=(len(task), SIZE)), y, task


def frame(rng, rank=2, classes=CLASSES):
    axes = Axes.start(rank, classes, SIZE, int(rng.integers(1000)))
    return axes.frame(np.arange(classes), CENTRES[:classes], np.eye(SIZE))


def found_by_pulls(streams, rank=3, steps=8):
    """Both halves' axes, as a server finds them."""
    white, ids = np.eye(SIZE), np.arange(CLASSES)
    axes = [Axes.start(rank, CLASSES, SIZE, seed) for seed in (0, 1)]
    y = np.concatenate([labels for _, labels, _ in streams])
    x = np.concatenate([features for features, _, _ in streams])
    centre = np.stack([x[y == c].mean(0) for c in range(CLASSES)])
    for _ in range(steps):
        for half in (0, 1):
            pulled = None
            for features, labels, _ in streams:
                units = np.arange(len(features)) // 10
                rows = units % 2 == half
                frame_now = axes[half].frame(ids, centre, white)
                each = pull(frame_now, features[rows], labels[rows], units[rows] // 2, least=3)
                pulled = each if pulled is None else pulled + each
            axes[half] = better_axes(pulled.times(white), axes[half])
    return axes, np.bincount(y, minlength=CLASSES).astype(float)


def test_evidence_is_the_log_likelihood_of_a_place_up_to_a_constant():
    rng = np.random.default_rng(1)
    f = frame(rng)
    x, y, _ = stream(rng, np.zeros(2, int))
    places = rng.normal(size=(3, 2))
    got = f.evidence(x, y).of(places)
    axes = f.axes  # white is the identity: C x D x r
    expected = np.stack([-0.5 * ((x - CENTRES[y] - np.einsum("ndr,r->nd", axes[y], u)) ** 2).sum(1) for u in places], 1)
    np.testing.assert_allclose(got - got[:, :1], expected - expected[:, :1], atol=1e-9)


def test_samples_of_a_class_that_is_not_known_say_nothing():
    rng = np.random.default_rng(1)
    x, _, _ = stream(rng, np.zeros(1, int))
    evidence = frame(rng).evidence(x, np.full(len(x), 77))
    assert not evidence.linear.any()
    assert not evidence.square.any()
    assert not frame(rng, classes=0).evidence(x, np.zeros(len(x), int)).linear.any()


def test_the_evidence_of_a_unit_is_that_of_its_samples_together():
    rng = np.random.default_rng(1)
    x, y, _ = stream(rng, np.zeros(2, int))
    evidence, units = frame(rng).evidence(x, y), np.arange(20) % 3
    whole = evidence.by_unit(units)
    assert len(whole) == 3
    np.testing.assert_allclose(whole.linear[1], evidence.linear[units == 1].sum(0))
    np.testing.assert_allclose(whole.square[2], evidence.square[units == 2].sum(0))
    assert len(Evidence(np.zeros((0, 2)), np.zeros((0, 2, 2))).by_unit(np.zeros(0, int))) == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_pulls_of_two_parts_add_up_to_that_of_the_whole(seed, chunks):
    rng = np.random.default_rng(seed)
    f = frame(rng)
    x, y, _ = stream(rng, rng.integers(0, 3, chunks + 1))
    units = np.arange(len(x)) // 10
    cut = 10 * int(rng.integers(0, chunks + 1))
    whole = pull(f, x, y, units, least=0)
    parts = pull(f, x[:cut], y[:cut], units[:cut], least=0) + pull(
        f, x[cut:], y[cut:], units[cut:] - cut // 10, least=0
    )
    np.testing.assert_allclose(parts.square, whole.square, atol=1e-8)
    np.testing.assert_allclose(parts.linear, whole.linear, atol=1e-8)
    assert parts.samples == whole.samples


def test_a_class_with_too_few_samples_pulls_at_nothing():
    rng = np.random.default_rng(2)
    x, _, _ = stream(rng, np.zeros(2, int))
    y = np.array([0] * 18 + [1] * 2)
    pulled = pull(frame(rng), x, y, np.arange(20) // 10, least=3)
    assert not pulled.linear[1].any()
    assert not pulled.square[1].any()
    assert pulled.samples == 18


def first(axes, count):
    return Axes(axes.along[:count], axes.shift)


def true_axes(tasks):
    return Axes(SHIFTS[1:tasks] - SHIFTS[:1], np.zeros((CLASSES, SIZE)))


@pytest.mark.parametrize("tasks", [2, 3])
def test_chunks_of_several_tasks_show_one_direction_less_than_tasks(tasks):
    rng = np.random.default_rng(3)
    streams = [stream(rng, rng.integers(0, tasks, 20)) for _ in range(8)]
    axes, weights = found_by_pulls(streams)
    cosines, common = agreement(*axes, weights)
    assert (cosines > 0.8).sum() == tasks - 1
    assert (cosines[tasks - 1 :] < 0.45).all()
    assert (agreement(first(common, tasks - 1), true_axes(tasks), weights)[0] > 0.85).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("edges", [2, 8, 60])
def test_chunks_of_one_task_show_none_however_unlike_its_classes_are_spread(seed, edges):
    rng = np.random.default_rng([seed, edges])
    axes, weights = found_by_pulls([stream(rng, np.zeros(20, int)) for _ in range(edges)])
    assert agreement(*axes, weights)[0].max() < 0.45


def edge_halves(shares, seed=0, count=300):
    rng = np.random.default_rng(seed)
    halves = [(np.zeros((len(shares), CLASSES, SIZE)), np.zeros((len(shares), CLASSES))) for _ in (0, 1)]
    for row, share in enumerate(shares):
        x, y, _ = stream(rng, rng.choice(len(share), count, p=share), chunk=1)
        for half in (0, 1):
            np.add.at(halves[half][0][row], y[half::2], x[half::2])
            np.add.at(halves[half][1][row], y[half::2], 1)
    count_of = halves[0][1].sum(0) + halves[1][1].sum(0)
    centre = (halves[0][0].sum(0) + halves[1][0].sum(0)) / count_of[:, None]
    return [(sums - numbers[..., None] * centre, numbers) for sums, numbers in halves]


def test_edges_that_mix_tasks_in_other_shares_show_the_directions():
    shares = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 12)
    halves = edge_halves(shares)
    weights = halves[0][1].sum(0) + halves[1][1].sum(0)
    one, other = fit_between(halves, 4, seed=0)
    cosines, common = agreement(one, other, weights)
    assert (cosines > 0.7).sum() == 2
    whole = halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
    axes = fit_together(whole, first(common, 2))
    assert (agreement(axes, true_axes(3), weights)[0] > 0.9).all()


@pytest.mark.parametrize("edges", [3, 10, 100])
def test_edges_that_mix_tasks_in_the_same_shares_show_none(edges):
    halves = edge_halves(np.tile([0.4, 0.6], (edges, 1)))
    one, other = fit_between(halves, min(4, edges - 1), seed=0)
    assert agreement(one, other, halves[0][1].sum(0))[0].max() < 0.45


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_agreement_is_of_the_span_and_does_not_depend_on_which_axes_span_it(seed, rank):
    rng = np.random.default_rng(seed)
    one, other = (Axes.start(rank, CLASSES, SIZE, int(rng.integers(10**9))) for _ in (0, 1))
    weights = rng.uniform(1, 100, CLASSES)
    turn = np.linalg.qr(rng.normal(size=(rank, rank)))[0] @ np.diag(rng.uniform(0.5, 2, rank))
    turned = Axes(np.einsum("rs,scd->rcd", turn, one.along), one.shift)
    same, common = agreement(one, turned, weights)
    np.testing.assert_allclose(same, 1.0, atol=1e-5)
    np.testing.assert_allclose(agreement(common, one, weights)[0], 1.0, atol=1e-5)
    np.testing.assert_allclose(agreement(one, other, weights)[0], agreement(other, one, weights)[0], atol=1e-9)


def test_whitening_makes_the_spread_even_also_where_a_feature_is_constant():
    rng = np.random.default_rng(4)
    scatter = np.cov((rng.normal(size=(2_000, 5)) @ np.diag([1.0, 5.0, 0.8, 1.0, 0.0])).T)
    white = whitening(scatter)
    assert np.isfinite(whitening(np.zeros((3, 3)))).all()
    even = np.diag(white.T @ scatter @ white)
    np.testing.assert_allclose(even[:4], 1.0, atol=0.05)
    assert even[4] < 0.05
    assert np.argmax(np.abs(white[:, 0])) == 1, "the widest comes first"


def test_tasks_with_other_shares_of_each_class_show_no_direction_more():
    """Around the samples' means each class's tasks would lie otherwise: what is common to all units, an axis more."""
    rng = np.random.default_rng(8)
    streams = []
    for _ in range(12):
        task = np.repeat(rng.integers(0, 2, 20), 10)
        shares = rng.dirichlet(np.full(CLASSES, 0.3), 2)
        y = np.array([rng.choice(CLASSES, p=shares[t]) for t in task])
        x = CENTRES[y] + 3 * SHIFTS[task, y] + SPREAD[y] * rng.normal(size=(len(task), SIZE))
        streams.append((x, y, task))
    axes, weights = found_by_pulls(streams)
    cosines, _ = agreement(*axes, weights)
    assert cosines[0] > 0.9
    assert cosines[1] < 0.6
