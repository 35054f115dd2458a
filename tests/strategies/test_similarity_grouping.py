# SPDX-License-Identifier: Apache-2.0
"""Similar tasks are found and trained together, through the real round loop and real messages."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from benchmarks._simulation import Edge, Mlp, simulate
from solar_corona.core.errors import StrategySpecError
from solar_corona.core.spec import Tasks
from solar_corona.lib.questions import Response
from solar_corona.strategies import check_strategy, create
from solar_corona.strategies.state import restore, state_of

CENTRES = np.random.default_rng(7).normal(size=(2, 4, 12)).astype(np.float32)


def samples(task, count, seed, classes=4):
    """Two tasks with other inputs for the same classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    x = CENTRES[task][y] + 0.5 * rng.normal(size=(count, 12))
    return x.astype(np.float32), y.astype(np.int64)


def edge(name, task, seed, count=120, **more):
    return Edge(name, Mlp(*samples(task, count, seed), *samples(task, 60, seed + 500), hidden=16, classes=4), **more)


def fleet(count=8, *, tasks=2, **more):
    return [edge(f"edge-{i}", i % tasks, i, **more) for i in range(count)]


def ours(rounds=6, **options):
    return create("similarity-grouping", options, min_edges=1, job={"rounds": rounds})


def groups_in(run):
    last = [e for e in run.events if e.event == "tasks-grouped"][-1]
    return {(t.edge, t.task): t.group for t in last.tasks}


def by_task(run, tasks=2):
    """Each true task's set of groups."""
    found = [set() for _ in range(tasks)]
    for (name, _), group in groups_in(run).items():
        found[int(name.rpartition("-")[2]) % tasks].add(group)
    return found


def finals(run):
    return {e.edge: e for e in run.events if e.event == "edge-finished"}


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


def test_the_order_of_edges_does_not_matter():
    forward, backward = (simulate(edges, ours(), rounds=2) for edges in (fleet(), fleet()[::-1]))
    assert _partition(forward) == _partition(backward)


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


@pytest.mark.parametrize(
    "broken",
    [
        lambda r: Response("survey", r.text, parts=tuple(p[:-3] for p in r.parts)),
        lambda r: Response("survey", r.text, parts=tuple(b"\xff" * len(p) for p in r.parts)),
        lambda r: Response("survey", r.text, parts=()),
        lambda r: Response("survey", "{", parts=r.parts),
        lambda r: Response("survey", '{"tasks": []}'),
        lambda r: Response("other", refused="this edge will not say"),
        lambda r: None,
    ],
)
def test_a_signature_that_cannot_be_used_is_refused_and_the_job_goes_on(broken, monkeypatch):
    from solar_corona.fl_client import survey

    real = survey.Survey.respond

    def respond(self, question):
        response = real(self, question)
        if self._edge != "edge-3":
            return response
        changed = broken(response)
        if changed is not None:
            return changed

        class Bare:
            def to_content(self):
                return RecordDict({"x": ConfigRecord({"no": "answer"})})

        return Bare()

    monkeypatch.setattr(survey.Survey, "respond", respond)
    run = simulate(fleet(), ours(rounds=6), rounds=6)
    notes = [e.message for e in run.events if e.event == "warned"]
    assert len([n for n in notes if "edge-3 gave no signature that can be used" in n]) == 1
    assert "edge-3" in finals(run)
    assert [e.replied for e in run.events if e.event == "round-finished"] == [8] * 6
    assert groups_in(run)["edge-3", "all"] == groups_in(run)["edge-1", "all"], "its updates tell where it belongs"


def test_an_edge_that_sends_anothers_signature_is_found_by_its_updates(monkeypatch):
    from solar_corona.fl_client import survey

    stolen = {}
    real = survey.Survey.respond

    def respond(self, question):
        response = real(self, question)
        if self._edge == "edge-0":
            stolen["signature"] = response
        return stolen["signature"] if self._edge == "edge-11" else response

    monkeypatch.setattr(survey.Survey, "respond", respond)
    edges = fleet(11)
    x, y = samples(0, 120, 77)
    poison = Mlp(x, (3 - y), *samples(0, 60, 78), hidden=16, classes=4)
    run = simulate([*edges, Edge("edge-11", poison)], ours(rounds=6), rounds=6)
    notes = [e.message for e in run.events if e.event == "warned"]
    assert any("edge-11's updates do not fit" in n for n in notes)
    assert not [n for n in notes if "do not fit" in n and "edge-11" not in n]


