# SPDX-License-Identifier: Apache-2.0
"""What held-out samples must say before groups, whose signatures differ, train as one."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord

from solar_corona.lib.signatures import SignatureSpec
from solar_corona.strategies import create
from solar_corona.strategies.task_groups import TaskGroups
from solar_corona.strategies.tracks import Track
from solar_corona.strategies.trials import ONE, Trials

MODEL = ArrayRecord({"w": Array(np.zeros(3, np.float32))})


def base():
    return create("fedavg", {}, min_edges=1)


def decided(gains, *, samples=60, metric="accuracy", level=0.8):
    """Return what each group chooses; `gains` are those of each group's edges over one model for all."""
    own, groups = Track("groups", base), TaskGroups(SignatureSpec())
    for group in gains:
        own.ensure(group, MODEL)
    trials = Trials(base, transfer="none", rounds=1, keep_one=False)
    trials.begin(own, groups, MODEL)
    for group, of_edges in gains.items():
        for i, more in enumerate(of_edges):
            for track, value in (("groups", level + more), (ONE, level)):
                trials.measured(f"{group}-{i}", track, group, MetricRecord({metric: value, "num-examples": samples}))
    chosen = {event.group: event.choice for event in trials.decide(1, own, groups)}
    return chosen, list(own.groups)


@pytest.mark.parametrize(
    ("of_edges", "choice"),
    [
        ((0.20, 0.15, 0.22, 0.18), "none"),  # a clear gain
        ((0.10, -0.06, 0.12, -0.08), "none"),  # may be worth much: too few samples to say
        ((0.010, 0.004, -0.006, 0.002), "one"),  # certainly worth next to nothing
        ((-0.10, -0.15, -0.08, -0.12), "one"),  # a loss
    ],
)
def test_a_group_joins_one_model_only_if_being_apart_is_worth_next_to_nothing(of_edges, choice):
    chosen, left = decided({"group-1": of_edges, "group-2": (0.3, 0.3, 0.31, 0.29)})
    assert chosen == {"group-1": choice, "group-2": "none"}
    assert left == ["group-1", "group-2"]


def test_groups_that_gain_nothing_train_as_one_group():
    gains = {"group-1": (0.0,) * 4, "group-2": (0.3,) * 4, "group-3": (-0.2,) * 4}
    assert decided(gains) == ({"group-1": "one", "group-2": "none", "group-3": "one"}, ["group-1", "group-2"])


@pytest.mark.parametrize(("level", "choice"), [(40.0, "one"), (0.2, "none")])
def test_what_is_worth_it_goes_by_the_size_of_the_metric(level, choice):
    lower = (-0.10, -0.09, -0.11, -0.10)
    assert decided({"group-1": lower, "group-2": lower}, metric="loss", level=level)[0]["group-1"] == choice
