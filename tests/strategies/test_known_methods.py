# SPDX-License-Identifier: Apache-2.0
"""IFCA, CFL, PACFL, FL+HC and Ditto: each keeps the contract and finds what it is known to find."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord

from benchmarks._simulation import simulate
from solar_corona.core.errors import DatasetError, StrategySpecError
from solar_corona.core.spec import Compression
from solar_corona.fl_client.survey import Survey
from solar_corona.lib.exchange import read_order
from solar_corona.lib.flower_objects import identify_as_server
from solar_corona.lib.questions import Response
from solar_corona.lib.records import arrays_in
from solar_corona.lib.subspaces import ClassSubspaces
from solar_corona.strategies import available, check_strategy, create
from solar_corona.strategies.checks import _record, _reply, _weights
from solar_corona.strategies.nodes import ReadyNodes
from solar_corona.strategies.state import restore, state_of
from solar_corona.tests.strategies.fleets import Pulled, by_task, edge, finals, fleet, groups_in, samples, warnings_in

OURS = [info.name for info in available() if info.origin == "Solar Corona"]
# What lets a few rounds be enough.
GROUPING = {
    "ifca": {"groups": 2},
    "cfl": {"warm_rounds": 1},
    "pacfl": {},
    "fl-hc": {"warm_rounds": 1},
}


def make(name, rounds=8, fraction=1.0, **options):
    return create(name, options, min_edges=1, fraction=fraction, job={"rounds": rounds})


@pytest.mark.parametrize("base", ["fedavg", "fedadam"])
@pytest.mark.parametrize("name", OURS)
def test_each_strategy_of_ours_keeps_the_contract_with_any_base(name, base):
    options = {} if name == "fedavg" else {"base": base}
    check_strategy(lambda: create(name, options, min_edges=2))


@pytest.mark.parametrize("name", GROUPING)
def test_two_tasks_are_told_apart_and_each_edge_has_its_own_tasks_model(name):
    run = simulate(fleet(), make(name, **GROUPING[name]), rounds=8)
    first, second = by_task(run)
    assert len(first) == len(second) == 1
    assert first != second
    assert min(e.metrics["accuracy"] for e in finals(run).values()) > 0.9


@pytest.mark.parametrize("name", GROUPING)
def test_a_restored_strategy_goes_on_as_one_that_was_not_interrupted(name):
    first, again = (make(name, base="fedadam", **GROUPING[name]) for _ in range(2))
    simulate(fleet(), first, rounds=4)
    restore(again, state_of(first))
    for each in (f"edge-{i}" for i in range(8)):
        expected, got = first.content_for(each)["arrays"], again.content_for(each)["arrays"]
        for one, other in zip(expected.to_numpy_ndarrays(), got.to_numpy_ndarrays(), strict=True):
            np.testing.assert_array_equal(one, other)
    run = simulate(fleet(), again, rounds=2)
    assert run.nodes.keys() == finals(run).keys()


@pytest.mark.parametrize("name", [*GROUPING, "ditto"])
def test_sampled_edges_and_ones_that_come_and_go_are_enough(name):
    edges = [
        edge(f"edge-{i}", i % 2, i, here=lambda r, i=i: i < 6 or r == 10 or r % 3 != i % 3, kind=Pulled)
        for i in range(8)
    ]
    late = edge("edge-9", 1, 99, here=lambda r: r >= 9, kind=Pulled)
    strategy = make(name, rounds=10, fraction=0.75, **GROUPING.get(name, {}))
    run = simulate([*edges, late], strategy, rounds=10, min_edges=3)
    asked = {e.asked for e in run.events if e.event == "round-finished"}
    assert max(asked) < 8
    assert finals(run).keys() == {"edge-9", *(f"edge-{i}" for i in range(8))}
    if name == "pacfl":
        assert groups_in(run)["edge-9", "all"] == groups_in(run)["edge-1", "all"]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("ifca", {"groups": 0}, "groups is 0, expected a whole number from 1; set it under aggregation.options"),
        ("ifca", {"spread": 2}, "spread is 2, expected a number above 0, up to 1"),
        ("cfl", {"eps1": -1.0}, r"eps1 is -1.0, expected a number above 0"),
        ("cfl", {"gamma_max": 1}, "gamma_max is 1, expected a number from 0 to below 1"),
        ("cfl", {"linkage": "ward"}, "linkage is 'ward', expected single or complete"),
        ("pacfl", {"p": 0}, "p is 0, expected a whole number from 1 to 100"),
        ("pacfl", {"measure": "euclid"}, "measure is 'euclid', expected one of smallest, trace"),
        ("fl-hc", {"metric": "l1"}, "metric is 'l1', expected one of cosine, euclidean, manhattan"),
        ("fl-hc", {"linkage": "ward"}, "linkage is 'ward', expected ward with metric euclidean only"),
        ("fl-hc", {"warm_rounds": -1}, "warm_rounds is -1, expected a whole number from 0"),
        ("ditto", {"lam": 0}, "lam is 0, expected a number above 0"),
        ("ditto", {"finetune": -1}, "finetune is -1, expected a whole number from 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_before_the_job_starts(name, options, told):
    with pytest.raises(StrategySpecError, match=told):
        create(name, options)


@pytest.mark.parametrize("name", [n for n in OURS if n != "fedavg"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"base_options": {"nope": 1}}, "strategy 'fedavg' has no option 'nope'"),
        ({"base": "fedavgg"}, "there is no strategy 'fedavgg'; did you mean 'fedavg'"),
        ({"lamb": 1}, "has no option 'lamb'"),
    ],
)
def test_a_base_strategy_that_cannot_be_made_is_told_before_the_job_starts(name, options, told):
    with pytest.raises(StrategySpecError, match=told):
        create(name, options)


def test_ditto_ends_with_a_model_for_each_edge_that_beats_the_common_one():
    run = simulate(fleet(kind=Pulled, swap=True), make("ditto", lam=0.1), rounds=8)
    ends = finals(run).values()
    assert min(e.metrics["accuracy"] for e in ends) > 0.9
    assert max(e.one_model["accuracy"] for e in ends) < 0.9, "one model cannot name the classes both ways"


def test_subspaces_leave_out_classes_whose_directions_would_be_their_samples():
    x, y = samples(0, 60, 1)
    y[:], y[:3], y[3:7] = 0, 1, 2
    assert sorted(ClassSubspaces.of(x, y, 3).bases) == [0, 2]
    with pytest.raises(DatasetError, match="no class has more than 3 samples that are not all zero"):
        ClassSubspaces.of(x[:1], y[:1], 3)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda r: Response("subspace", "{", r.arrays), "subspaces cannot be read"),
        (lambda r: Response("subspace", r.text, {"bases": r.arrays["bases"] * np.float32("nan")}), "not of length 1"),
        (lambda r: Response("subspace", r.text, {"bases": r.arrays["bases"] * 1000}), "not of length 1"),
        (
            lambda r: Response("subspace", r.text, {"bases": r.arrays["bases"][:-1]}),
            "no subspaces of the expected form",
        ),
        (lambda r: Response("subspace", r.text, {"bases": r.arrays["bases"][:, :-1]}), "are not"),
        (lambda _: Response("subspace", refused="this edge will not say"), "this edge will not say"),
    ],
    ids=["text", "NaN", "scale", "rows", "columns", "refusal"],
)
def test_subspaces_that_cannot_be_used_are_refused_and_the_job_goes_on(broken, told, monkeypatch):
    real = Survey.respond
    monkeypatch.setattr(
        Survey, "respond", lambda self, q: broken(real(self, q)) if self._edge == "edge-3" else real(self, q)
    )
    run = simulate(fleet(), make("pacfl"), rounds=2)
    (text,) = [text for text in warnings_in(run) if text.startswith("edge-3 ")]
    assert text.startswith("edge-3 gave no subspaces that can be used, and goes with the largest group: ")
    assert told in text
    assert "edge-3" in finals(run)


@pytest.mark.parametrize("name", [n for n in OURS if n != "fedavg"])
def test_an_edge_that_comes_back_as_another_node_in_its_round_counts(name):
    identify_as_server(1)
    edges = {1: "edge-0", 2: "edge-1", 3: "edge-2", 77: "edge-1"}
    found = []
    for now in (2, 77):
        strategy = make(name)
        view = ReadyNodes(lambda: [1, 2, 3], edge_of=edges.__getitem__)
        messages = list(strategy.configure_train(1, _record(_weights(0)), ConfigRecord(), view))
        replies = []
        for message in messages:
            node, order = message.metadata.dst_node_id, read_order(message.content)
            key = "arrays" if order is None else order.models[0].key
            source = now if node == 2 else node
            replies.append(_reply(source, _weights(node), samples=10 * node, keys=[key]))
        found.append(strategy.aggregate_train(1, replies)[0].to_numpy_ndarrays())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in OURS if n != "fedavg"])
def test_edges_that_get_the_same_share_one_content_so_that_it_is_packed_once(name):
    identify_as_server(1)
    strategy = make(name, **GROUPING.get(name, {}))
    simulate(fleet(kind=Pulled), strategy, rounds=3)
    view = ReadyNodes(lambda: list(range(1, 9)), edge_of=lambda node: f"edge-{node - 1}")
    arrays = strategy.content_to_save()
    first = next(iter(arrays_in(arrays).values()))
    for configure in (strategy.configure_train, strategy.configure_evaluate):
        messages = list(configure(4, first, ConfigRecord(), view))
        assert len(messages) == 8
        models = {tuple(id(a) for a in arrays_in(m.content).values()) for m in messages}
        assert len({id(m.content) for m in messages}) == len(models) <= 3


@pytest.mark.parametrize(("name", "most"), [("similarity-grouping", 1.4), ("pacfl", 1.4), ("cfl", 1.4), ("ifca", 2.4)])
def test_each_groups_model_is_coded_as_that_of_one_group_is(name, most):
    """Bytes down in a round, beside those of federated averaging; each edge gets one model, or all of ifca."""
    down = []
    options = {"guard_rounds": 0} if name == "similarity-grouping" else GROUPING[name]
    for strategy in (create("fedavg"), make(name, **options)):
        run = simulate(fleet(), strategy, rounds=8, compression=Compression(method="int8"))
        down.append([e.bytes_down for e in run.events if e.event == "round-finished"][-1])
    assert down[1] < most * down[0]
