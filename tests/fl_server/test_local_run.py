# SPDX-License-Identifier: Apache-2.0
"""A run's folder: one for each run that was started, none for what was refused, and all that a resumed run needs."""

from __future__ import annotations

from contextlib import suppress

import pytest
import yaml

from solar_corona.core.errors import ExitCode, PlatformError, SpecError
from solar_corona.core.job_file import read_job
from solar_corona.core.run_folder import RunState, find_run, runs_of
from solar_corona.fl_server.local_run import prepared


@pytest.fixture
def job(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    (tmp_path / "train.py").write_text("pass\n")
    path = tmp_path / "job.yaml"
    document = {
        "apiVersion": "solar-corona.io/v1alpha1",
        "kind": "FederatedLearningJob",
        "metadata": {"name": "digits"},
        "spec": {"script": "train.py", "edges": [{"name": "a", "trainData": "a.npz"}]},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def _runs(job):
    return [path.name for path in runs_of(job, "digits", None).glob("*") if path.is_dir()]


def _end(folder, phase="failed", code=ExitCode.JOB_FAILED):
    folder.write_state(RunState(job="digits", run=folder.path.name, phase=phase, pid=1, exit_code=int(code)))


def test_a_refused_second_run_leaves_the_running_one_the_last(job):
    with prepared(job, [], resume=False, root=None) as (_, folder):
        for resume in (False, True):
            with (
                pytest.raises(PlatformError, match="job digits is running already"),
                prepared(job, ["spec.aggregation.rounds=9"], resume=resume, root=None),
            ):
                pass
        assert find_run(str(job), None).path == folder.path
        assert read_job(folder.job_file).spec.aggregation.rounds == 5, "the refused run must not touch the running one"
        assert _runs(job) == [folder.path.name]


def test_a_run_in_which_nothing_was_started_leaves_no_folder(job):
    with suppress(PlatformError), prepared(job, [], resume=False, root=None) as (_, folder):
        assert folder.phase() == "starting"
        raise PlatformError("port 1 is in use")
    assert _runs(job) == []


def test_a_run_that_failed_keeps_its_folder(job):
    with suppress(PlatformError), prepared(job, [], resume=False, root=None) as (_, folder):
        _end(folder)
        raise PlatformError("the disk is full")
    assert _runs(job) == [folder.path.name]


def test_a_resumed_run_keeps_what_was_set_and_takes_what_is_set_anew(job):
    with prepared(job, ["spec.aggregation.rounds=60", "spec.aggregation.minEdges=1"], resume=False, root=None) as run:
        _end(run[1])
    with prepared(job, [], resume=True, root=None) as (file, folder):
        assert folder.path == run[1].path
        assert (file.job.spec.aggregation.rounds, file.job.spec.aggregation.min_edges) == (60, 1)
    for rounds in (80, 60):
        with prepared(job, [f"spec.aggregation.rounds={rounds}"], resume=True, root=None) as (file, folder):
            assert (file.job.spec.aggregation.rounds, file.job.spec.aggregation.min_edges) == (rounds, 1)
            assert read_job(folder.job_file).spec.aggregation.rounds == rounds


def test_how_a_run_is_taken_up_again_is_kept_with_it(job):
    command = ["server", "--port", "9443"]
    with prepared(job, [], command=command, resume=False, root=None, edges_here=False) as (_, folder):
        assert folder.read_origin().resume() == f"solar-corona server {job} --port 9443 --resume"


def test_what_succeeded_or_never_was_cannot_be_resumed(job):
    with pytest.raises(SpecError, match="there is no run of"), prepared(job, [], resume=True, root=None):
        pass
    with prepared(job, [], resume=False, root=None) as (_, folder):
        _end(folder, "succeeded", ExitCode.OK)
    with pytest.raises(SpecError, match="nothing to resume"), prepared(job, [], resume=True, root=None):
        pass


def test_a_wrong_job_is_refused_before_a_folder_is_made(job):
    with pytest.raises(SpecError), prepared(job, ["spec.script=nope.py"], resume=False, root=None):
        pass
    assert not (job.parent / ".solar-corona").exists()
