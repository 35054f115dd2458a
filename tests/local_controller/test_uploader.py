# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import random
import ssl
from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import SpecError, TemporaryError, WireError
from solar_corona.core.hub_messages import PIECE, Label, Observation
from solar_corona.core.security import make_credentials
from solar_corona.lib.sample_records import SampleRecord, pack, sample_id_of, unpack
from solar_corona.local_controller.hub_client import HubClient
from solar_corona.local_controller.outbox import Outbox
from solar_corona.local_controller.quiet_hours import QuietHours
from solar_corona.local_controller.uploader import Uploader

from .hubs import SimulatedClock
from .test_outbox import add, fill, sample

DAY, HOUR = 86_400.0, 3_600.0
HUB = "http://127.0.0.1:1"


@pytest.fixture
def outbox(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db", max_bytes=64 << 20)
    yield outbox
    outbox.close()


@pytest.fixture
def clock():
    return SimulatedClock()


@pytest.fixture
def upload(outbox, hub, token_file, clock):
    """Upload until `until(seconds passed)` holds, or until nothing waits."""

    def run(until=None, *, transport=None, url=HUB, outbox=outbox, client=None, **options) -> Uploader:
        client = client or HubClient(url, token_file=token_file, transport=transport or hub.transport())
        uploader = Uploader(outbox, client, edge="camera", clock=clock, **options)

        def then(passed):
            if until(passed) if until is not None else is_empty(outbox):
                uploader.stop()
            assert passed < 40 * DAY, "it never ends"

        clock.then = then
        uploader.run()
        client.close()
        return uploader

    return run


def is_empty(outbox: Outbox) -> bool:
    return not (
        outbox.samples(after=0, most=1, most_bytes=1)
        or outbox.labels(after=0, most=1)
        or outbox.observations(after=-1, most=1)
    )


def observation(seq: int) -> Observation:
    return Observation(seq=seq, version=2, reference=1, at=1.0, agrees=True, confidence=0.5, reference_confidence=0.5)


def test_all_goes_up_once_and_is_struck_off(outbox, hub, upload):
    samples = [sample(b"%d" % n + os.urandom(3000), "random" if n % 3 else "hard") for n in range(700)]
    add(outbox, *samples)
    outbox.add_labels([Label(sample=samples[0][0].id, value=3, at=1.0), Label(sample="0" * 64, value=4, at=1.0)])
    outbox.add_observations([observation(n) for n in range(1500)]).result(20)
    upload()
    assert hub.arrivals == [record.id for record, _ in samples]
    assert hub.samples == {record.id: (record, content) for record, content in samples}
    assert [label.value for label in hub.labels] == [3, 4]
    assert sorted(hub.observations) == list(range(1500))
    state = outbox.state()
    assert (state.queued, state.bytes, state.uploaded, state.evicted, state.refused) == (0, 0, 700, 0, 0)
    assert max(hub.sizes) < PIECE + 200_000


def test_seven_days_without_the_cloud_and_then_all_goes_up(outbox, hub, upload, clock):
    away = {"until": 7 * DAY}
    attempts = []

    def fault(request):
        attempts.append(clock.passed)
        assert clock.passed < away["until"] + HOUR
        if clock.passed < away["until"]:
            raise httpx.ConnectError("no route to host")

    hub.fault = fault
    samples = [sample(os.urandom(1000)) for _ in range(60)]
    add(outbox, *samples)
    uploader = upload(lambda passed: len(hub.samples) == 60)
    assert set(hub.samples) == {record.id for record, _ in samples}
    assert 7 * DAY <= clock.passed - 600 <= 7 * DAY + 300  # idle for 600 s at the end
    offline = [at for at in attempts if at < 7 * DAY]
    assert 1_500 < len(offline) < 9_000  # patient, and yet never asleep for long
    assert max(b - a for a, b in pairwise(offline)) <= 300
    assert uploader.trouble == ""


def test_while_the_cloud_is_away_the_trouble_is_told(upload, outbox, hub):
    add(outbox, sample(b"x"))

    def fault(request):
        raise httpx.ConnectError("no route to host")

    hub.fault = fault
    uploader = upload(lambda passed: passed > 60)
    assert uploader.trouble.startswith(f"{HUB}: cannot be reached (no route to host); check the hub")


@pytest.mark.parametrize("status", [301, 401, 404, 408, 429, 500, 503])
def test_an_answer_that_may_change_is_waited_for(upload, outbox, hub, clock, status):
    add(outbox, sample(b"x"))
    hub.fault = lambda request: (status, {"Retry-After": "90"}) if clock.passed < 3600 else None
    upload()
    assert len(hub.samples) == 1
    assert min(clock.waits[:-1]) >= 90
    assert outbox.state().refused == 0


def test_one_sample_that_the_hub_never_takes_does_not_hold_up_others(upload, outbox, hub, caplog):
    samples = [sample(b"sample number %02d" % n) for n in range(40)]
    add(outbox, *samples)
    bad = samples[17][1]
    hub.fault = lambda request: (400, {}) if bad in request[2] else None
    upload()
    assert set(hub.samples) == {record.id for record, content in samples if content != bad}
    assert outbox.state().refused == 1
    assert f"the hub will not take sample {samples[17][0].id}" in caplog.text
    assert add(outbox, samples[17]) == ["known"]  # and it is not sent again


def test_samples_that_are_refused_or_put_off_one_by_one(upload, outbox, hub, clock):
    names = [b"fine", b"refused", b"later"]
    samples = {name: sample(name) for name in names}
    ids = {record.id: name.decode() for name, (record, _) in samples.items()}
    add(outbox, *samples.values())
    answers = {"fine": None, "refused": "refused", "later": "later"}
    hub.outcome = lambda record: answers[ids[record.id]]

    def until(passed):
        if passed > 300:
            answers["later"] = None
        return outbox.state().queued == 0

    upload(until)
    assert {ids[id_] for id_ in hub.samples} == {"fine", "later"}
    assert outbox.state().refused == 1
    assert 300 < clock.passed - 600 < 400  # after that it is idle
    assert len([size for size in hub.sizes if size]) < 20  # asked again each half minute, not in a loop


def test_labels_that_are_put_off_do_not_hold_up_samples(upload, outbox, hub):
    labels = [Label(sample=f"{n:064x}", value=n, at=1.0) for n in range(3)]
    add(outbox, sample(b"x"))
    outbox.add_labels(labels).result(20)
    hub.outcome = lambda each: "later" if isinstance(each, Label) and each.value == 0 else None
    uploader = upload(lambda passed: len(hub.samples) == 1)
    assert [label.value for label in hub.labels] == [1, 2]
    assert "takes some later" in uploader.trouble


def test_a_hub_whose_quota_is_reached_is_not_sent_all_again_and_again(upload, outbox, hub, clock):
    samples = [sample(os.urandom(4096)) for _ in range(2000)]
    add(outbox, *samples)
    hub.outcome = lambda record: "later" if clock.passed < 4 * HOUR else None
    upload(lambda passed: len(hub.samples) == 2000)
    assert clock.passed < 5 * HOUR
    refused = sum(hub.sizes) - 2000 * 4096
    assert refused < 40 << 20  # a batch each eight minutes, where all of them are 8 MiB


def test_receipts_of_other_samples_are_not_believed(upload, outbox, hub, token_file):
    add(outbox, sample(b"mine"))

    def answer(request):
        return httpx.Response(200, json={"receipts": [{"id": "a" * 64, "outcome": "stored"}]})

    uploader = upload(lambda passed: passed > 5, transport=httpx.MockTransport(answer))
    assert "receipts that are not those of the 1 sent" in uploader.trouble
    assert outbox.state().queued == 1


def test_a_hub_that_answers_without_end_is_not_read_to_the_end(upload, outbox):
    def endless():
        while True:
            yield b"x" * 65_536

    add(outbox, sample(b"x"))
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=endless()))
    uploader = upload(lambda passed: passed > 1, transport=transport)
    assert "answers with more than 4194304 bytes" in uploader.trouble
    assert outbox.state().queued == 1


