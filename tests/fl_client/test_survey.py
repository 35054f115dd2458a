# SPDX-License-Identifier: Apache-2.0
"""What an edge says of its samples: over restarts, when they change, and when the server did not hear it."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import RecordDict

from benchmarks._simulation import Mlp
from solar_corona.core.spec import Tasks
from solar_corona.fl_client.edge_data import EdgeData
from solar_corona.fl_client.node import Node
from solar_corona.lib import exchange
from solar_corona.lib.compression import digest
from solar_corona.lib.exchange import Instruction, Verb
from solar_corona.lib.questions import Question, Response
from solar_corona.lib.signatures import InputMoments, Signature, SignatureSpec, drifted, embed_samples
from solar_corona.lib.survey import SurveyAnswer, SurveyQuestion, signature_digest, tell_known
from solar_corona.lib.task_directions import Axes, whitening
from solar_corona.lib.task_mixture import TaskModel
from solar_corona.tests.strategies.fleets import samples

SPEC = SignatureSpec(dimension=16)


class Embedding(Mlp):
    """A perceptron that says what its hidden layer gives."""

    def embed(self, x):
        return np.maximum(x @ self.weights["0/kernel"] + self.weights["1/bias"], 0)


def node(folder, *, data=None, count=120, kind=Mlp, rules=None):
    train, held_out = data or samples(0, count, 1), samples(0, 40, 2)
    model = kind(*train, *held_out, hidden=16, classes=4)
    edge_data = EdgeData(train, held_out, tasks=rules or Tasks())
    return Node("edge-0", model, samples=len(train[0]), eval_samples=40, data=edge_data, folder=folder)


def ask(edge, *, spec=SPEC, model=None, found=None, **said):
    question = SurveyQuestion(spec=spec, **said).to_question(found, model).to_content()
    reply = edge.answer(exchange.attach(question, Instruction(verb=Verb.QUERY, round=1)))
    return Response.from_content(reply)


def train(edge, known=None):
    """Have an edge train, and return what it says of its samples beside its model."""
    content = RecordDict({"arrays": exchange.to_arrays(edge._trainable.get_weights())})
    content = content if known is None else tell_known(content, known)
    reply = edge.answer(exchange.attach(content, Instruction(verb=Verb.TRAIN, round=2)))
    assert "arrays" in reply
    return Response.from_content(reply) if Response.is_in(reply) else None


def change(data, task=1, seed=7):
    x, y = samples(task, len(data[0]), seed)
    data[0][:], data[1][:] = x, y


def test_samples_that_change_are_signed_again_with_the_next_model_and_then_no_more():
    data = samples(0, 120, 1)
    edge = node(None, data=data)
    before = ask(edge)
    assert train(edge, signature_digest(before.parts)) is None
    change(data)
    said = train(edge, signature_digest(before.parts))
    assert SurveyAnswer.of(said).changed
    assert drifted(Signature.from_bytes(before.parts[0]), Signature.from_bytes(said.parts[0]))
    assert train(edge, signature_digest(said.parts)) is None


def test_other_samples_of_the_same_task_are_no_drift():
    data = samples(0, 120, 1)
    edge = node(None, data=data)
    known = signature_digest(ask(edge).parts)
    change(data, task=0, seed=11)
    assert train(edge, known) is None


def test_a_change_that_the_server_did_not_hear_of_is_told_until_it_has():
    data = samples(0, 120, 1)
    edge = node(None, data=data)
    known = signature_digest(ask(edge).parts)
    change(data)
    lost = train(edge, known)
    for heard in (None, known):
        again = train(edge, heard)
        assert again.parts == lost.parts
    assert train(edge, signature_digest(again.parts)) is None
    assert train(edge) is None


def test_a_process_that_starts_anew_tells_what_was_not_heard_of_before(tmp_path):
    data = samples(0, 120, 1)
    ask(node(tmp_path, data=data))
    change(data)
    lost = train(node(tmp_path, data=data))
    assert train(node(tmp_path, data=data)).parts == lost.parts
    assert train(node(tmp_path, data=data), signature_digest(lost.parts)) is None
    assert train(node(tmp_path, data=data)) is None


@pytest.mark.parametrize("changed", [False, True])
def test_a_process_that_starts_anew_knows_what_the_one_before_signed(tmp_path, changed):
    data = samples(0, 120, 1)
    known = signature_digest(ask(node(tmp_path, data=data)).parts)
    if changed:
        change(data)
    said = train(node(tmp_path, data=data), known)
    assert (said is not None) == changed


def test_an_edge_that_lost_what_it_signed_says_so(tmp_path, caplog):
    known = signature_digest(ask(node(tmp_path)).parts)
    (tmp_path / "survey.bin").write_bytes(b"half a file")
    said = train(node(tmp_path), known)
    assert SurveyAnswer.of(said).lost
    assert "survey.bin is damaged" in caplog.text
    assert train(node(tmp_path)) is None, "a server that knows nothing of it is told nothing"


def two_tasks():
    """What a fleet would find, made from samples whose task is known."""
    parts = [samples(task, 400, 50 + task) for task in (0, 1)]
    embedded = [embed_samples(x, y, SPEC) for x, y in parts]
    means = np.array([[z[y == c].mean(0) for c in range(4)] for z, y in embedded])
    spread = np.concatenate([z - mean[y] for (z, y), mean in zip(embedded, means, strict=True)])
    white = whitening(spread.T @ spread / len(spread))
    axes = Axes(((means[1] - means[0]) / 2 @ white)[None], np.zeros((4, SPEC.dimension)))
    frame = axes.frame(np.arange(4), means.mean(0), white)
    return TaskModel(SPEC, frame, np.array([[-1.0], [1.0]]), 1.0, ("task-1", "task-2"))


def test_a_restarted_edge_tells_its_tasks_apart_as_before(tmp_path):
    parts = [samples(c % 2, 10, c) for c in range(24)]
    data = tuple(np.concatenate([p[k] for p in parts]) for k in (0, 1))
    rules = Tasks(division="discovery", chunk=10)
    edge = node(tmp_path, data=data, rules=rules)
    said = ask(edge, found=two_tasks())
    assert len(SurveyAnswer.of(said).tasks) == 2
    again = node(tmp_path, data=data, rules=rules)
    again.settle("")
    assert again.survey.split().train.tolist() == edge.split.train.tolist()
    assert train(again, signature_digest(said.parts)) is None


def test_the_file_is_gone_when_the_job_is_done(tmp_path):
    edge = node(tmp_path)
    ask(edge)
    assert (tmp_path / "survey.bin").exists()
    content = RecordDict({"arrays": exchange.to_arrays(edge._trainable.get_weights())})
    edge.answer(exchange.attach(content, Instruction(verb=Verb.FINISH)))
    assert not (tmp_path / "survey.bin").exists()


def test_samples_that_cannot_be_signed_any_more_do_not_end_the_script(caplog):
    data = samples(0, 120, 1)
    edge = node(None, data=data)
    known = signature_digest(ask(edge).parts)
    data[0][5, 3] = np.nan
    assert train(edge, known) is None
    assert (
        "the samples of this edge have changed and cannot be signed, so its tasks stay: inputs have NaN" in caplog.text
    )


def test_a_loader_that_is_no_array_is_read_again_when_the_server_asks_again():
    batches = [samples(0, 40, 1), samples(0, 40, 2)]
    edge = node(None, data=batches[0])
    edge.survey._data = EdgeData(batches)
    before = ask(edge)
    assert ask(edge).parts == before.parts
    batches[:] = [samples(1, 40, 1), samples(1, 40, 2)]
    assert ask(edge).parts != before.parts


@pytest.mark.parametrize("count", [1, 2])
def test_what_few_samples_give_away_does_not_leave(count):
    """The mean of a single sample is the sample itself."""
    x, y = samples(0, count, 1)
    x[:, 0] = 5000 + x[:, 0]
    said = ask(node(None, data=(x, y)))
    answer = SurveyAnswer.of(said)
    assert not answer.moments
    assert len(Signature.from_bytes(said.parts[0]).counts) == 0


def test_classes_below_the_set_size_are_no_part_of_a_signature():
    x, y = samples(0, 120, 1)
    y[:] = 0
    y[:9] = 1
    for least, classes in ((3, [0, 1]), (10, [0])):
        said = ask(node(None, data=(x, y)), spec=SPEC.model_copy(update={"min_count": least}))
        assert Signature.from_bytes(said.parts[0]).classes.tolist() == classes


def test_units_of_their_own_bring_moments_first_unless_the_server_wants_none():
    x, y = samples(0, 120, 1)
    x[:, 0] = 5000 + 100 * x[:, 0]
    edge = node(None, data=(x, y))
    said = ask(edge)
    assert SurveyAnswer.of(said).moments
    assert InputMoments.from_bytes(said.parts[0]).means[0] == pytest.approx(x[:, 0].mean())
    assert len(Signature.from_bytes(ask(edge, scale=False).parts[0]).counts) == 4


def test_every_edge_embeds_with_the_weights_that_came_with_the_question():
    data = samples(0, 120, 1)
    one, other = node(None, data=data, kind=Embedding), node(None, data=data, kind=Embedding)
    model = {name: value + 0.1 for name, value in one._trainable.get_weights().items()}
    train(other)  # its own weights are others by now
    own = {name: value.copy() for name, value in other._trainable.get_weights().items()}
    spec = SPEC.model_copy(update={"embedding": digest(model)})
    said = ask(one, spec=spec, model=model, scale=False)
    assert said.parts == ask(other, spec=spec, model=model, scale=False).parts
    assert said.parts != ask(one, scale=False).parts
    for name, value in other._trainable.get_weights().items():
        np.testing.assert_array_equal(value, own[name])


def test_a_restarted_edge_embeds_its_changed_samples_with_the_same_weights(tmp_path):
    data = samples(0, 120, 1)
    edge = node(tmp_path, data=data, kind=Embedding)
    model = {name: value + 0.1 for name, value in edge._trainable.get_weights().items()}
    spec = SPEC.model_copy(update={"embedding": digest(model)})
    known = signature_digest(ask(edge, spec=spec, model=model, scale=False).parts)
    change(data)
    said = train(node(tmp_path, data=data, kind=Embedding), known)
    assert said.parts == ask(edge, spec=spec, model=model, scale=False).parts


@pytest.mark.parametrize(
    ("kind", "shift", "told"),
    [
        (Mlp, 0.0, "and Mlp has no method embed(x) that returns it"),
        (Embedding, 0.1, "the model in a question is not the one by which it asks to sign"),
    ],
)
def test_an_edge_that_cannot_embed_refuses_with_the_reason(kind, shift, told):
    edge = node(None, kind=kind)
    model = {name: value + shift for name, value in edge._trainable.get_weights().items()}
    spec = SPEC.model_copy(update={"embedding": digest(dict(edge._trainable.get_weights()))})
    assert told in ask(edge, spec=spec, model=model).refused


def test_a_question_of_an_unknown_kind_is_refused():
    edge = node(None)
    reply = edge.answer(exchange.attach(Question("secrets").to_content(), Instruction(verb=Verb.QUERY)))
    assert "no edge knows questions of the kind 'secrets'" in Response.from_content(reply).refused
