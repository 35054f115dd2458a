# SPDX-License-Identifier: Apache-2.0
"""The command as a process: killed at any instant, stopped, refused."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import httpx
import pytest

from benchmarks._outbox_kills import UnixConnection, post
from solar_corona.core.errors import PlatformError
from solar_corona.core.hub_messages import PIECE
from solar_corona.lib.sample_records import pack
from solar_corona.local_controller.command import _unix_socket

from .test_app import until
from .test_outbox import sample

pytestmark = pytest.mark.system


class Process:
    """A LocalController that can be killed and started again on the same state."""

    def __init__(self, folder: Path, hub: str, token_file: Path, *options: str):
        self.socket = folder / "S" / "controller.sock"
        self.command = [sys.executable, "-m", "solar_corona.cli", "local-controller", "--state", str(folder / "S")]
        self.command += ["--edge", "camera", "--job", "digits", "--hub", hub, "--token-file", str(token_file), *options]
        self.process = None

    def start(self) -> str:
        """Start it, and return what it says when it listens."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return self.process.stdout.readline()

    def end(self, with_signal=signal.SIGKILL) -> tuple[int, str]:
        """End it, and return its exit code and its log."""
        self.process.send_signal(with_signal)
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://node", timeout=20)


@contextmanager
def controller(*arguments):
    process = Process(*arguments)
    try:
        yield process
    finally:
        if process.process is not None and process.process.poll() is None:
            process.end()


def test_killed_at_random_points_it_loses_and_doubles_nothing(tmp_path, hub, token_file):
    chance = random.Random(3)
    samples = [sample(os.urandom(chance.choice([500, 4096, PIECE + 9 if n % 40 == 0 else 900]))) for n in range(600)]
    waiting = [samples[begin : begin + 8] for begin in range(0, len(samples), 8)]
    with hub.served() as url, controller(tmp_path, url, token_file) as process:
        for round_ in range(4):
            assert process.start() == f"listening on unix:{process.socket}\n"
            with closing(UnixConnection(process.socket)) as client:
                if round_ < 3:  # killed in the midst of something
                    killer = threading.Timer(chance.uniform(0.02, 0.4), process.process.kill)
                    killer.start()
                    with suppress(OSError, HTTPException):
                        while True:
                            post(client, pack(waiting[0] if waiting else samples[:8]))
                            del waiting[:1]
                    process.process.communicate()
                    continue
                for frame in waiting:  # the last one may work to the end
                    post(client, pack(frame))
            with process.client() as client:
                until(lambda client=client: client.get("/v1/status").json()["outbox"]["queued"] == 0)
                state = client.get("/v1/status").json()["outbox"]
        assert {id_: content for id_, (_, content) in hub.samples.items()} == {r.id: c for r, c in samples}
        assert (state["evicted"], state["refused"]) == (0, 0)
        code, log = process.end(signal.SIGTERM)
        assert code == 0
        assert log.rstrip().endswith("stopped")
    assert not process.socket.exists()


def test_the_socket_is_this_users_alone_and_a_second_one_is_refused(tmp_path, hub, token_file):
    with hub.served() as url, controller(tmp_path, url, token_file) as process:
        process.start()
        assert stat.S_IMODE(process.socket.stat().st_mode) == 0o600
        refused = subprocess.run(process.command, capture_output=True, text=True, check=False)
        assert refused.returncode == 4
        assert f"another LocalController (process {process.process.pid}) works on this state" in refused.stderr
        with (
            pytest.raises(PlatformError, match="another process listens on this socket"),
            _unix_socket(process.socket),
        ):
            pass
        until(lambda: hub.heartbeats)
        with process.client() as client:  # which goes on
            assert client.get("/v1/status").json()["hub_trouble"] == ""


def test_on_a_port_it_wants_its_token(tmp_path, token_file):
    with controller(tmp_path, "http://127.0.0.1:9", token_file, "--port", "0") as process:
        said = process.start()
        url = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", said)[1]
        token = (tmp_path / "S" / "controller.token").read_text()
        assert stat.S_IMODE((tmp_path / "S" / "controller.token").stat().st_mode) == 0o600
        assert httpx.get(f"{url}/v1/status").status_code == 401
        assert httpx.get(f"{url}/v1/status", headers={"authorization": f"Bearer {token}"}).status_code == 200


def test_only_a_socket_that_nobody_listens_on_makes_way(tmp_path):
    path = tmp_path / "new folder" / "it.sock"
    with _unix_socket(path) as (_, said):
        assert said == f"unix:{path}"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with _unix_socket(path):
        pass
    path.write_text("not to be lost")
    for odd in (path, Path(f"/tmp/{'x' * 120}")):
        with pytest.raises(PlatformError, match="choose a shorter path in a folder"), _unix_socket(odd):
            pass
    assert path.read_text() == "not to be lost"
