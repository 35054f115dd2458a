# SPDX-License-Identifier: Apache-2.0
"""What users name: one of ours, or their own as module:name."""

from __future__ import annotations

import json

import pytest

from solar_corona.core.errors import ModelError, SpecError
from solar_corona.core.named import imported, known_or_imported

OURS = {"plain": dict, "lazy": "json:loads"}


def test_ours_come_first_and_may_be_imported_when_asked_for():
    assert known_or_imported("plain", OURS, "thing", error=SpecError) is dict
    assert known_or_imported("lazy", OURS, "thing", error=SpecError) is json.loads
    assert known_or_imported("json:dumps", OURS, "thing", error=SpecError) is json.dumps


def test_a_wrong_name_is_told_with_the_nearest_and_all_that_there_are():
    with pytest.raises(SpecError) as error:
        known_or_imported("plan", OURS, "thing", error=SpecError)
    assert str(error.value) == "there is no thing 'plan'; did you mean 'plain'? Known: plain, lazy, or module:Class"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:f", "cannot be loaded (ModuleNotFoundError"),
        ("json:nothing", "cannot be loaded (AttributeError"),
        (":f", "cannot be loaded (ValueError"),
        ("json:", "cannot be loaded (AttributeError"),
    ],
)
def test_what_cannot_be_used_is_told_with_what_was_expected(name, why):
    with pytest.raises(ModelError) as error:
        imported(name, f"the thing {name!r}", error=ModelError, kind="function")
    assert str(error.value).startswith(f"the thing {name!r} {why}")


def test_whatever_a_module_raises_is_told(tmp_path, monkeypatch):
    (tmp_path / "raises_at_once.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SpecError, match=r"ZeroDivisionError.*beside the job file or installed"):
        imported("raises_at_once:f", "the thing", error=SpecError, beside="the job file")


def test_what_cannot_be_called_makes_nothing():
    with pytest.raises(SpecError) as error:
        known_or_imported("math:pi", OURS, "thing", error=SpecError)
    assert str(error.value) == "the thing 'math:pi' is no class"