def test_a_hub_that_refuses_everything_loses_nothing(upload, outbox, hub, clock):
    """As one behind a proxy that is set up wrongly: only beside others that are taken is a refusal believed."""
    large = sample(os.urandom(PIECE + 1))
    add(outbox, *(sample(b"%d" % n) for n in range(9)), large)
    outbox.add_labels([Label(sample="0" * 64, value=1, at=1.0)])
    outbox.add_observations([observation(0)]).result(20)
    hub.fault = lambda request: (400, {}) if clock.passed < 600 else None
    upload()
    assert len(hub.samples) == 10
    assert len(hub.labels) == len(hub.observations) == 1
    assert outbox.state().refused == 0


# --- large contents


def test_a_large_content_goes_in_pieces_and_goes_on_where_it_was_cut(upload, outbox, hub):
    small, large = sample(b"small"), sample(os.urandom(5 * PIECE + 77))
    add(outbox, large, small)
    pieces = []

    def fault(request):
        if request[0] == "PATCH":
            pieces.append(len(request[2]))
            if len(pieces) == 3:
                raise httpx.ReadError("cut")

    hub.fault = fault
    upload()
    assert hub.samples[large[0].id][1] == large[1]
    assert hub.samples[large[0].id][0].ahead
    assert hub.samples[large[0].id][0].size == 5 * PIECE + 77
    assert set(hub.samples) == {large[0].id, small[0].id}
    assert pieces == [PIECE] * 6 + [77]  # one piece twice, no more


