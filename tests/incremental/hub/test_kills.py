# SPDX-License-Identifier: Apache-2.0
"""A hub that is killed at any instant while samples come in loses none that it took, and has none twice."""

from __future__ import annotations

import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time

import httpx
import pytest

from solar_corona.core.local_launcher import free_port
from solar_corona.core.security import make_credentials
from solar_corona.incremental.hub.hub import Hub, HubSettings
from solar_corona.incremental.tables import Sample
from solar_corona.lib.sample_records import pack

from .conftest import ADMIN, E1, record_of

# Starts it again whenever it was killed; to fork is faster than to import all of it again.
SERVER = """
import os, sys
from solar_corona.incremental.hub.accounts import Accounts
from solar_corona.incremental.hub.app import serve
from solar_corona.incremental.hub.hub import Hub, HubSettings
folder, port, admin, edge = sys.argv[1:]
while True:
    child = os.fork()
    if child == 0:
        hub = Hub(HubSettings(job="test", database=f"sqlite:///{folder}/hub.db", storage=f"{folder}/storage"))
        serve(hub, Accounts(admin, {"e1": edge}), host="127.0.0.1", port=int(port))
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
"""
KILLS, SAMPLES, FRAME = 8, 1_500, 30

pytestmark = pytest.mark.system


def test_a_hub_that_is_killed_while_samples_come_in_loses_and_doubles_none(tmp_path):
    port, chance = free_port(), random.Random(7)
    contents = [f"content {number} ".encode() * 50 for number in range(SAMPLES)]
    command = [sys.executable, "-c", SERVER, str(tmp_path), str(port), ADMIN, E1]
    taken, kills, begin = set(), 0, 0
    nursery = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    end, timer = time.monotonic() + 100, None
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            hub = int(nursery.stdout.readline())
            while begin < SAMPLES:
                assert time.monotonic() < end, f"{begin} of {SAMPLES} after {kills} kills"
                part = contents[begin : begin + FRAME]
                frame = pack([(record_of(each), each) for each in part])
                try:
                    answer = client.post("/v1/samples", content=frame, headers={"Authorization": f"Bearer {E1}"})
                except httpx.HTTPError:
                    if timer is not None and not timer.is_alive():
                        hub, timer = int(nursery.stdout.readline()), None
                    time.sleep(0.01)
                    continue
                if timer is None and kills < KILLS:
                    # It strikes while a later request is under way.
                    timer, kills = threading.Timer(chance.uniform(0, 0.1), os.kill, (hub, signal.SIGKILL)), kills + 1
                    timer.start()
                assert answer.status_code == 200, answer.text
                outcomes = {receipt["id"]: receipt["outcome"] for receipt in answer.json()["receipts"]}
                assert set(outcomes.values()) <= {"stored", "known"}
                taken |= outcomes.keys()
                begin += FRAME
    finally:
        if timer is not None:
            timer.join()
        os.killpg(nursery.pid, signal.SIGKILL)
        nursery.communicate()
    assert kills >= KILLS
    hub = Hub(HubSettings(job="test", database=f"sqlite:///{tmp_path}/hub.db", storage=f"{tmp_path}/storage"))
    ids = hub.database.read(lambda session: [row.id for row in session.query(Sample)])
    hub.close()
    assert len(ids) == len(set(ids)) == SAMPLES
    assert set(ids) == taken
    assert sorted(hub.samples.get(each) for each in ids) == sorted(contents)


TLS_SERVER = """
import sys
from pathlib import Path
from solar_corona.incremental.hub.accounts import Accounts
from solar_corona.incremental.hub.app import serve
from solar_corona.incremental.hub.hub import Hub, HubSettings
folder, port, admin, edge = sys.argv[1:]
hub = Hub(HubSettings(job="test", database=f"sqlite:///{folder}/hub.db", storage=f"{folder}/storage"))
keys = Path(folder) / "keys"
accounts = Accounts(admin, {"e1": edge})
serve(hub, accounts, host="127.0.0.1", port=int(port), certificate=keys / "server.pem", key=keys / "server.key")
"""


def test_it_speaks_tls_and_ends_when_it_is_asked_to(tmp_path):
    make_credentials(tmp_path / "keys", hosts=["127.0.0.1"], edges=[])
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", TLS_SERVER, str(tmp_path), str(port), ADMIN, E1])
    try:
        trusted = ssl.create_default_context(cafile=str(tmp_path / "keys" / "ca.pem"))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusted, timeout=10) as client:
            end = time.monotonic() + 60
            while True:
                try:
                    answer = client.get(f"/login?key={ADMIN}")
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < end
                    assert process.poll() is None
                    time.sleep(0.05)
            assert "Secure" in answer.headers["set-cookie"]
        process.terminate()
        assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
