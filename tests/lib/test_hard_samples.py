# SPDX-License-Identifier: Apache-2.0
"""Keeping samples: the hour's budget, near-duplicates, and what is known of each sample."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solar_corona.core.errors import DatasetError, ModelError
from solar_corona.core.hub_messages import LoadError, Observation, WorkerState
from solar_corona.lib.hard_samples.budget import Budget
from solar_corona.lib.hard_samples.budget_file import BudgetFile
from solar_corona.lib.hard_samples.embedding import embedding_of
from solar_corona.lib.hard_samples.kept_sample import KeptSample, own_copy, plain_prediction, size_of
from solar_corona.lib.hard_samples.near_duplicates import NearDuplicates
from solar_corona.lib.hard_samples.subjects import current_subject, subject
from solar_corona.lib.hard_samples.worker_counts import LoadTrouble, WorkerCounts
from solar_corona.lib.sample_coding import SampleForm
from solar_corona.lib.sample_records import pack, unpack
from solar_corona.lib.scores import Scores
from solar_corona.lib.shadow_model import Observed


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def spent(budget, clock, *, seconds, every, wanted=lambda rate, number: True):
    """Run a stream, and return when a sample was kept."""
    kept = []
    for number in range(int(seconds / every)):
        clock.now += every
        came = next(budget.__dict__.setdefault("came", itertools.count(1)))
        if wanted(budget.rate(came), number) and budget.has(random=True):
            budget.take()
            kept.append(clock.now)
    return kept


def test_an_hours_budget_is_never_exceeded_and_spread_evenly():
    clock = Clock()
    budget = Budget(500, clock=clock)
    begin = clock.now
    kept = spent(budget, clock, seconds=7200, every=0.1)
    first, second = (sum(begin + a < at <= begin + b for at in kept) for a, b in ((0, 3600), (3600, 7200)))
    assert first <= 500
    assert second <= 500
    assert first + second > 950
    quarters = np.histogram([at - begin for at in kept], bins=8, range=(0, 7200))[0]
    assert quarters.min() > 80
    assert quarters.max() < 170


def test_a_share_drawn_at_the_rate_that_is_told_spends_the_budget_by_itself():
    clock = Clock()
    budget = Budget(500, clock=clock)
    draw = np.random.default_rng(1).random(40_000)
    kept = spent(budget, clock, seconds=3600, every=0.1, wanted=lambda rate, number: draw[number] < rate)
    assert 400 < len(kept) <= 500


def test_a_burst_takes_no_more_than_the_bucket():
    clock = Clock()
    budget = Budget(1000, clock=clock)
    assert len(spent(budget, clock, seconds=1, every=0.001)) <= 51
    small = Budget(3, clock=clock)
    assert len(spent(small, clock, seconds=1, every=0.01)) == 3


def test_hard_samples_leave_some_of_the_bucket_to_random_ones():
    budget = Budget(500, clock=Clock())
    while budget.has():
        budget.take()
    assert sum(1 for _ in iter(lambda: budget.has(random=True) and not budget.take(), False)) >= 7


def test_a_slow_stream_may_keep_all_of_it():
    clock = Clock()
    budget = Budget(500, clock=clock)
    for came in range(1, 30):
        clock.now += 60
        rate = budget.rate(came)
    assert rate == 1.0


@settings(max_examples=40)
@given(
    st.integers(1, 2000),
    st.lists(st.tuples(st.floats(-10, 4000), st.booleans()), max_size=200),
)
def test_no_clock_and_no_stream_gets_more_than_the_budget_out_of_an_hour(per_hour, steps):
    clock = Clock()
    budget = Budget(per_hour, clock=clock)
    hours: dict[int, int] = {}
    latest = clock.now
    for came, (step, random) in enumerate(steps, 1):
        clock.now += step
        latest = max(latest, clock.now)
        assert 0.0 <= budget.rate(came) <= 1.0
        while budget.has(random=random):
            budget.take()
            hour = int((latest - 1000.0) // 3600)
            hours[hour] = hours.get(hour, 0) + 1
    assert all(count <= per_hour for count in hours.values())


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ModelError, match="max_per_hour is 0"):
        Budget(0)


def test_a_script_that_starts_anew_gets_no_second_hour(tmp_path, monkeypatch):
    file = BudgetFile(tmp_path / "new" / "budget.json")
    assert file.read() is None
    file.budget = Budget(10)
    for _ in range(3):
        file.budget.take()
    file.report(WorkerCounts(0.0))
    spent = file.read()
    assert (spent.used, spent.tokens) == (3, pytest.approx(1.0, abs=0.1))
    after = Budget(10, spent=spent)
    assert not after.has()
    begin = time.time()
    monkeypatch.setattr("solar_corona.lib.hard_samples.budget_file.time.time", lambda: begin + 3700)
    assert Budget(10, spent=file.read()).has()
    monkeypatch.setattr("solar_corona.lib.hard_samples.budget_file.time.time", lambda: begin - 3700)
    assert file.read() is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"used": "x", "tokens": 1, "seconds": 1, "at": 1}', b"\xff"])
def test_a_damaged_budget_begins_anew(tmp_path, content):
    (tmp_path / "b.json").write_bytes(content)
    assert BudgetFile(tmp_path / "b.json").read() is None


def test_a_budget_that_cannot_be_noted_is_told_once(tmp_path, caplog):
    (tmp_path / "no").write_bytes(b"")
    file = BudgetFile(tmp_path / "no" / "b.json")
    file.budget = Budget(10)
    file.report(WorkerCounts(0.0))
    file.report(WorkerCounts(0.0))
    assert len(caplog.records) == 1


# --- near-duplicates


def picture(seed, *, noise=0.0, light=0.0):
    scene = np.random.default_rng(seed).uniform(0, 255, (12, 16, 3)).repeat(8, 0).repeat(8, 1)
    return np.clip(scene + np.random.default_rng().normal(0, noise, scene.shape) + light, 0, 255).astype(np.uint8)


def looks(image):
    return embedding_of({"x": image}, {})


def test_frames_of_one_scene_are_kept_once_and_other_scenes_again():
    near = NearDuplicates()
    assert not near.knows(looks(picture(1)))
    assert all(near.knows(looks(picture(1, noise=8))) for _ in range(10))
    assert not any(near.knows(looks(picture(seed))) for seed in range(2, 40))
    assert not near.knows(looks(picture(1, light=-60)))
    assert near.knows(looks(picture(20)))


def test_only_the_latest_are_remembered():
    near = NearDuplicates()
    for seed in range(300):
        assert not near.knows(looks(picture(seed)))
    assert not near.knows(looks(picture(0)))
    assert near.knows(looks(picture(299)))


def test_rows_of_a_table_are_the_same_only_if_all_of_it_is():
    near = NearDuplicates()
    row = np.array([50_000.0, 37.0, 1.0])
    assert not near.knows(looks(row))
    assert near.knows(looks(row.copy()))
    assert not near.knows(looks(np.array([50_000.0, 38.0, 1.0])))


def test_texts_are_told_apart_by_their_content_alone():
    near = NearDuplicates()
    assert not near.knows(looks(np.array(["one two"], object)))
    assert not near.knows(looks(np.array(["two one"], object)))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((3, 40, 50), np.float32),
        np.full((5, 5), np.nan),
        np.full((200, 300), np.inf),
        np.zeros(20_000, np.int16),
        np.zeros((2, 3, 4, 5)),
        np.zeros(0),
        np.float64(3.0),
        np.array([True]),
        np.array(["a", b"b"], object),
    ],
)
def test_an_embedding_is_short_and_of_numbers_whatever_the_input(value):
    for found in (looks(np.asarray(value)), embedding_of({"x": np.zeros(3)}, {"embedding": np.asarray(value)})):
        assert found.values.size <= 64
        assert np.isfinite(found.values).all()
        NearDuplicates().knows(found)


def test_a_models_own_embedding_is_taken_before_its_input():
    own = embedding_of({"x": np.zeros((8, 8))}, {"p": np.zeros(3), "embedding": np.arange(5.0)})
    assert own.values.tolist() == [0, 1, 2, 3, 4]
    wide = embedding_of({"x": np.zeros(3)}, {"embedding": np.random.default_rng(0).normal(size=512)})
    assert wide.values.shape == (64,)


# --- what is known of a sample


def kept(sample, **known):
    return KeptSample(sample, SampleForm(), edge="e", model=2, taken_at=1.0, reason="hard", **known)


def test_a_kept_sample_travels_with_all_that_is_known_of_it():
    one = kept(
        np.zeros((9, 9, 3), np.uint8), confidence=0.5, hardness=0.25, prediction=3, scores=Scores(np.array([0.5, 0.5])),
        embedding=np.array([1, 2], np.float32), subject="s",
    )  # fmt: skip
    ((record, content),) = unpack(pack([one.packed()]))
    assert (record.id, record.media_type, record.size) == (one.id, "image/png", len(content))
    assert (record.confidence, record.hardness, record.prediction, record.subject) == (0.5, 0.25, 3, "s")
    assert (record.probabilities, record.embedding) == ([0.5, 0.5], [1.0, 2.0])
    assert (record.edge, record.model, record.reason) == ("e", 2, "hard")


def test_a_sample_that_was_sent_is_free_and_keeps_its_id():
    one = kept(np.zeros(3))
    name = one.id
    one.sent()
    assert one.sample is None
    assert one.id == name


def test_a_copy_of_its_own_does_not_change_with_the_scripts_buffer():
    buffer = np.zeros(3)
    copied = own_copy({"a": [buffer, "text"], "b": (buffer, 1)})
    buffer[:] = 7
    assert copied["a"][0].tolist() == [0, 0, 0] == copied["b"][0].tolist()
    assert size_of(copied) >= 48


BOX = [1.0, 2.0, 3.0, 4.0, np.float32(0.5), "cat"]


@pytest.mark.parametrize(
    ("result", "scores", "plain"),
    [
        ("cat", Scores(np.array([0.1, 0.9])), "cat"),
        (np.float32(0.5), None, 0.5),
        (np.int64(3), None, 3),
        (float("nan"), None, None),
        (1j, None, None),
        (np.array([0.1, 0.9]), Scores(np.array([0.1, 0.9])), 1),
        ([BOX], Scores(np.array([0.5]), boxes=True), [[1.0, 2.0, 3.0, 4.0, 0.5, "cat"]]),
        ([{"score": 0.5, "box": np.array([1, 2])}], None, [{"score": 0.5, "box": [1, 2]}]),
        ([], Scores(np.zeros(0), boxes=True), []),
        (object(), None, None),
    ],
)
def test_a_prediction_is_told_in_plain_values(result, scores, plain):
    found = plain_prediction(result, scores)
    assert found == plain
    json.dumps(found, allow_nan=False)


def test_a_thousand_boxes_are_cut_to_what_a_record_holds():
    boxes = [[*BOX, "x" * 190, *([0.123456] * 12)] for _ in range(1000)]
    assert 50 < len(plain_prediction(boxes, None)) < 300
    assert len(json.dumps(plain_prediction(boxes, None))) <= 1 << 16


def test_a_subject_holds_for_what_is_inside():
    with subject("ann"):
        with subject("ben"):
            assert current_subject() == "ben"
        assert current_subject() == "ann"
    assert current_subject() is None
    with pytest.raises(DatasetError, match="1 to 200 characters"), subject(""):
        pass


@pytest.mark.parametrize(
    ("ours", "theirs"), [(WorkerCounts, WorkerState), (LoadTrouble, LoadError), (Observed, Observation)]
)
def test_what_a_worker_reports_has_the_fields_that_the_controller_reads(ours, theirs):
    assert {field.name for field in fields(ours)} == set(theirs.model_fields)
