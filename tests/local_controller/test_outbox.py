# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import resource
import sqlite3
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from solar_corona.core.errors import InterruptedJobError, PlatformError, TemporaryError
from solar_corona.core.hub_messages import PIECE, Label, Observation
from solar_corona.lib.sample_records import SampleRecord, encode_record, pack_encoded, sample_id_of, unpack
from solar_corona.local_controller.outbox import Outbox
from solar_corona.local_controller.outbox_changes import cost_of
from solar_corona.local_controller.store_lock import locked

MIB = 1 << 20


def sample(content: bytes, reason: str = "hard", at: float = 1e9) -> tuple[SampleRecord, bytes]:
    id_ = sample_id_of(content)
    return SampleRecord(id_, "application/octet-stream", len(content), "camera", 1, at, reason), content


def cost(pair) -> int:
    return cost_of(encode_record(pair[0]), pair[1])


@contextmanager
def opened(path: Path, max_bytes: int = 16 * MIB):
    outbox = Outbox(path, max_bytes=max_bytes)
    try:
        yield outbox
    finally:
        outbox.close()


@pytest.fixture
def outbox(tmp_path):
    with opened(tmp_path / "outbox.db") as opened_outbox:
        yield opened_outbox


def add(outbox: Outbox, *samples):
    return [receipt.outcome for receipt in outbox.add(list(samples)).result(20)]


def waiting(outbox: Outbox) -> list[str]:
    found, after = [], 0
    while batch := outbox.samples(after=after, most=100, most_bytes=MIB):
        found += [each.id for each in batch]
        after = batch[-1].seq
    return found


# --- what may leave, and in which order

RANKS = {"hard": 0, "degraded": 0, "asked": 1, "random": 2}


class OutboxModel(RuleBasedStateMachine):
    """The outbox beside a list in memory that follows the stated policy."""

    @initialize(kib=st.integers(4, 24))
    def begin(self, kib):
        self.folder = Path(os.environ["PYTEST_OUTBOX"]) / os.urandom(6).hex()
        self.folder.mkdir()
        self.max_bytes = kib * 1024
        self.outbox = Outbox(self.folder / "outbox.db", max_bytes=self.max_bytes)
        self.queue: list[tuple[int, str, int]] = []  # rank, id, cost; in the order of arrival
        self.labels: dict[int, int] = {}
        self.observations: dict[int, int] = {}
        self.sent: set[str] = set()
        self.sent_labels: set[int] = set()
        self.counters = {"uploaded": 0, "evicted": 0, "refused": 0}

    def teardown(self):
        if hasattr(self, "outbox"):
            self.outbox.close()

    @property
    def used(self):
        return sum(c for _, _, c in self.queue) + sum(self.labels.values()) + sum(self.observations.values())

    def make_room(self, wanted: int, most_rank: int) -> bool:
        leaving = sorted((each for each in self.queue if each[0] <= most_rank), key=lambda each: each[0])
        old = sorted(self.observations) if most_rank >= 3 else []
        free = self.max_bytes - self.used
        if free + sum(c for _, _, c in leaving) + sum(self.observations[seq] for seq in old) < wanted:
            return False
        while self.max_bytes - self.used < wanted:
            self.counters["evicted"] += 1
            if leaving:
                self.queue.remove(leaving.pop(0))
            else:
                del self.observations[old.pop(0)]
        return True

    @rule(
        drawn=st.lists(
            st.tuples(st.integers(0, 40), st.integers(0, 4000), st.sampled_from(sorted(RANKS))), min_size=1, max_size=6
        )
    )
    def samples_arrive(self, drawn):
        samples = [sample(b"%d:" % name + bytes(size), reason) for name, size, reason in drawn]
        outcomes = add(self.outbox, *samples)
        for pair, outcome in zip(samples, outcomes, strict=True):
            record = pair[0]
            if record.id in self.sent or record.id in {id_ for _, id_, _ in self.queue}:
                assert outcome == "known"
            elif self.make_room(cost(pair), RANKS[record.reason]):
                assert outcome == "stored"
                self.queue.append((RANKS[record.reason], record.id, cost(pair)))
            else:
                assert outcome == "refused"
                self.counters["evicted"] += 1

    @rule(number=st.integers(0, 30), length=st.integers(0, 900))
    def a_label_arrives(self, number, length):
        label = Label(sample=sample_id_of(b"%d" % number), value=f"{number}" + "x" * length, at=5.0)
        (receipt,) = self.outbox.add_labels([label]).result(20)
        key = (number, length)
        if key in self.labels or key in self.sent_labels:
            assert receipt.outcome == "known"
        elif self.make_room(wanted := cost_of(label.model_dump_json().encode()), 3):
            assert receipt.outcome == "stored"
            self.labels[key] = wanted
        else:
            assert receipt.outcome == "later"

    @rule(seq=st.integers(0, 60))
    def an_observation_arrives(self, seq):
        observation = Observation(
            seq=seq, version=2, reference=1, at=1.0, agrees=True, confidence=0.5, reference_confidence=0.5
        )
        new = self.outbox.add_observations([observation]).result(20)
        if seq in self.observations:
            assert new == 0
        elif self.make_room(wanted := cost_of(observation.model_dump_json().encode()), 3):
            assert new == 1
            self.observations[seq] = wanted
        else:
            assert new == 0
            self.counters["evicted"] += 1

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def the_hub_takes_or_refuses_samples(self, data):
        chosen = data.draw(st.lists(st.sampled_from(self.queue), unique=True, max_size=5))
        half = len(chosen) // 2
        taken, refused = [id_ for _, id_, _ in chosen[half:]], [id_ for _, id_, _ in chosen[:half]]
        self.outbox.settle(taken=taken, refused=refused).result(20)
        self.queue = [each for each in self.queue if each not in chosen]
        self.sent |= {*taken, *refused}
        self.counters["uploaded"] += len(taken)
        self.counters["refused"] += len(refused)

    @rule()
    def labels_and_observations_are_taken(self):
        self.outbox.settle_labels(taken=[each.id for each in self.outbox.labels(after=0, most=100)]).result(20)
        self.outbox.settle_observations([each.seq for each in self.outbox.observations(after=-1, most=3)]).result(20)
        self.sent_labels |= set(self.labels)
        self.labels = {}
        self.observations = dict(sorted(self.observations.items())[3:])

    @rule()
    def the_process_begins_anew(self):
        self.outbox.close()
        self.outbox = Outbox(self.folder / "outbox.db", max_bytes=self.max_bytes)

    @invariant()
    def the_outbox_is_what_the_policy_says(self):
        if not hasattr(self, "outbox"):
            return
        assert waiting(self.outbox) == [id_ for _, id_, _ in self.queue]
        assert [each.seq for each in self.outbox.observations(after=-1, most=100)] == sorted(self.observations)
        assert len(self.outbox.labels(after=0, most=100)) == len(self.labels)
        state = self.outbox.state()
        assert state.bytes == self.used <= self.max_bytes
        assert state.queued == len(self.queue)
        assert {name: getattr(state, name) for name in self.counters} == self.counters


