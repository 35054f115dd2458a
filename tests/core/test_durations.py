# SPDX-License-Identifier: Apache-2.0
"""Durations as Kubernetes writes them."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from solar_corona.core import durations
from solar_corona.core.durations import Duration, format_duration, parse_duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90),
        ("1m30s", 90),
        ("2h", 7200),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("0s", 0),
        (3, 3),
        (0.5, 0.5),
        (0, 0),
    ],
)
def test_a_duration_is_read_in_seconds(written, seconds):
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["", "soon", "5", "5 s", "-5s", "s", "1h 2m", "5d", "٣s", "1e3s", -1, True, None, [], {}, float("nan"), "5s\n"],
)
def test_what_is_no_duration_is_told_with_an_example(written):
    with pytest.raises(ValueError, match="is not a duration; write it like 30s, 5m or 1h30m"):
        parse_duration(written)


@pytest.mark.parametrize("written", [10**400, float("inf"), 1e300, "9" * 400 + "s", "9000h"])
def test_what_is_longer_than_a_year_is_a_slip_of_the_pen(written):
    with pytest.raises(ValueError, match="at most a year"):
        parse_duration(written)


@given(st.integers(0, 366 * 24 * 3600 * 1000))
def test_what_is_written_is_read_back_to_the_millisecond(milliseconds):
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.floats(0, 1e7) | st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,9})?(ms|s|m)", fullmatch=True))
def test_what_is_read_is_written_and_read_to_the_same(value):
    seconds = parse_duration(value)
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text() | st.integers() | st.floats() | st.binary())
def test_anything_else_is_a_value_error(value):
    try:
        assert parse_duration(value) >= 0
    except ValueError:
        pass


def test_a_field_of_that_type_is_written_as_text_again():
    adapter = TypeAdapter(Duration)
    assert adapter.dump_python(adapter.validate_python("90s")) == "1m30s"
    with pytest.raises(ValidationError):
        adapter.validate_python("long")


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(durations).failed == 0
