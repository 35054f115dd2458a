# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one HTML file that needs nothing else, made from the run's events.

Edge names, errors and notes come from other machines, so the page escapes all text, has no script, and its
Content-Security-Policy allows nothing but its own style sheet. The curves are drawn as SVG here and in the template:
marks in a plot that stretches, text beside it that does not, colours from the style sheet.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..core.durations import format_duration
from ..core.files import atomic_write, shown
from ..core.run_folder import RunFolder
from ..core.spec import FederatedLearningJob
from .curves import charts, thin
from .outcomes import Outcomes, format_gain, format_score, is_share
from .plain_text import plain
from .progress import format_bytes
from .record import Record
from .task_section import task_section

__all__ = ["write_report"]

_T = TypeVar("_T")

# What keeps the page small and readable when a run is not.
_MOST_ROWS = 500
_MOST_MOMENTS = 400
_MOST_YAML = 100_000
# A diverged loss; beyond this a scale says nothing.

_SECRET = re.compile(r"passw|secret|token|credential|private|api_?key|access_?key", re.IGNORECASE)
_PACKAGES = ("flwr", "numpy", "keras", "tensorflow", "tensorflow-cpu", "torch")


def write_report(folder: RunFolder, *, job: FederatedLearningJob) -> Path:
    """Write the report of a run, however far the run got.

    Parameters
    ----------
    folder
        The run's folder; its events are read.
    job
        The job as it ran. Values of environment variables, and of parameters that are named like a secret, are
        left out of the report.

    Returns
    -------
    Path
        The report: one HTML file.

    Raises
    ------
    PlatformError
        If the disk is full or the folder cannot be written.
    """
    html = _render(_page(Record.of(folder), folder, job))
    with atomic_write(folder.report) as temporary:
        # An undecodable character of a log is no reason to have no report.
        temporary.write_bytes(html.encode("utf-8", "replace"))
    return folder.report


def _render(page: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")),
    )
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return environment.get_template("report.html").render(page)


