# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import zipfile
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from solar_corona.core.errors import ModelError, PlatformError
from solar_corona.core.files import sha256_of
from solar_corona.core.hub_messages import LoadError, ModelOffer, Orders
from solar_corona.core.security import make_signing_key, sign
from solar_corona.local_controller import model_files
from solar_corona.local_controller.hub_client import HubClient
from solar_corona.local_controller.models import ModelStore

from .hubs import SimulatedClock

JOB = "digits"


class Node:
    """A model's store on a node, and what the hub has for it."""

    def __init__(self, folder: Path, hub, token_file: Path):
        self.folder, self.hub = folder / "models" / "net", hub
        self.private, self.public = folder / "hub.sign.key", folder / "hub.sign.pub"
        make_signing_key(self.private, self.public)
        self.job_model = folder / "net.tflite"
        self.job_model.write_bytes(b"the first version")
        self.client = HubClient("http://127.0.0.1:1", token_file=token_file, transport=hub.transport())
        self.transport(hub.transport())
        self.store = self.begin()

    def transport(self, transport):
        self.client._client._transport = transport

    def begin(self, **options) -> ModelStore:
        options = {"job": JOB, "public_key": self.public, "hub": self.client, "clock": SimulatedClock(), **options}
        self.store = ModelStore(self.folder, **options)
        self.store.begin_with(str(self.job_model))
        return self.store

    def offer(self, version: int, content: bytes, file: str = "net.tflite", **changes) -> ModelOffer:
        self.hub.files[version] = content
        fields = {"version": version, "file": file, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        offer = ModelOffer(**{**fields, "signature": "", **changes})
        return offer.model_copy(
            update={"signature": changes.get("signature") or sign(self.private, offer.signed_text(JOB))}
        )

    def order(self, model: ModelOffer, shadow: ModelOffer | None = None):
        self.store.want(Orders(model=model, shadow=shadow))
        self.store.carry_out()

    @property
    def active(self) -> dict:
        return json.loads((self.folder / "active.json").read_text())

    @property
    def content(self) -> bytes:
        return Path(self.active["path"]).read_bytes()

    @property
    def leftovers(self) -> list[str]:
        return [path.name for path in self.folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def node(tmp_path, hub, token_file):
    return Node(tmp_path, hub, token_file)


def zipped(files: dict[str, bytes], **modes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = modes.get(name, 0o100644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


# --- version 1


def test_the_jobs_own_model_answers_before_the_hub_is_reached(node):
    assert node.active["version"] == 1
    assert node.content == b"the first version"
    assert node.active["sha256"] == sha256_of(node.job_model)
    assert node.active["canary"] is False
    assert node.active["shadow"] is None
    assert node.hub.requests == []
    assert Path(node.active["path"]).name == "net.tflite"


def test_a_folder_may_be_the_jobs_model(node, tmp_path):
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "v").write_bytes(b"weights")
    store = ModelStore(tmp_path / "other", job=JOB, public_key=None, hub=node.client)
    store.begin_with(str(folder), sha256=sha256_of(folder))
    assert sha256_of(store.active.path) == store.active.sha256 == sha256_of(folder)


def test_a_model_of_the_job_that_is_missing_or_another_is_refused(tmp_path, node):
    store = ModelStore(tmp_path / "other", job=JOB, public_key=None, hub=node.client)
    with pytest.raises(ModelError, match=r"no\.tflite: cannot be read as a model .* check --model"):
        store.begin_with(str(tmp_path / "no.tflite"))
    with pytest.raises(ModelError, match="expected 0000"):
        store.begin_with(str(node.job_model), sha256="0" * 64)
    assert store.active is None


# --- a new version


def test_a_signed_version_is_fetched_and_answers_and_the_one_before_stays(node):
    node.order(node.offer(2, b"the second version"))
    assert node.active["version"] == 2
    assert node.content == b"the second version"
    state = node.store.state()
    assert (state.active, state.previous, state.here, state.error) == (2, 1, [1, 2], None)
    for version in (3, 4):
        node.order(node.offer(version, b"version %d" % version))
    state = node.store.state()
    assert (state.active, state.previous, state.here) == (4, 3, [3, 4])
    assert len(list(node.folder.glob("*/version.json"))) == 2
    assert node.leftovers == []


def test_a_way_back_needs_no_download(node):
    first, second = node.offer(1, b"the first version"), node.offer(2, b"the second version")
    node.order(second)
    count = len(node.hub.requests)
    node.order(first)
    assert (node.active["version"], node.content) == (1, b"the first version")
    node.order(second)
    assert node.active["version"] == 2
    assert len(node.hub.requests) == count


def test_a_canary_has_the_version_before_as_its_shadow(node):
    node.order(node.offer(2, b"second"), shadow=node.offer(1, b"the first version"))
    assert node.active["canary"] is True
    assert node.active["shadow"]["version"] == 1
    assert Path(node.active["shadow"]["path"]).read_bytes() == b"the first version"
    node.order(node.offer(2, b"second"))
    assert node.active["canary"] is False
    assert node.active["shadow"] is None


def test_a_hub_whose_version_1_is_another_file_wins(node):
    node.order(node.offer(1, b"what the hub has as version 1"))
    assert node.content == b"what the hub has as version 1"
    assert node.store.state().here == [1, 1]


def test_orders_are_carried_out_in_the_background(node):
    activated = threading.Event()
    store = ModelStore(node.folder, job=JOB, public_key=node.public, hub=node.client, changed=activated.set)
    store.start()
    store.want(Orders(model=node.offer(2, b"second")))
    assert activated.wait(20)
    store.stop()
    assert store.state().active == 2


def test_all_is_as_it_was_after_a_restart(node):
    node.order(node.offer(2, b"second"))
    before = node.store.state()
    node.begin()
    assert node.store.state() == before
    assert node.content == b"second"


def test_a_lost_active_file_is_written_anew(node):
    node.order(node.offer(2, b"second"))
    (node.folder / "active.json").write_text('{"version": ')
    node.begin()
    assert node.active["version"] == 2


# --- what must not answer


TAMPERED = {
    "another signature": lambda node: node.offer(2, b"second", signature="AAAA"),
    "no base64": lambda node: node.offer(2, b"second", signature="no base64 at all"),
    "signed for another version": lambda node: node.offer(3, b"second").model_copy(update={"version": 2}),
    "signed for another content": lambda node: node.offer(2, b"second").model_copy(
        update={"sha256": hashlib.sha256(b"evil").hexdigest()}
    ),
    "a name that leads out": lambda node: node.offer(2, b"second", file=".."),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_an_offer_that_is_not_signed_as_it_is_fetches_nothing(node, what):
    before, count = node.active, len(node.hub.requests)
    with pytest.raises(ModelError, match=r"version 2: (its signature is not|the file's name is)"):
        node.order(TAMPERED[what](node))
    assert node.active == before
    assert len(node.hub.requests) == count


def test_without_a_key_no_version_of_a_hub_is_taken(node):
    offer = node.offer(2, b"second")
    node.begin(public_key=None)
    with pytest.raises(ModelError, match="as this LocalController has no key; give the hub's with --public-key"):
        node.order(offer)
    node.private.with_suffix(".odd").write_text("no key")
    node.begin(public_key=node.private.with_suffix(".odd"))
    with pytest.raises(PlatformError, match="is no Ed25519 key in PEM"):
        node.order(offer)
    assert node.active["version"] == 1


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"secone", "has the SHA-256 .* damaged or changed, and is not used"),
        (b"second and much more", "sends more than the 6 bytes that it said"),
    ],
)
def test_a_file_that_is_not_what_was_signed_never_answers(node, sent, error):
    offer, before = node.offer(2, b"second"), node.active
    node.hub.files[2] = sent
    with pytest.raises(ModelError, match=error):
        node.order(offer)
    assert node.active == before
    assert node.leftovers == []
    node.hub.files[2] = b"second"  # and a hub that is mended is believed
    node.store.carry_out()
    assert node.active["version"] == 2


def test_the_heartbeat_tells_of_a_version_that_is_not_used(node):
    told = threading.Event()
    store = node.begin(changed=told.set)
    store.want(Orders(model=node.offer(2, b"second", signature="AAAA")))
    store._clock.then = lambda passed: store._stopping.set()
    store.run()
    assert told.is_set()
    assert store.state().error.version == 2
    assert "its signature is not that of job 'digits'" in store.state().error.error
    assert store.state().active == 1


def test_a_model_too_large_for_the_disk_is_not_begun(node, monkeypatch):
    offer, count = node.offer(2, b"second"), len(node.hub.requests)
    monkeypatch.setattr(
        model_files.shutil, "disk_usage", lambda folder: os.statvfs_result and type("U", (), {"free": 5})
    )
    with pytest.raises(ModelError, match="the disk has 5 bytes left, and a model needs 6 more; free some space"):
        node.order(offer)
    assert len(node.hub.requests) == count
    with pytest.raises(ModelError, match="has 17179869185 bytes, expected at most 17179869184"):
        node.order(node.offer(2, b"second", size=(16 << 30) + 1))


def test_a_full_disk_leaves_what_answers(node, small_disk):
    node.folder = small_disk / "net"
    node.begin()
    content = os.urandom(4 << 20)
    offer = node.offer(2, content)
    (small_disk / "filler").write_bytes(bytes(4 << 20))
    with pytest.raises((ModelError, PlatformError, OSError), match=r"space|full"):
        node.order(offer)
    assert node.content == b"the first version"
    (small_disk / "filler").unlink()
    node.store.carry_out()
    assert node.content == content


# --- downloads that are cut


class Cut(httpx.BaseTransport):
    """Ends each answer after some bytes, and remembers which were asked for."""

    def __init__(self, inner, size):
        self.inner, self.size, self.ranges = inner, size, []

    def handle_request(self, request):
        self.ranges.append(request.headers.get("range"))
        response = self.inner.handle_request(request)
        content = response.read()

        def cut():
            yield content[: self.size]
            if len(content) > self.size:
                raise httpx.ReadError("cut")

        headers = {name: value for name, value in response.headers.items() if name == "content-range"}
        return httpx.Response(response.status_code, headers=headers, content=cut())


def carry_out_patiently(store):
    """Until it worked; then there is a day to wait."""
    store._clock.then = lambda passed: store._clock.waits[-1] > 80_000 and store._stopping.set()
    store.run()


def test_a_download_goes_on_where_it_was_cut_also_in_the_next_process(node):
    content = os.urandom(1_000_000)
    offer = node.offer(2, content)
    cut = Cut(node.hub.transport(), 300_000)
    node.transport(cut)
    node.store.want(Orders(model=offer))
    with pytest.raises(ConnectionError):
        node.store.carry_out()
    assert node.active["version"] == 1
    node.begin()
    node.store.want(Orders(model=offer))
    carry_out_patiently(node.store)
    assert node.content == content
    assert cut.ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert node.leftovers == []


def test_a_hub_that_knows_no_ranges_sends_all(node):
    offer = node.offer(2, b"second version")
    (node.folder / f".part-{offer.sha256}").write_bytes(b"second")

    def answer(request):
        assert request.headers["range"] == "bytes=6-"
        return httpx.Response(200, content=iter([b"second ", b"version"]))

    node.transport(httpx.MockTransport(answer))
    node.order(offer)
    assert node.content == b"second version"


@pytest.mark.parametrize("left", [b"wrong!", b"longer than all of it is"])
def test_a_wrong_beginning_is_thrown_away(node, left):
    offer = node.offer(2, b"second version")
    (node.folder / f".part-{offer.sha256}").write_bytes(left)
    node.store.want(Orders(model=offer))
    with suppress(ModelError):  # of the one that could have been the beginning
        node.store.carry_out()
    node.store.carry_out()
    assert node.content == b"second version"


def test_a_download_gives_way_to_what_the_hub_wants_next(node):
    second = node.offer(2, b"second")
    node.order(second)
    third, back = node.offer(3, os.urandom(3 << 20)), node.offer(1, b"the first version")
    node.store.want(Orders(model=third))

    def answer(request):
        node.store.want(Orders(model=back))
        return httpx.Response(200, content=iter([node.hub.files[3]]))

    node.transport(httpx.MockTransport(answer))
    carry_out_patiently(node.store)
    assert node.active["version"] == 1


def test_a_hub_that_is_away_is_waited_for(node):
    away = {"left": 50}

    def fault(request):
        if (away.update(left=away["left"] - 1) or away["left"]) > 0:
            raise httpx.ConnectError("no route to host")

    node.hub.fault = fault
    node.store.want(Orders(model=node.offer(2, b"second")))
    carry_out_patiently(node.store)
    assert node.active["version"] == 2
    assert all(wait <= 60 for wait in node.store._clock.waits[:-1])


# --- folders


def test_a_folder_comes_as_a_zip(node):
    files = {"saved_model.pb": b"graph", "variables/variables.index": b"index", "assets/": b""}
    node.order(node.offer(2, zipped(files), file="net.zip"))
    path = Path(node.active["path"])
    assert path.name == "net"
    assert (path / "saved_model.pb").read_bytes() == b"graph"
    assert (path / "variables" / "variables.index").read_bytes() == b"index"
    assert sha256_of(path) == node.active["sha256"]
    assert node.leftovers == []


EVIL = {
    "../evil": "leads out of the folder",
    "/tmp/evil": "leads out of the folder",
    "a/../../evil": "leads out of the folder",
    "..\\evil": "leads out of the folder",
    "C:evil": "leads out of the folder",
}


@pytest.mark.parametrize("name", EVIL)
def test_a_zip_whose_names_lead_out_writes_nothing(node, name):
    with pytest.raises(ModelError, match=EVIL[name]):
        node.order(node.offer(2, zipped({"fine": b"x", name: b"evil"}), file="net.zip"))
    assert node.active["version"] == 1
    assert node.leftovers == []
    assert not list(node.folder.parent.rglob("evil"))


def _broken_crc() -> bytes:
    content = bytearray(zipped({"weights": os.urandom(3000)}))
    content[500] ^= 0xFF
    return bytes(content)


def _twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    return buffer.getvalue()


ODD = {
    "no zip": (lambda: b"no zip at all", "is no .zip of a model's folder"),
    "cut short": (lambda: zipped({"a": os.urandom(5000)})[:-100], "is no .zip of a model's folder"),
    "a link": (lambda: zipped({"link": b"/etc/passwd"}, link=0o120777), "which is no plain file"),
    "a bomb": (lambda: zipped({"big": bytes(40 << 20)}), "would become 1 files of 41943040 bytes"),
    "many files": (lambda: zipped({f"{n}": b"" for n in range(10_001)}), "would become 10001 files"),
    "empty": (lambda: zipped({"folder/": b""}), "holds no file"),
    "damaged": (_broken_crc, "is no .zip of a model's folder"),
    "twice": (_twice, "a name stands twice"),
    "file and folder": (lambda: zipped({"a": b"1", "a/b": b"2"}), "a name stands twice"),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_zip_is_refused(node, what):
    make, error = ODD[what]
    with pytest.raises(ModelError, match=error):
        node.order(node.offer(2, make(), file="net.zip"))
    assert node.active["version"] == 1
    assert node.leftovers == []


def test_a_job_whose_model_is_a_folder_is_not_fetched_anew(node, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    node.job_model, node.folder = folder, tmp_path / "other"
    node.begin()
    node.order(node.offer(1, zipped({"saved_model.pb": b"graph"}), file="saved.zip"))
    assert node.hub.requests == []
    assert node.active["version"] == 1


# --- a version that does not load


def test_a_version_that_does_not_load_gives_way_to_the_one_before_and_is_told(node):
    second = node.offer(2, b"second")
    node.order(second)
    node.store.failed_to_load(LoadError(version=2, error="unknown operator"))
    assert node.active["version"] == 1
    state = node.store.state()
    assert (state.active, state.error.version, state.error.error) == (1, 2, "unknown operator")
    node.begin()
    node.order(second)  # the hub does not know yet, also after a restart
    assert node.active["version"] == 1
    assert node.store.state().error.version == 2
    node.order(node.offer(3, b"third"))
    assert node.active["version"] == 3
    assert node.store.state().error is None
    assert node.store.state().previous == 1


def test_what_is_said_of_another_version_changes_nothing(node):
    node.order(node.offer(2, b"second"))
    node.store.failed_to_load(LoadError(version=1, error="late"))
    node.store.failed_to_load(LoadError(version=2, error="once"))
    node.store.failed_to_load(LoadError(version=2, error="again"))
    assert node.active["version"] == 1
    assert node.store.state().error.error == "once"


def test_an_only_version_that_does_not_load_stays_and_is_told(node):
    node.store.failed_to_load(LoadError(version=1, error="no runtime"))
    assert node.active["version"] == 1
    assert node.store.state().error.error == "no runtime"
    node.order(node.offer(2, b"second"))
    assert node.active["version"] == 2
    assert node.store.state().error is None