def test_a_hub_that_is_further_or_less_far_is_followed(upload, outbox, hub):
    large = sample(os.urandom(3 * PIECE))
    hub.contents[large[0].id] = bytearray(large[1][:12345])
    add(outbox, large)
    hub.fault = lambda request: hub.contents.clear() if len(hub.requests) == 3 else None
    upload()
    assert hub.samples[large[0].id][1] == large[1]


def test_pieces_that_were_damaged_on_the_way_are_sent_anew(upload, outbox, hub):
    large = sample(os.urandom(PIECE + 10))
    hub.contents[large[0].id] = bytearray(b"wrong")
    add(outbox, large)
    upload()
    assert hub.samples[large[0].id][1] == large[1]


@pytest.mark.parametrize(("status", "refused"), [(413, 1), (507, 0)])
def test_a_content_too_large_for_the_hub_does_not_hold_up_others(upload, outbox, hub, status, refused):
    large, small = sample(os.urandom(PIECE + 10)), sample(b"small")
    add(outbox, large, small)
    hub.fault = lambda request: (status, {}) if request[0] == "PATCH" else None
    upload(lambda passed: len(hub.samples) == 1 and outbox.state().queued == 1 - refused)
    assert set(hub.samples) == {small[0].id}
    assert outbox.state().refused == refused


def test_a_record_whose_content_went_ahead_has_none_in_its_frame():
    record = SampleRecord(sample_id_of(b"xy"), "text/plain", 2, "here", 1, 0.0, "hard", ahead=True)
    assert unpack(pack([(record, b"")])) == [(record, b"")]
    with pytest.raises(WireError, match="after its last sample"):
        unpack(pack([(record, b"xy")]))


# --- when, and how fast


def test_nothing_goes_up_in_quiet_hours(upload, outbox, hub, clock):
    clock.begin = 20_000 * DAY + 9 * HOUR
    add(outbox, sample(b"x"))
    sent_at = []
    hub.fault = lambda request: sent_at.append(clock.now() % DAY / HOUR)
    upload(quiet=QuietHours.parse("08:00-18:00"))
    assert len(hub.samples) == 1
    assert all(18 <= at < 18.1 for at in sent_at)


@pytest.mark.parametrize("jump", [-20 * DAY, 1000 * DAY])
def test_a_clock_that_jumps_does_not_stop_or_hurry_the_upload(upload, outbox, hub, clock, jump):
    clock.begin = 20_000 * DAY + 9 * HOUR
    add(outbox, sample(b"x"))

    def until(passed):
        clock.jump = jump if passed > 1800 else 0.0
        return bool(hub.samples)

    upload(until, quiet=QuietHours.parse("08:00-18:00"))
    assert 9 * HOUR <= clock.passed - 600 < 9.1 * HOUR  # by the hour of the day, as the clock says it


def test_the_rate_is_kept(upload, outbox, hub, clock):
    add(outbox, *(sample(os.urandom(4096)) for _ in range(100)), sample(os.urandom(PIECE + 9)))
    upload(max_rate=20_000)
    total = sum(hub.sizes)
    assert total / 20_000 * 0.85 < clock.passed - 600 < total / 20_000 * 1.05  # idle for 600 s at the end
    assert max(hub.sizes) < 21_0000


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(-(10**6), 10**9))
def test_quiet_hours_end_when_they_say(begin, end, minute):
    def text(m):
        return f"{m // 60:02}:{m % 60:02}"

    if begin == end:
        with pytest.raises(SpecError, match="expected a begin and another end in UTC"):
            QuietHours.parse(f"{text(begin)}-{text(end)}")
        return
    hours = QuietHours.parse(f"{text(begin)}-{text(end)}")
    now = 60.0 * minute
    of_day = minute % 1440
    inside = begin <= of_day < end if begin < end else of_day >= begin or of_day < end
    assert (hours.left(now) > 0) == inside
    if inside:
        assert (now + hours.left(now)) % DAY == 60 * end
        assert hours.left(now + hours.left(now)) == 0


@pytest.mark.parametrize("text", ["", "8-18", "25:00-26:00", "08:60-09:00", "08:00-18:00 "])
def test_odd_quiet_hours_are_refused(text):
    with pytest.raises(SpecError, match=r"expected a begin and another end in UTC, such as 08:00-18:00"):
        QuietHours.parse(text)


# --- on this node


