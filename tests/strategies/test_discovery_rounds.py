# SPDX-License-Identifier: Apache-2.0
"""Edges that mix tasks find them in whole rounds, over the messages of a job."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks._simulation import Edge, Mlp, simulate
from solar_corona.core.errors import StrategySpecError
from solar_corona.core.spec import Tasks
from solar_corona.lib.questions import Response
from solar_corona.strategies import create
from solar_corona.strategies.state import restore, state_of
from solar_corona.tests.strategies.fleets import finals, groups_in, samples


def ours(rounds=6, **options):
    return create("similarity-grouping", options, min_edges=1, job={"rounds": rounds})


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
