# SPDX-License-Identifier: Apache-2.0
"""Whole jobs over a real SuperLink, with real processes."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytestmark = pytest.mark.system


@pytest.mark.parametrize("arguments", [(), ("--in-process",)], ids=["processes", "threads"])
def test_a_job_trains_one_model_and_leaves_it_with_its_card(make_job, arguments):
    job = make_job(edges=2, rounds=3)
    done = job.run(*arguments)
    assert done.returncode == 0, done.stderr + job.logs()
    assert job.rounds() == [1, 2, 3]
    weights = np.load(job.folder / "out/model.npz")
    assert sorted(weights.files) == ["bias", "kernel"]
    card = json.loads((job.folder / "out/model.npz.card.json").read_text())
    assert (card["job"], card["run"], card["worker"]) == ("blobs", job.run_folder().path.name, "server")
    assert card["round"] == 3
    assert card["metrics"]["accuracy"] > 0.9
    evaluations = {e.round: e.metrics["accuracy"] for e in job.events("round-evaluated")}
    assert sorted(evaluations) == [0, 1, 2, 3]
    assert evaluations[3] > evaluations[0]
    job.assert_no_leftovers()
