# SPDX-License-Identifier: Apache-2.0
"""Samples of the edges come in: each once, whatever is sent how often."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, null, select
from sqlalchemy.orm import Session

from ...core.errors import DatasetError, RefusedRequestError
from ...core.hub_messages import PIECE, Receipt, Receipts
from ...lib.sample_records import SampleRecord, unpack
from ..tables import GoneSample, LabelEntry, Sample
from .database import insert_for
from .hub import Hub, storable
from .labels import settle
from .media import check_content

__all__ = ["Ingest"]

_CLOCK_AHEAD = 300.0
_HOUR = 3_600.0
_ROWS = 500  # a statement has some thousands of values at most
_USAGE_SECONDS = 30.0


@dataclass(frozen=True)
class _Arrived:
    record: SampleRecord
    content: bytes | None  # None: it went ahead, and is in the storage


@dataclass
class _Usage:
    count: int
    size: int
    at: float


class Ingest:
    """Takes samples in.

    Contents are in the storage before their rows are in the database, and an edge hears of both after that: a hub that
    is killed at any instant has lost nothing that an edge forgot.

    Parameters
    ----------
    hub
        What it works on.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._used: dict[str, _Usage] = {}

    def take(self, edge: str, frame: bytes) -> Receipts:
        """Take a frame of samples in. Safe to repeat.

        Parameters
        ----------
        edge
            Who sends it, as its token says.
        frame
            See `lib.sample_records.pack`.

        Raises
        ------
        WireError
            If it is no frame.
        TemporaryError, PlatformError
            If the database or the storage is away or full; nothing was taken.
        """
        samples = unpack(frame)
        outcomes: list[Receipt | None] = [self._looked_at(edge, record, content) for record, content in samples]
        good = {
            place: _Arrived(record, None if record.ahead else content)
            for place, (record, content) in enumerate(samples)
            if outcomes[place] is None
        }
        self._over_quota(edge, good, outcomes)
        self._hub.samples.put({each.record.id: each.content for each in good.values() if each.content is not None})
        records = [each.record for each in good.values()]
        if records:
            found = self._hub.database.write(lambda session: _insert(session, records, self._hub))
            for place, receipt in zip(good, found, strict=True):
                outcomes[place] = receipt
                if receipt.outcome == "refused":
                    # It was deleted, perhaps just now: nothing of it stays.
                    self._hub.samples.delete(receipt.id)
        return Receipts(receipts=[receipt for receipt in outcomes if receipt is not None])

    def piece(self, edge: str, name: str, offset: int, data: bytes, *, length: int) -> int:
        """Keep a piece of a large content, and return how many bytes have come.

        Raises
        ------
        RefusedRequestError
            413 if the content is larger than what is taken; 507 if the edge has as much here as it may, or too many
            contents are under way.
        OffsetError, DatasetError
            See `Contents.append`.
        """
        limits = self._hub.settings.limits
        if length > limits.content or len(data) > PIECE:
            raise RefusedRequestError(
                413,
                f"the content has {length} bytes, a piece {len(data)}; at most {limits.content} and {PIECE} are taken",
            )
        used = self._usage(edge)
        if used.size + length > limits.edge_bytes:
            why = f"edge {edge} has {used.size} bytes here, of {limits.edge_bytes} that it may have"
            raise RefusedRequestError(507, why, retry_after=600)
        if offset == 0 and self._hub.samples.uploads() >= limits.uploads:
            raise RefusedRequestError(507, f"{limits.uploads} large contents are under way already", retry_after=60)
        return self._hub.samples.append(name, offset, data, length=length)

    def _looked_at(self, edge: str, record: SampleRecord, content: bytes) -> Receipt | None:
        """Return why a sample is not taken, or None."""
        try:
            if record.edge != edge:
                raise DatasetError(f"its record says edge {record.edge!r}, but edge {edge!r} sent it")
            if record.size > self._hub.settings.limits.content:
                raise DatasetError(f"it has {record.size} bytes; at most {self._hub.settings.limits.content} are taken")
            _check_storable(record)
            if record.ahead:
                return self._whole_ahead(record)
            if hashlib.sha256(content).hexdigest() != record.id:
                raise DatasetError("its id is not the SHA-256 of its content")
            check_content(record.media_type, content)
        except DatasetError as error:
            return Receipt(id=record.id, outcome="refused", reason=str(error))
        return None

    def _whole_ahead(self, record: SampleRecord) -> Receipt | None:
        size = self._hub.samples.size(record.id)
        if size is None:
            return Receipt(id=record.id, outcome="later", reason="its content is not whole here; send the pieces")
        if size != record.size:
            raise DatasetError(f"its content has {size} bytes, and its record says {record.size}")
        check_content(record.media_type, self._hub.samples.get(record.id))
        return None

    def _over_quota(self, edge: str, good: dict[int, _Arrived], outcomes: list[Receipt | None]) -> None:
        limits = self._hub.settings.limits
        used = self._usage(edge)
        for place in list(good):
            record = good[place].record
            why = ""
            if used.count >= limits.edge_per_hour:
                why = f"edge {edge} sent {limits.edge_per_hour} samples within an hour, and may not send more"
            elif used.size + record.size > limits.edge_bytes:
                why = f"edge {edge} has {limits.edge_bytes} bytes here, and may not have more"
            if why:
                outcomes[place] = Receipt(id=record.id, outcome="later", reason=why)
                del good[place]
            else:
                used.count, used.size = used.count + 1, used.size + record.size

    def _usage(self, edge: str) -> _Usage:
        """Return an edge's samples of the last hour, and the bytes of all that are here; counted anew now and then."""
        now = self._hub.clock()
        known = self._used.get(edge)
        if known is not None and 0 <= now - known.at < _USAGE_SECONDS:
            return known

        def work(session: Session) -> _Usage:
            recent = select(func.count()).where(Sample.edge == edge, Sample.received_at > now - _HOUR)
            whole = select(func.coalesce(func.sum(Sample.size), 0)).where(Sample.edge == edge)
            return _Usage(int(session.scalar(recent) or 0), int(session.scalar(whole) or 0), now)

        self._used[edge] = self._hub.database.read(work)
        return self._used[edge]