def test_edges_without_labels_are_compared_by_inputs_and_that_is_said(monkeypatch):
    from solar_corona.fl_client import edge_data

    real = edge_data.EdgeData.samples

    def without_labels(self, which, *, anew=False):
        found = real(self, which, anew=anew)
        return edge_data.Samples(found.x, None, found.tasks) if len(found) == 121 else found

    monkeypatch.setattr(edge_data.EdgeData, "samples", without_labels)
    edges = [*fleet(), edge("edge-8", 0, 321, count=121)]
    run = simulate(edges, ours(rounds=2), rounds=2)
    assert any("edge-8 has no labels" in e.message for e in run.events if e.event == "warned")
    groups = groups_in(run)
    assert groups["edge-8", "all"] == groups["edge-0", "all"]


@pytest.mark.parametrize("count", [1, 2])
def test_an_edge_with_hardly_a_sample_joins_and_does_not_found(count):
    tiny = Edge("edge-8", Mlp(*samples(0, count, 5), *samples(0, 20, 6), hidden=16, classes=4))
    run = simulate([*fleet(), tiny], ours(rounds=2), rounds=2)
    assert len(set(groups_in(run).values())) == 2


def test_constant_features_and_one_class_do_not_stop_the_job():
    odd = Edge(
        "edge-8", Mlp(np.ones((90, 12), np.float32), np.zeros(90, np.int64), *samples(0, 20, 6), hidden=16, classes=4)
    )
    run = simulate([*fleet(), odd], ours(rounds=2), rounds=2)
    assert "edge-8" in finals(run)


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


def mixed_edge(name, turns, seed, *, chunk=10, **more):
    """An edge whose stream has ten samples of each task that `turns` names, in turn; the last quarter is held out."""
    parts = [samples(task, 10, 1000 * seed + i) for i, task in enumerate(turns)]
    x, y = (np.concatenate([p[k] for p in parts]) for k in (0, 1))
    cut = len(x) * 3 // 4
    model = Mlp(x[:cut], y[:cut], x[cut:], y[cut:], hidden=16, classes=4)
    return Edge(name, model, tasks=Tasks(division="discovery", chunk=chunk), **more)


def mixed_fleet(*, chunk=10, count=8, **more):
    """Edges that mix two tasks, each in shares of its own, but for the last two, which have one each."""
    found = []
    for i in range(count):
        share = 0.3 + 0.4 * i / (count - 1) if i < count - 2 else i % 2
        turns = (np.random.default_rng(i).random(40) < share).astype(int)
        found.append(mixed_edge(f"edge-{i}", turns, i, chunk=chunk, **more))
    return found


def discovering(rounds=4, **options):
    options = {"guard_rounds": 0, **options}
    return create("similarity-grouping", options, min_edges=1, job={"rounds": rounds, "discover": True})


@pytest.mark.parametrize("chunk", [10, None])
def test_edges_that_mix_tasks_find_them_together(chunk):
    edges = mixed_fleet(chunk=chunk, count=12)
    strategy = discovering()
    run = simulate(edges, strategy, rounds=4)
    groups = groups_in(run)
    assert len(set(groups.values())) == 2
    of_task = [next(g for (e, _), g in groups.items() if e == name) for name in ("edge-10", "edge-11")]
    right = []
    for i, each in enumerate(edges[:10]):
        split = run.nodes[each.name].split
        turns = (np.random.default_rng(i).random(40) < 0.3 + 0.4 * i / 11).astype(int)
        group = [groups[each.name, split.names[place]] for place in split.train]
        right += [g == of_task[t] for g, t in zip(group, np.repeat(turns, 10), strict=False)]
    assert np.mean(right) > (0.999 if chunk else 0.95)
    for name in ("edge-10", "edge-11"):
        assert len(run.nodes[name].split.names) == 1
    assert min(e.metrics["accuracy"] for e in finals(run).values()) > 0.85
    told = [e for e in run.events if e.event == "tasks-grouped"]
    assert told[0].signature_bytes > 12 * 30_000, "what is sent to find tasks counts as well"


@pytest.mark.parametrize("chunk", [10, None])
def test_edges_that_are_alike_find_nothing_and_train_as_if_nothing_had_been_looked_for(chunk):
    def alike(**more):
        return [mixed_edge(f"edge-{i}", np.zeros(20, int), i, **more) for i in range(6)]

    looked, plain = alike(chunk=chunk), alike(chunk=chunk)
    run = simulate(looked, discovering(finetune=0), rounds=3)
    assert set(groups_in(run).items()) == {((f"edge-{i}", "all"), "group-1") for i in range(6)}
    simulate(plain, create("fedavg", {}), rounds=3)
    for name, value in plain[0].model.get_weights().items():
        np.testing.assert_allclose(looked[0].model.get_weights()[name], value, rtol=1e-5, atol=1e-6)


