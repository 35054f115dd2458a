# SPDX-License-Identifier: Apache-2.0
"""What waits on a node to go up: samples, labels and observations, each kept once, also over kill -9 and power cuts.

The outbox is bounded. When it is full, what is worth least leaves first, the oldest before the newer:

1. samples that are hard or whose deep model was away,
2. samples that a script asked for,
3. samples that were drawn at random, which audits need,
4. observations.

Something new that is worth less than all that is there is refused, and so are labels when there is nothing but labels.
What was sent is remembered, so that content that is seen again is not sent twice; a sixteenth of the bound is for that,
and then the oldest is forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from ..core.hub_messages import PIECE, Label, Observation, OutboxState, Receipt
from ..lib.sample_records import SampleRecord
from .group_commits import GroupCommits
from .outbox_changes import Changes, Totals
from .outbox_file import connect, open_file, storage_errors

__all__ = ["Outbox", "QueuedLabel", "QueuedObservation", "QueuedSample"]

_BYTES_OF_MEMORY = 16  # of the bound, one part in so many
_BYTES_OF_SENT = 128


class QueuedSample(NamedTuple):
    """A sample that waits; `content` is empty where it is larger than a piece."""

    seq: int
    id: str
    size: int
    record: bytes
    content: bytes


class QueuedLabel(NamedTuple):
    """A label that waits, and what it is struck off by."""

    seq: int
    id: bytes
    label: Label


class QueuedObservation(NamedTuple):
    """An observation that waits, as JSON."""

    seq: int
    value: bytes


class Outbox:
    """The node's outbox. All methods may be called from any thread.

    What changes it is carried out by one thread, many changes in one transaction; the futures are done when the
    transaction is on the disk. One process at a time may have it open; see `store_lock`.

    Parameters
    ----------
    path
        Its SQLite file; made if it is not there.
    max_bytes
        What it may hold. The file can be a third larger; beside it are a journal of up to 16 MiB and the largest single
        frame, and 2 MiB that are kept free for striking off on a full disk.

    Raises
    ------
    PlatformError
        If the file is of a newer release.
    TemporaryError
        If the disk is full or fails.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._most_sent = max(16, max_bytes // _BYTES_OF_MEMORY // _BYTES_OF_SENT)
        self._connection, self.trouble_at_start = open_file(path)
        try:
            with storage_errors(path):
                self._reader = connect(path)
                self._totals = Totals.counted(self._connection)
        except BaseException:
            self._connection.close()
            raise
        self._reading = threading.Lock()
        self.on_arrival: Callable[[], None] = lambda: None  # called when something may have arrived; has to be quick
        self._commits = GroupCommits(
            self._connection,
            path,
            begin=self._begin,
            before_commit=self._save,
            end=self._end,
        )

    def close(self) -> None:
        """Carry out what was asked for, and close the file."""
        self._commits.close()
        with self._reading:
            self._reader.close()
        self._connection.close()

    def state(self, trouble: str = "") -> OutboxState:
        """Return what the heartbeat says of it."""
        totals = self._totals
        with self._reading, storage_errors(self._path):
            oldest = self._reader.execute("SELECT taken_at FROM samples ORDER BY seq LIMIT 1").fetchone()
        return OutboxState(
            queued=totals.queued,
            bytes=totals.bytes,
            **totals.counters,
            oldest_at=None if oldest is None else oldest[0],
            trouble=trouble or self.trouble_at_start,
        )

    # --- what comes in

    def add(self, samples: Sequence[tuple[SampleRecord, bytes]]) -> Future[list[Receipt]]:
        """Keep samples whose contents are what their ids say.

        Returns
        -------
        Future
            What became of each, in order. It raises TemporaryError if the disk is full; then none is kept.
        """
        weight = sum(len(content) for _, content in samples)
        return self._asked(lambda to: [to.add(record, content) for record, content in samples], weight)

    def add_labels(self, labels: Iterable[Label]) -> Future[list[Receipt]]:
        """Keep labels; as `add`. The same label again is `known`."""
        return self._asked(lambda to: [to.add_label(label) for label in labels], 0)

    def add_observations(self, observations: Iterable[Observation]) -> Future[int]:
        """Keep observations; gives how many are new, by their sequence numbers."""
        return self._asked(lambda to: sum(to.add_observation(each) for each in observations), 0)

    def _asked(self, change: Callable[[Changes], Any], weight: int) -> Future[Any]:
        future = self._commits.submit(lambda: change(self._changes), weight)
        future.add_done_callback(lambda _: self.on_arrival())
        return future

    # --- what goes up

    def samples(self, *, after: int, most: int, most_bytes: int) -> list[QueuedSample]:
        """Return samples in the order in which they came.

        Parameters
        ----------
        after
            The `seq` from which on to look; 0 for the oldest.
        most, most_bytes
            How many, and how many bytes of contents. There is at least one, if there is any. A sample whose content is
            larger than a piece comes alone and without it; see `content`.
        """
        found: list[QueuedSample] = []
        left = most_bytes
        query = (
            "SELECT seq, id, size, record, CASE WHEN size > ? THEN x'' ELSE content END FROM samples "
            "WHERE seq > ? ORDER BY seq LIMIT ?"
        )
        with self._reading, storage_errors(self._path):
            rows = self._reader.execute(query, (PIECE, after, most))
            for seq, id_, size, record, content in rows:
                large = size > PIECE
                if found and (large or size + len(record) > left):
                    break
                found.append(QueuedSample(seq, id_.hex(), size, record, content))
                left -= size + len(record)
                if large:
                    break
            rows.close()
        return found

    def content(self, seq: int, begin: int, size: int) -> bytes | None:
        """Return part of a sample's content, or None if the sample has left."""
        query = "SELECT substr(content, ?, ?) FROM samples WHERE seq = ?"
        with self._reading, storage_errors(self._path):
            row = self._reader.execute(query, (begin + 1, size, seq)).fetchone()
        return None if row is None else row[0]

    def labels(self, *, after: int, most: int) -> list[QueuedLabel]:
        """Return labels in the order in which they came; see `samples`."""
        rows = self._all("SELECT seq, id, value FROM labels WHERE seq > ? ORDER BY seq LIMIT ?", after, most)
        return [QueuedLabel(seq, id_, Label.model_validate_json(value)) for seq, id_, value in rows]

    def observations(self, *, after: int, most: int) -> list[QueuedObservation]:
        """Return observations by their sequence numbers; see `samples`. The first of all may be 0: ask after -1."""
        rows = self._all("SELECT seq, value FROM observations WHERE seq > ? ORDER BY seq LIMIT ?", after, most)
        return [QueuedObservation(*row) for row in rows]

    def _all(self, query: str, *values: object) -> list[Any]:
        with self._reading, storage_errors(self._path):
            return self._reader.execute(query, values).fetchall()

    # --- what became of it

    def settle(self, *, taken: Sequence[str] = (), refused: Sequence[str] = ()) -> Future[None]:
        """Strike off samples that the hub has, and such as it will never take; they are not sent again."""
        ids = [(bytes.fromhex(each), "uploaded") for each in taken]
        ids += [(bytes.fromhex(each), "refused") for each in refused]
        return self._commits.submit(lambda: self._changes.settle_samples(ids), frees=True)

    def settle_labels(self, *, taken: Sequence[bytes] = (), refused: Sequence[bytes] = ()) -> Future[None]:
        """Strike off labels, as `settle` does."""
        ids = [(each, "") for each in taken] + [(each, "refused") for each in refused]
        return self._commits.submit(lambda: self._changes.settle_labels(ids), frees=True)

    def settle_observations(self, seqs: Sequence[int]) -> Future[None]:
        """Strike off observations that the hub has."""
        return self._commits.submit(lambda: self._changes.settle_observations(seqs), frees=True)

    # --- transactions, in the thread that writes

    def _begin(self) -> None:
        self._changes = Changes(self._connection, self._totals.copy(), self._max_bytes, self._most_sent)

    def _save(self) -> None:
        self._changes.save_counters()

    def _end(self, committed: bool) -> None:
        if committed:
            self._totals = self._changes.totals
