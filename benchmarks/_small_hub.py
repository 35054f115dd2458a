# SPDX-License-Identifier: Apache-2.0
"""A hub that only keeps samples, in a SQLite file: what a LocalController is measured against, and killed with.

It writes down each time that it took a sample for new, so that a sample that was taken twice can be seen.
"""

from __future__ import annotations

import argparse
import hashlib
import sqlite3
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from solar_corona.core.hub_messages import Orders, Receipt, Receipts
from solar_corona.lib.sample_records import SampleRecord, unpack

__all__ = ["TOKEN", "command", "taken"]

TOKEN = "token-of-the-benchmark"
"""The edge's."""


def command(folder: Path, port: int) -> list[str]:
    """Return the command that serves a hub whose state is in a folder."""
    return [sys.executable, "-m", "solar_corona.benchmarks._small_hub", str(folder / "hub.db"), str(port)]


def taken(folder: Path) -> list[str]:
    """Return the ids of all samples that were taken for new, in that order."""
    connection = sqlite3.connect(folder / "hub.db")
    try:
        return [id_ for (id_,) in connection.execute("SELECT id FROM taken ORDER BY rowid")]
    finally:
        connection.close()


class _Store:
    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "CREATE TABLE IF NOT EXISTS taken (id TEXT NOT NULL); CREATE INDEX IF NOT EXISTS ids ON taken (id);"
        )
        self._lock = threading.Lock()

    def take(self, samples: list[tuple[SampleRecord, bytes]]) -> Receipts:
        receipts = []
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            for record, content in samples:
                if hashlib.sha256(content).hexdigest() != record.id:
                    receipts.append(Receipt(id=record.id, outcome="refused", reason="another content"))
                elif self._connection.execute("SELECT 1 FROM taken WHERE id = ?", (record.id,)).fetchone():
                    receipts.append(Receipt(id=record.id, outcome="known"))
                else:
                    self._connection.execute("INSERT INTO taken VALUES (?)", (record.id,))
                    receipts.append(Receipt(id=record.id, outcome="stored"))
            self._connection.execute("COMMIT")
        return Receipts(receipts=receipts)


def _serve(path: str, port: int) -> None:
    store = _Store(path)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            answer = store.take(unpack(body)) if self.path == "/v1/samples" else Orders(next_heartbeat=0.5)
            said = answer.model_dump_json().encode()
            self.send_response(200)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    _serve(arguments.path, arguments.port)
