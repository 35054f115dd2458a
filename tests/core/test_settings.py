# SPDX-License-Identifier: Apache-2.0
"""The one reader of the environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import solar_corona
from solar_corona.core import settings
from solar_corona.core.settings import CONTEXT_VARIABLE, Settings, quiet_engines, worker_environment


def test_an_empty_environment_means_a_script_on_its_own():
    assert Settings.from_environment({}) == Settings(context=None, runs=None, debug=False)
    assert Settings.from_environment({CONTEXT_VARIABLE: "", "SOLAR_CORONA_RUNS": ""}).context is None


def test_the_variables_are_parsed():
    found = Settings.from_environment(
        {CONTEXT_VARIABLE: "/c.json", "SOLAR_CORONA_RUNS": "/r", "SOLAR_CORONA_DEBUG": "1"}
    )
    assert found == Settings(context=Path("/c.json"), runs=Path("/r"), debug=True)


@pytest.mark.parametrize(("value", "debug"), [("", False), ("0", False), ("1", True), ("yes", True)])
def test_debug_is_off_for_nothing_and_zero(value, debug):
    assert Settings.from_environment({"SOLAR_CORONA_DEBUG": value}).debug is debug


def test_the_processs_own_environment_is_the_default(monkeypatch):
    monkeypatch.setenv(CONTEXT_VARIABLE, "/here.json")
    assert Settings.from_environment().context == Path("/here.json")


def test_a_worker_gets_quiet_engines_unless_somebody_says_otherwise(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    environment = worker_environment({"TF_ENABLE_ONEDNN_OPTS": "1", "OWN": "x"})
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert (environment["TF_ENABLE_ONEDNN_OPTS"], environment["OWN"]) == ("1", "x")


def test_quiet_engines_leaves_alone_what_is_set(monkeypatch):
    import os

    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    quiet_engines()
    assert (os.environ["TF_CPP_MIN_LOG_LEVEL"], os.environ["PYTHONUNBUFFERED"]) == ("0", "1")
    monkeypatch.delenv("PYTHONUNBUFFERED")


def test_no_other_module_reads_the_environment():
    root = Path(solar_corona.__file__).parent
    rooms = ("core", "lib", "strategies", "fl_server", "fl_client", "k8s")
    sources = [*root.glob("*.py"), *(path for room in rooms for path in (root / room).rglob("*.py"))]
    reading = [p for p in sources if re.search(r"os\.environ\b|os\.getenv|\benviron\[", p.read_text(encoding="utf-8"))]
    assert [p for p in reading if p != Path(settings.__file__)] == []
