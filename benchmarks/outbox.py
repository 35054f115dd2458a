# SPDX-License-Identifier: Apache-2.0
"""The node's outbox: how fast it takes samples, beside plain SQLite and fsynced files, and what 200 kills do to them.

Samples of 4 KB come in frames of 32, as a script sends them, and each frame is on the disk before the next one is
looked at. Plain SQLite inserts the same bytes into one table without an id, a check or a bound; fsynced files append
frames and wait for the disk. All run in turns, on one core.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from solar_corona.lib.sample_records import pack, sample_id_of, unpack
from solar_corona.local_controller.outbox import Outbox

from . import _outbox_kills, _report
from ._outbox_kills import UnixConnection, post, sample
from ._report import Figure, median

_FRAME = 32


def _ours(folder: Path, frames: list[bytes]) -> None:
    """All that the LocalController does with a frame: parse, check each id, keep."""
    outbox = Outbox(folder / "outbox.db", max_bytes=1 << 30)
    for frame in frames:
        samples = unpack(frame)
        assert all(sample_id_of(content) == record.id for record, content in samples)
        outbox.add(samples).result()
    outbox.close()


def _plain_sqlite(folder: Path, frames: list[bytes]) -> None:
    connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
    connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (content BLOB)")
    for frame in frames:
        size = len(frame) // _FRAME
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO t VALUES (?)", [(frame[place * size : (place + 1) * size],) for place in range(_FRAME)]
        )
        connection.execute("COMMIT")
    connection.close()


def _fsynced_file(folder: Path, frames: list[bytes]) -> None:
    with (folder / "frames").open("wb", buffering=0) as file:
        for frame in frames:
            file.write(frame)
            os.fsync(file.fileno())


def _seconds(work: Callable[[Path, list[bytes]], None], frames: list[bytes]) -> tuple[float, float]:
    """Return how long it took, and how long a core worked for it."""
    with tempfile.TemporaryDirectory() as folder:
        begin, busy = time.perf_counter(), time.process_time()
        work(Path(folder), frames)
        return time.perf_counter() - begin, time.process_time() - busy


def _over_the_socket(frames: list[bytes]) -> float:
    """Return the seconds in which a LocalController of its own process takes the frames, from one script."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "token").write_text("token-of-the-benchmark")
        command = [sys.executable, "-m", "solar_corona.cli", "local-controller", "--state", str(folder / "S")]
        command += ["--edge", "camera", "--job", "outbox", "--hub", "http://127.0.0.1:9"]
        command += ["--token-file", str(folder / "token")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            connection = UnixConnection(folder / "S" / "controller.sock")
            begin = time.perf_counter()
            for frame in frames:
                assert set(post(connection, frame)) == {"stored"}
            return time.perf_counter() - begin
        finally:
            process.kill()
            process.communicate()


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000, help="in each repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--kills", type=int, default=200, help="0 leaves them out (default: %(default)s)")
    parser.add_argument("--killed-samples", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--hub", choices=("real", "small"), default="real", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    arguments = parser.parse_args()
    cores = os.sched_getaffinity(0)
    count = arguments.samples // _FRAME * _FRAME
    made = [sample(number) for number in range(count)]
    frames = [pack(made[begin : begin + _FRAME]) for begin in range(0, count, _FRAME)]
    os.sched_setaffinity(0, {min(cores)})
    ways: dict[str, Callable[[Path, list[bytes]], None]] = {
        "outbox": _ours,
        "plain SQLite": _plain_sqlite,
        "fsynced file": _fsynced_file,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    socket_rates, busy_rates = [], []
    for repeat in range(arguments.repeats + 1):
        for name, work in ways.items():
            took, busy = _seconds(work, frames)
            if repeat:  # the first round warms up
                rates[name].append(count / took)
                if work is _ours:
                    busy_rates.append(count / busy)
        if repeat:
            socket_rates.append(count / _over_the_socket(frames))
    os.sched_setaffinity(0, cores)
    ours = median(rates["outbox"])
    figures = [
        Figure("samples_per_second", ours, "samples/s", 5_000, rates["outbox"]),
        Figure("samples_per_busy_second", median(busy_rates), "samples/s of the core's time", repeats=busy_rates),
        Figure("socket_samples_per_second", median(socket_rates), "samples/s", repeats=socket_rates),
        Figure("of_plain_sqlite", ours / median(rates["plain SQLite"]), "x"),
        Figure("of_fsynced_file", ours / median(rates["fsynced file"]), "x"),
        Figure("plain_sqlite_per_second", median(rates["plain SQLite"]), "samples/s", repeats=rates["plain SQLite"]),
        Figure("fsynced_file_per_second", median(rates["fsynced file"]), "samples/s", repeats=rates["fsynced file"]),
    ]
    if arguments.kills:
        with tempfile.TemporaryDirectory() as folder:
            outcome = _outbox_kills.run(
                Path(folder),
                samples=arguments.killed_samples,
                kills=arguments.kills,
                seed=arguments.seed,
                hub_kind=arguments.hub,
                say=lambda text: print(text, flush=True),
            )
        assert not outcome.strange, f"{outcome.strange} samples at the hub that nobody sent"
        figures += [
            Figure("lost", outcome.lost, f"of {outcome.samples} samples", 0, better="low"),
            Figure("duplicated", outcome.duplicated, f"of {outcome.samples} samples", 0, better="low"),
            Figure("kills", sum(outcome.kills.values()), "SIGKILL", 200),
            *(Figure(f"kills_of_{name}", kills, "SIGKILL") for name, kills in outcome.kills.items()),
            Figure("killed_seconds", outcome.seconds, "s", better="low"),
        ]

    def picture(axes: Any) -> None:
        names = [*ways, "outbox over\nits socket"]
        values = [median(rates[name]) for name in ways] + [median(socket_rates)]
        axes.bar(names, values, color=["#1c7ed6", "#868e96", "#ced4da", "#74c0fc"])
        axes.axhline(5_000, color="#e03131", linestyle="--", linewidth=1, label="goal")
        axes.set(yscale="log", ylabel="samples of 4 KB a second, one core")
        axes.legend()

    _report.write("outbox", figures, picture=picture)


if __name__ == "__main__":
    main()
