# SPDX-License-Identifier: Apache-2.0
"""Samples are deleted: those whose time is over, and all of a person who asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from ..tables import (
    ConsumedLabel,
    DatasetVersion,
    DatasetVersionSample,
    GoneSample,
    LabelEntry,
    LabelEvent,
    Sample,
)
from .hub import Hub

__all__ = ["Deleted", "Retention"]

_AT_ONCE = 200
_UPLOAD_AGE = 86_400.0


@dataclass(frozen=True)
class Deleted:
    """What was deleted.

    Parameters
    ----------
    samples
        How many.
    versions
        Dataset versions that held some of them, and can no more be made again as they were.
    """

    samples: int
    versions: tuple[int, ...] = ()


class Retention:
    """Deletes samples, with their contents, labels and all that was noted of them.

    What has to be deleted is written down in the transaction that takes the rows away, so that a hub that is killed
    half-way goes on with it when it is back.

    Parameters
    ----------
    hub
        What it works on.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def forget_subject(self, subject: str) -> Deleted:
        """Delete all samples of a person, also from dataset versions, which are marked.

        Copies that edges and trainings have are not reached from here: samples that wait on an edge are refused when
        they are sent, if they are the same; models that were trained on some stay.
        """
        return self._delete(select(Sample.id).where(Sample.subject == subject), "subject")

    def expire(self) -> Deleted:
        """Delete samples whose time is over and that no dataset version holds; and what is left of broken uploads."""
        now, keep = self._hub.clock(), self._hub.settings.retention
        for name in self._hub.samples.uploads_before(now - _UPLOAD_AGE):
            self._hub.samples.delete(name)
        self.finish()
        if keep is None:
            return Deleted(0)
        held = select(DatasetVersionSample.sample).where(DatasetVersionSample.sample == Sample.id).exists()
        return self._delete(select(Sample.id).where(Sample.received_at < now - keep, ~held), "retention")

    def finish(self) -> int:
        """Delete contents whose rows are gone already; return how many there were."""
        count = 0
        while True:
            query = select(GoneSample.id).where(GoneSample.pending).limit(_AT_ONCE)
            names = self._hub.database.read(lambda session, query=query: list(session.scalars(query)))  # type: ignore[misc]
            if not names:
                return count
            for name in names:
                self._hub.samples.delete(name)
            done = update(GoneSample).where(GoneSample.id.in_(names)).values(pending=False)
            self._hub.database.write(lambda session, done=done: session.execute(done))  # type: ignore[misc]
            count += len(names)

    def _delete(self, which: Select[str], why: str) -> Deleted:
        count, versions = 0, set[int]()
        while True:
            names, held = self._hub.database.write(lambda session: _take_away(session, which, why, self._hub.clock()))
            count, versions = count + len(names), versions | held
            self.finish()
            if not names:
                return Deleted(count, tuple(sorted(versions)))


def _take_away(session: Session, which: Select[str], why: str, now: float) -> tuple[Sequence[str], set[int]]:
    rows = session.scalars(select(Sample).where(Sample.id.in_(which.limit(_AT_ONCE))).with_for_update()).all()
    names = [row.id for row in rows]
    if not names:
        return [], set()
    for row in rows:
        session.add(GoneSample(id=row.id, at=now, why=why, pending=True, source=row.source, task=row.task))
    held = DatasetVersionSample.sample.in_(names)
    counts = session.execute(
        select(DatasetVersionSample.version, func.count()).where(held).group_by(DatasetVersionSample.version)
    ).all()
    for version, missing in counts:
        session.execute(
            update(DatasetVersion)
            .where(DatasetVersion.version == version)
            .values(missing=DatasetVersion.missing + missing)
        )
    session.execute(delete(DatasetVersionSample).where(held))
    for table in (LabelEntry, LabelEvent, ConsumedLabel):
        session.execute(delete(table).where(table.sample.in_(names)))
    for row in rows:
        session.delete(row)
    return names, {version for version, _ in counts}
