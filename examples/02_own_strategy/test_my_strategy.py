# SPDX-License-Identifier: Apache-2.0
"""What a strategy's own tests may look like: the contract that every strategy keeps, then what is special here."""

import pytest
from my_strategy import ClippedFedAvg

from solar_corona import check_strategy
from solar_corona.strategies import create


@pytest.mark.parametrize("max_norm", [0.001, 1.0, 1000.0])
def test_it_keeps_the_contract(max_norm: float) -> None:
    check_strategy(lambda: ClippedFedAvg(max_norm=max_norm))


def test_the_options_of_a_job_reach_it() -> None:
    strategy = create("my_strategy:ClippedFedAvg", {"max_norm": 0.5}, min_edges=3)
    assert isinstance(strategy, ClippedFedAvg)
    assert strategy.max_norm == 0.5
    assert strategy.min_train_nodes == 3


@pytest.mark.parametrize("max_norm", [0, -1, float("nan")])
def test_a_norm_that_is_not_above_zero_is_refused(max_norm: float) -> None:
    with pytest.raises(ValueError, match="max_norm"):
        ClippedFedAvg(max_norm=max_norm)
