# SPDX-License-Identifier: Apache-2.0
"""What every benchmark leaves behind: a JSON file, a picture, a table on the terminal."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["RESULTS", "Figure", "machine", "median", "spread", "versions", "write"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """One number that a benchmark stands for.

    Parameters
    ----------
    name
        The figure's name, `snake_case`.
    value
        The number to quote, usually the median of `repeats`.
    unit
        `s`, `models`, `x` for a ratio, and so on.
    goal
        What `value` has to reach; None for a number that only explains others.
    repeats
        The raw values that `value` was made from.
    better
        Whether the goal is reached from above (`high`) or from below (`low`).
    """

    name: str
    value: float
    unit: str
    goal: float | None = None
    repeats: Sequence[float] = field(default_factory=tuple)
    better: Literal["high", "low"] = "high"

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.better == "high" else self.value <= self.goal

    @property
    def goal_text(self) -> str:
        """The goal with its direction, as in `>= 5`."""
        return "" if self.goal is None else f"{'>=' if self.better == 'high' else '<='} {self.goal:g}"


def median(values: Sequence[float]) -> float:
    """Return the median of `values`.

    Raises
    ------
    ValueError
        If there are none: a benchmark that measured nothing has failed.
    """
    if not values:
        raise ValueError("nothing was measured: expected at least one repeat")
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest of `values`."""
    return float(min(values)), float(max(values))


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    # Numbers only: the rest of a kernel's release may name whose machine it is.
    release = re.match(r"[\d.]+", platform.release())
    return f"{name}, kernel {release[0]}" if release else name


def machine() -> dict[str, str | int | float]:
    """Describe this machine without its name or any path."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": _cpu_model(), "cores": _cores(), "memory_gib": round(memory, 1), "os": _system()}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name, packages in {
        "solar_corona": ["solar-corona"],
        "flwr": ["flwr"],
        "tensorflow": ["tensorflow-cpu", "tensorflow"],
        "keras": ["keras"],
        "numpy": ["numpy"],
    }.items():
        for package in packages:
            try:
                found[name] = version(package)
                break
            except PackageNotFoundError:
                continue
        else:
            found[name] = "not installed"
    return found


def write(
    benchmark: str,
    figures: Sequence[Figure],
    *,
    extra: Mapping[str, Any] | None = None,
    picture: Callable[[Any], None] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write `<benchmark>.json`, draw `<benchmark>.svg` and print a table.

    Parameters
    ----------
    benchmark
        The benchmark's module name.
    figures
        What it found, the figures with a goal first.
    extra
        What a reader may want beside the figures; written to `<benchmark>_details.json`.
    picture
        Draws onto the Matplotlib `Axes` it is given.
    folder
        Where the files go.

    Returns
    -------
    Path
        The JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "benchmark": benchmark,
        "machine": machine(),
        "versions": versions(),
        "figures": [
            {"name": f.name, "value": f.value, "unit": f.unit, "goal": f.goal, "repeats": list(f.repeats)}
            for f in figures
        ],
    }
    path = folder / f"{benchmark}.json"
    path.write_text(_json(document), encoding="utf-8")
    if extra is not None:
        (folder / f"{benchmark}_details.json").write_text(_json(extra), encoding="utf-8")
    if picture is not None:
        _draw(picture, folder / f"{benchmark}.svg")
    _print(benchmark, figures)
    return path


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _draw(picture: Callable[[Any], None], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    # A fixed salt and no date: the same numbers give the same file.
    with mpl.rc_context({"svg.hashsalt": path.stem, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        picture(axes)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _print(benchmark: str, figures: Sequence[Figure]) -> None:
    table = Table(title=benchmark)
    for column in ("figure", "value", "unit", "spread", "goal", "reached"):
        table.add_column(column, justify="left" if column in {"figure", "unit", "reached"} else "right")
    words = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}
    for f in figures:
        low_high = "{:.4g} to {:.4g}".format(*spread(f.repeats)) if f.repeats else ""
        table.add_row(f.name, f"{f.value:.4g}", f.unit, low_high, f.goal_text, words[f.reached])
    Console().print(table)
