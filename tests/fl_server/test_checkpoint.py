# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disks that fill up and files that rot."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solar_corona.core.errors import ExitCode, PlatformError
from solar_corona.fl_server.checkpoint import Checkpoint, Checkpoints
from solar_corona.lib import exchange


def _checkpoint(number, *, size=4):
    strategy = RecordDict(
        {
            "arrays": exchange.to_arrays({"m": np.full(2, number)}),
            "plain": ConfigRecord({"json": f'{{"round": {number}}}'}),
            "strategy/arrays": ArrayRecord({}),
        }
    )
    arrays = exchange.to_arrays({"w": np.full(size, number, np.float32), "s": np.asarray(2.5)})
    return Checkpoint(number, arrays, strategy, run_id=2**63 + number)


def _saved(folder, *numbers, size=4):
    checkpoints = Checkpoints(folder)
    for number in numbers:
        checkpoints.save(_checkpoint(number, size=size))
    checkpoints.flush()
    checkpoints.close()
    return Checkpoints(folder)


def _same(one, other):
    assert (one.round, one.run_id) == (other.round, other.run_id)
    assert {k: a.data for k, a in one.arrays.items()} == {k: a.data for k, a in other.arrays.items()}
    assert list(one.strategy) == list(other.strategy)
    for key, record in other.strategy.items():
        assert dict(one.strategy[key]) == dict(record)


def test_what_is_saved_is_loaded_as_it_was(tmp_path):
    found = _saved(tmp_path / "checkpoint", 1).load()
    _same(found, _checkpoint(1))


def test_there_is_none_before_the_first(tmp_path):
    assert Checkpoints(tmp_path / "none").load() is None


def test_two_are_kept_and_the_newest_is_loaded(tmp_path):
    checkpoints = _saved(tmp_path, *range(1, 13))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000011.bin", "round-000012.bin"]
    assert checkpoints.load().round == 12


def test_a_model_larger_than_one_part_is_kept_whole(tmp_path, monkeypatch):
    from solar_corona.lib import wire

    monkeypatch.setattr(wire, "PART_BYTES", 1000)
    _same(_saved(tmp_path, 1, size=5000).load(), _checkpoint(1, size=5000))


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 5000])
def test_where_the_newest_is_damaged_the_one_before_is_loaded(tmp_path, damage):
    checkpoints = _saved(tmp_path, 1, 2)
    (tmp_path / "round-000002.bin").write_bytes(damage)
    assert checkpoints.load().round == 1
    (tmp_path / "round-000001.bin").write_bytes(damage)
    assert checkpoints.load() is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_flipped_byte_anywhere_or_any_cut_is_seen(tmp_path, data):
    checkpoints = _saved(tmp_path, 1)
    path = tmp_path / "round-000001.bin"
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(flipped))
    assert checkpoints.load() is None
    path.write_bytes(whole[:at])
    assert checkpoints.load() is None
    path.write_bytes(whole)
    assert checkpoints.load() is not None


def test_a_half_written_file_of_a_killed_server_is_passed_over(tmp_path):
    checkpoints = _saved(tmp_path, 1)
    (tmp_path / ".tmp-0123.bin").write_bytes(b"half")
    (tmp_path / "round-000009.bin").mkdir()
    assert checkpoints.load().round == 1


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from flwr.app import RecordDict
from solar_corona.core.errors import PlatformError
from solar_corona.fl_server.checkpoint import Checkpoint, Checkpoints
from solar_corona.lib import exchange
checkpoints = Checkpoints(Path(sys.argv[1]))
def save(number, size):
    checkpoints.save(Checkpoint(number, exchange.to_arrays({"w": np.zeros(size, np.uint8)}), RecordDict(), 1))
save(1, 1000)
checkpoints.flush()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
save(2, 100_000)
try:
    save(3, 1000)
except PlatformError as error:
    print(error)
checkpoints.close()
print(checkpoints.load().round)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE") or not hasattr(signal, "SIGXFSZ"), reason="no such limit")
def test_a_full_disk_is_told_with_the_next_round_and_the_last_checkpoint_stays(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    told, last = ran.stdout.strip().splitlines()
    assert "the disk is full, or a quota is reached; free some space" in told
    assert last == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001.bin"]


def test_a_folder_that_cannot_be_made_is_the_machines_fault(tmp_path):
    (tmp_path / "checkpoint").write_text("a file")
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    checkpoints.save(_checkpoint(1))
    with pytest.raises(PlatformError) as caught:
        checkpoints.flush()
    assert caught.value.exit_code is ExitCode.PLATFORM
    checkpoints.flush()  # told once
    checkpoints.close()
