# SPDX-License-Identifier: Apache-2.0
"""Kills edge, LocalController and hub with SIGKILL at random points while samples go from one to the other.

The edge's script makes each sample from its number, so that it can make it again after it was killed itself: what was
not answered for is sent again. Nothing else is repeated by it.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import io
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from solar_corona.lib.sample_records import FRAME_TYPE, SampleRecord, pack

from . import _real_hub, _small_hub
from ._small_hub import TOKEN

__all__ = ["Outcome", "run", "sample"]

SIZE, FRAME = 4_096, 16
PORT = 18_260
_HUBS = {"small": _small_hub, "real": _real_hub}


def _header() -> bytes:
    """Return what an array's file begins with; a hub looks at it."""
    file = io.BytesIO()
    np.save(file, np.zeros(SIZE - 128, np.uint8))
    return file.getvalue()[:128]


_HEADER = _header()


@dataclass
class Outcome:
    """What came of the samples.

    Parameters
    ----------
    samples, lost, duplicated
        How many there were, are not at the hub, or were taken for new there more than once.
    kills
        How often each process was killed.
    seconds
        How long it took.
    """

    samples: int
    lost: int
    duplicated: int
    kills: dict[str, int]
    seconds: float
    strange: int = field(default=0)


def content(number: int) -> bytes:
    """Return a sample's content: an array as numpy saves it, of 4 KB in all."""
    return _HEADER + np.random.default_rng(number).bytes(SIZE - len(_HEADER))


def sample(number: int, *, edge: str = "camera") -> tuple[SampleRecord, bytes]:
    """Return a sample with all that a classifier's have."""
    found = content(number)
    record = SampleRecord(
        id=hashlib.sha256(found).hexdigest(),
        media_type="application/x-npy",
        size=SIZE,
        edge=edge,
        model=1,
        taken_at=1.7e9 + number,
        reason="random" if number % 3 == 0 else "hard",
        confidence=0.5,
        hardness=number / 7,
        prediction=3,
        probabilities=[0.1] * 10,
        embedding=[number / 3 + place / 7 for place in range(16)],
    )
    return record, found


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def post(connection: http.client.HTTPConnection, frame: bytes) -> list[str]:
    """Send a frame, and return what became of each sample."""
    connection.request("POST", "/v1/samples", frame, {"Content-Type": FRAME_TYPE})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise ConnectionError(f"{response.status} {answer[:200]!r}")
    return [receipt["outcome"] for receipt in json.loads(answer)["receipts"]]


def _edge(socket_path: Path, progress: Path, samples: int) -> None:
    """Send samples from the first one that was not answered for."""
    print("ready", flush=True)
    begin = int(progress.read_text() or 0) if progress.exists() else 0
    connection = UnixConnection(socket_path)
    while begin < samples:
        end = min(begin + FRAME, samples)
        frame = pack([sample(number) for number in range(begin, end)])
        while True:
            try:
                outcomes = post(connection, frame)
                break
            except (OSError, http.client.HTTPException):
                connection.close()
                time.sleep(0.02)
        assert set(outcomes) <= {"stored", "known"}, outcomes
        begin = end
        # Replaced as a whole: a killed script reads the old number or the new one.
        temporary = progress.with_suffix(".new")
        temporary.write_text(str(begin))
        temporary.replace(progress)


class _Process:
    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self._command, self._log = name, command, log
        self.kills = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith(("ready", "listening")), f"{self.name} said {said!r}; see {self._log}"

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()


def _controller(folder: Path) -> list[str]:
    (folder / "token").write_text(TOKEN)
    command = [sys.executable, "-m", "solar_corona.cli", "local-controller", "--state", str(folder / "S")]
    command += ["--edge", "camera", "--job", "outbox", "--hub", f"http://127.0.0.1:{PORT}"]
    return [*command, "--token-file", str(folder / "token")]


def run(
    folder: Path, *, samples: int, kills: int, seed: int, say: Callable[[str], None], hub_kind: str = "real"
) -> Outcome:
    """Send samples while processes are killed, and count what arrived.

    Parameters
    ----------
    folder
        Where all of them keep what they keep.
    samples, kills, seed
        How many, and where chance begins.
    say
        Gets how far it is.
    hub_kind
        `real` for the hub of incremental learning, `small` for one that does nothing else than keep ids.
    """
    hub_module = _HUBS[hub_kind]
    chance = random.Random(seed)
    progress = folder / "progress"
    me = [sys.executable, "-m", "solar_corona.benchmarks._outbox_kills", str(folder / "S" / "controller.sock")]
    edge = _Process("edge", [*me, str(progress), str(samples)], folder / "edge.log")
    controller = _Process("controller", _controller(folder), folder / "controller.log")
    hub = _Process("hub", hub_module.command(folder, PORT), folder / "hub.log")
    every = (hub, controller, edge)
    begin = time.monotonic()
    try:
        for each in every:
            each.start()
        points = sorted(chance.randrange(samples) for _ in range(kills))
        for done, point in enumerate(points):
            while _read(progress) < point:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.05))  # any instant, not only those right after an answer
            victim = chance.choice(every)
            victim.kill()
            victim.kills += 1
            victim.start()
            if done % 20 == 19:
                say(f"{done + 1} kills, {_read(progress)} samples, {time.monotonic() - begin:.0f} s")
        _wait_for_the_end(folder, progress, samples)
    finally:
        for each in every:
            if each.process is not None:
                each.kill()
    ids = hub_module.taken(folder)
    wanted = {hashlib.sha256(content(number)).hexdigest() for number in range(samples)}
    return Outcome(
        samples=samples,
        lost=len(wanted - set(ids)),
        duplicated=len(ids) - len(set(ids)),
        strange=len(set(ids) - wanted),
        kills={each.name: each.kills for each in every},
        seconds=time.monotonic() - begin,
    )


def _read(progress: Path) -> int:
    return int(progress.read_text() or 0) if progress.exists() else 0


def _wait_for_the_end(folder: Path, progress: Path, samples: int) -> None:
    end = time.monotonic() + 900
    while time.monotonic() < end:
        if _read(progress) == samples and _queued(folder) == 0:
            return
        time.sleep(0.2)
    raise TimeoutError(f"{_read(progress)} of {samples} samples were kept, and {_queued(folder)} still wait")


def _queued(folder: Path) -> int:
    connection = UnixConnection(folder / "S" / "controller.sock")
    try:
        connection.request("GET", "/v1/status")
        return int(json.loads(connection.getresponse().read())["outbox"]["queued"])
    finally:
        connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The edge's script.")
    parser.add_argument("socket", type=Path)
    parser.add_argument("progress", type=Path)
    parser.add_argument("samples", type=int)
    arguments = parser.parse_args()
    _edge(arguments.socket, arguments.progress, arguments.samples)
