# SPDX-License-Identifier: Apache-2.0
"""The contract test: green for what works in the round loop, red for each way to break it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

import solar_corona
from solar_corona.core.errors import StrategyError
from solar_corona.strategies import FedAvg, check_strategy, create

CLIP = {"noise_multiplier": 0.0, "clipping_norm": 100.0, "num_sampled_clients": 6}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedavg", {}),
        ("fedadagrad", {}),
        ("fedadam", {}),
        ("fedavgm", {"server_momentum": 0.9}),
        ("fedmedian", {}),
        ("fedprox", {"proximal_mu": 0.1}),
        ("fedtrimmedavg", {}),
        ("fedyogi", {}),
        ("krum", {"num_malicious_nodes": 1}),
        ("multikrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}),
        ("bulyan", {"num_malicious_nodes": 0}),
        ("qfedavg", {"client_learning_rate": 0.1}),
        ("differentialprivacyserversidefixedclipping", {"strategy": "fedavg", **CLIP}),
        ("differentialprivacyclientsidefixedclipping", {"strategy": "fedavg", **CLIP}),
    ],
)
def test_flowers_own_strategies_keep_the_contract(name, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        check_strategy(lambda: create(name, options, min_edges=2))


def test_stock_flower_averaging_keeps_it_and_the_facade_has_the_check():
    solar_corona.check_strategy(FlowerFedAvg)


class Loses(FedAvg):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord(dict(list(arrays.items())[:1])) if arrays else None, metrics


class Rounds(FedAvg):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return None, None
        return ArrayRecord({k: Array(v.numpy().astype(np.int64)) for k, v in arrays.items()}), metrics


class Flattens(FedAvg):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return (ArrayRecord({k: Array(v.numpy().reshape(-1)) for k, v in arrays.items()}) if arrays else None), metrics


class MakesNaN(FedAvg):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return (
            ArrayRecord({k: Array(v.numpy() * np.float32("nan")) for k, v in arrays.items()}) if arrays else None
        ), metrics


class ReturnsNone(FedAvg):
    def aggregate_train(self, server_round, replies):
        return None


class ReturnsNoModel(FedAvg):
    def aggregate_train(self, server_round, replies):
        return None, MetricRecord({})


class ReturnsDict(FedAvg):
    def aggregate_train(self, server_round, replies):
        arrays, _ = super().aggregate_train(server_round, replies)
        return arrays, {"loss": 1.0}


class WantsList(FlowerFedAvg):
    def aggregate_train(self, server_round, replies):
        if len(replies) == 0:
            return None, None
        return super().aggregate_train(server_round, replies)


class NeedsReplies(FlowerFedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert replies, "nothing came"
        return super().aggregate_train(server_round, replies)


class AsksNobody(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        return []


class AsksStrangers(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        messages = super().configure_train(server_round, arrays, config, grid)
        for message in messages:
            message.metadata.dst_node_id = 99
        return messages


class Sends(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        messages = super().configure_train(server_round, arrays, config, grid)
        grid.push_messages(messages)
        return messages


class SendsItsOwn(FlowerFedAvg):
    """Sends what it made itself, with more digits than edges take."""

    mine = None

    def configure_train(self, server_round, arrays, config, grid):
        return super().configure_train(server_round, self.mine or arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None:
            self.mine = ArrayRecord({k: Array(v.numpy().astype(np.float64)) for k, v in arrays.items()})
        return self.mine, metrics


class EvaluatesWrongly(FedAvg):
    def configure_evaluate(self, server_round, arrays, config, grid):
        return super().configure_train(server_round, arrays, config, grid)


class RaisesInEvaluation(FedAvg):
    def aggregate_evaluate(self, server_round, replies):
        raise KeyError("accuracy")


def hides():
    rounds = []

    class Hides(FedAvg):
        """Its memory is where no attribute shows it."""

        def __init__(self):
            super().__init__()
            rounds.append({})
            self._mine = lambda memory=rounds[-1]: memory

        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            if arrays is None:
                return None, None
            memory = self._mine()
            new = {k: v.numpy() + memory.get(k, 0) for k, v in arrays.items()}
            memory.update(new)
            return ArrayRecord({k: Array(v.astype(np.float32)) for k, v in new.items()}), metrics

    return Hides


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Loses, "lost the array dense/bias"),
        (Rounds, "changed the dtype of dense/kernel from float32 to int64"),
        (Flattens, r"changed the shape of dense/kernel from \(4, 3\) to \(12,\)"),
        (MakesNaN, "made values of dense/kernel that are not finite"),
        (ReturnsNone, "aggregate_train raised TypeError"),
        (ReturnsNoModel, "returned no model for six good replies"),
        (ReturnsDict, "must return a MetricRecord or None"),
        (WantsList, "given an iterator that can be read once, raised TypeError"),
        (NeedsReplies, "given no replies, raised AssertionError: nothing came"),
        (AsksNobody, "configure_train returned no message although six edges are there"),
        (AsksStrangers, "a message goes to a node that is not there"),
        (Sends, "configure_train raised NotImplementedError: .*the round loop does the sending"),
        (SendsItsOwn, "a train message of round 2 carries a model that is not of the job's form, which edges refuse"),
        (EvaluatesWrongly, "configure_evaluate must return evaluate messages"),
        (RaisesInEvaluation, "configure_evaluate or aggregate_evaluate raised KeyError"),
        (hides(), "after a restart the strategy goes on differently"),
        (dict, "dict is no flwr.serverapp.strategy.Strategy"),
    ],
)
def test_each_broken_promise_is_named(broken, promise):
    with pytest.raises(StrategyError, match=promise):
        check_strategy(broken)


def test_there_is_a_case_for_each_of_flowers_strategies_that_average_arrays():
    named = {n for n in flower.__all__ if n not in ("Strategy", "Result")}
    elsewhere = {
        "DifferentialPrivacyClientSideAdaptiveClipping",  # needs a metric that only its own client mod sends
        "DifferentialPrivacyServerSideAdaptiveClipping",
        "FedXgbBagging",  # trees, no arrays
        "FedXgbCyclic",
    }
    (mark,) = test_flowers_own_strategies_keep_the_contract.pytestmark
    tested = {case[0] for case in mark.args[1]}
    assert {n.lower() for n in named - elsewhere} <= tested
