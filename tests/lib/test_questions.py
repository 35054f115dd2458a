# SPDX-License-Identifier: Apache-2.0
"""Questions and responses survive the way, and what is none is refused."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import WireError
from solar_corona.lib import wire
from solar_corona.lib.questions import Question, Response
from solar_corona.lib.signatures import SignatureSpec
from solar_corona.lib.survey import SurveyAnswer, SurveyQuestion, TaskAbout, TaskNames
from solar_corona.lib.task_directions import Axes
from solar_corona.lib.task_mixture import TaskModel


@given(st.text(max_size=20), st.text(max_size=50), st.lists(st.binary(max_size=30), max_size=4), st.text(max_size=20))
def test_a_response_survives_the_way(kind, text, parts, refused):
    arrays = {"a": np.arange(4, dtype=np.float32)}
    sent = Response(kind, text, arrays, tuple(parts), refused)
    got = Response.from_content(wire.unpack(wire.pack(sent.to_content())))
    assert (got.kind, got.text, got.parts, got.refused) == (kind, text, tuple(parts), refused)
    np.testing.assert_array_equal(got.arrays["a"], arrays["a"])


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"solar-corona-question": ArrayRecord()}),
        RecordDict({"solar-corona-question": ConfigRecord({"kind": 1, "text": "", "parts": [], "refused": ""})}),
        RecordDict({"solar-corona-question": ConfigRecord({"kind": "a", "text": "x" * (5 * 2**20), "refused": ""})}),
    ],
)
def test_what_is_no_question_is_refused(content):
    for kind in (Question, Response):
        with pytest.raises(WireError):
            kind.from_content(content)


def found_tasks(spec, places=((-1.0,), (1.0,))):
    """What a fleet finds, with one direction in which its tasks differ."""
    rng, size = np.random.default_rng(0), spec.dimension
    axes = Axes(rng.normal(size=(1, 2, size)), np.zeros((2, size)))
    frame = axes.frame(np.arange(2), rng.normal(size=(2, size)), np.eye(size))
    return TaskModel(spec, frame, np.array(places), 0.9, ("task-1", "task-2"))


def test_a_survey_brings_the_tasks_that_were_found():
    spec, found = SignatureSpec(seed=3), found_tasks(SignatureSpec(seed=4))
    sent = SurveyQuestion(spec=spec).to_question(found, {"kernel": np.ones(2, np.float32)})
    said, tasks, model = SurveyQuestion.of(Question.from_content(wire.unpack(wire.pack(sent.to_content()))))
    assert (said.spec, tasks.spec, tasks.purity, tasks.names) == (spec, found.spec, 0.9, found.names)
    np.testing.assert_allclose(tasks.places, found.places)
    np.testing.assert_allclose(tasks.frame.axes, found.frame.axes, rtol=1e-5, atol=1e-6)
    assert list(model) == ["kernel"]


def test_found_tasks_that_are_not_whole_are_refused():
    sent = SurveyQuestion(spec=SignatureSpec()).to_question(found_tasks(SignatureSpec()))
    name = next(name for name in sent.arrays if name.endswith("places"))
    arrays = {other: value for other, value in sent.arrays.items() if other != name}
    with pytest.raises(WireError, match="not whole"):
        SurveyQuestion.of(Question(sent.kind, sent.text, arrays))


def test_a_survey_answer_needs_a_signature_for_each_task():
    answer = SurveyAnswer(tasks=(TaskAbout(name="all", samples=3),))
    assert SurveyAnswer.of(answer.to_response([b"x"])) == answer
    with pytest.raises(WireError, match="0 signatures came for 1 tasks"):
        SurveyAnswer.of(answer.to_response([]))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"groups": ["a"], "group_of": {"e": "b"}}', '{"groups": 3, "group_of": {}}']
)
def test_names_that_lead_nowhere_are_refused(text):
    with pytest.raises(WireError):
        TaskNames.of(RecordDict({"solar-corona-task-names": ConfigRecord({"json": text})}))


def test_names_survive_the_way():
    names = TaskNames(("group-1", "group-2"), {"edge-0": "group-2", "edge-1/phone": "group-1"})
    content = wire.unpack(wire.pack(names.attach(RecordDict({"a": ConfigRecord({"b": 1})}))))
    assert TaskNames.of(content) == names
    assert "a" in content
    assert TaskNames.of(RecordDict()) is None
