# SPDX-License-Identifier: Apache-2.0
"""Changes to the outbox within one transaction, and its policy of what leaves when it is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from ..core.hub_messages import Label, Observation, Receipt
from ..lib.sample_records import SampleRecord, encode_record

if TYPE_CHECKING:
    import sqlite3

__all__ = ["ROW_COST", "Changes", "Totals", "cost_of"]

ROW_COST = 512
"""Bytes that each thing is counted as beside what it holds: rows, indexes, and room in pages that is not used."""

# What leaves when the outbox is full, from the lowest rank on.
_RANKS = {"hard": 0, "degraded": 0, "asked": 1, "random": 2}
_OBSERVATION, _LABEL = 3, 4
_COUNTERS = ("uploaded", "evicted", "refused")

_OLDEST_SAMPLE = "SELECT seq, cost FROM samples WHERE rank = ? ORDER BY seq LIMIT 1"
_OLDEST_OBSERVATION = "SELECT seq, cost FROM observations ORDER BY seq LIMIT 1"
_OLDEST: tuple[tuple[str, tuple[int, ...]], ...] = (
    (_OLDEST_SAMPLE, (0,)),
    (_OLDEST_SAMPLE, (1,)),
    (_OLDEST_SAMPLE, (2,)),
    (_OLDEST_OBSERVATION, ()),
)
_DELETE_SAMPLE = "DELETE FROM samples WHERE seq = ?"
_DELETE = (_DELETE_SAMPLE, _DELETE_SAMPLE, _DELETE_SAMPLE, "DELETE FROM observations WHERE seq = ?")
_KNOWN_SAMPLE = "SELECT 1 FROM samples WHERE id = ? UNION ALL SELECT 1 FROM sent WHERE id = ? LIMIT 1"
_KNOWN_LABEL = "SELECT 1 FROM labels WHERE id = ? UNION ALL SELECT 1 FROM sent WHERE id = ? LIMIT 1"


@dataclass
class Totals:
    """What the tables hold, so that nobody has to count.

    Parameters
    ----------
    costs
        Bytes by rank.
    queued
        Samples.
    counters
        What became of samples since the outbox was made.
    """

    costs: list[int] = field(default_factory=lambda: [0] * (_LABEL + 1))
    queued: int = 0
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))

    @classmethod
    def counted(cls, connection: sqlite3.Connection) -> Totals:
        """Count what the tables hold."""
        totals, query = cls(), connection.execute
        for rank, count, cost in query("SELECT rank, count(*), sum(cost) FROM samples GROUP BY rank"):
            totals.costs[rank] = cost
            totals.queued += count
        (totals.costs[_OBSERVATION],) = query("SELECT coalesce(sum(cost), 0) FROM observations").fetchone()
        (totals.costs[_LABEL],) = query("SELECT coalesce(sum(cost), 0) FROM labels").fetchone()
        totals.counters.update(query("SELECT name, value FROM counters").fetchall())
        return totals

    def copy(self) -> Totals:
        """Return a copy that can be changed without this one."""
        return replace(self, costs=list(self.costs), counters=dict(self.counters))

    @property
    def bytes(self) -> int:
        """All that counts for the bound."""
        return sum(self.costs)


def cost_of(*parts: bytes) -> int:
    """Return the bytes that something counts for in the outbox's bound."""
    return ROW_COST + sum(map(len, parts))


