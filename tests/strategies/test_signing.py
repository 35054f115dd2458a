# SPDX-License-Identifier: Apache-2.0
"""How edges are to sign is agreed on once, and stays."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks._simulation import simulate
from solar_corona.core.errors import StrategySpecError
from solar_corona.lib import exchange
from solar_corona.lib.questions import Question
from solar_corona.lib.signatures import noise_for
from solar_corona.lib.survey import SurveyQuestion
from solar_corona.strategies import create
from solar_corona.strategies.signing import Signing
from solar_corona.tests.strategies.fleets import edge, groups_in


def model(value):
    return exchange.to_arrays({"kernel": np.full((3, 2), value, np.float32), "seen": np.asarray(4, np.int64)})


def asked(signing, value):
    return Question.from_content(signing.question(model(value), None))


def test_every_edge_embeds_by_the_model_that_the_job_had_when_it_asked_first():
    signing = Signing("model", dimension=8)
    first, later = asked(signing, 1.0), asked(signing, 2.0)
    assert first.text == later.text
    assert float(later.arrays["kernel"][0, 0]) == 1.0
    assert SurveyQuestion.of(later)[0].spec == signing.spec, "an edge can check that it has the right one"


def test_a_resumed_server_asks_for_the_same():
    signing, again = Signing("model", dimension=8), Signing("model", dimension=8)
    first = asked(signing, 1.0)
    again.restore(signing.state())
    resumed = asked(again, 2.0)
    assert resumed.text == first.text
    assert float(resumed.arrays["kernel"][0, 0]) == 1.0


def test_signatures_by_other_models_cannot_be_compared():
    one, other, none = Signing("model"), Signing("model"), Signing("random")
    asked(one, 1.0), asked(other, 2.0), asked(none, 1.0)
    assert len({one.spec.identity, other.spec.identity, none.spec.identity}) == 3
    assert not asked(none, 1.0).arrays


def test_an_option_that_does_not_fit_is_told():
    with pytest.raises(StrategySpecError, match="dimension is 5000: input should be less than or equal to 4096; set"):
        Signing("random", dimension=5000)


def test_noise_that_the_job_asks_for_is_on_every_signature_that_leaves_an_edge():
    strategy = create("similarity-grouping", {"noise": noise_for(8.0, 1e-5)}, min_edges=1, job={"rounds": 1})
    run = simulate([edge(f"edge-{i}", 0, 1) for i in range(3)], strategy, rounds=1)
    signed = [task.signature for tasks in strategy._groups.tasks.values() for task in tasks]
    assert all((signature.noise > 0).all() for signature in signed)
    assert len({signature.to_bytes() for signature in signed}) == 3, "though all three have the same samples"
    assert set(groups_in(run).values()) == {"group-1"}