def test_the_outbox_keeps_and_lets_go_of_what_its_policy_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_OUTBOX", str(tmp_path))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(OutboxModel, settings=settings(max_examples=25, stateful_step_count=30, deadline=None))


def test_hard_samples_leave_before_random_ones_and_older_before_newer(tmp_path):
    names = [b"hard, old", b"random", b"hard, new", b"asked"]
    reasons = ["hard", "random", "hard", "asked"]
    samples = [sample(n + bytes(2000), r) for n, r in zip(names, reasons, strict=True)]
    left = []
    for room in (4, 3, 2, 1):
        with opened(tmp_path / f"{room}.db", room * 2900) as outbox:
            for each in samples:
                add(outbox, each)
            left.append(
                {content[:-2000].decode() for _, content in samples if sample_id_of(content) in waiting(outbox)}
            )
    assert left == [
        {"hard, old", "random", "hard, new", "asked"},
        {"random", "hard, new", "asked"},
        {"random", "asked"},
        {"random"},
    ]


def test_a_hard_sample_does_not_push_out_a_random_one(tmp_path):
    with opened(tmp_path / "outbox.db", 4096) as outbox:
        assert add(outbox, sample(b"r" * 2500, "random")) == ["stored"]
        (receipt,) = outbox.add([sample(b"h" * 2500)]).result(20)
        assert receipt.outcome == "refused"
        assert "full of what stays longer" in receipt.reason
        assert outbox.state().evicted == 1


def test_a_sample_that_was_sent_is_not_sent_again_also_after_a_restart(tmp_path):
    first = sample(b"seen twice")
    with opened(tmp_path / "outbox.db") as outbox:
        add(outbox, first)
        outbox.settle(taken=[first[0].id]).result(20)
        assert add(outbox, first) == ["known"]
    with opened(tmp_path / "outbox.db") as outbox:
        assert add(outbox, first) == ["known"]
        assert outbox.state().queued == 0
        assert outbox.state().uploaded == 1


def test_what_was_sent_is_remembered_in_a_bounded_space(tmp_path):
    with opened(tmp_path / "outbox.db", 64 << 10) as outbox:  # so remembers 32
        pairs = [sample(b"%d" % number) for number in range(40)]
        for pair in pairs:
            add(outbox, pair)
            outbox.settle(taken=[pair[0].id]).result(20)
        assert add(outbox, pairs[0], pairs[-1]) == ["stored", "known"]


