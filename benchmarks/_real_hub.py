# SPDX-License-Identifier: Apache-2.0
"""The hub of incremental learning with nothing beside it: it takes in what an edge sends, and asks for no label."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._small_hub import TOKEN

if TYPE_CHECKING:
    from solar_corona.incremental.hub.hub import Hub

__all__ = ["command", "taken"]


def command(folder: Path, port: int) -> list[str]:
    """Return the command that serves a hub whose state is in a folder."""
    return [sys.executable, "-m", "solar_corona.benchmarks._real_hub", str(folder), str(port)]


def taken(folder: Path) -> list[str]:
    """Return the ids of all samples that are in the database and whose content is in the storage."""
    from sqlalchemy import select

    from solar_corona.incremental.tables import Sample

    hub = _hub(folder)
    ids = hub.database.read(lambda session: list(session.scalars(select(Sample.id))))
    return [id_ for id_ in ids if hub.samples.size(id_) is not None]


def _hub(folder: Path) -> Hub:
    from solar_corona.incremental.hub.hub import Hub, HubSettings, LabelSpace

    database = f"sqlite:///{folder / 'hub' / 'hub.db'}"
    storage = str(folder / "hub" / "storage")
    return Hub(HubSettings(job="outbox", database=database, storage=storage, labels=LabelSpace(count=10)))


def _serve(folder: Path, port: int) -> None:
    from solar_corona.incremental.hub.accounts import Accounts
    from solar_corona.incremental.hub.app import serve

    (folder / "hub").mkdir(exist_ok=True)
    hub = _hub(folder)
    print("ready", flush=True)
    serve(hub, Accounts("administrator-of-the-benchmark-0123456789", {"camera": TOKEN}), host="127.0.0.1", port=port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    _serve(arguments.folder, arguments.port)
