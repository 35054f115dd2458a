# SPDX-License-Identifier: Apache-2.0
"""Tasks in a stream are found without labels of tasks, and none where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from solar_corona.core.errors import DatasetError
from solar_corona.fl_client.task_discovery import Discovered, discover
from solar_corona.lib.signatures import SignatureSpec

SPEC = SignatureSpec()
CENTRES = np.random.default_rng(3).normal(size=(3, 4, 20)) * 1.5


def stream(tasks, seed=0, chunk=10, classes=4, shares=None):
    """Samples in chunks, each chunk of the task that `tasks` names."""
    rng = np.random.default_rng(seed)
    task = np.repeat(tasks, chunk)
    y = rng.choice(classes, len(task), p=shares)
    x = CENTRES[task, y] + rng.normal(size=(len(task), 20))
    return x.astype(np.float32), y.astype(np.int64), task


def found_in(x, y, chunk=10, least=20):
    return discover(x, y, SPEC, chunk=chunk, least=least)(x, y)


def agree(found, task):
    """Whether two divisions are the same but for the tasks' names."""
    pairs = set(zip(found.tolist(), task.tolist(), strict=True))
    return len(pairs) == len({f for f, _ in pairs}) == len({t for _, t in pairs})


@pytest.mark.parametrize("seed", range(4))
def test_two_tasks_that_take_turns_are_told_apart(seed):
    tasks = np.random.default_rng(seed).integers(0, 2, 40)
    x, y, task = stream(tasks, seed)
    assert agree(found_in(x, y), task)


def test_three_tasks_are_told_apart():
    x, y, task = stream(np.arange(60) % 3)
    assert agree(found_in(x, y), task)


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_of_one_task_stays_whole(seed):
    x, y, _ = stream(np.zeros(40, int), seed)
    assert len(discover(x, y, SPEC, chunk=10, least=20).tasks) == 1


def test_rare_classes_do_not_make_tasks():
    shares = [0.85, 0.05, 0.05, 0.05]
    x, y, task = stream(np.arange(40) % 2, shares=shares)
    assert agree(found_in(x, y), task)
    x, y, _ = stream(np.zeros(40, int), shares=shares)
    assert len(discover(x, y, SPEC, chunk=10, least=20).tasks) == 1


def test_without_labels_inputs_tell():
    x, _, task = stream(np.arange(40) % 2, classes=1)
    assert agree(found_in(x, None), task)


def test_a_task_with_too_few_samples_is_no_task():
    x, y, _ = stream(np.array([1] + [0] * 39))
    assert len(discover(x, y, SPEC, chunk=10, least=20).tasks) == 1


@pytest.mark.parametrize("count", [0, 1, 5, 30])
def test_a_short_stream_is_one_task(count):
    x, y, _ = stream(np.arange(6) % 2)
    assert not found_in(x[:count], y[:count]).any()


def test_new_chunks_are_given_to_the_tasks_that_others_found():
    x, y, _ = stream(np.arange(40) % 2)
    tasks = discover(x, y, SPEC, chunk=10, least=20).tasks
    new_x, new_y, task = stream(np.array([1, 1, 0, 1]), seed=9)
    assert agree(Discovered(SPEC, tasks, 10)(new_x, new_y), task)


def test_a_class_that_no_task_has_is_no_reason_to_fail():
    x, y, _ = stream(np.arange(40) % 2)
    tasks = discover(x, y, SPEC, chunk=10, least=20).tasks
    assert set(Discovered(SPEC, tasks, 10)(x[:20], np.full(20, 77))) <= {0, 1}


def test_constant_features_are_one_task():
    assert not found_in(np.ones((200, 5), np.float32), np.zeros(200, np.int64)).any()


def test_inputs_that_are_no_numbers_are_refused():
    with pytest.raises(DatasetError, match="NaN or infinite"):
        found_in(np.full((100, 4), np.nan, np.float32), np.zeros(100, np.int64))
    with pytest.raises(DatasetError, match=r"tasks\.chunk is 1"):
        found_in(np.ones((100, 4), np.float32), np.zeros(100, np.int64), chunk=1)
