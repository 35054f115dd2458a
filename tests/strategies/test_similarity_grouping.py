# SPDX-License-Identifier: Apache-2.0
"""Similar tasks are found and trained together, through the real round loop and real messages."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from benchmarks._simulation import Edge, Mlp, simulate
from solar_corona.core.errors import StrategyError, StrategySpecError, TemporaryError
from solar_corona.core.spec import Tasks
from solar_corona.lib.flower_objects import identify_as_server
from solar_corona.lib.questions import Response
from solar_corona.lib.records import arrays_in
from solar_corona.strategies import FedAvg, check_strategy, create
from solar_corona.strategies.checks import _reply
from solar_corona.strategies.nodes import ReadyNodes
from solar_corona.strategies.state import restore, state_of
from solar_corona.strategies.trials import mean_model
from solar_corona.tests.strategies.fleets import (
    Pulled,
    by_task,
    edge,
    finals,
    fleet,
    groups_in,
    samples,
    warnings_in,
)


def ours(rounds=6, **options):
    return create("similarity-grouping", options, min_edges=1, job={"rounds": rounds})


@pytest.mark.parametrize("base", ["fedavg", "fedadam", "krum"])
def test_it_keeps_the_contract_of_strategies_with_any_base(base):
    check_strategy(lambda: create("similarity-grouping", {"base": base}, min_edges=3))


def test_two_tasks_are_told_apart_without_being_told_and_each_edge_is_better_off():
    run = simulate(fleet(), ours(guard_rounds=2, compare_global=True), rounds=6)
    first, second = by_task(run)
    assert len(first) == len(second) == 1
    assert first != second
    ends = finals(run).values()
    own, one = (np.mean([getattr(e, kind)["accuracy"] for e in ends]) for kind in ("metrics", "one_model"))
    assert own > one + 0.02


def test_edges_that_are_alike_are_one_group_whose_model_is_that_of_the_base_strategy_alone():
    ours_alone = ours(finetune=0)
    run = simulate(fleet(tasks=1), ours_alone, rounds=4)
    assert set(groups_in(run).values()) == {"group-1"}
    plain_fleet = fleet(tasks=1)
    simulate(plain_fleet, create("fedavg", {}), rounds=4)
    content = ours_alone.content_for("edge-0")
    expected = plain_fleet[0].model.get_weights()
    for name, value in content["arrays/groups/group-1"].items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-5, atol=1e-6)


def test_what_a_question_costs_is_among_the_bytes_of_its_round():
    run = simulate(fleet(), ours(guard_rounds=0), rounds=2)
    first, second = (e for e in run.events if e.event == "round-finished")
    (told,) = (e for e in run.events if e.event == "tasks-grouped")
    assert told.signature_bytes == 8 * (14 + 4 * (24 + 2 * 64)), "the head, and four classes of 64 features"
    assert told.signature_bytes < first.bytes_up - second.bytes_up < 2 * told.signature_bytes


def test_the_order_of_edges_does_not_matter():
    forward, backward = (simulate(edges, ours(), rounds=2) for edges in (fleet(), fleet()[::-1]))
    assert _partition(forward) == _partition(backward)


def test_the_same_seeds_give_the_same_groups_and_the_same_models():
    runs = [simulate(fleet(), ours(rounds=3), rounds=3) for _ in range(2)]
    assert groups_in(runs[0]) == groups_in(runs[1])
    for name, node in runs[0].nodes.items():
        (_, first), (_, second) = node.result.weights[0], runs[1].nodes[name].result.weights[0]
        for array, value in first.items():
            # Replies come in any order, and sums of floats differ in their last digits by it.
            np.testing.assert_allclose(value, second[array], atol=1e-5)


def _partition(run):
    found = {}
    for key, group in groups_in(run).items():
        found.setdefault(group, set()).add(key)
    return {frozenset(members) for members in found.values()}


def test_a_late_edge_gets_its_own_tasks_model_without_having_trained():
    late = edge("edge-9", 1, 99, here=lambda r: r >= 5)
    strategy = ours(rounds=5, finetune=0)
    run = simulate([*fleet(), late], strategy, rounds=5, min_edges=8)
    x, y = samples(1, 400, 1234)
    assert groups_in(run)["edge-9", "all"] == groups_in(run)["edge-1", "all"]
    assert late.model.accuracy(x, y) > 0.9


def test_the_first_model_that_a_late_edge_gets_is_its_own_tasks():
    late = edge("edge-9", 1, 99, here=lambda r: r >= 4)
    got = []
    take = late.model.set_weights
    late.model.set_weights = lambda weights: got.append({n: np.array(v) for n, v in weights.items()}) or take(weights)
    run = simulate([*fleet(), late], ours(rounds=6), rounds=6, min_edges=8)
    x, y = samples(1, 400, 1234)
    assert groups_in(run)["edge-9", "all"] == groups_in(run)["edge-1", "all"]
    assert late.model.accuracy(x, y, got[0]) > 0.9, "before it has trained, and though it came in the middle"


def test_an_edge_with_two_tasks_trains_each_in_its_group_and_ends_with_both_models(tmp_path, monkeypatch):
    (tmp_path / "halves.py").write_text(
        "import numpy as np\ndef second_half(x, y):\n    return (np.arange(len(x)) >= len(x) // 2).astype(int)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (xa, ya), (xb, yb) = samples(0, 80, 40), samples(1, 80, 41)
    (ea, fa), (eb, fb) = samples(0, 40, 42), samples(1, 40, 43)
    mixed = Mlp(
        np.concatenate([xa, xb]),
        np.concatenate([ya, yb]),
        np.concatenate([ea, eb]),
        np.concatenate([fa, fb]),
        hidden=16,
        classes=4,
    )
    both = Edge("edge-8", mixed, tasks=Tasks(division="halves:second_half"))
    run = simulate([*fleet(), both], ours(finetune=0), rounds=6)
    groups = groups_in(run)
    assert groups["edge-8", "0"] == groups["edge-0", "all"]
    assert groups["edge-8", "1"] == groups["edge-1", "all"]
    result = run.nodes["edge-8"].result
    assert [tasks for tasks, _ in result.weights] == [(0,), (1,)]
    assert finals(run)["edge-8"].tasks.keys() == {"0", "1"}
    assert min(m["accuracy"] for m in finals(run)["edge-8"].tasks.values()) > 0.9


def test_half_of_the_edges_change_their_task_and_are_in_the_right_group_two_rounds_later():
    edges = fleet()

    def change(number):
        if number != 4:
            return
        for i in (0, 2, 3):
            x, y = samples(1 - i % 2, 120, 900 + i)
            edges[i].model.train_data[0][:], edges[i].model.train_data[1][:] = x, y

    run = simulate(edges, ours(rounds=8), rounds=8, each_round=change)
    told = [e for e in run.events if e.event == "tasks-grouped"]
    moved = next(e for e in told if "changed" in e.reason)
    assert moved.round <= 6
    groups = {t.edge: t.group for t in moved.tasks}
    assert groups["edge-0"] == groups["edge-2"] == groups["edge-1"] == groups["edge-5"]
    assert groups["edge-3"] == groups["edge-4"] == groups["edge-6"]
    before = {t.edge: t.group for t in told[0].tasks}
    assert all(groups[f"edge-{i}"] == before[f"edge-{i}"] for i in (1, 4, 5, 6, 7)), "the others stay"


def test_all_edges_different_train_each_for_itself():
    rng = np.random.default_rng(0)
    edges = []
    for i in range(5):
        centres = rng.normal(size=(4, 12)) * 2
        y = rng.integers(0, 4, 200)
        x = (centres[y] + 0.3 * rng.normal(size=(200, 12))).astype(np.float32)
        edges.append(Edge(f"edge-{i}", Mlp(x[:150], y[:150], x[150:], y[150:], hidden=16, classes=4)))
    run = simulate(edges, ours(guard_rounds=0), rounds=3)
    assert len(set(groups_in(run).values())) == 5


def test_a_restored_strategy_goes_on_with_the_same_groups_models_and_trials():
    strategy = ours(rounds=9, guard_rounds=6)
    simulate(fleet(), strategy, rounds=3)
    again = ours(rounds=9, guard_rounds=6)
    restore(again, state_of(strategy))
    for name in (f"edge-{i}" for i in range(8)):
        expected, got = strategy.content_for(name), again.content_for(name)
        assert list(expected) == list(got)
        for key, record in expected.items():
            if hasattr(record, "to_numpy_ndarrays"):
                for a, b in zip(record.to_numpy_ndarrays(), got[key].to_numpy_ndarrays(), strict=True):
                    np.testing.assert_array_equal(a, b)
    run = simulate(fleet(), again, rounds=5)
    assert not [e for e in run.events if e.event == "tasks-grouped" and "signatures" in e.reason]


def test_one_model_for_all_is_kept_where_groups_gain_nothing():
    """Inputs of other brightness are two groups by their signatures, and one task."""
    edges = fleet(tasks=1)
    for i, each in enumerate(edges):
        if i % 2:
            for x, _ in (each.model.train_data, each.model.eval_data):
                x[:, :6] += 0.8
    run = simulate(edges, ours(rounds=12, guard_rounds=4, finetune=0), rounds=12)
    first = next(e for e in run.events if e.event == "tasks-grouped")
    chosen = [e for e in run.events if e.event == "transfer-chosen"]
    if len({t.group for t in first.tasks}) == 1:
        pytest.skip("the signatures see no difference here")
    assert {e.choice for e in chosen} == {"one"}
    assert len(set(groups_in(run).values())) == 1


def test_options_that_make_no_sense_are_refused_before_the_job_starts():
    with pytest.raises(StrategySpecError, match="transfer is 'all'"):
        ours(transfer="all")
    with pytest.raises(StrategySpecError, match="has no option 'nope'"):
        ours(base_options={"nope": 1})
    with pytest.raises(StrategySpecError, match="no strategy 'fedavgg'"):
        ours(base="fedavgg")
    with pytest.raises(StrategySpecError, match="finetune -1"):
        ours(finetune=-1)


@pytest.mark.parametrize("transfer", ["none", "shared-layers", "borrow"])
def test_each_transfer_can_be_asked_for(transfer):
    run = simulate(fleet(), ours(rounds=4, transfer=transfer), rounds=4)
    assert len(set(groups_in(run).values())) == 2


def test_half_of_the_fleet_missing_when_groups_are_found_joins_them_later():
    edges = [edge(f"edge-{i}", i % 2, i, here=lambda r, i=i: i < 4 or r >= 2) for i in range(8)]
    run = simulate(edges, ours(rounds=5), rounds=5, min_edges=4)
    first, second = by_task(run)
    assert len(first) == len(second) == 1
    assert first != second


def test_a_sample_of_the_edges_in_each_round_is_enough():
    strategy = create("similarity-grouping", {}, min_edges=1, fraction=0.5, job={"rounds": 6})
    run = simulate(fleet(12), strategy, rounds=6)
    asked = {e.asked for e in run.events if e.event == "round-finished"}
    assert max(asked) < 12
    assert len(set(groups_in(run).values())) == 2


def test_tables_whose_features_have_units_of_their_own_are_brought_to_one_scale_first():
    edges = fleet()
    for each in edges:
        for x, _ in (each.model.train_data, each.model.eval_data):
            x[:, 0] = 1000 * x[:, 0] + 5000
    strategy = ours(rounds=2, guard_rounds=0)
    run = simulate(edges, strategy, rounds=2)
    first, second = by_task(run)
    assert len(first) == len(second) == 1
    assert first != second
    assert len(strategy._groups.spec.centre) == 12


class Heavy(FedAvg):
    """A plug-in: doubles each step that its group takes."""

    def configure_train(self, server_round, arrays, config, grid):
        self.sent = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        found, metrics = super().aggregate_train(server_round, replies)
        if found is None:
            return found, metrics
        twice = {name: Array(2 * found[name].numpy() - self.sent[name].numpy()) for name in found}
        return ArrayRecord(twice), metrics


@pytest.mark.parametrize("base", ["fedadam", "krum", f"{__name__}:Heavy"])
def test_a_group_trains_by_its_base_strategy_as_if_the_others_were_not_there(base, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or SimpleNamespace(Heavy=Heavy))
    strategy = ours(base=base, finetune=0, guard_rounds=0, transfer="none")
    run = simulate(fleet(), strategy, rounds=4)
    group = groups_in(run)["edge-0", "all"]
    alone = [each for i, each in enumerate(fleet()) if i % 2 == 0]
    simulate(alone, create(base), rounds=4)
    expected = alone[0].model.get_weights()
    for name, value in strategy._own.groups[group].arrays.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=1e-5)


def test_what_a_base_strategy_tells_its_edges_reaches_them():
    edges = fleet(kind=Pulled)
    strengths = set()
    for each in edges:
        real = each.model.train
        each.model.train = lambda config, real=real: strengths.add(config["proximal-mu"]) or real(config)
    simulate(edges, ours(base="fedprox", base_options={"proximal_mu": 0.25}, finetune=0), rounds=2)
    assert strengths == {0.25}


def test_a_group_with_fewer_edges_than_its_base_strategy_wants_sits_out_and_that_is_said(monkeypatch):
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda _: None)
    edges = [edge(f"edge-{i}", int(i == 4), i) for i in range(5)]
    run = simulate(edges, ours(base_options={"min_train_nodes": 3}), rounds=2)
    told = [text for text in warnings_in(run) if "does not train" in text]
    assert told[0] == (
        "round 1: group-2 has 1 edge here, fewer than its base strategy waits for, and does not train; "
        "lower base_options.min_available_nodes and min_train_nodes"
    )
    assert [e.replied for e in run.events if e.event == "round-finished"] == [4, 4]
    assert "edge-4" in finals(run)


def test_a_base_strategy_that_waits_for_more_edges_than_any_group_has_ends_the_job_with_that(monkeypatch):
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda _: None)
    with pytest.raises(StrategyError, match="round 1: nobody can train: group-1 has 4 edges here, fewer than its base"):
        simulate(fleet(), ours(base_options={"min_available_nodes": 9}), rounds=2)


@pytest.mark.parametrize("name", ["similarity-grouping", "cfl"])
def test_a_round_whose_replies_are_lost_leaves_base_strategies_as_they_were(name):
    identify_as_server(1)
    strategy = create(name, {"base": "fedadam"}, min_edges=1)
    simulate(fleet(4), strategy, rounds=2)
    messages = list(
        strategy.configure_train(3, mean_model(_track(strategy)), ConfigRecord(), ReadyNodes(lambda: [1, 2]))
    )
    before = state_of(strategy)

    def lost():
        for message in messages[:2]:
            models = arrays_in(message.content)
            moved = {name: array.numpy() + 1 for name, array in next(iter(models.values())).items()}
            yield _reply(message.metadata.dst_node_id, moved, keys=list(models))
        raise TemporaryError("the SuperLink is gone")

    with pytest.raises(TemporaryError):
        strategy.aggregate_train(3, lost())
    after = state_of(strategy)
    assert before.keys() == after.keys()
    for key, record in before.items():
        if isinstance(record, ArrayRecord):
            for one, other in zip(record.to_numpy_ndarrays(), after[key].to_numpy_ndarrays(), strict=True):
                np.testing.assert_array_equal(one, other)
    assert not [t for t in threading.enumerate() if t.name.startswith("aggregate-")]


def _track(strategy):
    return getattr(strategy, "_own", None) or strategy.track


def test_the_tree_names_tasks_by_their_places_also_where_one_has_no_signature(monkeypatch):
    from solar_corona.fl_client import survey

    real = survey.Survey.respond

    def respond(self, question):
        refused = Response(question.kind, refused="it does not want to")
        return refused if self._edge == "edge-1" else real(self, question)

    monkeypatch.setattr(survey.Survey, "respond", respond)
    run = simulate(fleet(8)[::-1], ours(rounds=2), rounds=2)
    told = next(e for e in run.events if e.event == "tasks-grouped")
    assert [task.edge for task in told.tasks if not task.signed] == ["edge-1"]
    leaves = {node: {node} for node in range(len(told.tasks))}
    for step, (left, right, height) in enumerate(told.tree):
        leaves[len(told.tasks) + step] = leaves[left] | leaves[right]
        groups = {told.tasks[node].group for node in leaves[len(told.tasks) + step]}
        assert (len(groups) == 1) == (height < 0.1)
    assert leaves[len(told.tasks) + len(told.tree) - 1] == set(range(8)) - {1}
