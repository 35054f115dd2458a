# SPDX-License-Identifier: Apache-2.0
"""Data that say themselves which task each sample is of."""

from __future__ import annotations

import numpy as np
import pytest

from solar_corona.core.context_document import ContextDocument
from solar_corona.core.errors import DatasetError
from solar_corona.core.spec import DatasetSource, Tasks
from solar_corona.lib import context
from solar_corona.lib.datasets import load_eval_dataset, load_train_dataset, loaded_tasks

X, Y = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])
SEASON = np.array(["warm", "cold", "warm", "cold", "cold", "warm"])


def load(path, attribute="season", load=load_train_dataset, **source):
    document = ContextDocument(
        job="j",
        kind="FederatedLearningJob",
        run="r",
        role="edge",
        worker="edge-0",
        run_folder=str(path.parent),
        train_data=DatasetSource(path=str(path), **source),
        eval_data=DatasetSource(path=str(path), **source),
        tasks=Tasks(task_attribute=attribute),
    )
    with context.using(document):
        return load()


def test_an_array_of_an_npz_file_says_each_samples_task(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y, season=SEASON)
    loaded = load(path)
    assert loaded.tasks.tolist() == SEASON.tolist()
    assert loaded_tasks("trainData").tolist() == SEASON.tolist()
    assert load(path, load=load_eval_dataset).tasks.tolist() == SEASON.tolist()
    assert load(path, attribute=None).tasks is None


def test_train_and_test_pairs_may_have_an_attribute_beside_them(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=X, y_train=Y, season=np.arange(6) % 2)
    assert load(path).tasks.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("last", ["season", "kind"])
def test_a_column_says_it_and_is_no_feature_and_no_label(tmp_path, last):
    names = ["season", "kind"] if last == "kind" else ["kind", "season"]
    rows = [
        ",".join([str(a), str(b), *(s if n == "season" else str(k) for n in names)])
        for (a, b), s, k in zip(X, SEASON, Y, strict=True)
    ]
    path = tmp_path / "a.csv"
    path.write_text("\n".join([f"a,b,{','.join(names)}", *rows]) + "\n")
    loaded = load(path)
    assert loaded.tasks.tolist() == SEASON.tolist()
    np.testing.assert_array_equal(loaded.x, X)
    assert loaded.y.tolist() == Y.tolist()


def test_a_name_that_is_not_there_is_told_with_the_nearest(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y, season=SEASON)
    with pytest.raises(DatasetError, match=r"no array 'seasn'; did you mean 'season'.*tasks\.taskAttribute"):
        load(path, attribute="seasn")


@pytest.mark.parametrize("values", [np.ones((6, 2)), np.linspace(0, 1, 6)])
def test_values_that_name_no_task_are_refused(tmp_path, values):
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y, season=values)
    with pytest.raises(DatasetError, match="expected one whole number or name for each sample"):
        load(path)


def test_an_attribute_of_another_length_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y, season=SEASON[:-1])
    with pytest.raises(DatasetError, match="x has 6 samples and the task attribute 5"):
        load(path)


def test_data_that_can_hold_no_attribute_say_so(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, X)
    with pytest.raises(DatasetError, match="only npz, csv and parquet can hold"):
        load(path)