def test_the_file_stays_near_the_bound(tmp_path):
    with opened(tmp_path / "outbox.db", 4 * MIB) as outbox:
        for _ in range(60):
            add(outbox, *(sample(os.urandom(4096)) for _each in range(64)))
        assert outbox.state().bytes <= 4 * MIB
        assert outbox.state().evicted > 2000
    assert (tmp_path / "outbox.db").stat().st_size < 4 * MIB * 4 // 3


def test_a_batch_ends_at_its_bytes_and_a_large_content_comes_alone_and_in_parts(outbox):
    small, large = [sample(b"%d" % n + bytes(1000)) for n in range(4)], sample(os.urandom(PIECE + 5))
    add(outbox, *small[:3], large, small[3])
    batches, after = [], 0
    while batch := outbox.samples(after=after, most=100, most_bytes=3000):
        batches.append([each.id for each in batch])
        after = batch[-1].seq
        if batch[0].size > PIECE:
            assert batch[0].content == b""
            parts = [outbox.content(batch[0].seq, begin, 400_000) for begin in range(0, PIECE + 5, 400_000)]
            assert b"".join(parts) == large[1]
        else:
            frame = pack_encoded((each.record, each.content) for each in batch)
            assert [content for _, content in unpack(frame)] == [each.content for each in batch]
    assert batches == [[s[0].id for s in some] for some in (small[:2], small[2:3], [large], small[3:])]
    assert outbox.content(10**6, 0, 10) is None


# --- the disk, and the file


@contextmanager
def files_limited_to(size: int):
    """No file may grow beyond `size`, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(folder: Path) -> None:
    """Leave no byte of the disk."""
    descriptor = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        for size in (4096, 1):
            with suppress(OSError):
                while True:
                    os.write(descriptor, bytes(size))
    finally:
        os.close(descriptor)


def test_on_a_full_disk_nothing_is_kept_in_part_and_afterwards_all_goes_on(tmp_path):
    with opened(tmp_path / "outbox.db") as outbox:
        before = [sample(os.urandom(4096)) for _ in range(50)]
        add(outbox, *before)
        with files_limited_to(600_000):
            with pytest.raises(TemporaryError, match=r"outbox\.db: cannot be written .* free some space in"):
                outbox.add([sample(os.urandom(4096)) for _ in range(300)]).result(20)
            assert waiting(outbox) == [record.id for record, _ in before]
            outbox.settle(taken=[before[0][0].id]).result(20)  # which makes room, and needs little itself
        after = sample(b"after")
        assert add(outbox, after) == ["stored"]
        assert waiting(outbox) == [record.id for record, _ in (*before[1:], after)]
        assert outbox.state().queued == 50
        assert outbox.state().evicted == 0
    with opened(tmp_path / "outbox.db") as outbox:
        assert len(waiting(outbox)) == 50


def test_a_damaged_file_is_put_aside_and_told_about(tmp_path):
    (tmp_path / "outbox.db").write_bytes(b"no database at all" * 1000)
    with opened(tmp_path / "outbox.db") as outbox:
        assert add(outbox, sample(b"goes on")) == ["stored"]
        assert "the outbox was damaged" in outbox.state().trouble
    assert (tmp_path / "outbox.damaged.db").read_bytes().startswith(b"no database")


def test_a_file_of_a_newer_release_is_left_alone(tmp_path):
    with opened(tmp_path / "outbox.db"):
        pass
    with sqlite3.connect(tmp_path / "outbox.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(PlatformError, match=r"is of a newer release \(form 99, this release knows 1\); install that"):
        Outbox(tmp_path / "outbox.db", max_bytes=MIB)


def test_a_closed_outbox_says_so(tmp_path):
    with opened(tmp_path / "outbox.db") as outbox:
        pass
    with pytest.raises(InterruptedJobError, match="the outbox is closed; start the LocalController again"):
        outbox.add([sample(b"late")]).result(20)


def test_one_change_that_fails_does_not_take_others_with_it(outbox):
    ready = outbox.add([sample(os.urandom(100)) for _ in range(2000)])  # keeps the thread busy, so that a group forms
    bad = outbox._commits.submit(lambda: 1 / 0)
    good = outbox.add([sample(b"good")])
    assert len(ready.result(20)) == 2000
    with pytest.raises(ZeroDivisionError):
        bad.result(20)
    assert [receipt.outcome for receipt in good.result(20)] == ["stored"]


# --- one controller for one store


def test_a_second_controller_on_one_store_is_refused(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom solar_corona.local_controller.store_lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        wanted = rf"{re.escape(str(tmp_path))}: another LocalController \(process {process.pid}\) works .* with --state"
        with pytest.raises(PlatformError, match=wanted), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()
    with locked(tmp_path):  # also after kill -9 it is free
        pass


def test_a_state_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PlatformError, match=r"file/state: cannot be written .* with --state"),
        locked(tmp_path / "file/state"),
    ):
        pass
