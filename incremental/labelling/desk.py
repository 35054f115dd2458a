# SPDX-License-Identifier: Apache-2.0
"""Carries samples to the labelling source and labels back; all it knows stands in the database."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import ColumnElement, Select, select, update
from sqlalchemy.orm import Session

from ...core.errors import SolarCoronaError
from ..choosing import Pool, choose
from ..hub.hub import Hub
from ..hub.labels import GivenLabel, LabelBook
from ..tables import GoneSample, LabelEntry, Sample
from .source import Audit, LabellingSource, Offer, SourceStatus

__all__ = ["Desk", "DeskThread", "audits_of", "offer_of"]

_logger = logging.getLogger(__name__)

_POOL = 20_000
_AT_ONCE = 500
_MOST_AUDITS = 1_000
_AUDIT, _FEWEST_AUDITED = 200, 50


class Desk:
    """Keeps one labelling source busy.

    A sample that it has is `out`, with the source's name and its task there. A source can be replaced by another: the
    samples that the old one has wait again, and labels that come from it later still count.

    Parameters
    ----------
    hub
        What it works on.
    name
        The source's, as the job says it.
    source
        Who labels.
    """

    def __init__(self, hub: Hub, name: str, source: LabellingSource) -> None:
        self._hub, self._name, self._source = hub, name, source
        self._book = LabelBook(hub)
        self._trouble = ""

    @property
    def name(self) -> str:
        """The source's name."""
        return self._name

    def step(self) -> None:
        """Do all that there is to do once: take back, fetch labels, withdraw, offer.

        Raises
        ------
        TemporaryError
            If the source or the database does not answer; the next step does it.
        """
        try:
            self._take_back()
            self._fetch()
            self._withdraw()
            self._offer()
        except SolarCoronaError as error:
            self._trouble = str(error)
            raise
        self._trouble = ""

    def status(self) -> SourceStatus:
        """Tell how the source stands."""
        said = self._source.status()
        return SourceStatus(False, self._trouble or said.message, said.link) if self._trouble else said

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()

    def _take_back(self) -> None:
        """Let samples wait again that a source has which is no longer the job's."""
        self._free(Sample.source != self._name)

    def _free(self, which: ColumnElement[bool]) -> None:
        """Let samples wait again that a source has."""
        free = update(Sample).where(Sample.state == "out", which)
        free = free.values(state="waiting", source=None, task=None, state_at=self._hub.clock())
        self._hub.database.write(lambda session: session.execute(free))

    def _fetch(self) -> None:
        query = select(Sample.task, Sample.id).where(Sample.state == "out", Sample.source == self._name)
        tasks = {task: sample for task, sample in self._hub.database.read(lambda s: s.execute(query).all()) if task}
        labels = [
            GivenLabel(
                sample=each.sample,
                source=self._name,
                by=each.by,
                value=each.value,
                skipped=each.skipped,
                at=each.at,
                confidence=each.confidence,
            )
            for each in self._source.poll(tasks)
        ]
        for receipt in self._book.put(labels):
            if receipt.outcome == "refused":
                _logger.warning("a label of %s from %s is refused: %s", receipt.id[:12], self._name, receipt.reason)
        passed = [each.sample for each in labels if each.skipped and each.confidence is not None]
        for begin in range(0, len(passed), _AT_ONCE):
            # A model that cannot tell leaves a sample to people.
            self._free(Sample.id.in_(passed[begin : begin + _AT_ONCE]))

    def _withdraw(self) -> None:
        """Let the source forget samples that were deleted."""
        gone = select(GoneSample).where(GoneSample.source == self._name, GoneSample.task.is_not(None)).limit(_AT_ONCE)
        rows = self._hub.database.read(lambda session: list(session.scalars(gone)))
        if rows:
            self._source.withdraw([row.task for row in rows if row.task is not None])
            done = update(GoneSample).where(GoneSample.id.in_([row.id for row in rows])).values(source=None, task=None)
            self._hub.database.write(lambda session: session.execute(done))

    def _offer(self) -> None:
        room = min(self._source.room(), _AT_ONCE)
        if room <= 0:
            return
        rows = self._hub.database.read(self._pool)
        if not rows:
            return
        chosen = choose(
            Pool.of(rows), min(room, len(rows)), seed=int(self._hub.clock()), audit_errors=self._audit_errors()
        )
        tasks = dict(self._source.offer([offer_of(self._hub, rows[place]) for place in chosen.rows.tolist()]))
        self._hub.database.write(lambda session: self._went_out(session, tasks))

    def _audit_errors(self) -> float | None:
        """Return the share of the latest random samples in which the model erred; None of too few."""
        rows = self._hub.database.read(lambda session: list(session.scalars(_audited(_AUDIT))))
        told = [(offer_of(self._hub, row).guess, row.label) for row in rows]
        wrong = [guess != label for guess, label in told if guess is not None]
        return sum(wrong) / len(wrong) if len(wrong) >= _FEWEST_AUDITED else None

    def _pool(self, session: Session) -> list[Sample]:
        """Return samples that wait, and of which this source said nothing yet."""
        said = select(LabelEntry.id).where(LabelEntry.sample == Sample.id, LabelEntry.source == self._name).exists()
        query = select(Sample).where(Sample.state == "waiting", ~said)
        if self._source.machine:
            query = query.where(Sample.reason != "random")
        return list(session.scalars(query.order_by(Sample.received_at.desc()).limit(_POOL)))

    def _went_out(self, session: Session, tasks: dict[str, str]) -> None:
        for row in session.scalars(select(Sample).where(Sample.id.in_(list(tasks))).with_for_update()):
            if row.state == "waiting":
                row.state, row.state_at = "out", self._hub.clock()
                row.source, row.task = self._name, tasks[row.id]


