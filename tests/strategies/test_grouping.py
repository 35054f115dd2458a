# SPDX-License-Identifier: Apache-2.0
"""Grouping: the true tasks, whatever the order; ids that stay; a place for those who come late."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solar_corona.lib.signatures import Signature, SignatureSpec, merge, sign
from solar_corona.strategies import grouping
from solar_corona.strategies.grouping import UNGROUPED, assign, group, rebuild, regroup

SPEC = SignatureSpec(dimension=32)
CLASSES = 6
CENTRES = np.random.default_rng(5).normal(size=(CLASSES, 24))


def _edge(task, seed, *, count=200, skew=None, classes=range(CLASSES), labels=True, spec=SPEC):
    """Return an edge's signature: task t < 3 labels the same inputs in another way, from 3 on the inputs are others."""
    rng = np.random.default_rng([task, seed, count])
    shares = rng.dirichlet(np.full(len(classes), skew)) if skew else None
    kind = rng.choice(classes, count, p=shares)
    x = np.roll(CENTRES, 5 * max(0, task - 2), axis=1)[kind] + rng.normal(size=(count, 24))
    return sign(x, (kind + (task if task < 3 else 0)) % CLASSES if labels else None, spec)


def _fleet(tasks, **options):
    return [_edge(task, seed, **options) for seed, task in enumerate(tasks)]


def _sets(labels):
    """Return the partition that labels stand for."""
    return {frozenset(i for i, other in enumerate(labels) if other == label) for label in labels if label >= 0}


@pytest.mark.parametrize("skew", [None, 0.3])
def test_edges_are_grouped_by_task_without_saying_how_many_there_are(skew):
    tasks = [i % 5 for i in range(30)]
    found = group(_fleet(tasks, skew=skew, count=300))
    assert _sets(found.labels) == _sets(tasks)
    assert found.labels[:5] == (0, 1, 2, 3, 4)
    assert found.compared == "labels"


def test_other_labels_are_found_where_classes_lie_close_together():
    def edge(task, seed):
        rng = np.random.default_rng([task, seed])
        kind = rng.integers(0, CLASSES, 500)
        x = 0.35 * CENTRES[kind] + rng.normal(size=(500, 24))
        return sign(x, (kind + task) % CLASSES, SPEC)

    tasks = [0, 1] * 6
    assert _sets(group([edge(task, seed) for seed, task in enumerate(tasks)]).labels) == _sets(tasks)


@pytest.mark.parametrize("skew", [None, 0.2])
def test_edges_of_one_task_are_one_group_even_where_their_labels_are_skewed(skew):
    fleets = [[_edge(0, 100 * fleet + i, skew=skew) for i in range(16)] for fleet in range(40)]
    assert [len(group(fleet).groups) for fleet in fleets] == [1] * 40


def _mostly_common(task, seed):
    """Return an edge's signature: classes 0 to 2 tell tasks apart, and it has at least some of one of them."""
    rng = np.random.default_rng([task, seed])
    shares = 0.88 * rng.dirichlet(np.full(CLASSES, 0.2)) + 0.12 * np.eye(CLASSES)[rng.integers(3)]
    kind = rng.choice(CLASSES, 150, p=shares)
    x = np.where((kind < 3)[:, None], np.roll(CENTRES, 5 * task, axis=1)[kind], CENTRES[kind])
    return sign(x + rng.normal(size=(150, 24)), kind, SPEC)


def test_edges_that_share_only_what_all_tasks_share_are_told_apart_by_the_others():
    """Merging alone joins such pairs first and never parts them: it finds the true tasks of 3 fleets of 6."""
    tasks = [i % 3 for i in range(24)]
    fleets = [[_mostly_common(task, 100 * s + i) for i, task in enumerate(tasks)] for s in range(6)]
    assert [_sets(group(fleet).labels) == _sets(tasks) for fleet in fleets] == [True] * 6


def test_groups_of_classes_that_do_not_meet_are_apart():
    fleet = [_edge(0, seed, classes=[2 * (seed % 3), 2 * (seed % 3) + 1]) for seed in range(12)]
    found = group(fleet)
    assert _sets(found.labels) == _sets([seed % 3 for seed in range(12)])
    assert found.nearest == (None,) * 12


def test_edges_that_are_all_different_each_have_their_own_group():
    rng = np.random.default_rng(0)
    fleet = [sign(rng.normal(size=24) + 0.3 * rng.normal(size=(100, 24)), np.zeros(100), SPEC) for _ in range(10)]
    assert group(fleet).labels == tuple(range(10))


