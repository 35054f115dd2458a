# SPDX-License-Identifier: Apache-2.0
"""A hub with a real database, and samples for it."""

from __future__ import annotations

import io
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import uvicorn

from solar_corona.incremental.hub.accounts import Accounts
from solar_corona.incremental.hub.app import create_app
from solar_corona.incremental.hub.hub import Hub, HubSettings, LabelSpace
from solar_corona.incremental.hub.ingest import Ingest
from solar_corona.lib.sample_records import SampleRecord, pack, sample_id_of

ADMIN, E1, E2 = "admin-token-0123456789", "edge-one-0123456789abc", "edge-two-0123456789abc"


@contextmanager
def served(hub, *extensions, port=0):
    """Serve a hub on this machine, and give its URL."""
    app = create_app(hub, Accounts(ADMIN, {"e1": E1, "e2": E2}), extensions=extensions)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


def png(shade, size=(8, 8)):
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", size, shade).save(file, "PNG")
    return file.getvalue()


def record_of(content, *, edge="e1", reason="hard", media_type="text/plain", **more):
    return SampleRecord(sample_id_of(content), media_type, len(content), edge, 1, 999_000.0, reason, **more)


class Samples:
    """Puts samples into a hub."""

    def __init__(self, hub):
        self.hub, self.ingest = hub, Ingest(hub)

    def add(self, *contents, edge="e1", **more):
        frame = pack([(record_of(content, edge=edge, **more), content) for content in contents])
        receipts = self.ingest.take(edge, frame).receipts
        assert {receipt.outcome for receipt in receipts} <= {"stored", "known"}, receipts
        return [receipt.id for receipt in receipts]

    def many(self, count, *, start=0, **more):
        return self.add(*(f"sample {number}".encode() for number in range(start, start + count)), **more)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_hub(tmp_path, clock):
    made = []

    def make(**settings):
        settings.setdefault("database", f"sqlite:///{tmp_path}/hub.db")
        settings.setdefault("storage", str(tmp_path / "storage"))
        settings.setdefault("labels", LabelSpace(classes=("cat", "dog", "owl")))
        patience = settings.pop("patience", 10.0)
        made.append(Hub(HubSettings(job="test", **settings), clock=clock, patience=patience))
        return made[-1]

    yield make
    for hub in made:
        hub.close()


@pytest.fixture
def hub(make_hub):
    return make_hub()


@pytest.fixture
def samples(hub):
    return Samples(hub)


@pytest.fixture
def client_of():
    with ExitStack() as stack:
        yield lambda hub, *extensions, port=0: stack.enter_context(
            httpx.Client(base_url=stack.enter_context(served(hub, *extensions, port=port)), timeout=20)
        )
