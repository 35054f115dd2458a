# SPDX-License-Identifier: Apache-2.0
"""Detectors of hard samples: what each finds hard, how many it keeps, and the contract that all keep."""

from __future__ import annotations

import doctest
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona import incremental
from solar_corona.core.errors import ModelError
from solar_corona.incremental import scored
from solar_corona.incremental.scored import LatestScores
from solar_corona.lib.hard_samples import subjects
from solar_corona.lib.hard_samples.detector import Seen, Verdict
from solar_corona.lib.hard_samples.embedding import Embedding
from solar_corona.lib.hard_samples.registry import DETECTORS, choose, create
from solar_corona.lib.scores import Scores


def seen(*p, rate=0.0, boxes=False, deep=None, embedding=None):
    scores = Scores(np.array(p, float), boxes=boxes)
    return Seen(
        scores,
        rate,
        deep=None if deep is None else Scores(np.array(deep, float)),
        embed=lambda: Embedding(embedding, 0.0),
    )


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_each_detector_keeps_the_contract(name):
    incremental.check_hard_sample_detector(lambda: create(name, {}))
    incremental.check_hard_sample_detector(lambda: create(name, {"random": 0.0, "seed": 1}))


class _Detector:
    def __init__(self, judge, told=None):
        self._judge, self._told = judge, told or {"name": "own"}

    def judge(self, one):
        return self._judge(one)

    def describe(self):
        return self._told


def _spoiling(one):
    if one.scores is not None and len(one.scores.values):
        one.scores.values[0] = 0.5
    return Verdict(False, None)


_draw = np.random.default_rng(5).random


def _shy(one):
    hard = one.scores is not None and len(one.scores.values) > 0 and float(one.scores.values.max()) < 0.5
    return Verdict(hard and bool(_draw() < one.rate / 2), 1.0, "random")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SimpleNamespace(describe=dict), "has not judge"),
        (lambda: _Detector(lambda one: True), "returned a bool"),
        (lambda: _Detector(lambda one: Verdict(1, 0.5)), "keep is 1"),
        (lambda: _Detector(lambda one: Verdict(True, float("nan"))), "hardness is nan"),
        (lambda: _Detector(lambda one: Verdict(True, 0.5, "why not")), "reason is 'why not'"),
        (lambda: _Detector(_spoiling), "changed the scores"),
        (lambda: _Detector(lambda one: Verdict(True, float(np.random.default_rng().random()))), "two hardnesses"),
        (lambda: _Detector(lambda one: Verdict(True, 0.5, "random")), "by chance at the rate 0.1"),
        (lambda: _Detector(_shy), "easy and hard samples"),
        (lambda: _Detector(lambda one: Verdict(False, None), {"no": "name"}), "'name'"),
        (lambda: _Detector(lambda one: Verdict(False, None), {"name": "x", "at": {1}}), "no JSON"),
    ],
)
def test_the_contract_names_the_promise_that_is_broken(make, said):
    with pytest.raises(ModelError, match=said):
        incremental.check_hard_sample_detector(make)


@pytest.mark.parametrize(
    ("detector", "hard", "easy"),
    [
        (incremental.Threshold(0.7, random=0), seen(0.65, 0.35), seen(0.75, 0.25)),
        (incremental.Threshold(0.7, random=0), seen(0.9, 0.6, boxes=True), seen(boxes=True)),
        (incremental.Margin(0.4, random=0), seen(0.6, 0.4), seen(0.75, 0.25)),
        (incremental.Entropy(0.5, random=0), seen(0.7, 0.3), seen(0.97, 0.03)),
        (incremental.Disagreement(0.5, random=0), seen(0.9, 0.1, deep=(0.1, 0.9)), seen(0.9, 0.1, deep=(0.8, 0.2))),
        (incremental.Disagreement(0.5, random=0), seen(0.2, 0.8, deep=(0.2, 0.1, 0.1)), seen(0.9, 0.1)),
    ],
)
def test_a_limit_parts_hard_from_easy(detector, hard, easy):
    assert detector.judge(hard).keep
    assert not detector.judge(easy).keep


