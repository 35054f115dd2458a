# SPDX-License-Identifier: Apache-2.0
"""The hub's database: its form, its releases, and that it may be away."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select

from solar_corona.core.errors import PlatformError, SpecError, TemporaryError
from solar_corona.core.hub_messages import Observation, Observations
from solar_corona.core.local_launcher import free_port
from solar_corona.incremental.hub.database import Database
from solar_corona.incremental.hub.dataset_versions import DatasetVersions
from solar_corona.incremental.hub.labels import GivenLabel, LabelBook
from solar_corona.incremental.hub.retention import Retention
from solar_corona.incremental.labelling.desk import Desk
from solar_corona.incremental.labelling.page import Page
from solar_corona.incremental.labelling.page_routes import Labelling
from solar_corona.incremental.labelling.source import Setting
from solar_corona.incremental.tables import Base, Edge, Sample

from .conftest import ADMIN, E1, Samples

POSTGRES = shutil.which("initdb") or next(
    iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))), None
)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/new/hub.db"


def test_the_migrations_make_the_tables_that_the_code_reads(url):
    database = Database(url)
    database.migrate()
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.close()


def test_a_database_of_an_older_release_is_brought_on_and_keeps_what_it_has(url):
    database = Database(url)
    database.migrate()
    edge = Edge(name="e1", seen_at=1.0, heartbeat={}, clock_ahead=0.0)
    database.write(lambda session: session.add(edge))
    database.migrate()
    assert database.read(lambda session: session.scalars(select(Edge.name)).all()) == ["e1"]
    database.close()


def test_a_database_of_a_newer_release_is_refused_and_left_as_it_is(url, tmp_path):
    database = Database(url)
    database.migrate()
    database.close()
    with sqlite3.connect(tmp_path / "new" / "hub.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(PlatformError, match=r"newer release .* '?9999'?.* knows up to 0001.*install that release"):
        Database(url).migrate()


def test_two_hubs_that_open_one_empty_database_at_once_make_it_once(url):
    def open_it(_):
        database = Database(url)
        database.migrate()
        database.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(open_it, range(4)))


@pytest.mark.parametrize("wrong", ["nonsense", "mysql://host/hub", "oracle+nope://x", "sqlite://"])
def test_what_is_no_database_is_refused(wrong):
    with pytest.raises(SpecError, match=r"expected|give one of these"):
        Database(wrong)


def test_a_database_that_another_holds_is_waited_for_and_then_told(url, tmp_path):
    database = Database(url, patience=0.3)
    database.migrate()
    other = sqlite3.connect(tmp_path / "new" / "hub.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TemporaryError, match=r"does not answer .*locked.*tried again"):
        database.write(lambda session: session.add(Edge(name="e", seen_at=1.0, heartbeat={}, clock_ahead=0.0)))
    assert database.read(lambda session: session.scalars(select(Edge)).all()) == []
    other.execute("COMMIT")
    database.write(lambda session: session.add(Edge(name="e", seen_at=1.0, heartbeat={}, clock_ahead=0.0)))
    other.close()
    database.close()


class Postgres:
    """A PostgreSQL of our own, as another user where we are root."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.bin = Path(POSTGRES).resolve().parent if "lib" in POSTGRES else Path(POSTGRES).parent
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "--no-sync")

    def _run(self, name, *arguments):
        user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        done = subprocess.run(
            [str(self.bin / name), *arguments], cwd="/", capture_output=True, text=True, check=False, **user
        )
        log = self.folder / "log"
        told = log.read_text() if log.exists() else ""
        assert done.returncode == 0, done.stdout + done.stderr + told[-2_000:]

    def start(self):
        options = f"-p {self.port} -k '' -c listen_addresses=127.0.0.1 -c fsync=off"
        # Its output goes to a file: a server that kept our pipe would keep us waiting.
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "-o", options, "start"
        )

    def stop(self):
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")


@pytest.fixture(scope="module")
def postgres():
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # Not pytest's folder: another user, as whom PostgreSQL has to run where we are root, may not enter that.
    with tempfile.TemporaryDirectory(prefix="solar-corona-postgres-", dir="/tmp") as folder:
        server = Postgres(Path(folder))
        server.start()
        yield server
        server.stop()


def test_on_postgresql_all_of_it_works_and_an_outage_is_got_over(postgres, make_hub, client_of):
    hub = make_hub(database=postgres.url, patience=1.0)
    with hub.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    samples = Samples(hub)
    ids = samples.many(20, reason="random", prediction={"a": [1, None]}, subject="ann")
    assert samples.many(20, reason="random") == ids
    book = LabelBook(hub)
    book.put([GivenLabel(each, "page", "ann", "cat") for each in ids])
    version = DatasetVersions(hub).make()
    assert sum(DatasetVersions(hub).counts(version).values()) == 20

    # Many at once that speak of the same sample, which is not here: none has a row to lock.
    same = [GivenLabel("f" * 64, "api", "x", "owl")]
    with ThreadPoolExecutor(8) as threads:
        receipts = [receipt.outcome for (receipt,) in threads.map(lambda _: book.put(same), range(16))]
    assert sorted(receipts) == ["known"] * 15 + ["stored"]

    postgres.stop()
    with pytest.raises(TemporaryError, match="does not answer"):
        hub.database.read(lambda session: session.scalars(select(Sample.id)).all())
    postgres.start()
    assert len(hub.database.read(lambda session: session.scalars(select(Sample.id)).all())) == 20

    assert book.undo(source="page", by="ann") in ids
    desk = Desk(hub, "page", Page(Setting("test", hub.settings.labels)))
    client, edge = client_of(hub, Labelling(hub, desk)), {"Authorization": f"Bearer {E1}"}
    each = Observation(seq=1, version=2, reference=1, at=1, agrees=True, confidence=0.5, reference_confidence=0.5)
    body = Observations(edge="e1", observations=[each, each]).model_dump()
    for _ in range(2):
        assert client.post("/v1/observations", json=body, headers=edge).status_code == 204
        assert client.post("/v1/heartbeat", json={"edge": "e1", "sent_at": 1}, headers=edge).status_code == 200
    client.get(f"/login?key={ADMIN}&name=bob")
    told = client.get("/label/next").json()
    assert (len(told["samples"]), told["progress"]["labelled"]) == (1, 19)
    deleted = Retention(hub).forget_subject("ann")
    assert (deleted.samples, deleted.versions) == (20, (version,))