def _page(record: Record, folder: RunFolder, job: FederatedLearningJob) -> dict[str, Any]:
    view, outcomes = record.view, Outcomes.of(record.view)
    status = "failed" if record.error is not None else "succeeded" if view.finished else "not finished"
    if record.stopped:
        status = "stopped"
    edges = list(outcomes.edges) if len(outcomes.edges) <= _MOST_ROWS else outcomes.weakest(_MOST_ROWS)
    moments, cut = record.moments, max(0, len(record.moments) - _MOST_MOMENTS)
    if cut:
        moments = moments[: _MOST_MOMENTS // 4] + moments[-3 * _MOST_MOMENTS // 4 :]
    begin = record.begin
    return {
        "job": job.metadata.name,
        "run": folder.path.name,
        "status": status,
        "headline": _headline(record, outcomes, job, status),
        "error": plain(record.error) if record.error is not None else None,
        "advice": _advice(record, folder),
        "figures": _figures(record, outcomes, job),
        "charts": charts(record, outcomes.metric),
        "rounds": _round_rows(record, outcomes.metric),
        "rounds_known": len(view.rows),
        "outcomes": outcomes,
        "tasks": task_section(view, outcomes),
        "edges": edges,
        "moments": [(m, f"+{_seconds(m.time - begin)}" if begin is not None else "") for m in moments],
        "moments_cut": cut,
        "facts": _facts(record, job),
        "yaml": _job_yaml(job),
        "versions": _versions(),
        "score": lambda value: format_score(value, outcomes.metric),
        "gain": lambda value: format_gain(value, outcomes.metric).replace("-", "\N{MINUS SIGN}"),
        "judged": is_share(outcomes.metric),
        "metric": (outcomes.metric or "").replace("_", " "),
    }


def _headline(record: Record, outcomes: Outcomes, job: FederatedLearningJob, status: str) -> str:
    """Say in one sentence how the run went."""
    name, rounds = job.metadata.name, record.view.started.rounds if record.view.started else job.spec.aggregation.rounds
    if status != "succeeded":
        where = f"in round {record.last_round} of {rounds}" if record.last_round else "before its first round"
        if status == "not finished":
            return f"{name} is not finished: the record ends {where}."
        return f"{name} {'was stopped' if record.stopped else 'failed'} {where}, after {_seconds(record.seconds)}."
    start, final = _ends(record, outcomes)
    result = ""
    if final is not None:
        metric = (outcomes.metric or "").replace("_", " ")
        result = f" to {format_score(final, outcomes.metric)} {metric}"
        if start is not None:
            result = f": {metric} went from {format_score(start, outcomes.metric)}{result.removesuffix(f' {metric}')}"
    algorithm = record.view.started.algorithm if record.view.started else job.spec.algorithm
    groups = len(record.view.tasks.members)
    models = "one model" if groups < 2 else f"{groups:,} models, one for each group of similar tasks,"
    return (
        f"{name} trained {models} over {_count(len(outcomes.edges), 'edge')} with {algorithm}, "
        f"{_count(rounds, 'round')} in {_seconds(record.seconds)}{result}."
    )


def _ends(record: Record, outcomes: Outcomes) -> tuple[float | None, float | None]:
    """Return the global model's score before the first round and after the last."""
    rows, metric = record.view.rows, outcomes.metric or ""
    last = rows[max(rows)].evaluation.get(metric) if rows else None
    start = rows[0].evaluation.get(metric) if 0 in rows else None
    return start, last if last is not None else outcomes.overall.after


def _advice(record: Record, folder: RunFolder) -> list[tuple[str, bool]]:
    """Return what to do after a failure, in parts of which some are commands."""
    mend = [
        ("Mend what the message names; the workers’ own words are in ", False),
        (f"solar-corona logs {folder.path.parent.name}", True),
        (". ", False),
    ]
    if record.done:
        last = max(record.done)
        again = [
            (f"What was done is kept: go on after round {last} with ", False),
            ("solar-corona run --resume JOB.yaml", True),
        ]
    else:
        again = [("Start again with ", False), ("solar-corona run JOB.yaml", True)]
    return again if record.stopped else mend + again


def _figures(record: Record, outcomes: Outcomes, job: FederatedLearningJob) -> list[tuple[str, str, str]]:
    """Return the numbers to remember: what, how much, and a remark."""
    figures, (start, final), metric = [], _ends(record, outcomes), outcomes.metric
    if final is not None:
        remark = f"from {format_score(start, metric)}" if start is not None else ""
        figures.append(((metric or "").replace("_", " "), format_score(final, metric), remark))
    if outcomes.overall.over_alone is not None:
        unit = "points" if is_share(metric) else ""
        gain = format_gain(outcomes.overall.over_alone, metric).replace("-", "\N{MINUS SIGN}")
        figures.append(("over training alone", gain, unit))
    rounds = record.view.started.rounds if record.view.started else job.spec.aggregation.rounds
    figures.append(("rounds", f"{len(record.done):,}", f"of {rounds:,}"))
    listed = len(job.spec.edges)
    figures.append(("edges", f"{len(record.view.joined):,}", f"of {listed:,}"))
    if record.view.tasks.told:
        found = len(record.view.tasks.members)
        figures.append((f"group{'' if found == 1 else 's'} found", f"{found:,}", "of similar tasks"))
    if record.begin is not None:
        figures.append(("duration", _seconds(record.seconds), ""))
    if record.done:
        total = sum(r.bytes_down + r.bytes_up for r in record.done.values())
        figures.append(("on the wire", format_bytes(total), "in all rounds"))
    return figures


def _round_rows(record: Record, metric: str | None) -> list[tuple[str, ...]]:
    rows = [row for _, row in sorted(record.view.rows.items())]
    found: list[tuple[str, ...]] = []
    for row in thin(rows, _MOST_ROWS):
        done = record.done.get(row.number)
        loss, score = row.evaluation.get("loss"), row.evaluation.get(metric or "")
        found.append(
            (
                str(row.number) if row.number else "start",
                f"{done.replied} of {done.asked}" if done else "–",
                format_score(loss, "loss"),
                format_score(score, metric),
                f"{done.seconds:.2f}" if done else "–",
                f"{done.training_seconds:.2f}" if done else "–",
                format_bytes(done.bytes_down) if done else "–",
                format_bytes(done.bytes_up) if done else "–",
            )
        )
    return found


def _facts(record: Record, job: FederatedLearningJob) -> list[tuple[str, str]]:
    view = record.view
    facts = [("algorithm", view.started.algorithm if view.started else job.spec.algorithm)]
    facts.append(("edges that must reply", str(view.started.min_edges if view.started else job.spec.min_edges)))
    if record.begin is not None:
        facts.append(("started", f"{datetime.fromtimestamp(record.begin, UTC):%Y-%m-%d %H:%M} UTC"))
    if view.finished is not None and view.finished.model is not None:
        facts.append(("model", view.finished.model))
    return facts


def _job_yaml(job: FederatedLearningJob) -> str:
    document = job.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    text = yaml.safe_dump(_without_secrets(document), sort_keys=False, allow_unicode=True)
    return text if len(text) <= _MOST_YAML else f"{text[:_MOST_YAML]}\n… the rest is in job.yaml beside this report"


def _without_secrets(value: Any, name: str = "") -> Any:
    """Hide what a report that is handed around must not tell; `name` is the field that holds the value."""
    if isinstance(value, Mapping):
        if name == "env":
            return dict.fromkeys(value, "(hidden)")
        return {k: "(hidden)" if _SECRET.search(str(k)) else _without_secrets(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return shown(value) if isinstance(value, str) else value


def _versions() -> list[tuple[str, str]]:
    versions = [("solar-corona", metadata.version("solar-corona")), ("Python", platform.python_version())]
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions.append((package, metadata.version(package)))
    return [*versions, ("system", f"{platform.system()} {platform.machine()}")]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}\N{NO-BREAK SPACE}s" if seconds < 100 else format_duration(round(seconds))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