def test_mixed_keeps_the_rate_that_it_is_given_whatever_the_stream():
    rng = np.random.default_rng(3)
    detector = incremental.Mixed(seed=1)
    for sharpness in (0.3, 5.0):
        verdicts = [detector.judge(Seen(Scores(rng.dirichlet(np.full(4, sharpness))), 0.1)) for _ in range(5000)]
        kept = [verdict for verdict in verdicts if verdict.keep]
        by_chance = [verdict for verdict in kept if verdict.reason == "random"]
        assert 0.08 < len(kept) / 5000 < 0.13
        assert 0.2 < len(by_chance) / len(kept) < 0.4
        hard = [verdict.hardness for verdict in verdicts[500:] if verdict.keep and verdict.reason == "hard"]
        assert min(hard) > np.quantile([verdict.hardness for verdict in verdicts], 0.8)


def test_a_model_whose_scores_nobody_knows_is_left_to_chance():
    detector = incremental.Mixed(seed=1)
    verdicts = [detector.judge(Seen(None, 0.5)) for _ in range(1000)]
    assert {verdict.reason for verdict in verdicts if verdict.keep} == {"random"}
    assert 90 < sum(verdict.keep for verdict in verdicts) < 210


def test_embedding_distance_finds_what_never_came_before():
    rng = np.random.default_rng(4)
    detector = incremental.EmbeddingDistance(places=4, random=0)

    def around(place):
        values = (place + rng.normal(0, 0.1, 8)).astype(np.float32)
        return Seen(None, 0.05, embed=lambda: Embedding(values, 0.0))

    for _ in range(600):
        detector.judge(around(0))
    assert detector.judge(around(5)).keep
    old = [detector.judge(around(0)).keep for _ in range(200)]
    assert sum(old) < 30


def test_detectors_see_nothing_hard_where_there_is_nothing_to_compare():
    assert not incremental.Disagreement(random=0).judge(seen(0.5, 0.5)).keep
    assert not incremental.EmbeddingDistance(random=0).judge(Seen(None, 1.0)).keep


def test_the_examples_are_true():
    assert doctest.testmod(scored).failed == 0
    assert doctest.testmod(subjects).failed == 0


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=1200), st.floats(0, 1))
def test_the_latest_scores_are_the_last_500_or_nearly_in_order(values, share):
    latest = LatestScores()
    for value in values:
        latest.add(value)
    behind = (len(values) - 499) % 20 if len(values) > 499 else 0
    window = sorted(values[: len(values) - behind][-500:])
    assert latest.quantile(share) == window[round(share * (len(window) - 1))]
    assert len(latest) == len(window)


# --- names


def test_a_script_may_give_a_detector_its_name_or_nothing():
    own = _Detector(lambda one: Verdict(False, None))
    assert choose(own) is own
    assert choose("entropy").describe()["name"] == "entropy"
    assert choose(None, "threshold", {"threshold": 0.6}).describe()["threshold"] == 0.6
    assert choose(None).describe()["name"] == "mixed"
    assert choose("solar_corona.incremental.margin:Margin").describe()["name"] == "margin"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("margins", "did you mean 'margin'"),
        ("nowhere.to_be:Found", "cannot be loaded"),
        ("solar_corona.incremental.margin:RANDOM", "is no class"),
        ("collections:OrderedDict", "has not the methods"),
        (incremental.Margin, r"make one of it: Margin\(…\)"),
        (7, "is a int"),
    ],
)
def test_what_is_no_detector_is_refused_with_the_way_out(asked, said):
    with pytest.raises(ModelError, match=said):
        choose(asked)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mixed", {"share": 0.3}, "does not take these options"),
        ("mixed", {"random": 2}, "random is 2"),
        ("threshold", {"threshold": "high"}, "threshold is 'high'"),
        ("embedding", {"places": 0}, "places is 0"),
    ],
)
def test_wrong_options_are_refused(name, options, said):
    with pytest.raises(ModelError, match=said):
        create(name, options)


def test_detecting_on_an_edge_loads_neither_pydantic_nor_an_http_library():
    code = (
        "import sys, solar_corona\n"
        "solar_corona.incremental.Threshold(0.7)\n"
        "from solar_corona.lib.hard_samples.opening import open_collector\n"
        "open_collector('mixed')\n"
        "assert not {'pydantic', 'httpx', 'fastapi', 'http.client', 'tensorflow', 'river'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
