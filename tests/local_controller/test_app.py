# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
import uvicorn

from solar_corona.core.errors import PlatformError, SpecError
from solar_corona.core.hub_messages import LoadError, ModelOffer, Orders, WorkerState
from solar_corona.core.security import make_signing_key, sign
from solar_corona.lib.sample_records import FRAME_TYPE, pack, sample_id_of
from solar_corona.local_controller import app as app_module
from solar_corona.local_controller.app import make_app
from solar_corona.local_controller.command import parse_options
from solar_corona.local_controller.controller import ControllerOptions, running

from .test_outbox import fill, sample


@pytest.fixture
def options(tmp_path, token_file):
    (tmp_path / "net.tflite").write_bytes(b"first")
    return ControllerOptions(
        state=tmp_path / "state",
        edge="camera",
        job="digits",
        hub="http://127.0.0.1:1",
        token_file=token_file,
        model="net",
        model_path=str(tmp_path / "net.tflite"),
    )


@contextmanager
def serving(app):
    """Answer over a real socket, and give a client of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def controller(options, hub):
    with running(options, transport=hub.transport()) as opened:
        yield opened


@pytest.fixture
def client(controller):
    with serving(make_app(controller)) as opened:
        yield opened


def send(client, *samples):
    return client.post("/v1/samples", content=pack(samples), headers={"content-type": FRAME_TYPE})


def outcomes(response):
    return [receipt["outcome"] for receipt in response.json()["receipts"]]


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_a_sample_goes_through_to_the_hub(client, hub):
    pair = sample(b"a sample")
    assert outcomes(send(client, pair)) == ["stored"]
    until(lambda: hub.samples)
    assert hub.samples == {pair[0].id: pair}
    until(lambda: client.get("/v1/status").json()["outbox"]["uploaded"] == 1)
    assert outcomes(send(client, pair)) == ["known"]


def test_labels_observations_and_the_workers_state_reach_the_hub(client, hub):
    label = {"sample": sample_id_of(b"x"), "value": 7, "at": 1.0}
    assert outcomes(client.post("/v1/labels", json={"labels": [label]})) == ["stored"]
    seen = {"seq": 4, "version": 2, "reference": 1, "at": 1.0, "agrees": True}
    seen |= {"confidence": 0.5, "reference_confidence": 0.25}
    assert client.post("/v1/observations", json={"edge": "camera", "observations": [seen]}).status_code == 204
    assert client.post("/v1/worker", json={"started_at": 5.0, "seen": 11, "version": 1}).status_code == 204
    until(lambda: hub.labels and hub.observations and hub.heartbeats and hub.heartbeats[-1].worker)
    assert hub.labels[0].value == 7
    assert hub.observations[4].reference_confidence == 0.25
    heartbeat = hub.heartbeats[-1]
    assert heartbeat.worker == WorkerState(started_at=5.0, seen=11, version=1)
    assert heartbeat.edge == "camera"
    assert heartbeat.models.here == [1]


def test_each_sample_that_cannot_be_right_is_refused_and_the_others_are_kept(client):
    good, other = sample(b"good"), sample(b"other")
    record, content = sample(b"wrong")
    response = send(
        client,
        (replace(record, id="0" * 64), content),
        good,
        (replace(record, edge="another"), content),
        (replace(record, ahead=True), b""),
        other,
    )
    assert outcomes(response) == ["refused", "stored", "refused", "refused", "stored"]
    reasons = [receipt["reason"] for receipt in response.json()["receipts"]]
    assert reasons[0] == "its id is not the SHA-256 of its content"
    assert reasons[2] == "is of edge 'another', and this is 'camera''s LocalController"
    assert "has to be in the frame" in reasons[3]


def test_what_is_no_frame_is_said_to_be_none(client):
    for body in (b"", b"\xff\xff\xff\xff", pack([sample(b"x")])[:-1], b"\x02\0\0\0{}", b"\x01\0\0\0["):
        response = client.post("/v1/samples", content=body)
        assert response.status_code == 400, body
        assert "frame" in response.json()["error"]


def test_malformed_json_is_said_to_be(client):
    for path in ("labels", "observations", "worker"):
        for body in (b"", b"[]", b"{", b'{"labels": 3}', b"\xff", b"[" * 100_000):
            response = client.post(f"/v1/{path}", content=body)
            assert response.status_code == 422, (path, body[:10])
            assert "for what is expected" in response.json()["error"]


def test_observations_of_another_edge_are_refused(client):
    response = client.post("/v1/observations", json={"edge": "another", "observations": []})
    assert response.status_code == 422
    assert response.json()["error"] == "observations of edge 'another', expected 'camera'"


def test_too_much_is_refused_before_it_is_read(client, monkeypatch):
    monkeypatch.setattr(app_module, "_MOST_FRAME", 1000)
    response = send(client, sample(bytes(2000)))
    assert response.status_code == 413
    assert response.json()["error"] == "the body is too large, expected at most 1000 bytes; send it in parts"
    chunked = client.post("/v1/samples", content=iter([bytes(600), bytes(600)]))
    assert chunked.status_code == 413
    monkeypatch.setattr(app_module, "_MOST_IN_FLIGHT", 500)
    response = send(client, sample(bytes(550)))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert outcomes(send(client, sample(b"small"))) == ["stored"]


def test_only_who_shows_the_token_is_let_in(controller):
    with serving(make_app(controller, token="secret-of-this-node")) as client:
        for shown in (None, "Bearer wrong", "secret-of-this-node", "Basic secret-of-this-node"):
            headers = {} if shown is None else {"authorization": shown}
            for method, path in (("GET", "/v1/status"), ("POST", "/v1/samples"), ("GET", "/nothing")):
                response = client.request(method, path, headers=headers)
                assert response.status_code == 401
                assert "controller.token in the state folder" in response.json()["error"]
        assert client.get("/v1/status", headers={"authorization": "Bearer secret-of-this-node"}).status_code == 200


def test_the_status_tells_all_parts(client, hub):
    until(lambda: client.get("/v1/status").json()["hub_silence"] is not None)
    status = client.get("/v1/status").json()
    assert status["edge"] == "camera"
    assert status["models"] == {"active": 1, "previous": None, "here": [1], "error": None}
    assert status["outbox"]["queued"] == 0
    assert status["hub_trouble"] == ""
    assert status["worker"] is None


def test_a_full_disk_is_said_and_nothing_is_kept_in_part(options, hub, small_disk):
    hub.fault = lambda request: (503, {})
    with (
        running(replace(options, state=small_disk / "state"), transport=hub.transport()) as controller,
        serving(make_app(controller)) as client,
    ):
        assert outcomes(send(client, sample(b"before"))) == ["stored"]
        fill(small_disk)
        response = send(client, sample(bytes(1 << 20)), sample(b"with it"))
        assert response.status_code == 507
        assert response.headers["retry-after"] == "5"
        assert "free some space in" in response.json()["error"]
        (small_disk / "filler").unlink()
        assert outcomes(send(client, sample(bytes(1 << 20)), sample(b"with it"))) == ["stored", "stored"]
        assert client.get("/v1/status").json()["outbox"]["queued"] == 3


def test_a_new_version_reaches_the_node_and_one_that_does_not_load_is_told_to_the_hub(options, hub, tmp_path):
    make_signing_key(tmp_path / "key", tmp_path / "pub")
    hub.files[2] = b"second"
    offer = ModelOffer(version=2, file="net.tflite", size=6, sha256=sample_id_of(b"second"), signature="")
    offer = offer.model_copy(update={"signature": sign(tmp_path / "key", offer.signed_text("digits"))})
    hub.orders = Orders(model=offer, next_heartbeat=0.1)
    active = tmp_path / "state" / "models" / "net" / "active.json"
    with (
        running(replace(options, public_key=tmp_path / "pub"), transport=hub.transport()) as controller,
        serving(make_app(controller)) as client,
    ):
        until(lambda: json.loads(active.read_text())["version"] == 2)
        until(lambda: hub.heartbeats[-1].models.active == 2)
        failed = WorkerState(started_at=1.0, load_error=LoadError(version=2, error="unknown operator"))
        assert client.post("/v1/worker", content=failed.model_dump_json()).status_code == 204
        assert json.loads(active.read_text())["version"] == 1
        until(lambda: hub.heartbeats[-1].models.error is not None)
        assert hub.heartbeats[-1].models.error == LoadError(version=2, error="unknown operator")
        assert hub.heartbeats[-1].models.active == 1


# --- the command line


def parsed(**options):
    needed = {"edge": "camera", "job": "digits", "max_bytes": 1 << 30, "max_rate": None, "state": None, "hub": ""}
    return parse_options(**{**needed, "token_file": None, **options})


def test_options_are_understood(tmp_path):
    options = parsed(
        model="net=a/b=c.keras", sha256=f"net={'a1' * 32}", datasets=["mine=data.npz"], quiet_hours="08:00-18:00"
    )
    assert (options.model, options.model_path) == ("net", "a/b=c.keras")
    assert options.model_sha256 == "a1" * 32
    assert options.datasets["mine"].is_absolute()
    assert options.quiet.begin == 8 * 3600
    assert parsed(model="net").model_path is None


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"edge": "A b"}, "--edge has the name 'A b', expected lower-case letters"),
        ({"job": ""}, "--job has the name ''"),
        ({"model": "../x=y"}, "--model has the name '../x'"),
        ({"model": "net=x", "sha256": "a1" * 32}, "expected NAME=SHA256 with the name given with --model"),
        ({"model": "net=x", "sha256": "other=" + "a1" * 32}, "expected NAME=SHA256"),
        ({"datasets": ["mine"]}, "--dataset is 'mine', expected NAME=PATH"),
        ({"datasets": ["mine=s3://b/x"]}, "expected NAME=PATH with a file or folder of this node"),
        ({"max_bytes": 5}, "--max-bytes is 5, expected at least 1048576"),
        ({"max_rate": 5}, "--max-rate is 5, expected at least 1000 bytes a second"),
        ({"quiet_hours": "now"}, "quiet hours are 'now'"),
    ],
)
def test_wrong_options_are_said(wrong, error):
    with pytest.raises(SpecError) as raised:
        parsed(**wrong)
    assert error in str(raised.value)


def test_a_second_controller_is_refused_before_it_touches_anything(options, controller, hub):
    with (
        pytest.raises(PlatformError, match=r"another LocalController .* works on this state folder"),
        running(options, transport=hub.transport()),
    ):
        pass
