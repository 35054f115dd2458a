# SPDX-License-Identifier: Apache-2.0
"""Labels: what is refused, what people agree on, and what can be taken back."""

from __future__ import annotations

import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from solar_corona.core.errors import DatasetError
from solar_corona.incremental.hub.agreement import Vote, agree
from solar_corona.incremental.hub.hub import Hub, HubSettings, LabelSpace, Limits
from solar_corona.incremental.hub.labels import GivenLabel, LabelBook
from solar_corona.incremental.tables import Sample
from solar_corona.lib.sample_records import sample_id_of

from .conftest import Samples

PEOPLE = ("ann", "bob", "eve")


def label(sample, value, by="ann", source="page", **more):
    return GivenLabel(sample=sample, source=source, by=by, value=value, **more)


def state_of(hub, sample):
    row = hub.database.read(lambda session: session.get(Sample, sample))
    return row.state, row.label


def test_a_label_is_kept_as_the_classes_number_and_counts_once(hub, samples):
    (sample,) = samples.many(1)
    book = LabelBook(hub)
    assert book.put([label(sample, "dog")])[0].outcome == "stored"
    assert book.put([label(sample, 1)])[0].outcome == "known"
    assert state_of(hub, sample) == ("labelled", 1)


@pytest.mark.parametrize("value", ["wolf", 3, -1, True, None, 1.5, [1], {"a": 1}, "1", float("nan")])
def test_a_label_of_no_class_is_refused_and_says_what_is_expected(hub, samples, value):
    (sample,) = samples.many(1)
    (receipt,) = LabelBook(hub).put([label(sample, value)])
    assert receipt.outcome == "refused"
    assert "is no class of the model; expected 0 to 2, or one of cat, dog, owl" in receipt.reason
    assert state_of(hub, sample) == ("waiting", None)


def test_where_classes_have_no_names_the_models_outputs_say_how_many_there_are(make_hub):
    hub = make_hub(labels=LabelSpace())
    (sample,) = Samples(hub).many(1, probabilities=[0.1, 0.2, 0.3, 0.4])
    book = LabelBook(hub)
    assert [receipt.outcome for receipt in book.put([label(sample, 4), label(sample, 3)])] == ["refused", "stored"]


@pytest.mark.parametrize(
    "box", [[0, 0, 2, 1, 0], [0.5, 0, 0.5, 1, 0], [0, 0, 1, 1, 7], [0, 0, 1, 1], "box", [float("nan"), 0, 1, 1, 0]]
)
def test_a_box_outside_its_image_or_of_no_class_is_refused(box):
    space = LabelSpace("boxes", ("cat", "dog"))
    with pytest.raises(DatasetError, match=r"box|class"):
        space.checked([box])
    assert space.checked([[0, 0, 0.5, 1, "dog"]]) == [[0.0, 0.0, 0.5, 1.0, 1]]


def test_text_that_no_database_keeps_is_refused():
    space = LabelSpace("text")
    assert space.checked("an owl 🦉") == "an owl 🦉"
    for value in ("a\0b", "\ud800", 3, "x" * 20_001):
        with pytest.raises(DatasetError, match="is no text"):
            space.checked(value)


def test_two_people_have_to_agree_and_a_third_settles_a_conflict(make_hub):
    hub = make_hub(agreement=2)
    (sample,) = Samples(hub).many(1)
    book = LabelBook(hub)
    book.put([label(sample, "cat", "ann")])
    book.put([label(sample, "cat", "ann", source="label-studio")])
    assert state_of(hub, sample) == ("waiting", None), "one person's word, twice, is one person's word"
    book.put([label(sample, "dog", "bob")])
    assert state_of(hub, sample) == ("conflict", None)
    book.put([label(sample, "dog", "eve")])
    assert state_of(hub, sample) == ("labelled", 1)


def test_a_persons_word_goes_before_a_models(hub, samples):
    (sample,) = samples.many(1)
    book = LabelBook(hub)
    book.put([label(sample, "owl", "", source="teacher", confidence=0.99)])
    assert state_of(hub, sample) == ("labelled", 2)
    book.put([label(sample, "cat")])
    assert state_of(hub, sample) == ("labelled", 0)
    book.put([label(sample, "dog", "", source="teacher", confidence=1.0)])
    assert state_of(hub, sample) == ("labelled", 0)


def test_what_was_said_can_be_taken_back_and_the_history_tells_it(hub, samples):
    first, second = samples.many(2)
    book = LabelBook(hub)
    book.put([label(first, "cat")])
    hub.clock.now += 1
    book.put([label(second, "dog")])
    assert book.undo(source="page", by="ann") == second
    assert state_of(hub, second) == ("waiting", None)
    assert state_of(hub, first) == ("labelled", 0)
    assert [event.what for event in book.history(second)] == ["labelled", "labelled", "undone", "waiting"]
    assert book.undo(source="page", by="bob") is None


