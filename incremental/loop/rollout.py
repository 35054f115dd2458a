# SPDX-License-Identifier: Apache-2.0
"""A candidate that passed the gate goes to a few edges, is watched there, and goes on to all or back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ...core.errors import WireError
from ...core.hub_messages import Observation
from ...core.incremental_spec import Canary
from ..e_process import Alarm, CanaryReference, CanaryWatch, LabelWatch
from ..tables import Edge, ObservationEntry, Sample
from .audit import answer_of

__all__ = ["CanaryState", "Rollout", "Watched", "call_back", "canaries_for", "load_trouble", "send_to"]

_ROWS = 2_000
_AWAY = 300.0
_MOST_OBSERVED = 20_000
_ID = 16  # digits of a sample's id that tell it from others here


@dataclass
class CanaryState:
    """What is kept of a canary between looks, as plain JSON in the loop's row."""

    watch: CanaryWatch | None
    labels: LabelWatch
    cursor: int = 0
    samples: int = 0
    elapsed: float = 0.0
    looked_at: float | None = None
    counted: tuple[str, ...] = ()
    heard: dict[str, tuple[float, float]] = field(default_factory=dict)  # of each canary: its last word, and when

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "watch": None if self.watch is None else self.watch.state_dict(),
            "labels": self.labels.state_dict(),
            "cursor": self.cursor,
            "samples": self.samples,
            "elapsed": self.elapsed,
            "looked_at": self.looked_at,
            "counted": list(self.counted),
            "heard": {edge: list(times) for edge, times in self.heard.items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CanaryState:
        """Return what `as_json` gave.

        Raises
        ------
        WireError
            If it is none.
        """
        try:
            return cls(
                watch=None if value["watch"] is None else CanaryWatch.from_state(value["watch"]),
                labels=LabelWatch.from_state(value["labels"]),
                cursor=int(value["cursor"]),
                samples=int(value["samples"]),
                elapsed=float(value["elapsed"]),
                looked_at=value["looked_at"],
                counted=tuple(value["counted"]),
                heard={edge: (float(said), float(at)) for edge, (said, at) in value["heard"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise WireError(f"the state of a canary is not whole ({error}); it is begun anew") from error


@dataclass(frozen=True)
class Watched:
    """What a look at the canaries came to.

    Parameters
    ----------
    state
        To keep.
    alarm
        Why the candidate has to go back; None where nothing says so.
    done
        Why it may go to all edges; None where it may not yet.
    waits_for
        What is still missing, in words.
    replaced
        Canaries that are away, and the edges that take their places.
    """

    state: CanaryState
    alarm: Alarm | None
    done: str | None
    waits_for: str
    replaced: Sequence[tuple[str, str]] = ()


def canaries_for(session: Session, count: int, now: float) -> list[str]:
    """Return the edges that try a candidate first: ones that are there, in the order of their names."""
    edges = session.scalars(select(Edge).order_by(Edge.name))
    here = [edge.name for edge in edges if now - edge.seen_at < _AWAY]
    return here[:count]


def send_to(session: Session, edges: Sequence[str], *, version: int, shadow: int) -> None:
    """Want a version of these edges, and have them compare it with another one."""
    session.execute(update(Edge).where(Edge.name.in_(edges)).values(wanted_version=version, shadow_version=shadow))


def call_back(session: Session) -> None:
    """Want the promoted version of all edges."""
    session.execute(update(Edge).values(wanted_version=None, shadow_version=None))


class Rollout:
    """Watches canaries.

    Parameters
    ----------
    spec
        What the job asks for.
    """

    def __init__(self, spec: Canary) -> None:
        self._spec = spec

    def begin(self, reference: dict[str, Any] | None) -> CanaryState:
        """Return the state at the beginning of a watch."""
        watch = None if reference is None else CanaryWatch(CanaryReference.from_json(reference))
        return CanaryState(watch, LabelWatch(self._spec.max_regression))

    def look(self, session: Session, state: CanaryState, *, version: int, serving: int, now: float) -> Watched:
        """Take in what came since the last look; nothing is written.

        Parameters
        ----------
        version, serving
            The candidate, and what it is compared with.
        now
            Seconds since 1970; time in which nobody looked counts at most a minute.
        """
        self._observe(session, state, version, serving)
        alarm = state.watch.alarm if state.watch is not None else None
        alarm = alarm or self._labels(session, state, version, serving) or _load_error(session, version, state.samples)
        passed = now - state.looked_at if state.looked_at is not None else 0.0
        state.elapsed += min(max(passed, 0.0), 60.0)
        state.looked_at = now
        missing = []
        if state.samples < self._spec.min_samples:
            missing.append(f"{self._spec.min_samples - state.samples} more samples")
        if state.elapsed < self._spec.watch:
            missing.append(f"{self._spec.watch - state.elapsed:.0f} s more")
        done = None
        if not missing and alarm is None:
            done = (
                f"canaries answered {state.samples} samples and {state.labels.count} labels came, in "
                f"{state.elapsed:.0f} s; nothing speaks against it"
            )
        return Watched(state, alarm, done, " and ".join(missing), _replacements(session, state, version, now))

    def _observe(self, session: Session, state: CanaryState, version: int, serving: int) -> None:
        query = (
            select(ObservationEntry)
            .where(ObservationEntry.version == version, ObservationEntry.id > state.cursor)
            .order_by(ObservationEntry.id)
            .limit(_ROWS)
        )
        for row in session.scalars(query):
            state.cursor = row.id
            if row.reference != serving:
                continue  # of an earlier try, against another version
            state.samples += 1
            if state.watch is not None:
                state.watch.observe(Observation.model_validate(row.value))

    def _labels(self, session: Session, state: CanaryState, version: int, serving: int) -> Alarm | None:
        """Compare both models on labels of random samples that canaries answered; each counts once, in any order."""
        labelled = {
            row.id: row.label
            for row in session.scalars(
                select(Sample).where(Sample.model == version, Sample.state == "labelled", Sample.reason == "random")
            )
            if row.id[:_ID] not in state.counted
        }
        if not labelled:
            return None
        query = (
            select(ObservationEntry.value)
            .where(ObservationEntry.version == version, ObservationEntry.reference == serving)
            .order_by(ObservationEntry.id.desc())
            .limit(_MOST_OBSERVED)
        )
        alarm = None
        for value in session.scalars(query):
            label = labelled.pop(str(value.get("sample")), None)
            if label is None or value.get("answer") is None:
                continue
            other = value["answer"] if value["agrees"] else value.get("reference_answer")
            alarm = alarm or state.labels.observe(
                candidate_right=answer_of(value["answer"], None) == label, serving_right=other == label
            )
            state.counted = (*state.counted, str(value["sample"])[:_ID])
        return alarm


def _load_error(session: Session, version: int, samples: int) -> Alarm | None:
    """Return that an edge which was to try the candidate could not load it, and stayed on the version before."""
    for edge in session.scalars(select(Edge).where(Edge.wanted_version == version).order_by(Edge.name)):
        error = load_trouble(edge, version)
        if error is not None:
            return Alarm("load", f"edge {edge.name} cannot load it: {error}", samples)
    return None


def load_trouble(edge: Edge, version: int) -> str | None:
    """Return why an edge cannot load a version, as its last heartbeat tells; None where it says nothing of it."""
    models, worker = edge.heartbeat.get("models") or {}, edge.heartbeat.get("worker") or {}
    for error in (models.get("error"), worker.get("load_error")):
        if error and error.get("version") == version:
            return str(error.get("error"))
    return None


def _replacements(session: Session, state: CanaryState, version: int, now: float) -> list[tuple[str, str]]:
    """Return which canaries have said nothing for long while they were watched, and who is here instead.

    While the hub is away nobody can say anything to it, so that time does not count.
    """
    edges = list(session.scalars(select(Edge).order_by(Edge.name)))
    away = []
    for edge in edges:
        if edge.wanted_version != version:
            continue
        said, at = state.heard.get(edge.name, (-1.0, state.elapsed))
        if said != edge.seen_at:
            at = state.elapsed
        state.heard[edge.name] = (edge.seen_at, at)
        if state.elapsed - at >= _AWAY:
            away.append(edge.name)
    free = [edge.name for edge in edges if edge.wanted_version is None and now - edge.seen_at < _AWAY]
    return list(zip(away, free, strict=False))
