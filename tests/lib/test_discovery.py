# SPDX-License-Identifier: Apache-2.0
"""What server and edges say to find tasks comes over whole, is checked, and gives no small number away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solar_corona.core.errors import WireError
from solar_corona.lib.discovery import (
    ClassSums,
    Clusters,
    DiscoveryQuestion,
    Step,
    pulls_of,
    pulls_to,
    sums_of,
    sums_to,
)
from solar_corona.lib.questions import Question, Response
from solar_corona.lib.signature_features import SignatureSpec
from solar_corona.lib.task_directions import Axes, Pull
from solar_corona.lib.task_mixture import TaskSums

SIZE, RANK = 8, 2
SPEC = SignatureSpec(dimension=SIZE)
RNG = np.random.default_rng(0)
FRAME = Axes.start(RANK, 2, SIZE, 0).frame(np.array([0, 3]), RNG.normal(size=(2, SIZE)), np.eye(SIZE))


def sent(message):
    """What comes out at the other end of the message's way."""
    return type(message).from_content(message.to_content())


def class_sums(count=60, chunk=10):
    x, y = RNG.normal(size=(count, SIZE)) * 0.1, RNG.integers(0, 3, count)
    return ClassSums.of(x, y, np.arange(count) // (chunk or 1) % 2, least=3, chunk=chunk)


@pytest.mark.parametrize("step", list(Step))
def test_a_question_comes_over_whole(step):
    frames = {Step.SUMS: (), Step.PULL: (FRAME, FRAME)}.get(step, (FRAME,))
    asked = DiscoveryQuestion(step, SPEC, frames, tasks=3, places=RNG.normal(size=(3, RANK)), purity=0.8)
    got = DiscoveryQuestion.of(sent(asked.to_question()))
    assert (got.step, got.spec, got.tasks, got.purity) == (step, SPEC, 3, 0.8)
    for before, after in zip(asked.frames, got.frames, strict=True):
        np.testing.assert_array_equal(before.classes, after.classes)
        np.testing.assert_allclose(before.axes, after.axes, rtol=1e-6)
    if frames:
        np.testing.assert_allclose(got.model.places, asked.places, rtol=1e-6)


@pytest.mark.parametrize("text", ["{", "{}", '{"step": "nonsense", "spec": {}}', '{"step": "fit", "spec": {}}'])
def test_a_question_that_cannot_be_read_is_refused(text):
    with pytest.raises(WireError, match="question about tasks"):
        DiscoveryQuestion.of(Question("discovery", text))


@pytest.mark.parametrize("chunk", [None, 10])
def test_sums_of_classes_come_over_whole_but_for_rounding(chunk):
    sums = class_sums(chunk=chunk)
    got = ClassSums.of_response(sent(sums.to_response()), SIZE)
    np.testing.assert_array_equal(got.counts, sums.counts)
    np.testing.assert_allclose(got.means, sums.means, atol=1e-4)
    np.testing.assert_allclose(got.scatter, sums.scatter, atol=1e-6)
    assert (got.chunk, got.labelled) == (chunk, True)


@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_classes_of_which_a_half_has_few_samples_are_not_told(seed, count):
    rng = np.random.default_rng(seed)
    x, y, halves = rng.normal(size=(count, SIZE)), rng.integers(0, 6, count), rng.integers(0, 2, count)
    sums = ClassSums.of(x, y, halves, least=3)
    assert (sums.counts >= 3).all()
    said = {(c, h): n for c, row in zip(sums.classes.tolist(), sums.counts.T, strict=True) for h, n in enumerate(row)}
    for c in range(6):
        true = [int(((y == c) & (halves == h)).sum()) for h in (0, 1)]
        assert [said.get((c, h), 0) for h in (0, 1)] == (true if min(true) >= 3 else [0, 0])


def test_the_rest_of_what_edges_say_comes_over_whole():
    pulled = Pull(np.tile(8.5 * np.eye(RANK + 1), (2, 1, 1)), RNG.normal(size=(2, RANK + 1, SIZE)))
    (got,) = pulls_of(sent(pulls_to([pulled])), (FRAME,), SIZE)
    np.testing.assert_allclose(got.linear, pulled.linear, atol=2e-3)
    assert got.samples == 17
    sums = TaskSums(RNG.normal(size=(3, RANK)), np.tile(np.eye(RANK), (3, 1, 1)), np.array([4.0, 0.0, 9.0]), 12, 13)
    again = sums_of(sent(sums_to(sums)), 3, RANK)
    np.testing.assert_allclose(again.linear, sums.linear, rtol=1e-6)
    np.testing.assert_allclose(again.places(), sums.places(), rtol=1e-5)
    assert again.purity == pytest.approx(sums.purity)
    clusters = Clusters(RNG.normal(size=(2, RANK)), np.array([20.0, 30.0]))
    np.testing.assert_allclose(Clusters.of_response(sent(clusters.to_response()), RANK).samples, [20, 30])


READERS = {
    "class sums": (lambda r: ClassSums.of_response(r, SIZE), lambda: class_sums().to_response()),
    "pulls": (
        lambda r: pulls_of(r, (FRAME,), SIZE),
        lambda: pulls_to([Pull(np.ones((2, RANK + 1, RANK + 1)), np.ones((2, RANK + 1, SIZE)))]),
    ),
    "clusters": (
        lambda r: Clusters.of_response(r, RANK),
        lambda: Clusters(np.ones((2, RANK)), np.ones(2)).to_response(),
    ),
    "sums": (
        lambda r: sums_of(r, 3, RANK),
        lambda: sums_to(TaskSums(np.ones((3, RANK)), np.ones((3, RANK, RANK)), np.ones(3), 3.0, 3.0)),
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_an_answer_with_anything_missing_misshapen_or_not_finite_is_refused(kind):
    read, make = READERS[kind]
    arrays = dict(make().arrays)
    read(Response("discovery", "{}", arrays))
    for name, value in arrays.items():
        wrong = {
            "missing": {k: v for k, v in arrays.items() if k != name},
            "misshapen": {**arrays, name: np.ones((*value.shape, 2), value.dtype)},
            "text": {**arrays, name: np.full(value.shape, "x")},
        }
        if value.dtype.kind == "f":
            wrong["not finite"] = {**arrays, name: np.full_like(value, np.nan)}
        for changed in wrong.values():
            with pytest.raises(WireError):
                read(Response("discovery", "{}", changed))


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("class sums", "means", lambda v: v * 1000),
        ("class sums", "scatter", lambda v: v * 1e6),
        ("class sums", "classes", lambda v: v[::-1].copy()),
        ("class sums", "counts", lambda v: v * 0),
        ("pulls", "0/square", lambda v: -v),
        ("pulls", "0/scale", lambda v: -v),
        ("clusters", "samples", lambda v: -v),
        ("sums", "samples", lambda v: -v),
        ("sums", "square", lambda v: -v),
        ("sums", "loyal", lambda v: v * [9, 1]),
    ],
)
def test_an_answer_that_samples_cannot_have_given_is_refused(kind, name, change):
    read, make = READERS[kind]
    arrays = dict(make().arrays)
    arrays[name] = change(arrays[name])
    with pytest.raises(WireError, match="left out"):
        read(Response("discovery", "{}", arrays))
