# SPDX-License-Identifier: Apache-2.0
"""Labels come in, people agree or do not, and what they said can be taken back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from ...core.errors import DatasetError
from ...core.hub_messages import Receipt
from ..tables import GoneSample, LabelEntry, LabelEvent, Sample
from .agreement import Vote, agree
from .hub import Hub, LabelSpace, storable

__all__ = ["GivenLabel", "LabelBook", "settle"]

_AT_ONCE = 500


@dataclass(frozen=True)
class GivenLabel:
    """What one labeller says of one sample.

    Parameters
    ----------
    sample
        Its id.
    source
        Where the label comes from: a labelling source's name, `edge`, or `api`.
    by
        Who says so; one vote each.
    value
        The label, in any form that `LabelSpace.checked` takes.
    skipped
        Whether they cannot tell; then there is no value.
    at
        Seconds since 1970, by the labeller's clock; of a labeller's own labels the latest counts.
    confidence
        Of a model; None of people.
    edge
        The edge that says so: it may speak of its own samples alone.
    """

    sample: str
    source: str
    by: str
    value: Any = None
    skipped: bool = False
    at: float = 0.0
    confidence: float | None = None
    edge: str | None = None


class LabelBook:
    """All that was said of the samples.

    Parameters
    ----------
    hub
        What it works on.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._space = hub.settings.labels

    @property
    def space(self) -> LabelSpace:
        """What a label may be; where nobody says how many classes there are, the model's outputs do."""
        if self._space.kind != "text" and self._space.size is None:
            recent = select(Sample.probabilities).order_by(Sample.received_at.desc()).limit(50)
            found = self._hub.database.read(lambda session: list(session.scalars(recent)))
            lengths = [len(each) for each in found if isinstance(each, list) and each]
            if lengths:
                self._space = changed(self._space, count=max(lengths))
        return self._space

    def put(self, labels: Sequence[GivenLabel]) -> list[Receipt]:
        """Keep labels, and settle what the samples come to. Safe to repeat.

        Parameters
        ----------
        labels
            Of any samples. One of a sample that is not here is kept until it comes, within `Limits`.

        Returns
        -------
        list
            What became of each. `refused`: of a class that there is not, of another edge's sample, or of a deleted one.
        """
        receipts = []
        space, now = self.space, self._hub.clock()
        for begin in range(0, len(labels), _AT_ONCE):
            part = labels[begin : begin + _AT_ONCE]
            receipts += self._hub.database.write(lambda session, part=part: _put(session, part, self._hub, space, now))  # type: ignore[misc]
        return receipts

    def undo(self, *, source: str, by: str, sample: str | None = None) -> str | None:
        """Take back what somebody said of a sample, by default the last that they said.

        Returns
        -------
        str or None
            The sample's id; None where there is nothing to take back.
        """
        return self._hub.database.write(lambda session: self._undo(session, source, by, sample))

    def _undo(self, session: Session, source: str, by: str, sample: str | None) -> str | None:
        now = self._hub.clock()
        query = select(LabelEntry).where(LabelEntry.source == source, LabelEntry.by == by)
        if sample is not None:
            query = query.where(LabelEntry.sample == sample)
        entry = session.scalars(query.order_by(LabelEntry.at.desc(), LabelEntry.id.desc()).limit(1)).first()
        if entry is None:
            return None
        session.delete(entry)
        session.add(_event(entry.sample, now, "undone", source, by, entry.value))
        session.flush()
        settle(session, [entry.sample], needed=self._hub.settings.agreement, now=now)
        return entry.sample

    def history(self, sample: str) -> list[LabelEvent]:
        """Return all that was done to a sample's labels, in order."""
        query = select(LabelEvent).where(LabelEvent.sample == sample).order_by(LabelEvent.id)
        return self._hub.database.read(lambda session: list(session.scalars(query)))

    def drop_stale(self) -> int:
        """Drop labels whose samples did not come in all of `Limits.unknown_age`; return how many."""
        oldest = self._hub.clock() - self._hub.settings.limits.unknown_age
        # By the hub's own clock: what an edge says of the time is noted, and nothing depends on it.
        heard = select(LabelEvent.id).where(LabelEvent.sample == LabelEntry.sample, LabelEvent.at >= oldest).exists()
        query = delete(LabelEntry).where(~_known(), ~heard)
        return int(self._hub.database.write(lambda session: session.execute(query).rowcount))  # type: ignore[attr-defined]


