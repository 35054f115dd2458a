# SPDX-License-Identifier: Apache-2.0
"""Dataset versions never change, and samples that have to go are gone from them, too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from solar_corona.core.errors import DatasetError, TemporaryError
from solar_corona.incremental.hub.dataset_versions import DatasetVersions, Member, digest_of, split_of
from solar_corona.incremental.hub.labels import GivenLabel, LabelBook
from solar_corona.incremental.hub.retention import Retention
from solar_corona.incremental.tables import (
    ConsumedLabel,
    DatasetVersionSample,
    GoneSample,
    LabelEntry,
    LabelEvent,
    Sample,
)

from .conftest import Samples


def label(hub, ids, value="cat", by="ann", **more):
    LabelBook(hub).put([GivenLabel(each, "page", by, value, **more) for each in ids])


def members(hub, version, split=None):
    return [(each.sample, each.label) for each in DatasetVersions(hub).members(version, split)]


def test_a_version_keeps_the_labels_that_it_was_made_with(hub, samples):
    ids = sorted(samples.many(5))
    versions = DatasetVersions(hub)
    with pytest.raises(DatasetError, match="label some first"):
        versions.make()
    label(hub, ids[:3])
    first = versions.make()
    assert versions.make() == first, "nothing changed, so it is the same"
    hub.clock.now += 1
    label(hub, ids[:1], "dog")
    label(hub, ids[3:])
    second = versions.make()
    assert members(hub, first) == [(each, 0) for each in ids[:3]]
    assert members(hub, second) == [(ids[0], 1), *((each, 0) for each in ids[1:])]
    with pytest.raises(DatasetError, match="there is no dataset version 9"):
        versions.get(9)


def test_a_version_that_somebody_changed_is_refused(hub, samples):
    ids = samples.many(2)
    label(hub, ids)
    version = DatasetVersions(hub).make()
    change = update(DatasetVersionSample).where(DatasetVersionSample.sample == ids[0]).values(label=2)
    hub.database.write(lambda session: session.execute(change))
    with pytest.raises(DatasetError, match="is not what it was made as; restore the database"):
        members(hub, version)


def test_random_samples_are_shared_out_and_the_gates_are_never_trained_on(hub, samples):
    drawn, hard = samples.many(120, reason="random"), samples.many(20, start=120)
    label(hub, drawn[:60])
    first = DatasetVersions(hub).make()
    gate_then = {sample for sample, _ in members(hub, first, "gate")}
    assert 15 < len(gate_then) < 45
    label(hub, [*drawn[60:], *hard])
    second = DatasetVersions(hub).make()
    gate = {sample for sample, _ in members(hub, second, "gate")}
    train = {sample for sample, _ in members(hub, second, "train")}
    assert gate_then <= gate
    assert not gate & train
    assert set(hard) <= train
    assert 40 < len(gate) < 80
    assert DatasetVersions(hub).counts(second) == {"train": len(train), "gate": len(gate)}


def test_a_models_label_judges_no_model(make_hub):
    hub = make_hub(gate_share=1.0)
    ids = Samples(hub).many(2, reason="random")
    LabelBook(hub).put([GivenLabel(ids[0], "teacher", "", 1, confidence=0.99), GivenLabel(ids[1], "page", "ann", 1)])
    assert members(hub, DatasetVersions(hub).make()) == [(ids[1], 1)]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, unique_by=lambda each: each[0]), st.randoms()
)
def test_a_digest_depends_on_what_is_in_it_and_on_no_order(pairs, random):
    found = [Member(f"{number:064x}", "train", value) for number, value in pairs]
    shuffled = list(found)
    random.shuffle(shuffled)
    assert digest_of(shuffled) == digest_of(found)
    other = [Member(found[0].sample, "train", found[0].label + 1), *found[1:]]
    assert digest_of(other) != digest_of(found)


def test_a_split_never_changes():
    # Written down: a change of the rule would let trainings see what candidates are judged by.
    assert [split_of(f"{number:064x}", "random", 0.5) for number in range(6)] == [
        "train",
        "train",
        "train",
        "gate",
        "gate",
        "train",
    ]


def test_all_of_a_person_goes_and_versions_that_held_it_say_so(hub, samples):
    mine, others = samples.many(3, subject="ann"), samples.many(2, start=3)
    label(hub, [*mine, *others])
    version = DatasetVersions(hub).make()
    hub.database.write(lambda session: session.add(ConsumedLabel(sample=mine[0], training=1)))
    deleted = Retention(hub).forget_subject("ann")
    assert (deleted.samples, deleted.versions) == (3, (version,))
    assert DatasetVersions(hub).get(version).missing == 3
    assert {sample for sample, _ in members(hub, version)} == set(others)

    def left(session):
        tables = (Sample.id, LabelEntry.sample, LabelEvent.sample, ConsumedLabel.sample, DatasetVersionSample.sample)
        return [session.query(column).filter(column.in_(mine)).count() for column in tables]

    assert hub.database.read(left) == [0] * 5
    assert [hub.samples.has(each) for each in mine] == [False] * 3
    assert LabelBook(hub).put([GivenLabel(mine[0], "api", "x", 0)])[0].outcome == "refused"
    assert Retention(hub).forget_subject("nobody").samples == 0


def test_samples_whose_time_is_over_go_unless_a_version_holds_them(make_hub, clock):
    hub = make_hub(retention=3_600.0)
    samples = Samples(hub)
    held, over = samples.many(1), samples.many(2, start=1)
    label(hub, held)
    DatasetVersions(hub).make()
    clock.now += 3_601
    fresh = samples.many(1, start=3)
    assert Retention(hub).expire().samples == 2
    assert [hub.samples.has(each) for each in (*held, *fresh, *over)] == [True, True, False, False]


def test_a_deletion_that_was_cut_off_is_finished_later(hub, samples, monkeypatch):
    (mine,) = samples.many(1, subject="ann")

    def cut(name):
        raise TemporaryError("the storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(hub.samples, "delete", cut)
        with pytest.raises(TemporaryError):
            Retention(hub).forget_subject("ann")
    assert hub.samples.has(mine)
    Retention(hub).expire()
    assert not hub.samples.has(mine)
    assert hub.database.read(lambda session: session.get(GoneSample, mine)).pending is False