class DeskThread:
    """Does a desk's steps, every few seconds or when it is called.

    Parameters
    ----------
    desk
        Whose.
    every
        Seconds between two steps.
    """

    def __init__(self, desk: Desk, *, every: float = 5.0) -> None:
        self._desk, self._every = desk, every
        self._wake, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="solar-corona-labelling", daemon=True)

    def start(self) -> None:
        """Start it."""
        self._thread.start()

    def wake(self) -> None:
        """Do a step now."""
        self._wake.set()

    def stop(self) -> None:
        """End it, after the step that it is at."""
        self._end.set()
        self._wake.set()
        self._thread.join(timeout=60)
        self._desk.close()

    def _run(self) -> None:
        said = ""
        while not self._end.is_set():
            try:
                self._desk.step()
                said = ""
            except SolarCoronaError as error:
                if str(error) != said:
                    said = str(error)
                    _logger.warning("labelling has to wait: %s", said)
            except Exception:
                # A user's own source may raise anything; the hub goes on, and tries it again.
                _logger.exception("labelling has to wait")
            self._wake.wait(self._every)
            self._wake.clear()


def offer_of(hub: Hub, row: Sample) -> Offer:
    """Return a sample as sources get it."""
    space = hub.settings.labels
    try:
        guess = space.checked(row.prediction)
    except SolarCoronaError:
        probabilities = row.probabilities or []
        guess = max(range(len(probabilities)), key=probabilities.__getitem__) if probabilities else None
        if space.kind != "classes" or (guess is not None and space.size is not None and guess >= space.size):
            guess = None
    return Offer(
        sample=row.id,
        media_type=row.media_type,
        content=partial(hub.samples.get, row.id),
        guess=guess,
        confidence=row.confidence,
        model=row.model,
    )


def audits_of(hub: Hub) -> Callable[[], Sequence[Audit]]:
    """Return a function that gives the latest random samples that people labelled."""

    def audits() -> Sequence[Audit]:
        rows = hub.database.read(lambda session: list(session.scalars(_audited(_MOST_AUDITS))))
        return [Audit(row.id, row.media_type, row.label, partial(hub.samples.get, row.id)) for row in reversed(rows)]

    return audits


def _audited(most: int) -> Select[Sample]:
    """Return a query for the latest random samples that people labelled."""
    person = select(LabelEntry.id).where(
        LabelEntry.sample == Sample.id, LabelEntry.confidence.is_(None), LabelEntry.skipped.is_(False)
    )
    labelled = select(Sample).where(Sample.state == "labelled", Sample.reason == "random", person.exists())
    return labelled.order_by(Sample.labelled_at.desc()).limit(most)
