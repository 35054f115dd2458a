# SPDX-License-Identifier: Apache-2.0
"""What groups take from each other is tried, and kept where held-out samples say so: never to anybody's cost."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks._simulation import Edge, Mlp, simulate
from solar_corona.core.spec import Tasks
from solar_corona.strategies import create
from solar_corona.strategies.state import restore, state_of
from solar_corona.tests.strategies.fleets import edge, finals, fleet, groups_in, samples

ROUNDS = 14


def scarce(task, count, seed):
    """Two tasks of like inputs with many features, whose classes have other names."""
    centres = np.random.default_rng(7).normal(size=(4, 2, 60))
    rng = np.random.default_rng([seed, task])
    y = rng.integers(0, 4, count)
    x = centres[y, rng.integers(0, 2, count)] + 2 * rng.normal(size=(count, 60))
    return x.astype(np.float32), ((y + task) % 4).astype(np.int64)


def small_group(make=scarce):
    """Six edges of one task, and three with fewer samples of the other."""
    edges = []
    for i in range(9):
        task = int(i > 5)
        data = *make(task, 60 if task else 200, i), *make(task, 200, 100 + i)
        edges.append(Edge(f"edge-{i}", Mlp(*data, hidden=16, classes=4, steps=10)))
    return edges


def run(edges, transfer, rounds=ROUNDS, guard_rounds=8):
    options = {"transfer": transfer, "finetune": 0, "guard_rounds": guard_rounds}
    return simulate(edges, create("similarity-grouping", options, min_edges=1, job={"rounds": rounds}), rounds=rounds)


def of_small_group(edges, make=scarce):
    return np.mean([each.model.accuracy(*make(1, 2000, 999)) for each in edges[6:]])


def chosen(found):
    return {e.group: e for e in found.events if e.event == "transfer-chosen"}


def test_a_small_group_takes_the_layers_of_one_with_like_inputs_where_that_helps_it():
    without, auto = small_group(), small_group()
    run(without, "none")
    found = run(auto, "auto")
    assert of_small_group(auto) > of_small_group(without) + 0.02
    told = chosen(found)
    small = groups_in(found)["edge-8", "all"]
    assert told[small].choice == "shared-layers"
    assert told[small].gains["shared-layers"] > 0.02
    assert "shared-layers +0.0" in told[small].reason
    assert "borrow -0." in told[small].reason, "what did not help is told as well"
    assert told[groups_in(found)["edge-0", "all"]].choice == "none"


def test_what_would_cost_a_group_accuracy_is_not_chosen():
    """Weights of a group with other inputs are worth nothing to a small one."""

    def make(task, count, seed):
        return samples(task, count, 31 * seed + task)

    without, forced, auto = small_group(make), small_group(make), small_group(make)
    run(without, "none")
    run(forced, "borrow")
    found = run(auto, "auto")
    assert of_small_group(forced, make) < of_small_group(without, make) - 0.02
    assert of_small_group(auto, make) > of_small_group(without, make) - 0.01
    assert "borrow" not in {e.choice for e in chosen(found).values()}
    assert all("borrow" in e.gains for e in chosen(found).values())


@pytest.mark.parametrize("transfer", ["shared-layers", "borrow"])
@pytest.mark.parametrize("guard_rounds", [0, 2])
def test_a_transfer_that_the_job_asks_for_is_used_and_told(transfer, guard_rounds):
    found = run(fleet(swap=True), transfer, rounds=4, guard_rounds=guard_rounds)
    told = [e for e in found.events if e.event == "transfer-chosen"]
    assert {e.choice for e in told} == {transfer}
    assert told[0].reason == "aggregation.options.transfer asks for it"
    assert len(told) == (2 if guard_rounds == 0 else 4)


def test_a_group_that_comes_later_takes_part_in_the_transfer_that_the_job_asks_for():
    late = [edge(f"edge-{8 + i}", 1, 50 + i, count=60, swap=True, here=lambda r: r >= 2) for i in range(2)]
    strategy = create(
        "similarity-grouping", {"transfer": "shared-layers", "guard_rounds": 0, "finetune": 0}, min_edges=1
    )
    found = simulate([*fleet(tasks=1, swap=True), *late], strategy, rounds=4, min_edges=8)
    assert groups_in(found)["edge-9", "all"] != groups_in(found)["edge-0", "all"]
    first, second = (strategy._own.groups[groups_in(found)[f"edge-{i}", "all"]].arrays for i in (0, 9))
    np.testing.assert_allclose(first["0/kernel"].numpy(), second["0/kernel"].numpy(), rtol=1e-6)
    assert not np.allclose(first["2/kernel"].numpy(), second["2/kernel"].numpy())


def test_a_restored_trial_decides_as_one_that_was_not_interrupted():
    options = {"transfer": "auto", "finetune": 0, "guard_rounds": 8}
    first, again = (create("similarity-grouping", options, min_edges=1, job={"rounds": ROUNDS}) for _ in range(2))
    edges = small_group()
    simulate(edges, first, rounds=5)
    restore(again, state_of(first))
    found = simulate(edges, again, rounds=5)
    assert {e.choice for e in chosen(found).values()} == {"none", "shared-layers"}


def test_without_samples_to_compare_on_the_trial_ends_and_groups_stay_apart():
    edges = fleet()
    for each in edges:
        each.model.eval_data = tuple(part[:0] for part in each.model.eval_data)
    found = run(edges, "none", rounds=6, guard_rounds=2)
    assert {(e.choice, e.reason) for e in chosen(found).values()} == {("none", "no edge has samples to compare on")}
    down = [e.bytes_down for e in found.events if e.event == "round-finished"]
    assert down[-1] < 0.7 * down[1], "one model for all is not trained beside them to the end"
    assert len(set(groups_in(found).values())) == 2


def test_groups_that_are_found_late_are_tried_as_long():
    late = [edge(f"edge-{8 + i}", 1, 50 + i, here=lambda r: r >= 2) for i in range(2)]
    found = simulate(
        [*fleet(tasks=1), *late],
        create("similarity-grouping", {"guard_rounds": 3, "finetune": 0}, min_edges=1, job={"rounds": 9}),
        rounds=9,
        min_edges=8,
    )
    begun = next(e.round for e in found.events if e.event == "tasks-grouped" and len({t.group for t in e.tasks}) > 1)
    assert {e.round for e in chosen(found).values()} == {begun + 2}, "the third round of models that trained apart"


def test_a_hard_task_of_an_edge_is_not_compared_with_one_model_on_its_easy_one(tmp_path, monkeypatch):
    (tmp_path / "two_halves.py").write_text(
        "import numpy as np\ndef second(x, y):\n    return (np.arange(len(x)) >= len(x) // 2).astype(int)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def mixed(i):
        """The second task takes two classes for each other, and half of its labels are chance."""
        halves = []
        for count, seed in ((120, i), (120, 100 + i)):
            (xa, ya), (xb, yb) = samples(0, count, seed), samples(0, count, 50 + seed)
            rng = np.random.default_rng(seed)
            yb = np.where(rng.random(count) < 0.5, rng.integers(0, 4, count), np.array([1, 0, 2, 3])[yb])
            halves += [np.concatenate([xa, xb]), np.concatenate([ya, yb])]
        model = Mlp(*halves, hidden=16, classes=4, steps=40)
        return Edge(f"edge-{i}", model, tasks=Tasks(division="two_halves:second"))

    found = run([mixed(i) for i in range(6)], "none", rounds=8, guard_rounds=4)
    places = {t.task: t.group for e in found.events if e.event == "tasks-grouped" for t in e.tasks}
    assert chosen(found)[places["1"]].choice == "none", chosen(found)[places["1"]].reason
    for end in finals(found).values():
        assert end.tasks["0"]["accuracy"] > 0.8
        assert end.tasks["1"]["accuracy"] > 0.45
