# SPDX-License-Identifier: Apache-2.0
"""Replies of several groups, each to its own strategy, one by one."""

from __future__ import annotations

import threading

import pytest

from solar_corona.strategies.funnel import Funnel


def test_each_takes_its_own_in_order():
    funnel = Funnel({"a": lambda replies: (list(replies), None), "b": lambda replies: (list(replies), None)})
    for i in range(10):
        funnel.put("ab"[i % 2], i)
    assert funnel.results() == {"a": ([0, 2, 4, 6, 8], None), "b": ([1, 3, 5, 7, 9], None)}


def test_at_most_one_reply_waits():
    taken, go = [], threading.Event()

    def slow(replies):
        for reply in replies:
            go.wait(10)
            taken.append(reply)
        return None, None

    funnel = Funnel({"a": slow})
    funnel.put("a", 0)
    funnel.put("a", 1)
    third = threading.Thread(target=funnel.put, args=("a", 2))
    third.start()
    third.join(0.1)
    assert third.is_alive(), "it waits until one is taken"
    go.set()
    third.join(10)
    funnel.results()
    assert taken == [0, 1, 2]


def test_who_stops_early_holds_up_nobody():
    funnel = Funnel({"a": lambda replies: (next(iter(replies)), None)})
    for i in range(5):
        funnel.put("a", i)
    assert funnel.results() == {"a": (0, None)}


def test_what_one_raises_is_raised_where_results_are_asked_for():
    def broken(replies):
        raise RuntimeError("no")

    funnel = Funnel({"a": broken, "b": lambda replies: (len(list(replies)), None)})
    for key in "abab":
        funnel.put(key, 1)
    with pytest.raises(RuntimeError, match="no"):
        funnel.results()


def test_who_got_nothing_sees_an_empty_round():
    assert Funnel({"a": lambda replies: (list(replies), None)}).results() == {"a": ([], None)}