def settle(session: Session, samples: Sequence[str], *, needed: int, now: float) -> None:
    """Bring samples to the state that their labels come to.

    Parameters
    ----------
    samples
        Their ids, at most some hundreds; ones that are not here are passed over.
    needed
        People who have to agree.
    now
        Seconds since 1970.
    """
    votes: dict[str, list[Vote]] = defaultdict(list)
    for entry in session.scalars(select(LabelEntry).where(LabelEntry.sample.in_(samples))):
        votes[entry.sample].append(
            Vote(
                person=entry.by or f"({entry.source})",
                value=entry.value,
                skipped=entry.skipped,
                machine=entry.confidence is not None,
                source=entry.source,
                at=entry.at,
            )
        )
    for row in session.scalars(select(Sample).where(Sample.id.in_(samples)).with_for_update()):
        found = agree(votes[row.id], needed)
        state = found.state
        if state == "open":
            if row.state in ("waiting", "out"):
                continue
            # Taken back, or a person doubts a model: it is offered again.
            row.state, row.state_at, row.label, row.labelled_at = "waiting", now, None, None
            row.source = row.task = None
        elif (row.state, row.label) != (state, found.value):
            row.labelled_at = (row.labelled_at or now) if state == "labelled" else None
            row.state, row.state_at, row.label = state, now, found.value
            row.source = found.source if state == "labelled" else row.source
        else:
            continue
        session.add(_event(row.id, now, row.state, row.source or "", "", row.label))


def _put(session: Session, labels: Sequence[GivenLabel], hub: Hub, space: LabelSpace, now: float) -> list[Receipt]:
    ids = sorted({label.sample for label in labels})
    # Locked in one order, so that two who label the same samples at once wait and do not block each other.
    rows = select(Sample).where(Sample.id.in_(ids)).order_by(Sample.id).with_for_update()
    edges = {row.id: row.edge for row in session.scalars(rows)}
    gone = set(session.scalars(select(GoneSample.id).where(GoneSample.id.in_(ids))))
    entries = {
        (entry.sample, entry.source, entry.by): entry
        for entry in session.scalars(select(LabelEntry).where(LabelEntry.sample.in_(ids)))
    }
    room = hub.settings.limits.unknown_labels
    if set(ids) - edges.keys():
        room -= session.scalar(select(func.count()).select_from(LabelEntry).where(~_known())) or 0
    receipts, touched = [], set()
    for label in labels:
        try:
            value = None if label.skipped else space.checked(label.value)
            _allowed(label, edges, gone)
        except DatasetError as error:
            receipts.append(Receipt(id=label.sample, outcome="refused", reason=str(error)))
            continue
        key = (label.sample, label.source, label.by)
        at, entry = min(label.at or now, now), entries.get(key)
        if entry is not None and (entry.at > at or (entry.value, entry.skipped) == (value, label.skipped)):
            receipts.append(Receipt(id=label.sample, outcome="known"))
            continue
        if label.sample not in edges and entry is None:
            room -= 1
            if room < 0:
                why = "too many labels wait for their samples; it is tried again"
                receipts.append(Receipt(id=label.sample, outcome="later", reason=why))
                continue
        if entry is None:
            entry = entries[key] = LabelEntry(sample=label.sample, source=label.source, by=label.by)
            session.add(entry)
        entry.value, entry.skipped, entry.at, entry.confidence = value, label.skipped, at, label.confidence
        what = "skipped" if label.skipped else "labelled"
        session.add(_event(label.sample, now, what, label.source, label.by, value))
        touched.add(label.sample)
        waits = "" if label.sample in edges else "waits for its sample"
        receipts.append(Receipt(id=label.sample, outcome="stored", reason=waits))
    session.flush()
    settle(session, sorted(touched), needed=hub.settings.agreement, now=now)
    return receipts


def _allowed(label: GivenLabel, edges: dict[str, str], gone: set[str]) -> None:
    if label.sample in gone:
        raise DatasetError("its sample was deleted")
    if label.edge is not None and edges.get(label.sample, label.edge) != label.edge:
        raise DatasetError("its sample came from another edge; an edge labels its own samples")
    if not storable(label.by, label.source):
        raise DatasetError("who says so is no text that can be kept")


def _known() -> Any:
    return select(Sample.id).where(Sample.id == LabelEntry.sample).exists()


def _event(sample: str, at: float, what: str, source: str, by: str, value: Any) -> LabelEvent:
    return LabelEvent(sample=sample, at=at, what=what, source=source, by=by, value=value)
