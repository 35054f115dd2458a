# SPDX-License-Identifier: Apache-2.0
"""The hub over HTTP: what edges and administrators ask, and what nobody may."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solar_corona.core.errors import PlatformError, SpecError, TemporaryError
from solar_corona.core.hub_messages import Observation, Observations
from solar_corona.incremental.hub.accounts import Accounts
from solar_corona.incremental.hub.hub import Limits
from solar_corona.incremental.hub.labels import GivenLabel, LabelBook
from solar_corona.incremental.hub.retention import Retention
from solar_corona.incremental.tables import Edge, ModelVersion, ObservationEntry, Sample
from solar_corona.lib.sample_records import pack

from .conftest import ADMIN, E1, E2, png, record_of

AS_E1, AS_E2, AS_ADMIN = ({"Authorization": f"Bearer {token}"} for token in (E1, E2, ADMIN))


@pytest.fixture
def client(hub, client_of):
    return client_of(hub)


def frame_of(*contents, **more):
    return pack([(record_of(content, **more), content) for content in contents])


def post(client, frame, headers=AS_E1):
    return client.post("/v1/samples", content=frame, headers=headers)


def outcomes(answer):
    assert answer.status_code == 200, answer.text
    return [receipt["outcome"] for receipt in answer.json()["receipts"]]


def test_a_sample_that_is_sent_again_is_known_and_there_once(client, hub):
    frame = frame_of(b"one", b"two")
    assert outcomes(post(client, frame)) == ["stored", "stored"]
    assert outcomes(post(client, frame)) == ["known", "known"]
    assert client.get("/v1/admin/counts", headers=AS_ADMIN).json()["samples"] == 2


def test_what_a_record_says_wrongly_is_refused_and_its_neighbours_are_taken(client):
    good, text = b"good", b"text"
    wrong = [
        (record_of(b"other", edge="e1"), b"OTHER"),  # its id is of another content
        (record_of(text, edge="e2"), text),  # another edge's
        (record_of(b"<html>", media_type="text/html"), b"<html>"),
        (record_of(b"no png", media_type="image/png"), b"no png"),
        (record_of(b"deep", prediction="\ud800"), b"deep"),
        (record_of(b"nul", subject="a\0b"), b"nul"),
    ]
    answer = post(client, pack([*wrong, (record_of(good), good)]))
    assert outcomes(answer) == ["refused"] * 6 + ["stored"]
    reasons = [receipt["reason"] for receipt in answer.json()["receipts"]]
    assert "SHA-256" in reasons[0]
    assert "'e2'" in reasons[1]
    assert "not taken; expected one of image/png" in reasons[2]


def test_a_clock_that_is_ahead_is_noted_and_not_trusted(client, hub):
    record = record_of(b"x")
    record = type(record)(
        **{**{f: getattr(record, f) for f in record.__dataclass_fields__}, "taken_at": hub.clock() + 7200}
    )
    answer = post(client, pack([(record, b"x")]))
    assert answer.json()["receipts"][0]["reason"] == "its clock is 7200 s ahead of the hub's"
    assert hub.database.read(lambda session: session.get(Sample, record.id)).received_at == hub.clock()


def test_an_edge_that_sends_too_much_has_to_wait(make_hub, client_of, clock):
    client = client_of(make_hub(limits=Limits(edge_per_hour=3, edge_bytes=1_000)))
    assert outcomes(post(client, frame_of(b"1", b"2", b"3", b"4"))) == ["stored", "stored", "stored", "later"]
    clock.now += 3_601
    answer = post(client, frame_of(b"x" * 990, b"y" * 20))
    assert outcomes(answer) == ["stored", "later"]
    assert "may not have more" in answer.json()["receipts"][1]["reason"]
    assert outcomes(post(client, frame_of(b"5", edge="e2"), AS_E2)) == ["stored"], "another edge has its own"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xff\xff\xff",
        struct.pack("<I", 2) + b"{}",
        struct.pack("<I", 100_000) + b"[" * 100_000,
        struct.pack("<I", 9) + b"[1, 2, 3]",
        frame_of(b"x") + b"more",
        frame_of(b"x")[:-1],
    ],
)
def test_what_is_no_frame_is_refused_with_400(client, body):
    assert post(client, body).status_code == 400


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_frame_gets_anything_past_the_checks(client, hub, data):
    frame = bytearray(frame_of(b"one", b"two"))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    assert post(client, bytes(frame)).status_code in (200, 400)
    for row in hub.database.read(lambda session: list(session.query(Sample))):
        assert hashlib.sha256(hub.samples.get(row.id)).hexdigest() == row.id


def test_a_body_that_is_too_large_is_refused_before_it_is_read(make_hub, client_of):
    client = client_of(make_hub(limits=Limits(frame=1_000)))
    assert post(client, b"x" * 1_001).status_code == 413
    pieces = (b"x" * 100 for _ in range(20))  # no length is told
    assert client.post("/v1/samples", content=pieces, headers=AS_E1).status_code == 413


def test_json_that_is_deep_or_holds_no_numbers_is_refused(client):
    deep = '{"labels": [{"sample": "%s", "at": 1, "value": %s}]}'
    for value in ("[" * 100_000 + "]" * 100_000, "[" * 150 + "NaN" + "]" * 150, "Infinity"):
        answer = client.post("/v1/labels", content=deep % ("0" * 64, value), headers=AS_E1)
        assert answer.status_code == 422, value[:20]
    assert client.post("/v1/heartbeat", content=b"\xff", headers=AS_E1).status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/samples"),
        ("HEAD", f"/v1/contents/{'0' * 64}"),
        ("PATCH", f"/v1/contents/{'0' * 64}"),
        ("POST", "/v1/labels"),
        ("POST", "/v1/heartbeat"),
        ("POST", "/v1/observations"),
        ("GET", "/v1/models/1/file"),
        ("GET", "/v1/admin/counts"),
        ("POST", "/v1/admin/forget"),
    ],
)
def test_nobody_asks_without_their_own_token(client, method, path):
    assert client.request(method, path).status_code == 401
    assert client.request(method, path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.request(method, path, headers={"Authorization": f"Basic {E1}"}).status_code == 401
    other = AS_E1 if "admin" in path else AS_ADMIN
    assert client.request(method, path, headers=other).status_code == 403


def test_tokens_that_are_short_or_the_same_are_refused():
    with pytest.raises(SpecError, match="token of edge e has 3 characters; expected at least 16"):
        Accounts(ADMIN, {"e": "abc"})
    with pytest.raises(SpecError, match="the same token; give each its own"):
        Accounts(ADMIN, {"a": E1, "b": E1})


def test_a_large_content_comes_in_pieces_and_goes_on_where_it_stopped(client, hub):
    content = png(7) + bytes(range(256)) * 6_000
    record = record_of(content, media_type="image/png", ahead=True)
    place, total = f"/v1/contents/{record.id}", str(len(content))

    def send(offset, piece):
        headers = {**AS_E1, "upload-offset": str(offset), "upload-length": total}
        return client.patch(place, content=piece, headers=headers)

    assert outcomes(post(client, pack([(record, b"")]))) == ["later"]
    assert client.head(place, headers=AS_E1).status_code == 404
    first = send(0, content[: 1 << 20])
    assert (first.status_code, first.headers["upload-offset"]) == (204, str(1 << 20))
    again = send(0, content[: 1 << 20])
    assert (again.status_code, again.headers["upload-offset"]) == (409, str(1 << 20))
    assert send(1 << 20, content[1 << 20 :]).status_code == 204
    assert client.head(place, headers=AS_E1).headers["upload-offset"] == total
    assert outcomes(post(client, pack([(record, b"")]))) == ["stored"]
    assert hub.samples.get(record.id) == content


def test_pieces_that_do_not_make_their_content_are_dropped(client, hub):
    place = f"/v1/contents/{'a' * 64}"

    def send(offset, length, piece):
        return client.patch(place, content=piece, headers={**AS_E1, "upload-offset": offset, "upload-length": length})

    assert send("0", "4", b"abcd").status_code == 422
    assert client.head(place, headers=AS_E1).status_code == 404
    assert send("0", "3", b"abcd").status_code == 422, "more than was told"
    assert send("0", str(1 << 40), b"abcd").status_code == 413
    for wrong in ("", "-1", "x", "1" * 30):
        assert send(wrong, "4", b"abcd").status_code == 422
    assert client.head("/v1/contents/..%2f..%2fhub.db", headers=AS_E1).status_code in (404, 422)
    assert client.head("/v1/contents/nope", headers=AS_E1).status_code == 422


def test_uploads_that_are_begun_and_left_are_bounded_and_swept(make_hub, client_of, clock):
    hub = make_hub(limits=Limits(uploads=2))
    client = client_of(hub)

    def begin(digit):
        headers = {**AS_E1, "upload-offset": "0", "upload-length": "9"}
        return client.patch(f"/v1/contents/{digit * 64}", content=b"abcd", headers=headers).status_code

    assert [begin(digit) for digit in "abc"] == [204, 204, 507]
    clock.now = time.time() + 86_500
    Retention(hub).expire()
    assert begin("c") == 204


def test_labels_of_an_edge_come_back_with_their_receipts(client, hub):
    post(client, frame_of(b"one"))
    sample = record_of(b"one").id
    message = {"labels": [{"sample": sample, "value": "dog", "at": 5}, {"sample": sample, "value": "wolf", "at": 5}]}
    assert outcomes(client.post("/v1/labels", json=message, headers=AS_E1)) == ["stored", "refused"]
    told = client.get(f"/v1/admin/samples/{sample}", headers=AS_ADMIN).json()
    assert (told["state"], told["label"], told["history"][0]["by"]) == ("labelled", 1, "e1")


def model(version, state, content, hub, tmp_path):
    path = tmp_path / "m.keras"
    path.write_bytes(content)
    sha256 = hub.models.put_file(path)
    told = {"file": "m.keras", "size": len(content), "sha256": sha256, "signature": "s"}
    return ModelVersion(version=version, state=state, made_at=1.0, promoted_at=1.0, metrics={}, **told)


def test_a_heartbeat_is_answered_with_the_version_that_is_wanted_there(client, hub, tmp_path, clock):
    def beat(headers=AS_E1, edge="e1"):
        return client.post("/v1/heartbeat", json={"edge": edge, "sent_at": clock.now + 60}, headers=headers)

    assert beat().json()["model"] is None
    rows = [model(1, "promoted", b"first" * 100, hub, tmp_path), model(2, "canary", b"second", hub, tmp_path)]
    hub.database.write(lambda session: session.add_all(rows))
    assert beat().json()["model"]["version"] == 1

    def choose(session):
        edge = session.get(Edge, "e1")
        edge.wanted_version, edge.shadow_version = 2, 1

    hub.database.write(choose)
    orders = beat().json()
    assert (orders["model"]["version"], orders["shadow"]["version"]) == (2, 1)
    assert beat(AS_E2, "e2").json()["model"]["version"] == 1
    assert hub.database.read(lambda session: session.get(Edge, "e1")).clock_ahead == 60
    assert beat(AS_E2, "e1").status_code == 403


def test_a_models_file_is_given_from_any_byte_on(client, hub, tmp_path):
    content = bytes(range(256)) * 5_000
    hub.database.write(lambda session: session.add(model(1, "promoted", content, hub, tmp_path)))
    assert client.get("/v1/models/1/file", headers=AS_E1).content == content
    part = client.get("/v1/models/1/file", headers={**AS_E1, "Range": "bytes=1000000-"})
    assert (part.status_code, part.content) == (206, content[1_000_000:])
    assert part.headers["content-range"] == f"bytes 1000000-{len(content) - 1}/{len(content)}"
    assert client.get("/v1/models/1/file", headers={**AS_E1, "Range": f"bytes={len(content)}-"}).status_code == 416
    for version in (2, 0, -1, 1 << 40):
        assert client.get(f"/v1/models/{version}/file", headers=AS_E1).status_code == 404


def test_observations_that_are_sent_again_count_once(client, hub):
    each = Observation(
        seq=1, version=2, reference=1, at=1, agrees=True, confidence=0.5, reference_confidence=0.5
    ).model_dump()
    body = Observations(edge="e1", observations=[each, {**each, "seq": 2}]).model_dump()
    for _ in range(2):
        assert client.post("/v1/observations", json=body, headers=AS_E1).status_code == 204
    assert len(hub.database.read(lambda session: list(session.query(ObservationEntry)))) == 2
    body["observations"][0]["seq"] = 1 << 70
    assert client.post("/v1/observations", json=body, headers=AS_E1).status_code == 422


def test_an_export_holds_the_labels_and_the_contents(client, hub):
    post(client, frame_of(b"one", b"two"))
    book = LabelBook(hub)
    book.put([GivenLabel(record_of(content).id, "page", "ann", "cat") for content in (b"one", b"two")])
    from solar_corona.incremental.hub.dataset_versions import DatasetVersions

    version = DatasetVersions(hub).make()
    body = client.get(f"/v1/admin/datasets/{version}/export", headers=AS_ADMIN).content
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        lines = [json.loads(line) for line in tar.extractfile("samples.jsonl").read().splitlines()]
        assert {tar.extractfile(f"contents/{line['id']}").read() for line in lines} == {b"one", b"two"}
        assert {line["label"] for line in lines} == {0}
    assert client.get("/v1/admin/datasets/99/export", headers=AS_ADMIN).status_code == 404
    listed = client.get("/v1/admin/samples?state=labelled&limit=1", headers=AS_ADMIN).json()["samples"]
    more = client.get(f"/v1/admin/samples?state=labelled&after={listed[0]['id']}", headers=AS_ADMIN).json()["samples"]
    assert len(listed) == len(more) == 1


def test_a_persons_samples_are_deleted_and_do_not_come_back(client, hub):
    frame = frame_of(b"mine", subject="ann")
    post(client, frame)
    answer = client.post("/v1/admin/forget", json={"subject": "ann"}, headers=AS_ADMIN)
    assert answer.json() == {"samples": 1, "versions": []}
    assert outcomes(post(client, frame)) == ["refused"]
    assert not hub.samples.has(record_of(b"mine").id)


def test_while_the_database_or_the_disk_is_in_the_way_edges_are_told_to_try_later(client, hub, monkeypatch):
    for error, status in ((TemporaryError("away"), 503), (PlatformError("the disk is full"), 507)):

        def away(work, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(hub.database, "write", away)
            answer = post(client, frame_of(b"one"))
        assert (answer.status_code, answer.headers["retry-after"]) == (status, "5")
    assert outcomes(post(client, frame_of(b"one"))) == ["stored"]


def test_every_answer_tells_browsers_to_run_nothing_of_it(client):
    answer = client.get("/v1/ready")
    assert (answer.status_code, answer.text) == (200, "ready\n")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_link_opens_a_session_and_its_changes_need_the_pages_own_word(client, hub):
    link = client.post("/v1/admin/labellers", json={"name": "ann"}, headers=AS_ADMIN).json()["link"]
    answer = client.get(link, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/label")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert client.post("/logout").status_code == 403, "no word of the page came along"
    account = Accounts(ADMIN, {}).of_cookie(client.cookies["solar-corona-hub"], now=hub.clock())
    assert (account.role, account.name) == ("labeller", "ann")
    word = {"x-csrf-token": account.csrf}
    assert client.post("/logout", headers={**word, "origin": "http://evil.example"}).status_code == 403
    assert client.get("/v1/admin/counts").status_code == 403, "a labeller labels and does nothing else"
    assert client.post("/logout", headers={**word, "origin": str(client.base_url).rstrip("/")}).status_code == 204


@pytest.mark.parametrize("key", ["", "nope", "YW5u.00", f"{E1}", "\x00", "é.é"])
def test_a_link_that_is_not_ours_opens_nothing(client, key):
    answer = client.get("/login", params={"key": key}, follow_redirects=False)
    assert answer.status_code == 403
    assert "ask for a new one" in answer.text


def test_a_session_that_was_changed_or_is_over_is_none(hub):
    accounts = Accounts(ADMIN, {})
    cookie = accounts.open_session(ADMIN, name="ann", now=0)
    assert accounts.of_cookie(cookie, now=1).role == "admin"
    assert accounts.of_cookie(cookie, now=31 * 86_400) is None
    assert accounts.of_cookie(cookie.replace("admin", "labeller", 1), now=1) is None
    assert Accounts("another-admin-token-12", {}).of_cookie(cookie, now=1) is None
    assert accounts.of_cookie("a.b.c.d.e", now=1) is None