def test_truth_that_comes_before_its_sample_waits_for_it(hub, samples):
    sample = sample_id_of(b"sample 0")
    book = LabelBook(hub)
    (receipt,) = book.put([label(sample, "owl", "e1", source="edge", edge="e1")])
    assert (receipt.outcome, receipt.reason) == ("stored", "waits for its sample")
    samples.many(1)
    assert state_of(hub, sample) == ("labelled", 2)


def test_labels_that_wait_are_bounded_in_number_and_in_time(make_hub, clock):
    hub = make_hub(limits=Limits(unknown_labels=2, unknown_age=60))
    book = LabelBook(hub)
    ids = [f"{number:064x}" for number in range(3)]
    assert [receipt.outcome for receipt in book.put([label(each, 0) for each in ids])] == ["stored", "stored", "later"]
    clock.now += 61
    assert book.drop_stale() == 2
    assert book.put([label(ids[2], 0)])[0].outcome == "stored"


def test_an_edge_labels_its_own_samples_alone(hub, samples):
    (sample,) = samples.many(1, edge="e1")
    book = LabelBook(hub)
    (receipt,) = book.put([label(sample, 0, "e2", source="edge", edge="e2")])
    assert (receipt.outcome, state_of(hub, sample)) == ("refused", ("waiting", None))
    assert "another edge" in receipt.reason


def test_an_edges_label_that_came_before_another_edges_sample_is_dropped(hub, samples):
    sample = sample_id_of(b"sample 0")
    LabelBook(hub).put([label(sample, 0, "e2", source="edge", edge="e2")])
    samples.many(1, edge="e1")
    assert state_of(hub, sample) == ("waiting", None)


def test_a_label_from_a_clock_that_is_ahead_does_not_keep_later_ones_out(hub, samples, clock):
    (sample,) = samples.many(1)
    book = LabelBook(hub)
    book.put([label(sample, "cat", at=clock.now + 1e6)])
    clock.now += 1
    book.put([label(sample, "dog", at=clock.now)])
    assert state_of(hub, sample) == ("labelled", 1)
    assert book.put([label(sample, "cat", at=clock.now - 50)])[0].outcome == "known", "an older one, sent again"


votes = st.builds(
    Vote,
    person=st.sampled_from(PEOPLE),
    value=st.integers(0, 2),
    skipped=st.booleans(),
    machine=st.booleans(),
    source=st.sampled_from(("page", "api")),
    at=st.integers(0, 3).map(float),
)


@given(st.lists(votes, max_size=8), st.integers(1, 2), st.randoms())
def test_what_people_agree_on_does_not_depend_on_the_order_in_which_they_are_heard(given_votes, needed, random):
    found = agree(given_votes, needed)
    again = list(given_votes)
    random.shuffle(again)
    assert agree(again, needed) == found
    if found.state == "labelled":
        backers = {vote.person for vote in given_votes if not vote.skipped and vote.value == found.value}
        people = [vote for vote in given_votes if not vote.machine]
        assert len(backers) >= (needed if people else 1)


class Labelling(RuleBasedStateMachine):
    """Labels given and taken back in any order leave each sample as its remaining labels say."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.hub = Hub(
            HubSettings(
                job="test", database=f"sqlite:///{self.folder.name}/hub.db", storage="memory://labels", agreement=2
            )
        )
        (self.sample,) = Samples(self.hub).many(1)
        self.book, self.said, self.at = LabelBook(self.hub), {}, 0.0

    @rule(by=st.sampled_from(PEOPLE), value=st.integers(0, 2))
    def says(self, by, value):
        self.at += 1
        self.book.put([label(self.sample, value, by, at=self.at)])
        self.said[by] = Vote(by, value)

    @rule(by=st.sampled_from(PEOPLE))
    def skips(self, by):
        self.at += 1
        self.book.put([label(self.sample, None, by, at=self.at, skipped=True)])
        self.said[by] = Vote(by, skipped=True)

    @rule(by=st.sampled_from(PEOPLE))
    def takes_back(self, by):
        assert (self.book.undo(source="page", by=by) is None) == (by not in self.said)
        self.said.pop(by, None)

    @invariant()
    def the_sample_stands_as_its_labels_say(self):
        expected = agree(list(self.said.values()), 2)
        state, value = state_of(self.hub, self.sample)
        assert state == ("waiting" if expected.state == "open" else expected.state)
        assert value == expected.value

    def teardown(self):
        self.hub.close()
        self.folder.cleanup()


TestLabelling = Labelling.TestCase
TestLabelling.settings = settings(max_examples=10, stateful_step_count=10, deadline=None)
