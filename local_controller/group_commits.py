# SPDX-License-Identifier: Apache-2.0
"""One thread that carries out what many ask for, and waits for the disk once for all who asked meanwhile."""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..core.errors import InterruptedJobError, SolarCoronaError, TemporaryError
from .outbox_file import storage_errors

__all__ = ["GroupCommits"]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
# What one transaction takes at most, so that its journal stays small; a single change may be larger.
_MOST_CHANGES, _MOST_BYTES = 256, 8 << 20


# Kept free, so that what was sent can be struck off when others have filled the disk.
_RESERVE = 2 << 20


class _Change(NamedTuple):
    carry_out: Callable[[], Any]
    weight: int
    frees: bool
    future: Future[Any]


class GroupCommits:
    """Carries out changes in transactions of a connection that belongs to it from now on.

    Parameters
    ----------
    connection, path
        The database; its path is for messages.
    begin, end
        Called in a transaction before its first change, and after its last one with whether it was committed.
    before_commit
        Called before a transaction is committed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        begin: Callable[[], None],
        before_commit: Callable[[], None],
        end: Callable[[bool], None],
    ) -> None:
        self._connection, self._path = connection, path
        self._begin, self._before_commit, self._end = begin, before_commit, end
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._closed = False
        self._reserve = path.with_name(f"{path.stem}.reserve")
        self._take_reserve()
        self._submitting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def submit(self, carry_out: Callable[[], _Result], weight: int = 0, *, frees: bool = False) -> Future[_Result]:
        """Have a change carried out.

        Parameters
        ----------
        carry_out
            Makes the change; called in the thread that writes, once more if a transaction with others failed.
        weight
            Bytes that it writes, roughly.
        frees
            Whether it makes room; then the space that is kept for that is used on a full disk.

        Returns
        -------
        Future
            Done when the change is on the disk.
        """
        future: Future[_Result] = Future()
        with self._submitting:
            if self._closed:
                future.set_exception(InterruptedJobError("the outbox is closed; start the LocalController again"))
                return future
            self._changes.put(_Change(carry_out, weight, frees, future))
        return future

    def close(self) -> None:
        """Carry out what was submitted, and end."""
        with self._submitting:
            if not self._closed:
                self._closed = True
                self._changes.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (change := self._changes.get()) is not None:
            group, weight, last = [change], change.weight, False
            while len(group) < _MOST_CHANGES and weight < _MOST_BYTES:
                try:
                    more = self._changes.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                    break
                group.append(more)
                weight += more.weight
            self._carry_out(group)
            if last:
                return

    def _carry_out(self, group: list[_Change]) -> None:
        try:
            results = self._transaction(group)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits has to learn of it
            if len(group) > 1:  # one that frees space may pass where one that needs some does not
                for each in sorted(group, key=lambda change: not change.frees):
                    self._carry_out([each])
            elif isinstance(error, TemporaryError) and group[0].frees and self._give_reserve():
                self._carry_out(group)
            else:
                if not isinstance(error, SolarCoronaError):
                    _log.exception("%s: a change failed", self._path)
                group[0].future.set_exception(error)
            return
        for each, result in zip(group, results, strict=True):
            each.future.set_result(result)
        if any(each.frees for each in group):
            self._take_reserve()

    def _take_reserve(self) -> None:
        """Occupy the reserve, where there is room."""
        if self._reserve.exists():
            return
        try:
            with self._reserve.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVE)
        except OSError:
            self._reserve.unlink(missing_ok=True)

    def _give_reserve(self) -> bool:
        """Free the reserve and empty the journal; False if that was done before and did not help."""
        if not self._reserve.exists():
            return False
        self._reserve.unlink(missing_ok=True)
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return True

    def _transaction(self, group: list[_Change]) -> list[Any]:
        committed = False
        try:
            with storage_errors(self._path):
                self._connection.execute("BEGIN IMMEDIATE")
                self._begin()
                results = [each.carry_out() for each in group]
                self._before_commit()
                self._connection.execute("COMMIT")
            committed = True
            return results
        finally:
            if not committed and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._end(committed)
