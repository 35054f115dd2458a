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
from solar_corona.lib.signatures import SignatureSpec, sign
from solar_corona.lib.survey import SurveyAnswer, SurveyQuestion, TaskAbout, TaskNames


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


def test_a_survey_brings_the_tasks_that_were_found():
    spec = SignatureSpec(seed=3)
    found = sign(np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 2, spec)
    said, tasks = SurveyQuestion.of(SurveyQuestion(spec=spec).to_question([found]))
    assert said.spec == spec
    assert tasks == (found,)


def test_tasks_signed_in_another_way_are_refused():
    found = sign(np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 2, SignatureSpec(seed=4))
    with pytest.raises(WireError, match="signed in another way"):
        SurveyQuestion.of(SurveyQuestion(spec=SignatureSpec(seed=3)).to_question([found]))


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
