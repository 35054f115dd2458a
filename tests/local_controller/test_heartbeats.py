# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import httpx
import pytest

from solar_corona.core.hub_messages import Heartbeat, Orders
from solar_corona.local_controller.heartbeats import Heartbeats
from solar_corona.local_controller.hub_client import HubClient

from .hubs import SimulatedClock


@pytest.fixture
def beating(hub, token_file):
    """Send heartbeats until `until(seconds passed)`; gives the sender and what became of them."""

    def run(until):
        clock, taken, back = SimulatedClock(), [], []
        heartbeats = Heartbeats(
            HubClient("http://127.0.0.1:1", token_file=token_file, transport=hub.transport()),
            state=lambda: Heartbeat(edge="camera", sent_at=clock.now()),
            take=lambda orders: taken.append((clock.passed, orders)),
            back=lambda: back.append(clock.passed),
            clock=clock,
        )
        clock.then = lambda passed: until(passed) and heartbeats.stop()
        hub.clock = clock
        heartbeats.run()
        return heartbeats, taken, back

    return run


def test_the_hub_says_how_often_and_what_it_wants(beating, hub):
    hub.orders = Orders(next_heartbeat=7.0)
    heartbeats, taken, back = beating(lambda passed: passed > 60)
    assert [at for at, _ in taken] == [7.0 * n for n in range(9)]
    assert taken[0][1] == hub.orders
    assert [heartbeat.sent_at - 1e9 for heartbeat in hub.heartbeats] == [at for at, _ in taken]
    assert back == [0.0]
    assert heartbeats.trouble == ""
    assert heartbeats.silence == pytest.approx(7.0)


def test_a_hub_that_was_away_is_found_again_within_a_minute_and_that_is_told(beating, hub):
    hub.orders = Orders(next_heartbeat=5.0)

    def fault(request):
        if 100 < hub.clock.passed < 20_000:
            raise httpx.ConnectError("no route to host")

    hub.fault = fault
    _, _, back = beating(lambda passed: passed > 21_000)
    assert back[0] == 0.0
    assert len(back) == 2
    assert 20_000 <= back[1] <= 20_060
    assert len(hub.requests) < 2_500


def test_a_hub_that_does_not_understand_a_heartbeat_is_told_again_later(beating, hub):
    hub.fault = lambda request: (422, {}) if hub.clock.passed < 1000 else None
    _, taken, _ = beating(lambda passed: passed > 1300)
    assert 1000 <= taken[0][0] <= 1060
    assert len(hub.requests) - len(taken) <= 18


def test_while_nothing_arrives_the_trouble_is_told(beating, hub):
    hub.fault = lambda request: (401, {})
    heartbeats, _, _ = beating(lambda passed: passed > 100)
    assert "answers POST /v1/heartbeat with 401" in heartbeats.trouble
    assert "check the token of this edge" in heartbeats.trouble
    assert heartbeats.silence is None
