# SPDX-License-Identifier: Apache-2.0
"""A process for each message, as at a stock SuperNode: what lies in the edge's folder is all that the next one has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks._simulation import Edge, Mlp, simulate
from solar_corona.core.spec import Tasks
from solar_corona.strategies import create
from solar_corona.tests.strategies.fleets import Pulled, by_task, finals, fleet, groups_in, samples


class Embedding(Mlp):
    """A perceptron that says what its hidden layer gives."""

    def embed(self, x):
        return np.maximum(x @ self.weights["0/kernel"] + self.weights["1/bias"], 0)


@pytest.fixture
def stock(tmp_path):
    """Make every second edge a stock SuperNode's."""
    return lambda edges: [replace(each, stock=i % 4 > 1, folder=tmp_path / each.name) for i, each in enumerate(edges)]


def run(edges, rounds=6, name="similarity-grouping", each_round=lambda _: None, discover=False, **options):
    strategy = create(name, options, min_edges=1, job={"rounds": rounds, "discover": discover})
    return simulate(edges, strategy, rounds=rounds, each_round=each_round)


@pytest.mark.parametrize("options", [{}, {"embedding": "model", "warm_rounds": 1}], ids=["random", "model"])
def test_edges_are_grouped_and_move_when_their_data_do(stock, options):
    edges = stock(fleet(kind=Embedding))

    def change(number):
        if number == 3:
            for i in (2, 5):  # one of each kind
                for mine, theirs in zip(edges[i].model.train_data, samples(1 - i % 2, 120, 900 + i), strict=True):
                    mine[:] = theirs

    found = run(edges, each_round=change, guard_rounds=0, **options)
    (told,) = (e for e in found.events if e.event == "tasks-grouped" and "changed" in e.reason)
    assert told.round == 4
    groups = groups_in(found)
    ones = {groups[f"edge-{i}", "all"] for i in (0, 4, 6, 5)}
    others = {groups[f"edge-{i}", "all"] for i in (1, 3, 7, 2)}
    assert len(ones) == len(others) == 1
    assert ones != others


def test_tasks_that_edges_found_are_told_apart_in_every_process(stock):
    edges = []
    for i in range(8):
        parts = [samples(c % 2, 10, 1000 * i + c) for c in range(24)]
        x, y = (np.concatenate([p[k] for p in parts]) for k in (0, 1))
        model = Mlp(x[:180], y[:180], x[180:], y[180:], hidden=16, classes=4)
        edges.append(Edge(f"edge-{i}", model, tasks=Tasks(division="discovery", chunk=10)))
    found = run(stock(edges), rounds=4, discover=True, guard_rounds=0)
    assert len(set(groups_in(found).values())) == 2
    for node in found.nodes.values():
        turns = np.repeat(np.arange(18) % 2, 10)
        assert (node.split.train == turns).all() or (node.split.train == 1 - turns).all()
    assert min(e.metrics["accuracy"] for e in finals(found).values()) > 0.9


def test_a_division_of_the_users_holds_in_every_process(stock, tmp_path, monkeypatch):
    (tmp_path / "own_halves.py").write_text(
        "import numpy as np\ndef second(x, y):\n    return (np.arange(len(x)) >= len(x) // 2).astype(int)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    edges = []
    for i in range(4):
        both = [[samples(task, n, seed) for task in (0, 1)] for n, seed in ((80, i), (40, 50 + i))]
        halves = [[np.concatenate([task[k] for task in part]) for k in (0, 1)] for part in both]
        model = Mlp(*halves[0], *halves[1], hidden=16, classes=4)
        edges.append(Edge(f"edge-{i}", model, tasks=Tasks(division="own_halves:second")))
    found = run(stock(edges), guard_rounds=0)
    groups = groups_in(found)
    assert {groups[f"edge-{i}", "0"] for i in range(4)} != {groups[f"edge-{i}", "1"] for i in range(4)}
    assert min(e.tasks[t]["accuracy"] for e in finals(found).values() for t in "01") > 0.9


def test_personal_models_go_on_from_process_to_process(stock):
    warm, cold = fleet(kind=Pulled, swap=True), stock(fleet(kind=Pulled, swap=True))
    for edges in (warm, cold):
        run(edges, name="ditto", rounds=4)
    for one, other in zip(warm, cold, strict=True):
        for name, value in one.model.get_weights().items():
            np.testing.assert_allclose(value, other.model.get_weights()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [("ifca", {"groups": 2}), ("cfl", {"warm_rounds": 1}), ("pacfl", {}), ("fl-hc", {"warm_rounds": 1})],
)
def test_known_methods_find_the_groups_of_stock_nodes(stock, name, options):
    first, second = by_task(run(stock(fleet()), name=name, rounds=8, **options))
    assert len(first) == len(second) == 1
    assert first != second
