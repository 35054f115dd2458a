# SPDX-License-Identifier: Apache-2.0
"""The errors' family and the exit codes."""

from __future__ import annotations

import inspect

import pytest

from solar_corona.core import errors
from solar_corona.core.errors import ExitCode, SolarCoronaError

KINDS = [kind for name in errors.__all__ if inspect.isclass(kind := getattr(errors, name)) and kind is not ExitCode]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not SolarCoronaError])
def test_each_error_is_one_of_ours_and_of_a_builtin_kind(kind):
    assert issubclass(kind, SolarCoronaError)
    builtin = [
        base for base in kind.__mro__ if base.__module__ == "builtins" and base not in (Exception, BaseException)
    ]
    assert any(base is not object for base in builtin)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.SpecError, ValueError),
        (errors.ContextError, LookupError),
        (errors.DatasetError, ValueError),
        (errors.ModelError, ValueError),
        (errors.StrategyError, ValueError),
        (errors.StrategySpecError, errors.SpecError),
        (errors.WireError, ValueError),
        (errors.PlatformError, OSError),
        (errors.TemporaryError, ConnectionError),
        (errors.JobFailedError, RuntimeError),
        (errors.InterruptedJobError, RuntimeError),
    ],
)
def test_callers_catch_what_they_would_expect(kind, builtin):
    with pytest.raises(builtin, match="the reason"):
        raise kind("the reason")


def test_each_error_has_a_documented_exit_code():
    assert {kind.exit_code for kind in KINDS} <= set(ExitCode)
    assert errors.StrategySpecError.exit_code is ExitCode.BAD_JOB


def test_each_exit_code_has_a_meaning_of_its_own():
    meanings = [code.meaning for code in ExitCode]
    assert len(set(meanings)) == len(ExitCode)
    assert all(meaning.endswith(".") for meaning in meanings)


def test_the_list_of_names_is_sorted_and_whole():
    own = {n for n, k in vars(errors).items() if inspect.isclass(k) and k.__module__ == errors.__name__}
    assert errors.__all__ == sorted(own)
