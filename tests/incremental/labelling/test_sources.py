# SPDX-License-Identifier: Apache-2.0
"""Labelling sources: their contract, the desk that keeps them busy, the teacher's gate."""

from __future__ import annotations

import numpy as np
import pytest

from solar_corona.core.errors import DatasetError, SpecError, TemporaryError
from solar_corona.incremental.hub.dataset_versions import DatasetVersions
from solar_corona.incremental.hub.hub import LabelSpace
from solar_corona.incremental.hub.labels import GivenLabel, LabelBook
from solar_corona.incremental.hub.retention import Retention
from solar_corona.incremental.labelling.api import Api
from solar_corona.incremental.labelling.checks import check_labelling_source
from solar_corona.incremental.labelling.desk import Desk, audits_of
from solar_corona.incremental.labelling.page import Page
from solar_corona.incremental.labelling.registry import create
from solar_corona.incremental.labelling.source import Finished, Setting, SourceStatus
from solar_corona.incremental.labelling.teacher import Teacher
from solar_corona.incremental.tables import Sample
from solar_corona.lib.sample_coding import encode_sample

from ..hub.conftest import Samples

SETTING = Setting(job="test", labels=LabelSpace(classes=("cat", "dog", "owl")))


def states(hub):
    rows = hub.database.read(lambda session: list(session.query(Sample)))
    return {row.id: (row.state, row.source) for row in rows}


class Shelf:
    """A source of somebody's own, which keeps its tasks in a dictionary that outlasts it."""

    machine = False
    shelf: dict = {}  # noqa: RUF012

    def __init__(self, setting, size=100):
        self.size, self.away = size, False

    def room(self):
        return self.size - len(self.shelf)

    def offer(self, samples):
        if self.away:
            raise TemporaryError("the shelf is away; wait")
        for each in samples:
            self.shelf.setdefault(each.sample, None)
        return {each.sample: f"t{each.sample}" for each in samples}

    def withdraw(self, tasks):
        for task in tasks:
            self.shelf.pop(task[1:], None)

    def poll(self, tasks):
        return [Finished(sample, "ann", value) for sample, value in self.shelf.items() if value is not None]

    def status(self):
        return SourceStatus(not self.away, "here")

    def close(self):
        pass


@pytest.fixture
def shelf():
    Shelf.shelf = {}
    return Shelf(SETTING)


def deep(batch):
    """A deep model that knows what a sample is: its first number; and is sure where its second says so."""
    batch = np.asarray(batch)
    rows = np.full((len(batch), 3), 0.0, np.float32)
    for place, sample in enumerate(batch):
        sure = 0.98 if sample[1] else 0.5
        rows[place] = (1 - sure) / 2
        rows[place, int(sample[0])] = sure
    return rows


def thing(label, sure, number):
    return encode_sample(np.array([label, sure, number], np.float32)).content


ENDPOINT = f"{__name__}:deep"


def test_our_sources_keep_the_contract():
    check_labelling_source(lambda: Api(SETTING))
    check_labelling_source(lambda: Page(SETTING))


def test_a_source_of_ones_own_is_checked_and_found_by_its_name(shelf):
    check_labelling_source(lambda: Shelf(SETTING), lambda task, value: Shelf.shelf.update({task[1:]: value}))
    assert isinstance(create(f"{__name__}:Shelf", {"size": 3}, SETTING), Shelf)


