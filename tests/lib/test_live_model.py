# SPDX-License-Identifier: Apache-2.0
"""Versions of a model change while threads call it: none of their calls is lost, and a bad version changes nothing."""

from __future__ import annotations

import json
import re
import threading
import time

import numpy as np
import pytest

from solar_corona.core.errors import ModelError, WireError
from solar_corona.core.files import write_bytes_atomic
from solar_corona.joint_inference.edge_model import EdgeModel
from solar_corona.lib.hard_samples.worker_counts import WorkerCounts
from solar_corona.lib.live_model import LiveModel, read_wanted
from solar_corona.lib.runners.batches import BatchRunner
from solar_corona.lib.shadow_model import Numbers, ShadowModel
from solar_corona.lib.tensors import TensorSpec


class Version(BatchRunner):
    """Says its number; `odd` ones do as they are told."""

    platform = "numpy"

    def __init__(self, number, *, says=None, width=3, name="x", hold=None):
        self.number, self.says, self.hold, self.closed_while_running = number, says, hold, False
        self.runs, self.closed, self._inside = 0, False, 0
        super().__init__(
            self._answer,
            inputs=(TensorSpec(name, "FP32", (-1, width)),),
            outputs=(TensorSpec("p", "FP32", (-1, 4)),),
            model=f"v{number}",
        )

    def _answer(self, inputs):
        self._inside += 1
        self.runs += 1
        if self.hold is not None:
            self.hold.wait(5)
        answer = np.eye(4, dtype=np.float32)[[self.number % 4] * len(next(iter(inputs.values())))]
        if isinstance(self.says, Exception):
            self._inside -= 1
            raise self.says
        self._inside -= 1
        return {"p": answer if self.says is None else np.full_like(answer, self.says)}

    def close(self):
        self.closed = True
        self.closed_while_running |= self._inside > 0
        super().close()


class Node:
    """What the LocalController leaves for the script, and the versions that its files hold."""

    def __init__(self, folder):
        self.file = folder / "active.json"
        self.versions, self.opened = {}, []

    def order(self, version, shadow=None, sha256="0" * 64):
        before = None if shadow is None else {"version": shadow, "path": f"{shadow}.model"}
        said = {"version": version, "path": f"{version}.model", "sha256": sha256, "canary": bool(shadow)}
        write_bytes_atomic(self.file, json.dumps({**said, "shadow": before}).encode())

    def open(self, path, sha256):
        self.opened.append((path.name, sha256))
        found = self.versions.get(int(path.stem))
        if found is None:
            raise ModelError(f"{path}: there is no such model")
        return found() if callable(found) else found

    def live(self):
        return LiveModel(self.file, self.open)


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr("solar_corona.lib.live_model._EVERY", 0.005)
    return Node(tmp_path)


def until(true, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


def reported(live):
    counts = WorkerCounts(0.0)
    for report in live._reporters:
        report(counts)
    return counts


X = np.zeros(3, np.float32)


def test_a_new_version_answers_soon_after_it_is_ordered(node, monkeypatch):
    monkeypatch.undo()  # as often as it looks in earnest
    first = Version(1)
    node.versions[2] = second = Version(2)
    live = node.live()
    with EdgeModel(first, version=1, live=live) as model:
        assert model.predict(X).argmax() == 1
        node.order(2)
        begin = time.monotonic()
        until(lambda: model.version == 2)
        assert time.monotonic() - begin < 5
        assert model.predict(X).argmax() == 2
        assert reported(live).version == 2
        assert first.closed
        assert second.runs == 2  # one rehearsal
    assert node.opened == [("2.model", "0" * 64)]
    assert second.closed
    assert live._reporters == []


def test_no_call_is_lost_and_no_version_closed_under_one_while_versions_change(node):
    every = {number: Version(number, name=f"x{number}") for number in range(1, 31)}
    node.versions.update(every)
    stop, failures, answers = threading.Event(), [], [0]

    with EdgeModel(every[1], version=1, live=node.live()) as model:

        def call():
            while not stop.is_set():
                try:
                    model.predict(X)
                    answers[0] += 1
                except Exception as error:  # noqa: BLE001
                    failures.append(error)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(2, 31):
            node.order(number)
            until(lambda number=number: model.version == number)
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert answers[0] > 100
    assert all(version.closed and not version.closed_while_running for version in every.values())


def test_another_content_under_the_same_number_is_another_version(node):
    node.versions[2] = lambda: Version(2)
    with EdgeModel(Version(1), version=1, live=node.live()) as model:
        node.order(2)
        until(lambda: model.version == 2)
        first = model._model.serving
        node.order(2, sha256="1" * 64)
        until(lambda: model._model.serving is not first)
        assert model.version == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda: (_ for _ in ()).throw(ModelError("has the SHA-256 1, and sha256 says 2")), "has the SHA-256"),
        (lambda: (_ for _ in ()).throw(MemoryError("too large")), "MemoryError: too large"),
        (lambda: Version(2, says=RuntimeError("no kernel")), "no kernel"),
        (lambda: Version(2, says=np.nan), "no numbers"),
        (lambda: Version(2, width=5), "expected|it takes"),
    ],
)
@pytest.mark.parametrize("warm", [True, False])
def test_a_version_that_cannot_be_used_is_reported_and_the_one_before_goes_on(node, bad, said, warm):
    node.versions[2], node.versions[3] = bad, Version(3)
    live = node.live()
    with EdgeModel(Version(1), version=1, live=live) as model:
        if warm:
            model.predict(X)
        node.order(2)
        until(lambda: live.trouble is not None)
        assert model.predict(X).argmax() == 1
        trouble = reported(live).load_error
        assert trouble.version == 2
        assert re.search(said, trouble.error)
        assert reported(live).version == 1
        # The controller goes back, and later there is a better one.
        node.order(1)
        until(lambda: live.trouble is None)
        node.order(3)
        until(lambda: model.version == 3)
    assert reported(live).load_error is None