def _check_storable(record: SampleRecord) -> None:
    told = [record.prediction, record.probabilities, record.embedding]
    try:
        json.dumps(told, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise DatasetError(f"its prediction is no JSON that can be kept ({type(error).__name__})") from error
    if record.model >= 1 << 31:
        raise DatasetError(f"its record says model {record.model}, which is no version")
    if not storable(record.subject, record.media_type, record.edge):
        raise DatasetError("its record has characters that cannot be kept")


def _insert(session: Session, records: Sequence[SampleRecord], hub: Hub) -> list[Receipt]:
    now = hub.clock()
    ids = [record.id for record in records]
    gone = set(session.scalars(select(GoneSample.id).where(GoneSample.id.in_(ids))))
    insert = insert_for(session)
    rows = {record.id: _row(record, now) for record in records if record.id not in gone}
    stored: set[str] = set()
    all_rows = list(rows.values())
    for begin in range(0, len(all_rows), _ROWS):
        part = all_rows[begin : begin + _ROWS]
        query = insert(Sample).values(part).on_conflict_do_nothing(index_elements=["id"])
        stored |= set(session.scalars(query.returning(Sample.id)))
    receipts = []
    for record in records:
        if record.id in gone:
            receipts.append(Receipt(id=record.id, outcome="refused", reason="it was deleted, and is not taken again"))
            continue
        ahead = record.taken_at - now
        reason = f"its clock is {ahead:.0f} s ahead of the hub's" if ahead > _CLOCK_AHEAD else ""
        outcome: Literal["stored", "known"] = "stored" if record.id in stored else "known"
        stored.discard(record.id)  # once more in the same frame, it is known
        receipts.append(Receipt(id=record.id, outcome=outcome, reason=reason))
    _labels_that_waited(session, [record for record in records if record.id not in gone], hub, now)
    return receipts


def _labels_that_waited(session: Session, records: Sequence[SampleRecord], hub: Hub, now: float) -> None:
    edges = {record.id: record.edge for record in records}
    waiting = session.scalars(select(LabelEntry).where(LabelEntry.sample.in_(list(edges)))).all()
    for entry in waiting:
        # An edge labels its own samples; whose this one would be was not known when its label came.
        if entry.source == "edge" and entry.by.partition(":")[0] != edges[entry.sample]:
            session.delete(entry)
    if waiting:
        session.flush()
        settle(session, sorted({entry.sample for entry in waiting}), needed=hub.settings.agreement, now=now)


def _row(record: SampleRecord, now: float) -> dict[str, Any]:
    def json_of(value: Any) -> Any:
        return null() if value is None else value

    return {
        "id": record.id,
        "edge": record.edge,
        "model": record.model,
        "taken_at": record.taken_at,
        "received_at": now,
        "reason": record.reason,
        "media_type": record.media_type,
        "size": record.size,
        "confidence": record.confidence,
        "hardness": record.hardness,
        "prediction": json_of(record.prediction),
        "probabilities": json_of(list(record.probabilities) if record.probabilities is not None else None),
        "embedding": json_of(list(record.embedding) if record.embedding is not None else None),
        "subject": record.subject,
        "state": "waiting",
        "state_at": now,
    }