FLEET = [*_fleet([0, 1, 3, 0, 1, 3, 0, 1, 3, 0], count=90), _edge(1, 77, count=20), _edge(3, 78, count=20)]
PARTITION = group(FLEET)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(len(FLEET))))
def test_the_order_of_edges_does_not_matter(order):
    found = group([FLEET[i] for i in order])
    labels = [0] * len(order)
    for place, edge in enumerate(order):
        labels[edge] = found.labels[place]
    assert _sets(labels) == _sets(PARTITION.labels)
    eta = {edge: found.own_eta[place] for place, edge in enumerate(order)}
    np.testing.assert_allclose([eta[i] for i in range(len(order))], PARTITION.own_eta, atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, len(FLEET) - 1))
def test_an_edge_that_comes_twice_changes_nothing(edge):
    found = group([*FLEET, FLEET[edge]])
    assert _sets(found.labels[:-1]) == _sets(PARTITION.labels)
    assert found.labels[-1] == found.labels[edge]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, len(FLEET) - 1))
def test_two_edges_with_the_same_data_may_as_well_be_one(edge):
    twice = group([*FLEET[:edge], FLEET[edge], FLEET[edge], *FLEET[edge + 1 :]])
    merged = group([*FLEET[:edge], merge([FLEET[edge], FLEET[edge]]), *FLEET[edge + 1 :]])
    assert _sets(merged.labels) == _sets(PARTITION.labels)
    assert _sets([*twice.labels[:edge], *twice.labels[edge + 1 :]]) == _sets(PARTITION.labels)
    assert [one.signature.total for one in merged.groups] == [one.signature.total for one in twice.groups]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, len(FLEET) - 3))
def test_an_edge_that_comes_late_goes_where_it_would_have_been(edge):
    others = group([*FLEET[:edge], *FLEET[edge + 1 :]])
    place = assign(FLEET[edge], others.groups)
    expected = {i for i, label in enumerate(PARTITION.labels) if label == PARTITION.labels[edge] and i != edge}
    assert {i + (i >= edge) for i in next(g for g in others.groups if g.id == place.group).members} == expected


def test_the_same_signatures_give_the_same_grouping():
    assert group(FLEET) == PARTITION


def test_a_group_s_signature_is_the_sum_of_its_members():
    for one in PARTITION.groups:
        assert one.signature.total == sum(FLEET[i].total for i in one.members)
        assert all(PARTITION.labels[i] == one.id for i in one.members)


def test_a_grouping_says_why_each_edge_is_where_it_is():
    assert max(PARTITION.own_eta[:10]) < 0.1 < min(PARTITION.other_eta)
    assert all(near != own and near is not None for near, own in zip(PARTITION.nearest, PARTITION.labels, strict=True))


def test_the_merge_tree_joins_founders_inside_groups_first():
    fleet = FLEET[:10]
    found = group(fleet)
    assert len(found.tree) == 9
    assert [step.kept for step in found.tree] == [True] * 7 + [False] * 2
    inside: dict[int, set[int]] = {i: {i} for i in range(10)}
    for number, step in enumerate(found.tree):
        inside[10 + number] = inside.pop(step.left) | inside.pop(step.right)
        assert not step.kept or frozenset(inside[10 + number]) <= max(
            _sets(found.labels), key=lambda s: len(s & inside[10 + number])
        )
    assert min(step.height for step in found.tree[7:]) > 0.1 > max(step.height for step in found.tree[:7])


def test_small_edges_join_groups_and_do_not_found_them():
    large = _fleet([0, 1] * 4)
    found = group([*large, _edge(1, 50, count=30), _edge(4, 51, count=40)])
    assert found.labels[8] == found.labels[1]
    assert found.labels[9] == UNGROUPED
    assert found.nearest[9] is not None


def test_small_edges_that_every_group_rejects_found_one_together():
    found = group([*_fleet([0, 1] * 4), _edge(4, 51, count=40), _edge(4, 52, count=40)])
    assert found.labels[8] == found.labels[9] == 2


def test_where_all_edges_are_small_they_found_groups():
    tasks = [0, 1] * 6
    assert _sets(group(_fleet(tasks, count=40)).labels) == _sets(tasks)


def test_an_edge_with_nothing_to_compare_is_in_no_group():
    empty = sign(np.zeros((0, 24)), [], SPEC)
    found = group([empty, *_fleet([0, 0])])
    assert found.labels == (UNGROUPED, 0, 0)
    assert group([empty]).labels == (UNGROUPED,)
    assert group([]).labels == ()


def test_where_some_edges_have_no_labels_only_inputs_are_compared():
    fleet = [_edge(task, seed, count=400, labels=seed % 2 == 0) for seed, task in enumerate([0, 0, 1, 1, 3, 3])]
    found = group(fleet, eta=0.02)
    assert found.compared == "inputs"
    assert _sets(found.labels) == {frozenset({0, 1, 2, 3}), frozenset({4, 5})}
    assert assign(_edge(3, 99, labels=False), group(_fleet([0, 3] * 3)).groups, eta=0.02).group == 1