def test_a_bad_version_is_not_tried_again_and_again(node, monkeypatch):
    live = node.live()
    with EdgeModel(Version(1), version=1, live=live):
        node.order(2)
        until(lambda: live.trouble is not None)
        looks, look = [], live.look
        monkeypatch.setattr(live, "look", lambda: (looks.append(1), look()))
        until(lambda: len(looks) > 5)
        assert len(node.opened) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version": "2"}', b'{"version": 2, "path": 3, "sha256": "0"}', b"x" * 70_000, b"\xff"],
)
def test_a_damaged_order_changes_nothing_and_is_told_once(node, caplog, content):
    node.file.write_bytes(content)
    with pytest.raises(WireError, match="does not say which version answers"):
        read_wanted(node.file)
    live = node.live()
    assert live.first() is None
    with EdgeModel(Version(1), version=1, live=live) as model:
        live.look()
        live.look()
        assert model.version == 1
    assert sum("does not say" in record.getMessage() for record in caplog.records) == 1


def test_a_script_begins_with_the_version_that_is_ordered_or_else_with_its_own(node, caplog):
    assert node.live().first() is None
    node.order(4)
    assert node.live().first() is None
    assert "version 4 cannot be used" in caplog.text
    node.versions[4] = Version(4)
    assert node.live().first().version == 4


# --- canaries


def shadowing(sent, folder):
    def make(serving, read):
        return ShadowModel(serving, read=read, send=sent.append, numbers=Numbers(folder / "n.seq"))

    return make


def test_a_canary_tells_what_the_version_before_says_of_each_sample(node, tmp_path):
    sent = []
    node.versions.update({2: Version(2), 1: lambda: Version(1, name="other")})
    with EdgeModel(Version(1), version=1, live=node.live(), shadowed=shadowing(sent, tmp_path)) as model:
        node.order(2, shadow=1)
        until(lambda: model._model.beside is not None)
        assert model.predict(np.zeros((2, 3), np.float32)).argmax(1).tolist() == [2, 2]
        until(lambda: len(sent) == 2)
        node.order(2)
        until(lambda: model._model.beside is None)
        model.predict(X)
    assert len(sent) == 2
    one = sent[0]
    assert (one["version"], one["reference"], one["answer"], one["reference_answer"]) == (2, 1, 2, 1)
    assert (one["agrees"], one["error"], one["confidence"], one["sample"]) == (False, False, 1.0, None)
    assert one["milliseconds"] > 0
    assert [each["seq"] for each in sent] == [0, 1]


@pytest.mark.parametrize("says", [RuntimeError("sudden"), np.nan])
def test_where_a_canary_cannot_answer_the_version_before_does_and_it_is_told(node, tmp_path, says):
    sent, odd = [], Version(2)
    node.versions.update({2: odd, 1: Version(1)})
    with EdgeModel(Version(1), version=1, live=node.live(), shadowed=shadowing(sent, tmp_path)) as model:
        node.order(2, shadow=1)
        until(lambda: model._model.beside is not None)
        odd.says = says
        assert model.predict(X).argmax() == 1
        until(lambda: sent)
    assert (sent[0]["error"], sent[0]["version"], sent[0]["agrees"]) == (True, 2, False)


def test_what_neither_version_takes_is_the_samples_fault_and_is_not_told(node, tmp_path):
    sent = []
    node.versions.update({2: Version(2), 1: Version(1)})
    with EdgeModel(Version(1), version=1, live=node.live(), shadowed=shadowing(sent, tmp_path)) as model:
        node.order(2, shadow=1)
        until(lambda: model._model.beside is not None)
        with pytest.raises(ModelError):
            model.predict(np.zeros((1, 7), np.float32))
        model.predict(X)
        until(lambda: sent)
    assert [each["error"] for each in sent] == [False]


def test_a_canary_waits_for_no_shadow(node, tmp_path):
    sent, hold = [], threading.Event()
    node.versions.update({2: Version(2), 1: Version(1, hold=hold)})
    with EdgeModel(Version(1), version=1, live=node.live(), shadowed=shadowing(sent, tmp_path)) as model:
        node.order(2, shadow=1)
        until(lambda: model._model.beside is not None)
        begin = time.perf_counter()
        for _ in range(200):
            model.predict(X)
        assert time.perf_counter() - begin < 4  # the shadow holds each call for 5 s
        hold.set()
        until(lambda: len(sent) >= 32)
    assert len(sent) <= 34


def test_numbers_go_on_over_restarts_and_without_their_file(tmp_path):
    file = tmp_path / "n.seq"
    numbers = Numbers(file)
    assert [numbers.next() for _ in range(1001)][-1] == 1000
    assert Numbers(file).next() == 2000
    file.write_bytes(b"damaged")
    after = Numbers(file).next()
    assert after > 10**15
    assert Numbers(file).next() > after
    (tmp_path / "no").write_bytes(b"")
    lost = Numbers(tmp_path / "no" / "n.seq")
    assert lost.next() < lost.next()
