# SPDX-License-Identifier: Apache-2.0
"""What a script is told about its job."""

from __future__ import annotations

import threading

import pytest

from solar_corona.core.context_document import ContextDocument
from solar_corona.core.errors import ContextError
from solar_corona.core.settings import CONTEXT_VARIABLE
from solar_corona.core.spec import ModelSource
from solar_corona.lib import context


def _document(**more):
    return ContextDocument(
        job="digits", kind="FederatedLearningJob", run="r1", role="edge", worker="edge-0", run_folder="/run", **more
    )


@pytest.fixture
def in_job(tmp_path, monkeypatch):
    def put(document):
        path = tmp_path / "context.json"
        path.write_text(document if isinstance(document, str) else document.model_dump_json())
        monkeypatch.setenv(CONTEXT_VARIABLE, str(path))
        context._read.cache_clear()

    yield put
    context._read.cache_clear()


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv(CONTEXT_VARIABLE, raising=False)


def test_parameters_have_the_types_of_the_yaml(in_job):
    given = {"epochs": 3, "lr": 1.0, "name": "3", "on": True, "nothing": None, "layers": [1, {"a": 2.5}]}
    in_job(_document(parameters=given))
    for name, value in given.items():
        found = context.get_parameters(name)
        assert found == value
        assert type(found) is type(value)
    assert context.get_parameters("nothing", 5) is None


def test_a_default_is_for_what_is_missing_alone(in_job):
    in_job(_document(parameters={"epochs": 3}))
    assert context.get_parameters("epochs", 9) == 3
    assert context.get_parameters("size", 9) == 9
    assert context.get_parameters("size", default=None) is None


def test_a_missing_parameter_is_told_with_the_nearest_name_and_all_there_are(in_job):
    in_job(_document(parameters={"epochs": 3, "batch_size": 32}))
    with pytest.raises(LookupError) as caught:
        context.get_parameters("epoch")
    assert str(caught.value) == (
        "the job has no parameter 'epoch'; did you mean 'epochs'? It has: batch_size, epochs. "
        "Add it under spec.parameters, or give a default"
    )
    in_job(_document())
    with pytest.raises(ContextError, match="the job has no parameter 'zzz'; it has none"):
        context.get_parameters("zzz")


def test_a_script_on_its_own_is_told_how_to_get_a_job():
    assert not context.in_job()
    assert context.current() is None
    assert context.get_parameters("epochs", 1) == 1
    assert (context.get_job_name(), context.get_edge_name()) == (None, None)
    with pytest.raises(
        ContextError, match=r"the script runs alone; start it with `solar-corona run JOB\.yaml`, or give"
    ):
        context.get_parameters("epochs")
    with pytest.raises(ContextError, match=r"the script runs alone; .*, or give load_model a path"):
        context.get_model_path()


def test_a_job_without_a_model_is_told(in_job):
    in_job(_document())
    with pytest.raises(ContextError, match="names no model to start from"):
        context.get_model_path()


def test_the_job_the_edge_and_the_model_are_told(in_job):
    in_job(_document(model=ModelSource(path="/job/m.keras")))
    assert context.in_job()
    assert (context.get_job_name(), context.get_edge_name()) == ("digits", "edge-0")
    assert context.get_model_path() == "/job/m.keras"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job": 1}', "\x00", '{"version": 2}'])
def test_a_damaged_document_is_told_with_its_path(in_job, text):
    in_job(text)
    with pytest.raises(ContextError, match=r"context\.json: .*start the job anew"):
        context.get_parameters("epochs", 1)


def test_a_field_of_a_newer_version_is_told_by_name(in_job):
    in_job(_document().model_dump_json().replace("{", '{"newer": 1,', 1))
    with pytest.raises(ContextError, match="newer: Extra inputs are not permitted; it was written by another version"):
        context.current()


def test_a_document_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv(CONTEXT_VARIABLE, str(tmp_path / "none.json"))
    with pytest.raises(ContextError, match=r"cannot be read \(No such file or directory\); unset it to run"):
        context.in_job()


def test_edges_in_one_process_see_each_their_own_document():
    found, ready = {}, threading.Barrier(3, timeout=10)

    def edge(name):
        with context.using(_document(parameters={"epochs": len(name)}).model_copy(update={"worker": name})):
            ready.wait()
            found[name] = (context.get_edge_name(), context.get_parameters("epochs"))
            ready.wait()

    threads = [threading.Thread(target=edge, args=(name,)) for name in ("a", "bb")]
    for thread in threads:
        thread.start()
    ready.wait()
    assert context.current() is None
    ready.wait()
    for thread in threads:
        thread.join()
    assert found == {"a": ("a", 1), "bb": ("bb", 2)}


def test_a_document_put_in_place_is_gone_after_its_block_also_after_an_error(in_job):
    in_job(_document(parameters={"a": 1}))
    with pytest.raises(ZeroDivisionError), context.using(_document(parameters={"a": 2})):
        assert 1 / (context.get_parameters("a") - 2)
    assert context.get_parameters("a") == 1
