# SPDX-License-Identifier: Apache-2.0
"""The hub's database: SQLite in a file, or PostgreSQL by URL; brought to this release's tables when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import stamina
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from ...core.errors import PlatformError, SpecError, TemporaryError

__all__ = ["Database", "insert_for", "migrations"]

T = TypeVar("T")

_LOCK = 0x50_4C_41_52  # any number that no other program takes: PostgreSQL's advisory locks have numbers for names
# Two transactions in each other's way; also two that both add what neither found.
_SERIALISATION = ("40001", "40P01", "23505")
_FOLDER = Path(__file__).parent / "migrations"


class Database:
    """Transactions on the hub's database, tried again where that helps.

    Any number of threads may use one at once.

    Parameters
    ----------
    url
        SQLAlchemy's URL, such as `sqlite:////var/lib/hub/hub.db` or `postgresql+psycopg://user@host/hub`.
    patience
        Seconds for which a transaction is tried again while the database is away or locked.

    Raises
    ------
    SpecError
        If the URL is none, or its driver is not installed.
    """

    def __init__(self, url: str, *, patience: float = 10.0) -> None:
        self._patience = patience
        self.engine = _engine(url, patience)
        self.name = self.engine.url.render_as_string(hide_password=True)

    def migrate(self) -> None:
        """Bring the tables to this release's form; an empty database gets them all.

        Raises
        ------
        PlatformError
            If a newer release made them, or they cannot be changed.
        TemporaryError
            If the database stays away.
        """
        self._tried(self._migrate)

    def write(self, work: Callable[[Session], T]) -> T:
        """Carry out `work` in a transaction, and return what it returns.

        On SQLite it begins with the lock for writing, so that what it reads first stays so; on PostgreSQL, lock what
        you read with `with_for_update()`.

        Parameters
        ----------
        work
            May be called several times: it does nothing outside the database that matters twice.

        Raises
        ------
        TemporaryError
            If the database stayed away, or locked, for all of `patience`.
        PlatformError
            If its disk is full or it may not be written.
        """
        return self._tried(partial(self._carry_out, work, "IMMEDIATE"))

    def read(self, work: Callable[[Session], T]) -> T:
        """Carry out `work`, which only reads, on one consistent state; as `write` otherwise."""
        return self._tried(partial(self._carry_out, work, "DEFERRED"))

    def close(self) -> None:
        """Close its connections."""
        self.engine.dispose()

    def _carry_out(self, work: Callable[[Session], T], begin: str) -> T:
        options: dict[str, Any] = {"sqlite_begin": begin}
        if begin == "DEFERRED" and self.engine.dialect.name == "postgresql":
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        # Rows that a transaction returns are read after it, too.
        with Session(self.engine.execution_options(**options), expire_on_commit=False) as session, session.begin():
            return work(session)

    def _tried(self, work: Callable[[], T]) -> T:
        try:
            for attempt in stamina.retry_context(
                on=_may_pass, attempts=None, timeout=self._patience, wait_initial=0.05, wait_max=1.0, wait_jitter=0.1
            ):
                with attempt:
                    return work()
        except (DBAPIError, PoolTimeoutError) as error:
            raise self._translated(error) from error
        raise AssertionError("unreachable: the loop returns or raises")

    def _translated(self, error: SQLAlchemyError) -> Exception:
        why = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        if _may_pass(error):
            return TemporaryError(
                f"{self.name}: the database does not answer ({why}); it is tried again. See that it runs and that its "
                f"address and password are right"
            )
        if isinstance(error, OperationalError):
            return PlatformError(
                f"{self.name}: the database cannot be written ({why}); free some space, or give this user the rights"
            )
        return error

    def _migrate(self) -> None:
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config = migrations(connection)
            known = ScriptDirectory.from_config(config)
            here = MigrationContext.configure(connection).get_current_revision()
            if here is not None and here not in {step.revision for step in known.walk_revisions()}:
                raise PlatformError(
                    f"{self.name}: a newer release of Solar Corona made this database (its form is {here}, this one "
                    f"knows up to {known.get_current_head()}); install that release, or name another database"
                )
            command.upgrade(config, "head")
            connection.commit()


def insert_for(session: Session) -> Callable[..., Any]:
    """Return the `insert` of the session's database, which knows `on_conflict_do_nothing`."""
    return postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert


def migrations(connection: Connection) -> Config:
    """Return Alembic's configuration for a connection, as a command that makes a new revision needs it."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "v%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def _engine(url: str, patience: float) -> Engine:
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite and parsed.database in (None, "", ":memory:"):
            raise SpecError(f"{url}: names no file, and all would be lost at the end; expected sqlite:////path/hub.db")
        if sqlite:
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(parsed, connect_args={"timeout": patience}, pool_size=20, pool_timeout=patience)
        elif parsed.get_backend_name() == "postgresql":
            seconds = max(2, round(patience))
            engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                connect_args={"connect_timeout": seconds, "options": f"-c statement_timeout={seconds * 6_000}"},
                pool_size=20,
                pool_timeout=patience,
                pool_pre_ping=True,  # a connection of before a restart of the server is found out before it is used
            )
        else:
            raise SpecError(f"{parsed.render_as_string()}: is neither SQLite nor PostgreSQL; give one of these")
    except ModuleNotFoundError as error:
        raise SpecError(
            f"PostgreSQL needs a package that is not here: pip install 'solar-corona[postgresql]' ({error})"
        ) from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise SpecError(
            f"the database's URL is none ({error}); expected such as sqlite:////path/hub.db or postgresql://user@host/hub"
        ) from error
    if sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own idea of when a transaction begins would let what is read change before it is written.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'IMMEDIATE')}")


def _may_pass(error: BaseException) -> bool:
    """Tell whether the same transaction may succeed in a moment."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or state in _SERIALISATION:
        return True
    if not isinstance(error, OperationalError):
        return False
    words = str(error.orig)
    if type(error.orig).__module__.startswith("psycopg"):
        # No connection has no state; 08: connection lost; 53: too few resources; 57P: the server shuts down.
        return state is None or state[:2] in ("08", "53") or state.startswith("57P")
    return "locked" in words or "unable to open" in words