@pytest.mark.parametrize(
    ("method", "broken", "message"),
    [
        ("offer", lambda self, samples: {each.sample: "same" for each in samples}, "two samples have one task"),
        ("offer", lambda self, samples: {"x" * 64: "t"} if samples else {}, "was not given"),
        ("poll", lambda self, tasks: [], "does not tell of a label"),
        ("status", lambda self: None, r"status\(\) says nothing"),
        ("room", lambda self: -1, r"room\(\) is no count"),
    ],
)
def test_the_contract_says_which_promise_is_broken(shelf, method, broken, message):
    kind = type("Broken", (Shelf,), {method: broken})
    with pytest.raises(DatasetError, match=message):
        check_labelling_source(lambda: kind(SETTING), lambda task, value: Shelf.shelf.update({task[1:]: value}))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pag", {}, "did you mean 'page'"),
        ("page", {"queue": 0}, "queue is 0, expected a whole number from 1"),
        ("page", {"queu": 5}, "does not take these options"),
        ("no.such:Thing", {}, "cannot be loaded"),
        ("builtins:dict", {}, "has not all of room, offer|does not take these options"),
        ("label-studio", {"url": "nope", "token_file": "x"}, "expected Label Studio's address"),
        ("label-studio", {"url": "http://h", "token_file": "/no/such"}, "token cannot be read"),
        ("label-studio", {"url": "http://h", "token_file": "x", "batch": 0}, "batch is 0, expected a whole number"),
        ("teacher", {"endpoint": "http://h"}, "names no model"),
        ("teacher", {"endpoint": ENDPOINT, "known": ["wolf"]}, "is no class of the model"),
    ],
)
def test_a_source_that_cannot_be_made_says_why(name, options, message):
    from solar_corona.core.errors import SolarCoronaError

    with pytest.raises(SolarCoronaError, match=message):
        create(name, options, SETTING)


def test_samples_go_out_and_labels_come_back(hub, samples, shelf):
    first, second = samples.many(2)
    desk = Desk(hub, "shelf", shelf)
    desk.step()
    assert states(hub) == {first: ("out", "shelf"), second: ("out", "shelf")}
    shelf.shelf[first] = "dog"
    desk.step()
    desk.step()
    assert states(hub) == {first: ("labelled", "shelf"), second: ("out", "shelf")}
    row = hub.database.read(lambda session: session.get(Sample, first))
    assert row.label == 1
    assert [event.what for event in LabelBook(hub).history(first)] == ["labelled", "labelled"]


def test_where_the_model_errs_in_most_audits_its_hardness_does_not_choose(hub, samples, shelf, monkeypatch):
    from solar_corona.incremental.labelling import desk as module

    asked = []
    real = module.choose
    monkeypatch.setattr(
        module, "choose", lambda *args, **more: asked.append(more["audit_errors"]) or real(*args, **more)
    )
    drawn = samples.many(60, reason="random", prediction=0)
    samples.many(3, start=60)
    Desk(hub, "shelf", shelf).step()
    LabelBook(hub).put([GivenLabel(each, "page", "ann", 1 if place < 45 else 0) for place, each in enumerate(drawn)])
    samples.many(3, start=70)
    Desk(hub, "shelf", shelf).step()
    assert asked == [None, 0.75]


def test_a_source_can_be_changed_without_losing_work(hub, samples, shelf):
    first, second = samples.many(2)
    Desk(hub, "shelf", shelf).step()
    shelf.shelf[first] = "dog"
    Desk(hub, "shelf", shelf).step()
    desk = Desk(hub, "page", Page(SETTING))
    desk.step()
    assert states(hub) == {first: ("labelled", "shelf"), second: ("out", "page")}


def test_a_source_that_is_away_is_told_and_gets_its_samples_later(hub, samples, shelf):
    (sample,) = samples.many(1)
    shelf.away = True
    desk = Desk(hub, "shelf", shelf)
    with pytest.raises(TemporaryError, match="the shelf is away"):
        desk.step()
    assert (desk.status().well, desk.status().message) == (False, "the shelf is away; wait")
    assert states(hub)[sample][0] == "waiting"
    shelf.away = False
    desk.step()
    assert (desk.status().well, states(hub)[sample][0]) == (True, "out")


def test_a_label_that_is_none_is_refused_and_the_sample_stays_out(hub, samples, shelf):
    (sample,) = samples.many(1)
    desk = Desk(hub, "shelf", shelf)
    desk.step()
    shelf.shelf[sample] = "wolf"
    desk.step()
    assert states(hub)[sample] == ("out", "shelf")


