# SPDX-License-Identifier: Apache-2.0
"""Upload ratios are held over any window of any stream, and hard samples go first."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import ModelError
from solar_corona.joint_inference.credit import BoundedCredit
from solar_corona.joint_inference.link import LinkBudget
from solar_corona.joint_inference.ranks import Ranks

RATIOS = [0.0, 0.02, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0]


def worst_error(uploads, ratio):
    """Return the largest |uploads − r·W| over all windows."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(uploads, float) - ratio)])
    return float(sums.max() - sums.min())


@given(
    st.floats(0, 1),
    st.sampled_from(["strict", "default", "relaxed"]),
    st.lists(st.floats(-1, 2), min_size=1, max_size=400),
    st.integers(1, 5),
)
def test_no_window_of_any_stream_is_off_by_more_than_promised(ratio, hold, places, times):
    credit = BoundedCredit(ratio, hold=hold)
    uploads = [credit.take(place) for place in places * times]
    assert worst_error(uploads, ratio) <= 2 * credit.bound + 1e-6


@pytest.mark.parametrize("ratio", RATIOS)
def test_an_adversary_who_sees_the_state_cannot_break_the_promise(ratio):
    credit = BoundedCredit(ratio)
    # For long it asks for everything, then for nothing.
    uploads = [credit.take(2.0 if (i // 1500) % 2 else -2.0) for i in range(20_000)]
    assert worst_error(uploads, ratio) <= 20 + 1e-6


@pytest.mark.parametrize(("ratio", "share"), [(0.02, 0.7), (0.1, 0.85), (0.5, 0.9)])
def test_hard_samples_go_first_on_a_steady_stream(ratio, share):
    rng = np.random.default_rng(1)
    credit, ranks = BoundedCredit(ratio), Ranks()
    hardness = rng.beta(1, 8, 20_000)
    uploads = np.array([credit.take(ranks.place(value)) for value in hardness])
    assert uploads.mean() == pytest.approx(ratio, abs=0.002)
    cut = np.quantile(hardness, 1 - ratio)
    assert (uploads & (hardness > cut)).sum() / (hardness > cut).sum() > share


@pytest.mark.parametrize(
    ("ratio", "hold"), [(-0.1, "default"), (1.7, "default"), (float("nan"), "default"), (0.1, "x")]
)
def test_what_is_no_ratio_is_told(ratio, hold):
    with pytest.raises(ModelError, match="expected"):
        BoundedCredit(ratio, hold=hold)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300))
def test_a_place_is_a_share_and_larger_numbers_stand_no_lower(values):
    ranks = Ranks()
    assert all(0 <= ranks.place(value) <= 1 for value in values)
    low, high = Ranks(), Ranks()
    for value in values:
        low.place(value)
        high.place(value)
    assert low.place(0.2) <= high.place(0.7)


def test_places_follow_a_stream_that_changes():
    ranks = Ranks()
    for value in np.linspace(0.01, 0.3, 20_000):
        ranks.place(float(value))
    assert ranks.place(0.31) > 0.9
    for _ in range(20_000):
        ranks.place(0.9)
    assert ranks.place(0.5) < 0.05


def test_a_stream_that_goes_on_for_ever_overflows_nothing():
    ranks = Ranks()
    for i in range(200_000):
        place = ranks.place(i % 100 / 100)
    assert 0.9 < place <= 1


def test_the_state_is_less_than_a_kilobyte():
    ranks, credit = Ranks(), BoundedCredit(0.1)
    parts = [getattr(ranks, name) for name in ranks.__slots__] + [getattr(credit, name) for name in credit.__slots__]
    held = sum(part.itemsize * len(part) if hasattr(part, "itemsize") else sys.getsizeof(part) for part in parts)
    assert held <= 1280


def test_a_link_carries_no_more_than_its_share():
    now = [0.0]
    link = LinkBudget(8, clock=lambda: now[0])  # 1 MB/s, of which 0.7 are for uploads
    sent = 0
    for _ in range(10_000):
        now[0] += 0.001
        sent += 10_000 * link.take(10_000)
    assert 6_900_000 < sent <= 7_710_000


def test_what_is_larger_than_the_link_carries_in_a_second_goes_when_it_is_idle():
    now = [0.0]
    link = LinkBudget(0.008, clock=lambda: now[0])
    assert link.take(5000)
    assert not link.take(1)
    now[0] += 8
    assert link.take(5000)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_what_is_no_rate_is_told(rate):
    with pytest.raises(ModelError, match="Mbit/s"):
        LinkBudget(rate)
