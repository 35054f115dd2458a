# SPDX-License-Identifier: Apache-2.0
"""Counting what a loader holds, without any framework."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from solar_corona.core.errors import DatasetError
from solar_corona.fl_client.loaders import first_batch, is_arrays, summarize


class Batches:
    """What a `keras.utils.PyDataset` is: batches by number, with an IndexError nowhere."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i % len(self.batches)]


class Endless:
    """What `tf.data`'s `.repeat()` is."""

    def cardinality(self):
        return np.int64(-1)

    def __iter__(self):
        return itertools.repeat((np.zeros((4, 2)), np.zeros(4, np.int64)))


def _batch(labels, *, weights=False):
    labels = np.asarray(labels)
    batch = (np.zeros((len(labels), 2)), labels)
    return (*batch, np.ones(len(labels))) if weights else batch


@pytest.mark.parametrize(
    "loader",
    [
        _batch([0, 2, 2, 1, 2]),
        [_batch([0, 2]), _batch([2, 1]), _batch([2], weights=True)],
        Batches(_batch([0, 2, 2]), _batch([1, 2])),
        [list(_batch([0, 2, 2, 1, 2]))],
        _batch(np.asarray([[0], [2], [2], [1], [2]])),
        _batch(np.eye(3)[[0, 2, 2, 1, 2]]),
        _batch(np.asarray([0, 2, 2, 1, 2], np.uint8)),
    ],
    ids=["arrays", "list", "by number", "list batch", "column", "one-hot", "uint8"],
)
def test_samples_and_classes_are_counted(loader):
    found = summarize(loader)
    assert found.samples == 5
    assert found.class_counts is not None
    assert found.class_counts.tolist() == [1, 1, 3]


def test_a_class_without_samples_has_its_place():
    assert summarize(_batch(np.eye(4)[[0, 0]])).class_counts.tolist() == [2, 0, 0, 0]
    assert summarize(_batch([3])).class_counts.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "labels",
    [
        np.asarray([0.5, 1.5]),
        np.asarray([-1, 2]),
        np.asarray([10**9]),
        np.asarray(["cat", "dog"]),
        np.asarray([[0.2, 0.3], [1.0, 2.0]]),
        np.zeros((2, 3, 3), np.int64),
        np.asarray([True, False]),
    ],
    ids=["numbers", "negative", "huge", "words", "no shares", "masks", "truth"],
)
def test_labels_that_are_no_classes_are_counted_as_samples_alone(labels):
    found = summarize((np.zeros((len(labels), 2)), labels))
    assert (found.samples, found.class_counts) == (len(labels), None)


def test_an_edge_with_no_samples_has_none():
    assert summarize(_batch(np.zeros(0, np.int64))).samples == 0
    assert summarize([]).samples == 0
    assert first_batch([]) is None
    assert first_batch(_batch(np.zeros(0))) is None


def test_several_outputs_are_counted_by_the_first():
    x = np.zeros((3, 2))
    assert summarize([(x, {"a": np.zeros(3), "b": np.zeros((3, 4))})]).samples == 3
    assert summarize([(x, (np.zeros(3), np.zeros((3, 4))))]).samples == 3
    assert summarize([({"image": x, "text": x}, np.asarray([0, 1, 1]))]).class_counts.tolist() == [1, 2]


def test_a_loader_that_never_ends_is_refused_unless_its_steps_are_given():
    with pytest.raises(DatasetError, match="repeats for ever; pass steps_per_epoch"):
        summarize(Endless())
    assert summarize(Endless(), limit=3).samples == 12


def test_a_loader_that_can_be_read_once_is_refused_before_it_is_read():
    batches = iter([_batch([0, 1])])
    with pytest.raises(DatasetError, match="can be read only once"):
        summarize(batches)
    assert next(batches)
    with pytest.raises(DatasetError, match="can be read only once"):
        first_batch(_batch([i]) for i in range(2))


@pytest.mark.parametrize("batch", [np.zeros((2, 2)), (np.zeros(2),), {"x": 1}, "text", None, 5])
def test_a_batch_that_is_no_pair_is_told(batch):
    with pytest.raises(DatasetError, match=r"a loader must give batches of \(x, y\), and gave"):
        summarize([batch])


def test_a_pair_of_arrays_is_told_from_a_list_of_batches():
    assert is_arrays((np.zeros(1), np.zeros(1)))
    assert not is_arrays([np.zeros(1), np.zeros(1)])
    assert not is_arrays((np.zeros(1), [0]))
    assert not is_arrays((np.zeros(1),) * 3)
    x = first_batch([_batch([1, 2])])
    assert x[1].tolist() == [1, 2]