def test_on_a_full_disk_nothing_is_sent_twice(upload, outbox, hub, clock, tmp_path):
    """What the hub took and cannot be struck off waits to be, and is not sent again meanwhile."""
    add(outbox, *(sample(os.urandom(1000)) for _ in range(600)))
    commits = outbox._commits
    real, until = commits._transaction, {"full": 3}

    def full(group):
        if (until.update(full=until["full"] - 1) or until["full"]) > 0:
            raise TemporaryError("outbox.db: cannot be written (database or disk is full); the disk is full or fails")
        return real(group)

    commits._transaction = full
    upload()
    assert len(hub.arrivals) == len(set(hub.arrivals)) == 600
    assert outbox.state().queued == 0


def test_a_full_disk_does_not_keep_samples_from_going_up(upload, hub, small_disk, token_file, clock):
    outbox = Outbox(small_disk / "outbox.db", max_bytes=64 << 20)
    samples = [sample(os.urandom(4096)) for _ in range(200)]
    add(outbox, *samples)
    fill(small_disk)
    with pytest.raises(TemporaryError, match=r"outbox\.db: cannot be written .* free some space in"):
        add(outbox, *(sample(os.urandom(4096)) for _ in range(500)))
    upload(outbox=outbox)
    assert hub.arrivals == [record.id for record, _ in samples]
    assert outbox.state().queued == 0
    assert add(outbox, *(sample(os.urandom(4096)) for _ in range(20))) == ["stored"] * 20  # where the others were
    assert add(outbox, samples[0]) == ["known"]
    outbox.close()


def test_a_token_that_is_missing_is_waited_for_and_a_new_one_is_taken(upload, outbox, hub, token_file, clock):
    token = token_file.read_text()
    token_file.unlink()
    add(outbox, sample(b"x"))
    seen = []

    def until(passed):
        if passed > 100 and not token_file.exists():
            token_file.write_text("an old token")
        if passed > 1000:
            token_file.write_text(token)
        return bool(hub.samples)

    upload(until)
    assert clock.passed > 1000
    assert [each[1] for each in hub.requests].count("/v1/samples") > 1
    assert seen == []


@pytest.mark.parametrize("content", ["", "two\nlines", "naïve", "x" * 5000])
def test_what_is_no_token_is_not_sent(upload, outbox, hub, token_file, content):
    token_file.write_text(content)
    add(outbox, sample(b"x"))
    uploader = upload(lambda passed: passed > 5)
    assert "hub.token: is no token; expected one line" in uploader.trouble
    assert hub.requests == []


@pytest.mark.parametrize("url", ["", "hub:8080", "ftp://hub", "https://"])
def test_an_address_that_is_none_is_refused(url, token_file):
    with pytest.raises(SpecError, match=r"expected a URL such as https://hub\.example:8443"):
        HubClient(url, token_file=token_file)


def test_only_a_hub_with_a_certificate_of_the_ca_gets_samples(upload, outbox, hub, token_file, tmp_path):
    make_credentials(tmp_path / "keys", hosts=["127.0.0.1"], edges=[])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "keys" / "server.pem", tmp_path / "keys" / "server.key")
    add(outbox, sample(b"x"))
    with hub.served(tls) as url:
        uploader = upload(lambda passed: passed > 2, client=HubClient(url, token_file=token_file))
        assert "certificate verify failed" in uploader.trouble
        assert hub.requests == []
        upload(client=HubClient(url, token_file=token_file, ca=tmp_path / "keys" / "ca.pem"))
    assert len(hub.samples) == 1


def test_a_ca_that_is_none_is_refused(token_file, tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(SpecError, match=r"ca\.pem: cannot be used as a CA .* expected a PEM file"):
        HubClient("https://hub", token_file=token_file, ca=tmp_path / "ca.pem")


def test_a_hub_that_others_can_listen_to_is_warned_of(token_file, caplog):
    HubClient("http://hub.example:80", token_file=token_file).close()
    assert "is not encrypted" in caplog.text
    caplog.clear()
    HubClient("http://localhost:80", token_file=token_file).close()
    assert caplog.text == ""


def test_whatever_fails_in_between_each_sample_is_at_the_hub_once(upload, outbox, hub):
    """Answers that are lost, refused for now, or cut: the hub sees a sample again, and knows it."""
    chance = random.Random(7)
    samples = [sample(os.urandom(chance.choice([10, 2000, PIECE + 1000]))) for _ in range(80)]
    add(outbox, *samples)
    real = hub.transport()

    class Unreliable(httpx.BaseTransport):
        def handle_request(self, request):
            fate = chance.random()
            if fate < 0.15:
                raise httpx.ConnectError("away")
            response = real.handle_request(request)
            if fate < 0.3:
                raise httpx.ReadError("the answer is lost")
            return response if fate > 0.4 else httpx.Response(503)

    upload(transport=Unreliable())
    assert {id_: content for id_, (_, content) in hub.samples.items()} == {r.id: c for r, c in samples}
    assert outbox.state().queued == 0
    assert outbox.state().uploaded == 80
