# SPDX-License-Identifier: Apache-2.0
"""The workers' image, read as text: no daemon is at hand to build it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from solar_corona.core.settings import worker_environment
from solar_corona.k8s.pods import USER

ROOT = Path(__file__).parents[2]


@pytest.fixture
def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "k8s" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def of(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for name, rest in instructions if name == word]


def test_the_image_runs_as_the_user_that_the_pods_name(instructions: list[tuple[str, str]]) -> None:
    assert of(instructions, "USER") == [f"{USER}:{USER}"]
    after = [name for name, _ in instructions[[n for n, _ in instructions].index("USER") :]]
    assert "RUN" not in after
    assert "COPY" not in after


def test_dependencies_come_from_the_lock_file_alone(instructions: list[tuple[str, str]]) -> None:
    syncs = [run for run in of(instructions, "RUN") if "uv sync" in run]
    assert len(syncs) == 2
    assert all("--locked" in run and "--no-dev" in run for run in syncs)
    installs = [run for run in of(instructions, "RUN") if "pip install" in run]
    assert all(re.search(r'"uv==\d+\.\d+\.\d+"$', run) for run in installs), "nothing else, and of one version"


def test_the_final_stage_starts_anew_and_takes_only_what_was_built(instructions: list[tuple[str, str]]) -> None:
    stages = [i for i, (name, _) in enumerate(instructions) if name == "FROM"]
    assert len(stages) == 2
    assert of(instructions[stages[1] :], "COPY") == ["--from=build /opt/solar-corona /opt/solar-corona"]


def test_base_images_are_slim_and_of_the_default_registry(instructions: list[tuple[str, str]]) -> None:
    arguments = dict(rest.split("=", 1) for rest in of(instructions, "ARG"))
    bases = [rest.split()[0].replace("${PYTHON}", arguments["PYTHON"]) for rest in of(instructions, "FROM")]
    assert bases == ["python:3.11-slim"] * 2


def test_extras_can_be_chosen_and_exist(instructions: list[tuple[str, str]]) -> None:
    (extras,) = (rest.split("=", 1)[1].strip('"').split() for rest in of(instructions, "ARG") if "EXTRAS" in rest)
    project = (ROOT / "pyproject.toml").read_text()
    assert {"edge", "server", "tensorflow"} <= set(extras)
    assert all(re.search(rf"^{extra} = \[$", project, re.MULTILINE) for extra in extras)


def test_the_engines_defaults_are_those_of_the_local_launcher(
    instructions: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (environment,) = (rest for rest in of(instructions, "ENV") if "FLWR_TELEMETRY_ENABLED" in rest)
    given = dict(pair.split("=", 1) for pair in environment.split())
    assert given.pop("PATH").startswith("/opt/solar-corona/bin:")
    for name in given:
        monkeypatch.delenv(name, raising=False)
    assert given == {name: value for name, value in worker_environment({}).items() if name not in os.environ}


def test_what_the_build_needs_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert not {"uv.lock", "pyproject.toml", "README.md", "LICENSE", "py.typed", "**", "k8s"} & set(ignored)
    assert {"**/.*", "**/*.npz"} <= set(ignored), "no data and no hidden file in the build context"