class Changes:
    """The changes of one transaction.

    Parameters
    ----------
    connection
        In a transaction.
    totals
        What the tables hold; changed as they change.
    max_bytes, most_sent
        What the outbox may hold, and of how much that was sent it remembers the ids.
    """

    def __init__(self, connection: sqlite3.Connection, totals: Totals, max_bytes: int, most_sent: int) -> None:
        self._execute = connection.execute
        self.totals, self._max_bytes, self._most_sent = totals, max_bytes, most_sent

    def add(self, record: SampleRecord, content: bytes) -> Receipt:
        """Keep a sample, once."""
        id_, rank = bytes.fromhex(record.id), _RANKS[record.reason]
        if self._known(_KNOWN_SAMPLE, id_):
            return Receipt(id=record.id, outcome="known")
        encoded = encode_record(record)
        cost = cost_of(encoded, content)
        if not self._make_room(cost, rank):
            self._count("evicted")
            return Receipt(id=record.id, outcome="refused", reason="the outbox is full of what stays longer")
        self._execute(
            "INSERT INTO samples (id, rank, cost, taken_at, size, record, content) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (id_, rank, cost, record.taken_at, len(content), encoded, content),
        )
        self.totals.costs[rank] += cost
        self.totals.queued += 1
        return Receipt(id=record.id, outcome="stored")

    def add_label(self, label: Label) -> Receipt:
        """Keep a label, once."""
        value = label.model_dump_json().encode()
        id_ = sha256(value).digest()
        if self._known(_KNOWN_LABEL, id_):
            return Receipt(id=label.sample, outcome="known")
        cost = cost_of(value)
        if not self._make_room(cost, _LABEL):
            return Receipt(id=label.sample, outcome="later", reason="the outbox is full of labels that wait")
        self._execute("INSERT INTO labels (id, cost, value) VALUES (?, ?, ?)", (id_, cost, value))
        self.totals.costs[_LABEL] += cost
        return Receipt(id=label.sample, outcome="stored")

    def add_observation(self, observation: Observation) -> bool:
        """Keep an observation; tell whether it is new and was kept."""
        if self._execute("SELECT 1 FROM observations WHERE seq = ?", (observation.seq,)).fetchone():
            return False
        value = observation.model_dump_json().encode()
        cost = cost_of(value)
        if not self._make_room(cost, _OBSERVATION):
            self._count("evicted")
            return False
        self._execute("INSERT INTO observations (seq, cost, value) VALUES (?, ?, ?)", (observation.seq, cost, value))
        self.totals.costs[_OBSERVATION] += cost
        return True

    def _make_room(self, cost: int, rank: int) -> bool:
        """Let leave what is worth no more than something of this rank; False if that is not enough."""
        totals = self.totals
        least_rank = rank if rank < _LABEL else _OBSERVATION
        room = self._max_bytes - totals.bytes
        if room >= cost:
            return True
        if room + sum(totals.costs[: least_rank + 1]) < cost:
            return False
        for each in range(least_rank + 1):
            while totals.costs[each] and self._max_bytes - totals.bytes < cost:
                oldest, of_rank = _OLDEST[each]
                seq, gone = self._execute(oldest, of_rank).fetchone()
                self._execute(_DELETE[each], (seq,))
                totals.costs[each] -= gone
                totals.queued -= each < _OBSERVATION
                self._count("evicted")
        return True

    def _known(self, query: str, id_: bytes) -> bool:
        return self._execute(query, (id_, id_)).fetchone() is not None

    def settle_samples(self, ids: Sequence[tuple[bytes, str]]) -> None:
        """Strike samples off; with each id comes the counter that grows."""
        for id_, counter in ids:
            row = self._execute("DELETE FROM samples WHERE id = ? RETURNING rank, cost", (id_,)).fetchone()
            if row is not None:
                self.totals.costs[row[0]] -= row[1]
                self.totals.queued -= 1
                self._count(counter)
            self._remember(id_)
        self._forget()

    def settle_labels(self, ids: Sequence[tuple[bytes, str]]) -> None:
        """Strike labels off."""
        for id_, counter in ids:
            row = self._execute("DELETE FROM labels WHERE id = ? RETURNING cost", (id_,)).fetchone()
            if row is not None:
                self.totals.costs[_LABEL] -= row[0]
                if counter:
                    self._count(counter)
            self._remember(id_)
        self._forget()

    def _remember(self, id_: bytes) -> None:
        self._execute("INSERT OR IGNORE INTO sent (id) VALUES (?)", (id_,))

    def _forget(self) -> None:
        self._execute("DELETE FROM sent WHERE number <= (SELECT max(number) FROM sent) - ?", (self._most_sent,))

    def settle_observations(self, seqs: Sequence[int]) -> None:
        """Strike observations off."""
        for seq in seqs:
            row = self._execute("DELETE FROM observations WHERE seq = ? RETURNING cost", (seq,)).fetchone()
            if row is not None:
                self.totals.costs[_OBSERVATION] -= row[0]

    def _count(self, name: str) -> None:
        self.totals.counters[name] += 1

    def save_counters(self) -> None:
        """Write the counters down."""
        self._execute("DELETE FROM counters")
        for item in self.totals.counters.items():
            self._execute("INSERT INTO counters (name, value) VALUES (?, ?)", item)
