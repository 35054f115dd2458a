# SPDX-License-Identifier: Apache-2.0
"""What the command says of itself, and where it cannot do what it is asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from solar_corona.core.extras import extra_of


def _run(*arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; {before}; sys.argv = ['solar-corona', *sys.argv[1:]]; from solar_corona.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(("command", "words"), [("run", "The job file."), ("status", "A job file, a run folder, or a")])
def test_help_says_what_an_argument_means(command, words):
    assert words in _run(command, "--help").stdout


def test_a_mistyped_command_gets_one_suggestion():
    done = _run("rnu")
    assert done.returncode == 2
    assert done.stderr.count("Did you mean") == 1
    assert "'run'" in done.stderr


def test_a_package_that_is_not_installed_is_told_with_the_extra_that_brings_it():
    done = _run("strategies", "--json", before="sys.modules['scipy'] = None")
    assert done.returncode == 4
    assert done.stderr == (
        "error: this needs the package scipy, which is not installed; pip install 'solar-corona[server]'\n"
    )
    assert '"exit_code": 4' in done.stdout


def test_a_module_that_no_extra_has_is_an_error_of_ours():
    done = _run("schema", before="sys.modules['solar_corona.core.schema'] = None")
    assert done.returncode == 70
    assert "--debug shows where" in done.stderr


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("scipy", "server"),
        ("flwr.app", "server"),
        ("PIL.Image", "data"),
        ("keras", "tensorflow"),
        ("s3fs", "s3"),
        ("yaml", None),
        ("no_such_package", None),
    ],
)
def test_each_optional_package_has_its_extra(module, extra):
    assert extra_of(module) == extra