def test_a_deleted_sample_is_taken_from_the_source_too(hub, samples, shelf):
    (sample,) = samples.many(1, subject="ann")
    desk = Desk(hub, "shelf", shelf)
    desk.step()
    assert sample in shelf.shelf
    Retention(hub).forget_subject("ann")
    desk.step()
    assert shelf.shelf == {}


def taught(hub, samples, *, wrong=0, audits=20):
    """Put random samples in that a person labelled, `wrong` of them other than the teacher does."""
    contents = [thing(number % 3, 1, number) for number in range(audits)]
    ids = samples.add(*contents, reason="random", media_type="application/x-npy")
    LabelBook(hub).put(
        [
            GivenLabel(each, "page", "ann", (number % 3 + 1) % 3 if number < wrong else number % 3)
            for number, each in enumerate(ids)
        ]
    )
    setting = Setting(job="test", labels=hub.settings.labels, audits=audits_of(hub))
    return Desk(hub, "teacher", Teacher(setting, ENDPOINT, audited=20))


def test_a_teacher_labels_what_it_is_sure_of_and_leaves_the_rest_to_people(hub, samples):
    desk = taught(hub, samples, wrong=1)
    sure, unsure = samples.add(thing(2, 1, 100), thing(1, 0, 101), media_type="application/x-npy")
    (drawn,) = samples.add(thing(2, 1, 102), media_type="application/x-npy", reason="random")
    for _ in range(3):
        desk.step()
    found = states(hub)
    assert found[sure] == ("labelled", "teacher")
    assert found[unsure] == ("waiting", None)
    assert found[drawn] == ("waiting", None), "random samples judge models, so people label them"
    assert desk.status().message == "right on 95.0% of 20 labels of people"
    version = DatasetVersions(hub).make()
    assert sure in {member.sample for member in DatasetVersions(hub).members(version, "train")}


def test_a_teacher_that_is_wrong_too_often_labels_nothing(hub, samples):
    desk = taught(hub, samples, wrong=2)
    (sure,) = samples.add(thing(2, 1, 100), media_type="application/x-npy")
    desk.step()
    assert states(hub)[sure] == ("waiting", None)
    assert not desk.status().well
    assert "right on 90.0% of 20 labels of people, expected at least 95%" in desk.status().message


def test_a_teacher_waits_until_it_was_compared_with_enough_labels(hub, samples):
    desk = taught(hub, samples, audits=7)
    (sure,) = samples.add(thing(2, 1, 100), media_type="application/x-npy")
    desk.step()
    assert states(hub)[sure] == ("waiting", None)
    assert desk.status().message == "waits for 13 more labels of random samples that it is compared with"


def test_a_teacher_that_does_not_answer_is_told(hub, samples):
    taught(hub, samples)
    (sure,) = samples.add(thing(2, 1, 100), media_type="application/x-npy")
    setting = Setting(job="test", labels=hub.settings.labels, audits=audits_of(hub))
    desk = Desk(hub, "teacher", Teacher(setting, "http://127.0.0.1:9/v2/models/large", deadline=0.5))
    desk.step()
    assert "the teacher does not answer" in desk.status().message
    assert states(hub)[sure] == ("waiting", None)
    with pytest.raises(SpecError, match="a teacher gives classes"):
        Teacher(Setting(job="test", labels=LabelSpace("text")), ENDPOINT)


def test_after_a_restart_people_get_what_a_teacher_had(make_hub):
    hub = make_hub()
    (sample,) = Samples(hub).many(1)

    def give(session):
        row = session.get(Sample, sample)
        row.state, row.source, row.task = "out", "teacher", sample

    hub.database.write(give)
    Desk(hub, "teacher", Teacher(SETTING, ENDPOINT)).step()
    assert states(hub)[sample] == ("waiting", None)
