# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from solar_corona.core.files import sha256_of
from solar_corona.local_controller import datasets
from solar_corona.local_controller.datasets import DatasetIndex

from .hubs import SimulatedClock


@pytest.fixture
def indexed(tmp_path):
    """Index what is at a path, with what was indexed before."""

    def index(path, clock=None):
        found = DatasetIndex({"data": path}, tmp_path / "datasets.json", clock=clock or SimulatedClock())
        found.refresh()
        return found.summary()["data"]

    return index


def counts(splits):
    return {name: (split["count"], split["classes"], split["error"]) for name, split in splits.items()}


X, Y = np.zeros((5, 2, 2), np.uint8), np.array([0, 1, 1, 7, 1])


def test_an_npz_is_counted_by_class(indexed, tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    found = indexed(tmp_path / "a.npz")
    assert counts(found) == {"all": (5, {"0": 1, "1": 3, "7": 1}, "")}
    assert found["all"]["sha256"] == sha256_of(tmp_path / "a.npz")
    assert found["all"]["bytes"] == (tmp_path / "a.npz").stat().st_size
    assert found["all"]["since"] == 1e9


def test_splits_within_an_npz_and_within_a_folder_are_found(indexed, tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2])
    assert counts(indexed(tmp_path / "a.npz")) == {
        "train": (5, {"0": 1, "1": 3, "7": 1}, ""),
        "test": (2, {"0": 1, "1": 1}, ""),
    }
    folder = tmp_path / "parts"
    (folder / "eval" / "cat").mkdir(parents=True)
    (folder / "eval" / "cat" / "1.png").write_bytes(b"counted, not read")
    (folder / "train.csv").write_text("a,kind\n1,dog\n2,cat\n3,dog\n")
    np.save(folder / "test.npy", X)
    assert counts(indexed(folder)) == {
        "eval": (1, {"cat": 1}, ""),
        "train": (3, {"cat": 1, "dog": 2}, ""),
        "test": (5, {}, ""),
    }


def test_data_that_changes_has_a_new_fingerprint_and_that_which_stays_is_not_read_again(indexed, tmp_path, monkeypatch):
    path, clock = tmp_path / "a.npz", SimulatedClock()
    np.savez(path, x=X, y=Y)
    before = indexed(path, clock)
    clock.passed = 100.0
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "sha256_of", lambda path: pytest.fail("was read again"))
        assert indexed(path, clock) == before
    np.savez(path, x=X[:4], y=Y[:4])
    after = indexed(path, clock)
    assert after["all"]["count"] == 4
    assert after["all"]["since"] == 1e9 + 100
    assert after["all"]["sha256"] != before["all"]["sha256"]


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b"PK no zip"), "is no .npz file, or is damaged"),
        (lambda path: np.savez(path, x=X, y=Y[:3]), "x has 5 samples and y 3 labels; expected one for each"),
        (lambda path: np.savez(path, a=X), "there is no array 'y'"),
        (lambda path: np.savez(path, y=Y), "its array 'x' is missing or damaged"),
    ],
)
def test_data_that_cannot_be_used_is_told_of_and_stops_nothing(indexed, tmp_path, write, error):
    write(tmp_path / "a.npz")
    split = indexed(tmp_path / "a.npz")["all"]
    assert error in split["error"]
    assert split["count"] is None


def test_a_folder_that_is_no_dataset_and_a_table_too_large_are_told_of(indexed, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert "has no sub-folder" in indexed(tmp_path / "empty")["all"]["error"]
    monkeypatch.setattr(datasets, "_MOST_TABLE_BYTES", 3)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    assert "has more than 3 bytes and is not counted" in indexed(tmp_path / "a.csv")["all"]["error"]


def test_a_damaged_index_is_made_anew(indexed, tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    (tmp_path / "datasets.json").write_text("{")
    assert indexed(tmp_path / "a.npz")["all"]["count"] == 5


def test_more_classes_than_a_heartbeat_should_carry_are_left_out(indexed, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((1500, 1)), y=np.arange(1500))
    assert counts(indexed(tmp_path / "a.npz")) == {"all": (1500, {}, "")}
