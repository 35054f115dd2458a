# SPDX-License-Identifier: Apache-2.0
"""A real Label Studio: tasks with pre-labels go there, labels come back, and it may be away."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import numpy as np
import pytest

from solar_corona.core.errors import TemporaryError
from solar_corona.core.local_launcher import free_port
from solar_corona.incremental.hub.accounts import Accounts
from solar_corona.incremental.hub.hub import LabelSpace
from solar_corona.incremental.hub.labels import LabelBook
from solar_corona.incremental.hub.retention import Retention
from solar_corona.incremental.labelling.checks import check_labelling_source
from solar_corona.incremental.labelling.desk import Desk
from solar_corona.incremental.labelling.label_studio import LabelStudio
from solar_corona.incremental.labelling.page_routes import Labelling
from solar_corona.incremental.labelling.source import Setting
from solar_corona.incremental.tables import Sample
from solar_corona.lib.sample_coding import SampleForm, encode_sample

from ..hub.conftest import ADMIN, Samples, png
from .label_studio_server import TOKEN, USER, LabelStudioMissingError, Server

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]  # the first run installs it

CLASSES = LabelSpace(classes=("cat", "dog", "owl & co"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    try:
        server = Server(tmp_path_factory.mktemp("label-studio"))
    except LabelStudioMissingError as error:
        pytest.skip(f"Label Studio cannot be installed here: {error}")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def api(server):
    with httpx.Client(base_url=server.url, headers={"authorization": f"Token {TOKEN}"}, timeout=60) as client:
        yield client


@pytest.fixture
def desk_of(server, token):
    desks = []

    def make(hub, job, **more):
        source = LabelStudio(Setting(job=job, labels=CLASSES, **more), server.url, token_file=str(token))
        desks.append(Desk(hub, "label-studio", source))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "label-studio.token"
    path.write_text(TOKEN)
    return path


def annotate(api, task, value, **more):
    result = [{"from_name": "label", "to_name": "sample", "type": "choices", "value": {"choices": [value]}}]
    answer = api.post(f"/api/tasks/{task}/annotations/", json={"result": result if value else [], **more})
    assert answer.status_code == 201, answer.text


def rows(hub):
    return {row.id: row for row in hub.database.read(lambda session: list(session.query(Sample)))}


def test_it_keeps_the_contract(server, api, token):
    setting = Setting(job="contract", labels=CLASSES)
    check_labelling_source(
        lambda: LabelStudio(setting, server.url, token_file=str(token)),
        lambda task, value: annotate(api, task, CLASSES.classes[value]),
    )


def test_samples_of_each_form_go_there_with_pre_labels_and_labels_come_back(api, make_hub, desk_of):
    hub = make_hub(labels=CLASSES)
    samples = Samples(hub)
    (image,) = samples.add(png(9), media_type="image/png", prediction=1, confidence=0.7)
    (text,) = samples.add(b"to be read", prediction=0)
    coded = [
        encode_sample(np.arange(800, dtype=np.int16), SampleForm(format="wav")),
        encode_sample(np.arange(6.0)),
        encode_sample(np.zeros((100, 3), np.float32)),
    ]
    others = [samples.add(each.content, media_type=each.media_type)[0] for each in coded]
    desk = desk_of(hub, "forms")
    desk.step()
    found = rows(hub)
    assert {row.state for row in found.values()} == {"out"}, desk.status()

    task = api.get(f"/api/tasks/{found[image].task}/").json()
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["dog"]}
    assert task["predictions"][0]["score"] == pytest.approx(0.7)
    project = api.get(f"/api/projects/{task['project']}/").json()
    assert (project["title"], '<Choice value="owl &amp; co" hotkey="3"/>' in project["label_config"]) == (
        "forms: images",
        True,
    )

    annotate(api, found[image].task, "owl & co")
    annotate(api, found[text].task, "cat")
    annotate(api, found[others[0]].task, "", was_cancelled=True)
    desk.step()
    found = rows(hub)
    assert (found[image].state, found[image].label) == ("labelled", 2)
    assert (found[text].state, found[text].label) == ("labelled", 0)
    assert found[others[0]].state == "skipped"
    assert LabelBook(hub).history(image)[0].by == USER
    assert desk.status().message == "3 tasks wait for people in Label Studio" or desk.status().well

    # Who changes their mind there is heard; and what is deleted here is deleted there.
    number = api.get(f"/api/tasks/{found[text].task}/").json()["annotations"][0]["id"]
    result = [{"from_name": "label", "to_name": "sample", "type": "choices", "value": {"choices": ["dog"]}}]
    assert api.patch(f"/api/annotations/{number}/", json={"result": result}).status_code == 200
    hub.clock.now = time.time() + 10
    desk.step()
    assert rows(hub)[text].label == 1
    (mine,) = samples.add(b"mine", subject="eve")
    desk.step()
    task = rows(hub)[mine].task
    Retention(hub).forget_subject("eve")
    desk.step()
    assert api.get(f"/api/tasks/{task}/").status_code == 404


def test_it_calls_back_and_the_label_is_there_at_once(api, make_hub, desk_of, client_of):
    hub = make_hub(labels=CLASSES)
    port = free_port()
    secret = Accounts(ADMIN, {}).webhook_secret("label-studio")
    callback = f"http://127.0.0.1:{port}/v1/labelling/callback"
    (sample,) = Samples(hub).add(png(3), media_type="image/png")
    # Only a call wakes it after its first step.
    labelling = Labelling(hub, desk_of(hub, "calls", callback=callback, callback_secret=secret), every=3_600)
    client = client_of(hub, labelling, port=port)
    assert client.post("/v1/labelling/callback").status_code == 401
    _until(lambda: rows(hub)[sample].state == "out")
    annotate(api, rows(hub)[sample].task, "dog")
    _until(lambda: rows(hub)[sample].state == "labelled")


def test_while_it_refuses_the_token_that_is_told_and_nothing_is_lost(token, make_hub, desk_of):
    hub = make_hub(labels=CLASSES)
    (sample,) = Samples(hub).add(png(5), media_type="image/png")
    desk = desk_of(hub, "away")
    token.write_text("revoked-" + TOKEN)
    with pytest.raises(TemporaryError, match=r"refuses the token in .*make a new one"):
        desk.step()
    assert not desk.status().well
    assert rows(hub)[sample].state == "waiting"
    token.write_text(TOKEN)
    desk.step()
    assert (desk.status().well, rows(hub)[sample].state) == (True, "out")


def test_while_it_cannot_be_reached_that_is_told_and_labels_come_later(server, api, token, make_hub):
    hub = make_hub(labels=CLASSES)
    (sample,) = Samples(hub).add(png(6), media_type="image/png")
    port = free_port()
    source = LabelStudio(Setting(job="cut", labels=CLASSES), f"http://127.0.0.1:{port}", token_file=str(token))
    desk = Desk(hub, "label-studio", source)
    with pytest.raises(TemporaryError, match=r"cannot be reached .*see that it runs"):
        desk.step()
    assert (desk.status().well, rows(hub)[sample].state) == (False, "waiting")
    with forwarded(port, server.port):
        desk.step()
        annotate(api, rows(hub)[sample].task, "cat")
    with pytest.raises(TemporaryError, match=r"cannot be reached"):
        desk.step()
    assert rows(hub)[sample].state == "out"
    with forwarded(port, server.port):
        desk.step()
    desk.close()
    assert (desk.status().well, rows(hub)[sample].label) == (True, 0)


@contextmanager
def forwarded(port, target):
    """Lead connections to another port of this machine, one at a time, until the context ends; then cut them."""
    listening = socket.create_server(("127.0.0.1", port), reuse_port=False)
    listening.settimeout(0.02)
    ends, going = [], threading.Event()

    def pump(source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass

    def accept():
        while not going.is_set():
            try:
                near, _ = listening.accept()
            except TimeoutError:
                continue
            far = socket.create_connection(("127.0.0.1", target))
            near.settimeout(None)
            ends.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield
    finally:
        going.set()
        thread.join()
        listening.close()
        for end in ends:
            # Its thread may wait in recv, which close alone does not end.
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _until(done, seconds=20):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
