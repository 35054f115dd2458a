# SPDX-License-Identifier: Apache-2.0
"""Which models a command line names."""

from __future__ import annotations

import pytest

from solar_corona.core.errors import ModelError, SpecError
from solar_corona.joint_inference.service.model_folder import find_models, fingerprint


def _touch(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _found(*arguments):
    return {place.name: [*place.versions()] for place in find_models([*map(str, arguments)])}


def test_a_file_is_served_under_its_name_or_a_given_one(tmp_path):
    path = _touch(tmp_path / "digits.v2.onnx")
    assert _found(path) == {"digits.v2": ["1"]}
    assert _found(f"mine={path}") == {"mine": ["1"]}


def test_a_saved_model_folder_is_one_model(tmp_path):
    _touch(tmp_path / "deep" / "saved_model.pb")
    _touch(tmp_path / "deep" / "variables" / "1" / "x")
    assert _found(tmp_path / "deep") == {"deep": ["1"]}


def test_versions_are_in_the_order_of_their_numbers(tmp_path):
    for version in ("9", "10", "2"):
        _touch(tmp_path / "digits" / version / "model.onnx")
    _touch(tmp_path / "digits" / "notes" / "model.onnx")
    _touch(tmp_path / "digits" / "11" / "saved_model.pb")
    assert _found(tmp_path / "digits") == {"digits": ["2", "9", "10", "11"]}


def test_a_repository_holds_models_of_every_kind(tmp_path):
    _touch(tmp_path / "a" / "1" / "model.tflite")
    _touch(tmp_path / "b.keras")
    _touch(tmp_path / "c" / "saved_model.pb")
    _touch(tmp_path / "notes" / "readme.txt")
    assert _found(tmp_path) == {"a": ["1"], "b": ["1"], "c": ["1"]}


def test_two_models_of_one_name_are_refused(tmp_path):
    _touch(tmp_path / "x" / "m.onnx")
    _touch(tmp_path / "y" / "m.onnx")
    with pytest.raises(SpecError, match="both named 'm'; name one with NAME=PATH"):
        _found(tmp_path / "x" / "m.onnx", tmp_path / "y" / "m.onnx")


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b", "é", "x" * 200])
def test_a_name_that_no_url_could_have_is_refused(tmp_path, name):
    with pytest.raises(SpecError, match="cannot be a model's name"):
        _found(f"{name}={_touch(tmp_path / 'm.onnx')}")


@pytest.mark.parametrize(
    ("files", "argument", "says"),
    [
        ([], "nothing.onnx", "there is no such model"),
        (["notes.txt"], "notes.txt", "is no model"),
        (["readme.txt"], ".", "holds no model"),
        (["m/1/a.onnx", "m/1/b.onnx"], "m", "holds 2 models"),
        (["m/1/readme"], "m", "holds 0 models"),
    ],
)
def test_what_is_no_model_is_said(tmp_path, files, argument, says):
    for file in files:
        _touch(tmp_path / file)
    with pytest.raises(ModelError, match=says):
        _found(tmp_path / argument)


def test_a_fingerprint_tells_a_changed_model(tmp_path):
    folder = _touch(tmp_path / "m" / "saved_model.pb").parent
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    _touch(folder / "variables" / "data", b"other")
    assert fingerprint(folder) != before
