# SPDX-License-Identifier: Apache-2.0
"""The steps of a rollout: canaries, promotion, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ...core.errors import WireError
from ...core.incremental_spec import Canary
from ..e_process import Alarm
from ..hub.hub import Hub
from ..hub.model_versions import serving_version
from ..tables import Edge, LoopState, ModelVersion
from .rollout import CanaryState, Rollout, call_back, canaries_for, load_trouble, send_to
from .standing import Standing, put

__all__ = ["RolloutSteps"]

_SETTLED_WITHIN = 600.0  # after so long, edges that did not follow an order are not waited for
_HERE = 60.0
_SAVE_EVERY = 5.0
_LATER = 0.001


class RolloutSteps:
    """Sends candidates to canaries and on, or takes them back.

    Parameters
    ----------
    hub, standing
        Whose loop it is, and where that stands.
    spec
        What the job asks for.
    """

    def __init__(self, hub: Hub, standing: Standing, spec: Canary) -> None:
        self._hub, self._standing, self._spec = hub, standing, spec
        self._watching = Rollout(spec)

    def watch(self, seen: LoopState) -> None:
        """Look at what canaries observed, and take the candidate on or back."""
        candidate, serving, now = self._standing.candidate(seen), self._standing.serving(), self._hub.clock()
        if "edges" not in seen.data:
            self._choose_canaries(seen, candidate, serving, now)
            return
        try:
            state = CanaryState.from_json(seen.data["canary"])
        except WireError as error:
            why = str(error)

            def anew(session: Session, row: LoopState) -> None:
                call_back(session)
                put(row, data={})
                self._standing.decide(session, row, "canary-again", why, candidate)

            self._standing.change(seen, anew)
            return
        before = (state.cursor, len(state.counted), state.elapsed)
        found = self._hub.database.read(
            lambda session: self._watching.look(session, state, version=candidate, serving=serving, now=now)
        )
        data = {**seen.data, "canary": found.state.as_json(), "waits_for": found.waits_for}
        alarm = found.alarm
        if alarm is not None and seen.data.get("accepted") != alarm.kind:
            self._standing.change(seen, lambda session, row: self._alarmed(session, row, candidate, alarm, data))
        elif found.done is not None:
            done = found.done
            self._standing.change(
                seen,
                lambda session, row: self.promote(session, row, self._standing.version(session, candidate), done),
            )
        elif found.replaced:
            self._replace(seen, candidate, serving, found.replaced, data)
        elif before[:2] != (state.cursor, len(state.counted)) or self._worth_saving(seen, now):
            self._standing.change(seen, lambda _, row: put(row, data=data))

    def _choose_canaries(self, seen: LoopState, candidate: int, serving: int, now: float) -> None:
        def choose(session: Session, row: LoopState) -> None:
            edges = canaries_for(session, self._spec.canary, now)
            if not edges:
                put(row, data={"waits_for": "an edge that is there"})
                return
            version = self._standing.version(session, candidate)
            send_to(session, edges, version=candidate, shadow=serving)
            state = self._watching.begin((version.report or {}).get("reference"))
            put(row, data={"edges": edges, "canary": state.as_json()})
            self._standing.decide(
                session, row, "canary", f"version {candidate} goes to {', '.join(edges)} first", candidate
            )

        self._standing.change(seen, choose)

    def _replace(self, seen: LoopState, candidate: int, serving: int, pairs: Any, data: dict[str, Any]) -> None:
        def replace(session: Session, row: LoopState) -> None:
            away, instead = [each for each, _ in pairs], [each for _, each in pairs]
            for edge in session.scalars(select(Edge).where(Edge.name.in_(away))):
                edge.wanted_version = edge.shadow_version = None
            send_to(session, instead, version=candidate, shadow=serving)
            put(row, data={**data, "edges": [*(e for e in data["edges"] if e not in away), *instead]})
            why = f"{', '.join(away)} was not heard of for long; {', '.join(instead)} tries the candidate instead"
            self._standing.decide(session, row, "canary-replaced", why, candidate)

        self._standing.change(seen, replace)

    def _alarmed(self, session: Session, row: LoopState, candidate: int, alarm: Alarm, data: dict[str, Any]) -> None:
        version = self._standing.version(session, candidate)
        version.report = {**(version.report or {}), "canary": {**_told(data), "alarm": asdict(alarm), "why": alarm.why}}
        if self._spec.on_failure == "pause":
            put(row, data={"from": "canary", "alarm": alarm.kind, "inner": data})
            row.phase, row.since = "paused", self._hub.clock()
            self._standing.decide(
                session, row, "paused", f"{alarm.why}; resume to go on with it, or rollback", candidate
            )
            return
        self.take_back(session, row, version, alarm.why)

    def take_back(self, session: Session, row: LoopState, version: ModelVersion, why: str) -> None:
        """Take a version back from all edges."""
        version.state = "rolled-back"
        call_back(session)
        self._standing.enter(row, "rolling-back", candidate=version.version)
        self._standing.decide(session, row, "rolled-back", why, version.version)

    def promote(self, session: Session, row: LoopState, version: ModelVersion, why: str) -> None:
        """Send a version to all edges."""
        report = dict(version.report or {})
        if "canary" in row.data:
            report["canary"] = {**_told(row.data), "alarm": None, "why": why}
        before = serving_version(session)
        version.report, version.state = report, "promoted"
        # Which version is in use is told by this time, also where the clock was set back since the last one.
        latest = before.promoted_at if before is not None and before.promoted_at is not None else 0.0
        version.promoted_at = max(self._hub.clock(), latest + _LATER)
        call_back(session)
        self._standing.enter(row, "promoting", candidate=version.version)
        self._standing.decide(session, row, "promoted", why, version.version)

    def settle(self, seen: LoopState) -> None:
        """Wait until the edges that are there have followed, and go on collecting."""
        candidate, promoting, now = self._standing.candidate(seen), seen.phase == "promoting", self._hub.clock()
        edges = self._hub.database.read(lambda session: list(session.scalars(select(Edge).order_by(Edge.name))))
        here = [edge for edge in edges if now - edge.seen_at < _HERE]
        errors = [edge.name for edge in here if load_trouble(edge, candidate) is not None]
        behind = [
            edge.name
            for edge in here
            if edge.name not in errors and (_active(edge) == candidate) != promoting and _active(edge) > 0
        ]
        if promoting and len(errors) * 2 > len(here):
            why = f"{len(errors)} of {len(here)} edges cannot load it: {', '.join(errors[:5])}"
            self._standing.change(
                seen,
                lambda session, row: self.take_back(session, row, self._standing.version(session, candidate), why),
            )
        elif (here and not behind) or self._standing.timed(seen) > (_SETTLED_WITHIN if here else _HERE):
            left = behind + errors
            why = f"all {len(here)} edges that are there have followed" if not left else f"not on {', '.join(left[:5])}"

            def settled(session: Session, row: LoopState) -> None:
                self._standing.enter(row, "collecting")
                self._standing.decide(session, row, "settled", why, candidate)

            self._standing.change(seen, settled)

    def _worth_saving(self, seen: LoopState, now: float) -> bool:
        looked_at = seen.data["canary"]["looked_at"]
        return bool(looked_at is None or not 0 <= now - looked_at < _SAVE_EVERY)


def _active(edge: Edge) -> int:
    return int((edge.heartbeat.get("models") or {}).get("active") or 0)


def _told(data: dict[str, Any]) -> dict[str, Any]:
    """Return what the report says of a canary."""
    state = data.get("canary") or {}
    labels = state.get("labels") or {}
    return {
        "edges": data.get("edges", []),
        "samples": state.get("samples", 0),
        "seconds": state.get("elapsed", 0.0),
        "labels_lost": labels.get("lost", 0),
        "labels_gained": labels.get("gained", 0),
        "watch": state.get("watch"),
    }
