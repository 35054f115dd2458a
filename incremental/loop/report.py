# SPDX-License-Identifier: Apache-2.0
"""Pages that need nothing else: what gate and canaries found of a version, and where the loop stands."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import select
from sqlalchemy.orm import Session

from ...core.errors import RefusedRequestError
from ..hub.hub import Hub
from ..tables import Decision, ModelVersion
from .status import LoopStatus

__all__ = ["report_page", "status_page"]

_DECISIONS = 50
_SAYS = {
    "candidate": "has not been judged yet",
    "refused": "was refused by the gate",
    "canary": "is tried on canaries",
    "promoted": "answers on all edges",
    "rolled-back": "was taken back",
}
_PHASES = {
    "training": "training a candidate",
    "evaluating": "judging a candidate",
    "canary": "watching canaries",
    "promoting": "sending a version to all edges",
    "rolling-back": "taking a version back",
}


def report_page(hub: Hub, version: int) -> str:
    """Return a version's page.

    Raises
    ------
    RefusedRequestError
        404 if there is no such version.
    """
    found = hub.database.read(lambda session: _read(session, version))
    if found is None:
        raise RefusedRequestError(404, f"there is no version {version} of the model")
    return _environment().get_template("report.html").render(job=hub.settings.job, says=_SAYS, **found)


def status_page(status: LoopStatus) -> str:
    """Return the page that tells where a loop stands; it reads itself anew every five seconds."""
    return _environment().get_template("hub.html").render(job=status.job, status=status, phases=_PHASES)


def _environment() -> Environment:
    loader = PackageLoader("solar_corona.incremental.loop", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"time": _time, "share": _share}
    return environment


def _read(session: Session, version: int) -> dict[str, Any] | None:
    row = session.get(ModelVersion, version) if 0 < version < 1 << 31 else None
    if row is None:
        return None
    decisions = select(Decision).where(Decision.version == version).order_by(Decision.id).limit(_DECISIONS)
    report: Mapping[str, Any] = row.report or {}
    return {
        "version": {
            name: getattr(row, name)
            for name in (
                "version",
                "parent",
                "training",
                "dataset",
                "code",
                "file",
                "size",
                "sha256",
                "state",
                "made_at",
            )
        },
        "metrics": dict(row.metrics or {}),
        "gate": report.get("gate"),
        "canary": report.get("canary"),
        "decisions": [{"at": each.at, "what": each.what, "why": each.why} for each in session.scalars(decisions)],
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "–"