def test_signatures_of_different_specs_are_refused():
    other = _edge(0, 0, spec=SignatureSpec(dimension=32, seed=9))
    with pytest.raises(ValueError, match="different specs"):
        group([FLEET[0], other])
    with pytest.raises(ValueError, match="different specs"):
        assign(other, PARTITION.groups)


@pytest.mark.parametrize("task", [0, 1, 3])
def test_a_joiner_goes_to_the_group_of_its_task(task):
    place = assign(_edge(task, 123, count=60), PARTITION.groups)
    assert place.group == PARTITION.labels[[0, 1, 3].index(task)]
    assert place.eta < 0.1


def test_a_joiner_that_no_group_accepts_is_told_so():
    place = assign(_edge(5, 123), PARTITION.groups)
    assert place.group is None
    assert place.eta > 0.1
    assert place.z > 4
    assert assign(_edge(0, 1), []).group is None


def test_ids_stay_when_edges_leave_come_and_are_signed_anew():
    tasks = [0, 1, 3] * 4
    before = group(_fleet(tasks))
    places = [5, 4, 3, None, 8, 11, None]
    today = [_edge(task, 200 + i) for i, task in enumerate([3, 1, 0, 1, 3, 3, 4])]
    after = regroup(before, places, today)
    assert after.labels == (2, 1, 0, 1, 2, 2, 3)
    assert after.next_id == 4


def test_the_id_of_a_group_that_is_gone_is_not_given_again():
    before = group(_fleet([0, 1, 0, 1]))
    alone = regroup(before, [0, 2], _fleet([0, 0]))
    later = regroup(alone, [0, 1, None, None], _fleet([0, 0, 3, 3]))
    assert alone.labels == (0, 0)
    assert later.labels == (0, 0, 2, 2)


def test_an_edge_moves_when_its_data_become_those_of_another_group():
    before = group(_fleet([0, 1] * 4))
    today = _fleet([0, 1] * 4)
    today[0] = _edge(1, 300)
    assert regroup(before, range(8), today).labels == (1, 1, 0, 1, 0, 1, 0, 1)


def test_an_edge_on_the_border_stays_where_it_was():
    before = rebuild((0, 1, 0, 1, 0, 1, 1), _fleet([0, 1] * 3 + [0]))
    stays = regroup(before, range(7), _fleet([0, 1] * 3 + [0]), margin=10)
    assert stays.labels == before.labels
    assert regroup(before, range(7), _fleet([0, 1] * 3 + [0])).labels == (0, 1, 0, 1, 0, 1, 0)


def test_a_grouping_is_rebuilt_from_its_labels():
    again = rebuild(PARTITION.labels, FLEET, next_id=9)
    assert (again.labels, again.groups, again.own_eta) == (PARTITION.labels, PARTITION.groups, PARTITION.own_eta)
    assert again.next_id == 9
    for call in (lambda: rebuild((0,), FLEET), lambda: regroup(PARTITION, [None], FLEET)):
        with pytest.raises(ValueError, match="expected one for each"):
            call()


def _copies(tasks, seed=0):
    """Return signatures that vary as other samples of the same tasks would."""
    rng = np.random.default_rng(seed)
    real = {task: _edge(task, 0, count=400) for task in set(tasks)}
    made = []
    for task in tasks:
        s = real[task]
        spread = np.sqrt(s.traces / s.counts / s.dimension)[:, None]
        means = (s.means + rng.normal(size=s.means.shape) * spread).astype(np.float32)
        made.append(Signature(s.identity, True, s.classes, s.counts, means, s.traces, s.squares, s.noise))
    return made


def test_a_large_fleet_is_grouped_batch_by_batch_as_a_small_one_is():
    tasks = [i % 6 for i in range(1500)]
    fleet = _copies(tasks)
    found = group([*fleet, _edge(1, 9, count=30), _edge(7, 9, count=30)])
    assert _sets(found.labels[:-2]) == _sets(tasks)
    assert found.labels[-2:] == (1, UNGROUPED)
    assert found.tree == ()
    assert max(found.own_eta[:1500]) < 0.1 < min(found.other_eta)
    turned = group(fleet[::-1])
    assert _sets(turned.labels[::-1]) == _sets(tasks)


def test_a_task_that_is_rare_in_a_large_fleet_is_found(monkeypatch):
    monkeypatch.setattr(grouping, "MAX_EXACT", 100)
    tasks = [0] * 700 + [4] * 3
    assert _sets(group(_copies(tasks)).labels) == _sets(tasks)
