# SPDX-License-Identifier: Apache-2.0
"""A user's script as a worker: how it ended is told once, in its own words."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from solar_corona.core.context_document import ContextDocument
from solar_corona.core.run_folder import RunFolder
from solar_corona.core.settings import CONTEXT_VARIABLE


@pytest.fixture
def work(tmp_path):
    def start(code, *arguments, name="train.py", context=None):
        script = tmp_path / name
        if code is not None:
            script.write_bytes(textwrap.dedent(code).encode("utf-8", "surrogateescape"))
        document = tmp_path / "context.json"
        if context is None:
            context = ContextDocument(
                job="digits", kind="F", run="r1", role="edge", worker="edge-0", run_folder=str(tmp_path / "run")
            ).model_dump_json()
        document.write_text(context)
        ran = subprocess.run(
            [sys.executable, "-m", "solar_corona.lib.script_worker", str(script), *arguments],
            env={**os.environ, CONTEXT_VARIABLE: str(document)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return ran, RunFolder(tmp_path / "run").read_failure("edge-0")

    return start


def test_a_script_runs_as_with_plain_python(work, tmp_path):
    (tmp_path / "helper.py").write_text("value = 5")
    code = "import sys, helper\nprint(__name__, sys.argv[1:], helper.value, __file__.endswith('train.py'))"
    ran, failure = work(code, "a", "b")
    assert (ran.returncode, failure) == (0, None)
    assert ran.stdout == "__main__ ['a', 'b'] 5 True\n"


def test_a_script_that_raises_shows_its_traceback_once_and_no_frame_of_ours(work):
    code = """
    def load():
        return {}["column"]

    load()
    """
    ran, failure = work(code)
    assert ran.returncode == 1
    assert ran.stderr.count("Traceback (most recent call last)") == 1
    assert ran.stderr.count("KeyError: 'column'") == 1
    assert "worker.py" not in ran.stderr
    assert "runpy" not in ran.stderr
    assert "line 5, in <module>" in ran.stderr
    assert "line 3, in load" in ran.stderr
    assert failure is not None
    assert (failure.error, failure.exit_code, failure.told) == ("KeyError: 'column'", 1, False)
    assert failure.traceback == ran.stderr


def test_frames_of_ours_between_two_of_the_scripts_are_left_out_and_those_that_raise_are_kept(work):
    code = """
    import numpy, solar_corona

    def parse(x, y):
        return x["column"], y

    numpy.savez(__file__ + ".npz", x=[1], y=[1])
    solar_corona.load_dataset(__file__ + ".npz", parse)
    """
    ran, _ = work(code)
    assert ran.stderr.index("line 8, in <module>") < ran.stderr.index("line 5, in parse")
    assert "datasets.py" not in ran.stderr
    ran, failure = work("import solar_corona\nsolar_corona.load_dataset(5)")
    assert failure is not None
    assert failure.error.startswith("TypeError")
    assert failure.traceback.index("train.py") < failure.traceback.index("datasets.py")


def test_what_caused_an_error_is_shown_before_it(work):
    code = """
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise RuntimeError("no model") from error
    """
    ran, failure = work(code)
    assert ran.stderr.index("ZeroDivisionError") < ran.stderr.index("direct cause") < ran.stderr.index("no model")
    assert "worker.py" not in ran.stderr
    assert failure is not None
    assert failure.error == "RuntimeError: no model"


def test_a_script_that_is_no_python_is_told_with_its_line(work):
    ran, failure = work("x = (\n")
    assert ran.returncode == 1
    assert "train.py" in ran.stderr
    assert "SyntaxError: '(' was never closed" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert failure is not None
    assert failure.error.startswith("SyntaxError: ")


@pytest.mark.parametrize(
    ("call", "code"), [("sys.exit()", 0), ("sys.exit(0)", 0), ("sys.exit(3)", 1), ("sys.exit('no')", 1)]
)
def test_a_script_that_ends_itself_fails_unless_it_says_that_all_is_well(work, call, code):
    ran, failure = work(f"import sys\n{call}")
    assert ran.returncode == code
    assert (failure is None) == (code == 0)
    if failure is not None:
        assert failure.error.startswith("the script ended itself with exit status ")
        assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [("DatasetError", 3, False), ("ModelError", 3, False), ("JobFailedError", 1, True), ("PlatformError", 4, False)],
)
def test_an_error_of_ours_is_one_line_with_its_own_exit_code(work, error, code, told):
    ran, failure = work(f"from solar_corona.core import errors\nraise errors.{error}('x.npz is missing; add it')")
    assert ran.returncode == code
    assert ran.stderr == "x.npz is missing; add it\n"
    assert failure is not None
    assert (failure.error, failure.exit_code, failure.told) == ("x.npz is missing; add it", code, told)


def test_a_script_that_is_not_there_is_told(work):
    ran, failure = work(None)
    assert ran.returncode == 3
    assert "train.py does not exist" in ran.stderr
    assert failure is not None


def test_a_damaged_context_is_told_in_one_line(work):
    ran, failure = work("from solar_corona.lib import context\ncontext.get_parameters('a')", context="{")
    assert ran.returncode == 3
    assert ran.stderr.count("\n") == 1
    assert "start the job anew" in ran.stderr
    assert failure is None


def test_an_error_with_half_a_character_is_told_all_the_same(work):
    ran, failure = work("raise ValueError('no file \\udcff')")
    assert ran.returncode == 1
    assert failure is not None
    assert failure.error == "ValueError: no file \\udcff"


def test_a_report_that_cannot_be_written_does_not_hide_the_error(work, tmp_path):
    (tmp_path / "run").write_text("a file")
    code = "raise ValueError('the reason')"
    script = tmp_path / "train.py"
    script.write_text(code)
    document = tmp_path / "context.json"
    document.write_text(
        ContextDocument(
            job="d", kind="F", run="r", role="edge", worker="edge-0", run_folder=str(tmp_path / "run")
        ).model_dump_json()
    )
    ran = subprocess.run(
        [sys.executable, "-m", "solar_corona.lib.script_worker", str(script)],
        env={**os.environ, CONTEXT_VARIABLE: str(document)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert "ValueError: the reason" in ran.stderr
    assert ran.stderr.count("Traceback") == 1


def test_without_a_script_its_use_is_told():
    ran = subprocess.run(
        [sys.executable, "-m", "solar_corona.lib.script_worker"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("usage: ")