def test_an_edge_that_comes_late_divides_its_stream_at_once_and_gets_both_models():
    late = mixed_edge("edge-9", np.arange(40) % 2, 99, here=lambda r: r >= 3)
    run = simulate([*mixed_fleet(), late], discovering(rounds=5, finetune=0), rounds=5, min_edges=8)
    split = run.nodes["edge-9"].split
    assert len(split.names) == 2
    assert len(set(zip(split.train.tolist(), (np.arange(300) // 10 % 2).tolist(), strict=True))) == 2
    groups = groups_in(run)
    assert {groups["edge-9", name] for name in split.names} == set(groups.values())


def test_tasks_are_looked_for_again_once_twice_as_many_edges_are_there():
    alike = [mixed_edge(f"edge-{i}", np.zeros(30, int), i) for i in range(4)]
    later = [mixed_edge(f"edge-{4 + i}", np.arange(30) % 2, 50 + i, here=lambda r: r >= 2) for i in range(4)]
    run = simulate([*alike, *later], discovering(rounds=5), rounds=5, min_edges=4)
    told = [e for e in run.events if e.event == "tasks-grouped"]
    assert {t.task for t in told[0].tasks} == {"all"}
    assert {t.task for t in told[-1].tasks} == {"task-1", "task-2"}
    groups = groups_in(run)
    assert len(set(groups.values())) == 2
    assert {g for (e, _), g in groups.items() if e == "edge-0"} == {"group-1"}, "a group goes on under its name"


def test_a_restored_strategy_knows_the_tasks_that_were_found_and_asks_nobody_again():
    strategy = discovering(rounds=6)
    simulate(mixed_fleet(), strategy, rounds=3)
    again = discovering(rounds=6)
    restore(again, state_of(strategy))
    late = mixed_edge("edge-9", np.arange(40) % 2, 99)
    edges = [*mixed_fleet(), late]
    run = simulate(edges, again, rounds=3, min_edges=8)
    told = [e for e in run.events if e.event == "tasks-grouped"]
    assert [e.reason for e in told] == ["signatures of edge-9 came"]
    assert len(run.nodes["edge-9"].split.names) == 2
    assert len(set(groups_in(run).values())) == 2
    assert state_of(again)["plain"]["json"] != "{}"


def test_odd_edges_in_a_fleet_that_looks_for_tasks_train_with_the_others():
    (x, y), rules = samples(0, 90, 5), Tasks(division="discovery", chunk=10)
    held = samples(0, 20, 6)

    def odd(name, x, y):
        return Edge(name, Mlp(x, y, *held, hidden=16, classes=4), tasks=rules)

    edges = [
        *mixed_fleet(),
        odd("one-sample", x[:1], y[:1]),
        odd("one-class", x[y == 0], y[y == 0]),
        odd("constant", np.ones((90, 12), np.float32), np.zeros(90, np.int64)),
        odd("less-than-tasks", x[:2], y[:2]),
    ]
    run = simulate(edges, discovering(), rounds=4)
    notes = [e.message for e in run.events if e.event == "warned"]
    assert [n for n in notes if "one-sample took no part in finding tasks" in n]
    assert finals(run).keys() == {each.name for each in edges}
    groups = groups_in(run)
    assert len({g for (e, _), g in groups.items() if e.startswith("edge-")}) == 2
    assert all(len(run.nodes[f"edge-{i}"].split.names) == 2 for i in range(6))


def test_edges_that_leave_while_tasks_are_looked_for_are_not_waited_for(monkeypatch):
    from solar_corona.fl_client import survey

    real = survey.Survey.respond

    def respond(self, question):
        if question.kind == "discovery" and self._edge in ("edge-0", "edge-1"):
            return Response("discovery", refused="busy")
        return real(self, question)

    monkeypatch.setattr(survey.Survey, "respond", respond)
    run = simulate(mixed_fleet(), discovering(), rounds=3)
    assert len(run.nodes["edge-0"].split.names) == 2, "it divides by what the others found"
    assert len(set(groups_in(run).values())) == 2


def test_a_search_that_all_edges_leave_ends_and_the_job_goes_on(monkeypatch):
    from solar_corona.strategies import discovery

    monkeypatch.setattr(discovery.Discovery, "asked", lambda self, here: [])
    run = simulate(mixed_fleet(), discovering(), rounds=2)
    assert any("have gone" in e.reason for e in run.events if e.event == "tasks-grouped")
    assert len(finals(run)) == 8


def test_noise_on_signatures_and_discovery_are_not_to_be_had_together():
    with pytest.raises(StrategySpecError, match="leave out one of the two"):
        discovering(noise=1.0)
