# SPDX-License-Identifier: Apache-2.0
"""The package as it is installed: complete, quick to import, and free of engines until they are used."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import solar_corona

ROOT = Path(solar_corona.__file__).parent
ENGINES = ("tensorflow", "keras", "torch", "jax", "flwr", "numpy", "pydantic", "grpc", "httpx", "fastapi", "kubernetes")
OUTSIDE = {"tests", "examples", "benchmarks", "docs", "scripts"}  # for people who have the repository


def _tracked(*patterns: str) -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [Path(name) for name in listed.split("\0") if name]


def test_the_listed_packages_are_the_folders_that_git_knows():
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    sources = [path for path in _tracked("*.py") if path.parts[0] not in OUTSIDE and not path.parts[0].startswith(".")]
    found = {".".join(("solar_corona", *path.parent.parts)) for path in sources}
    assert sorted(listed) == sorted(found)


def test_each_room_says_its_purpose():
    rooms = [path for path in _tracked("*/__init__.py") if path.parts[0] not in OUTSIDE]
    assert len(rooms) >= 5
    for room in rooms:
        text = (ROOT / room).read_text(encoding="utf-8")
        assert '"""' in text, f"{room} has no docstring"


def test_each_source_file_names_its_licence():
    bare = [path for path in _tracked("*.py") if "SPDX-License-Identifier: Apache-2.0" not in _head(ROOT / path)]
    assert bare == []


def _head(path: Path) -> str:
    return path.read_text(encoding="utf-8")[:200] if path.exists() else "SPDX-License-Identifier: Apache-2.0"


# --- the facade


def test_the_facades_names_are_sorted_and_complete():
    assert solar_corona.__all__ == sorted(solar_corona.__all__)
    assert set(solar_corona.__all__) == set(solar_corona._PLACES)
    assert set(solar_corona.__all__) <= set(dir(solar_corona))


@pytest.mark.parametrize("name", sorted(solar_corona._PLACES))
def test_each_name_of_the_facade_is_where_it_says(name):
    module, attribute = solar_corona._PLACES[name]
    place = ROOT / Path(*module.strip(".").split("."))
    assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
    if name in ("losses", "metrics", "optimizers"):
        return  # they load Keras, which their own tests do
    loaded = import_module(module, "solar_corona")
    assert getattr(solar_corona, name) is (loaded if attribute is None else getattr(loaded, attribute))


def test_a_name_that_there_is_not_is_told_as_python_does():
    with pytest.raises(AttributeError, match="module 'solar_corona' has no attribute 'loses'"):
        _ = solar_corona.loses


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert solar_corona.__version__ == version("solar-corona")


# --- what starting costs


def _cpu_seconds(*command: str) -> float:
    """Return the processor time of a command, which other work on the machine does not lengthen."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)


def _median(*command: str) -> float:
    return statistics.median(_cpu_seconds(*command) for _ in range(5))


@pytest.fixture(scope="module")
def bare() -> float:
    """What the interpreter itself costs."""
    return _median(sys.executable, "-c", "pass")


def _allowed(seconds: float, bare: float) -> float:
    """Return `seconds` on a machine on which an interpreter starts in 50 ms, and more on a slower one."""
    return seconds * max(1.0, bare / 0.05)


def test_importing_the_package_takes_no_time_to_speak_of(bare):
    assert _median(sys.executable, "-c", "import solar_corona") - bare <= _allowed(0.15, bare)


def test_the_commands_help_comes_at_once(bare):
    command = "import sys; sys.argv = ['solar-corona', '--help']; from solar_corona.cli import main; main()"
    assert _median(sys.executable, "-c", command) <= _allowed(0.5, bare)


def _loaded(code: str) -> set[str]:
    report = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    ran = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_importing_the_package_loads_no_engine():
    assert _loaded("import solar_corona") & set(ENGINES) == set()


def test_asking_for_the_context_loads_no_engine():
    loaded = _loaded("import solar_corona; solar_corona.context.get_parameters('epochs', 1)")
    assert loaded & (set(ENGINES) - {"pydantic"}) == set()


def test_reading_a_job_and_planning_it_loads_no_engine():
    loaded = _loaded("import solar_corona.core.plan, solar_corona.core.job_file, solar_corona.core.local_launcher")
    assert loaded & (set(ENGINES) - {"pydantic"}) == set()


def test_the_strategies_and_the_server_load_no_framework():
    loaded = _loaded(
        "import solar_corona.strategies, solar_corona.fl_server.round_loop, solar_corona.fl_client.warm_node"
    )
    assert loaded & {"tensorflow", "keras", "torch", "jax"} == set()
