# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a job is found before anything is started, and nothing of the user's is overwritten."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml

from solar_corona.core.errors import DatasetError, ModelError, PlatformError, SpecError, StrategyError
from solar_corona.core.job_file import read_job_file
from solar_corona.fl_server.job_checks import check_job


@pytest.fixture
def job(tmp_path):
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "a.npz", x=np.ones((2, 2)), y=np.ones(2))
    (tmp_path / "train.py").write_text("pass\n")

    def make(**changes):
        spec = {"script": "train.py", "edges": [{"name": "a", "trainData": "data/a.npz"}], **changes}
        path = tmp_path / "job.yaml"
        document = {
            "apiVersion": "solar-corona.io/v1alpha1",
            "kind": "FederatedLearningJob",
            "metadata": {"name": "digits"},
            "spec": spec,
        }
        path.write_text(yaml.safe_dump(document))
        return read_job_file(path)

    return make


def test_a_job_with_all_it_needs_is_passed(job):
    check_job(job(output={"model": "new/folder/model.keras"}, model="data/a.npz"))


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("job.yaml", "the job file"),
        ("./data/../train.py", "the script"),
        ("data/a.npz", "a's trainData"),
        ("data", "a's trainData"),
        (".", "the job file"),
        ("..", "the job file"),
    ],
)
def test_a_model_never_replaces_what_the_job_reads(job, output, what):
    with pytest.raises(SpecError, match=rf"spec\.output\.model is .*, where {what} is and would be lost; choose"):
        check_job(job(output={"model": output}))


def test_a_model_never_replaces_a_folder_of_other_things(job, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years of work")
    with pytest.raises(SpecError, match=r"notes: is a folder with files that are no model, which would be lost"):
        check_job(job(output={"model": "notes"}))
    (tmp_path / "notes" / "saved_model.pb").write_text("")
    check_job(job(output={"model": "notes"}))


def test_a_pickle_is_refused_before_anything_is_trained(job):
    with pytest.raises(SpecError, match=r"spec\.output\.model: .*\.pth files are pickles"):
        check_job(job(output={"model": "out/model.pth"}))


def test_a_place_that_cannot_be_written_is_told(job, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match=r"file cannot be written \(Not a directory\); choose a folder"):
        check_job(job(output={"model": "file/model.keras"}))


@pytest.mark.skipif(sys.platform != "linux", reason="only there is a folder that not even root may write")
def test_a_folder_that_nobody_may_write_is_told(job):
    with pytest.raises(PlatformError, match=r"/proc cannot be written .*; choose a folder that this user may write"):
        check_job(job(output={"model": "/proc/model.keras"}))


def test_a_model_to_start_from_that_is_not_there_is_told(job):
    with pytest.raises(ModelError, match=r"spec\.model is data/b\.npz, which does not exist; did you mean a\.npz\?"):
        check_job(job(model="data/b.npz"))


@pytest.mark.parametrize(
    ("aggregation", "message"),
    [
        ({"algorithm": "fedagv"}, "did you mean 'fedavg'"),
        ({"algorithm": "mine:Clipped"}, "No module named 'mine'"),
        ({"algorithm": "fedadam", "options": {"etta": 1}}, "did you mean 'eta'"),
        ({"algorithm": "fedadam", "options": {"eta": "large"}}, "eta is 'large', expected a valid number"),
    ],
)
def test_a_strategy_that_cannot_be_made_is_told(job, aggregation, message):
    with pytest.raises(StrategyError, match=message):
        check_job(job(aggregation=aggregation))


def test_the_server_of_edges_elsewhere_needs_neither_their_data_nor_their_script(job, tmp_path):
    there = job(edges=[{"name": "a", "trainData": "elsewhere/a.npz"}], script="there.py", model="there.keras")
    check_job(there, edges_here=False)
    with pytest.raises((DatasetError, SpecError)):
        check_job(there)
    with pytest.raises(SpecError, match="would be lost"):
        check_job(job(output={"model": "job.yaml"}), edges_here=False)
