# SPDX-License-Identifier: Apache-2.0
"""The outbox's SQLite file: how it is opened, what its tables are, and what its errors mean."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.errors import PlatformError, SolarCoronaError, TemporaryError

__all__ = ["connect", "open_file", "storage_errors"]

_log = logging.getLogger(__name__)

_VERSION = 1
# Each entry moves a file on from the release before; a new release appends one.
_MIGRATIONS = (
    """
    CREATE TABLE samples (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        rank INTEGER NOT NULL,
        cost INTEGER NOT NULL,
        taken_at REAL NOT NULL,
        size INTEGER NOT NULL,
        record BLOB NOT NULL,
        content BLOB NOT NULL
    ) STRICT;
    CREATE INDEX samples_by_rank ON samples (rank, seq, cost);
    CREATE TABLE labels (
        seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, cost INTEGER NOT NULL, value BLOB NOT NULL
    ) STRICT;
    CREATE TABLE observations (seq INTEGER PRIMARY KEY, cost INTEGER NOT NULL, value BLOB NOT NULL) STRICT;
    CREATE TABLE sent (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE) STRICT;
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    """,
)
# The journal keeps so much of its space when it is empty, so that what was sent can be struck off on a full disk.
_KEPT_JOURNAL = 16 << 20
_PAGE = 4096  # measured: with larger ones a sample of 4 KB takes more space and more time
_CACHE_KIB = 16 << 10
_BUSY_SECONDS = 10.0
_SHORT_OF_SPACE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _primary(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours.

    Raises
    ------
    TemporaryError
        If the disk is full or does not answer; nothing of the transaction is kept.
    PlatformError
        If the file is damaged.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = _primary(error)
        if code in _DAMAGED:
            raise PlatformError(
                f"{path}: is damaged ({error}); move it away and start the LocalController again: it begins a new one"
            ) from error
        if code in _SHORT_OF_SPACE:
            raise TemporaryError(
                f"{path}: cannot be written ({error}); the disk is full or fails; free some space in {path.parent}"
            ) from error
        raise TemporaryError(f"{path}: cannot be used now ({error}); it is tried again") from error


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection whose transactions are begun and ended by hand; any one thread at a time may use it."""
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (
            f"page_size = {_PAGE}",
            "journal_mode = WAL",
            "synchronous = FULL",  # what was answered for survives a power cut
            f"journal_size_limit = {_KEPT_JOURNAL}",
            f"cache_size = -{_CACHE_KIB}",
            "temp_store = MEMORY",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_file(path: Path) -> tuple[sqlite3.Connection, str]:
    """Open the outbox's file, or make it, and move it on to this release's form.

    Returns
    -------
    connection
        For the one who writes.
    trouble
        Why what was in it is not there any more: it was damaged, and was put aside. Empty if all is well.

    Raises
    ------
    PlatformError
        If it is of a newer release.
    TemporaryError
        If the disk is full or fails.
    """
    with storage_errors(path):
        try:
            return _opened(path), ""
        except sqlite3.DatabaseError as error:
            if _primary(error) not in _DAMAGED:
                raise
            trouble = f"the outbox was damaged ({error}); it was put aside, and what waited in it is not sent"
            _log.error("%s: %s: %s", path, trouble, _put_aside(path))
            return _opened(path), trouble


def _put_aside(path: Path) -> Path:
    """Move a damaged file out of the way; one is kept, for whoever wants to look into it."""
    aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
    for ending in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).unlink()
    path.replace(aside)
    return aside


def _opened(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    connection = connect(path)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise PlatformError(
                f"{path}: is of a newer release (form {version}, this release knows {_VERSION}); install that release "
                f"again, or choose another folder with --state"
            )
        for number in range(version, _VERSION):
            # One transaction: a process that is killed here begins the step anew.
            connection.executescript(f"BEGIN;{_MIGRATIONS[number]}PRAGMA user_version = {number + 1};COMMIT;")
        connection.execute("SELECT count(*) FROM counters").fetchone()
    except (sqlite3.Error, SolarCoronaError):
        connection.close()
        raise
    return connection
