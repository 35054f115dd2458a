# SPDX-License-Identifier: Apache-2.0
"""The two halves of a job started by hand, as on separate machines: TLS, keys, a bad network, stock SuperNodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from solar_corona.core.local_launcher import free_port
from solar_corona.core.security import make_credentials

pytestmark = pytest.mark.system


def start_edge(job, name: str, port: int, *arguments: str) -> subprocess.Popen[str]:
    return job.start("--name", name, "--superlink", f"127.0.0.1:{port}", *arguments, command="edge")


def finish(job, *processes: subprocess.Popen[str]) -> None:
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, f"{process.args}\n{out}{err}{job.logs()}"


def test_two_halves_train_over_tls_with_a_key_for_each_edge(make_job):
    job = make_job(edges=2, rounds=2)
    job.change(lambda spec: spec.update(security={"tls": True}))
    port = free_port()
    server = job.start("--port", str(port), command="server")
    job.wait_for(lambda: (job.run_folder().secret("edge-edge-1.key")).exists(), "the keys are made")
    keys = job.run_folder().secret("")
    edges = [
        start_edge(job, f"edge-{i}", port, "--ca", f"{keys}/ca.pem", "--key", f"{keys}/edge-edge-{i}.key")
        for i in range(2)
    ]
    finish(job, server, *edges)
    assert (job.folder / "out/model.npz").exists()
    for key in ("runtime.secret", "server.key", "edge-edge-0.key"):
        assert (keys / key).stat().st_mode & 0o077 == 0


def test_an_edge_with_anothers_key_is_left_out_and_one_with_no_key_of_the_job_does_not_get_in(make_job):
    job = make_job(edges=2, rounds=1, startDeadline="6s")
    job.change(lambda spec: spec.update(security={"tls": True}))
    port = free_port()
    server = job.start("--port", str(port), command="server")
    job.wait_for(lambda: (job.run_folder().secret("edge-edge-1.key")).exists(), "the keys are made")
    keys = job.run_folder().secret("")
    impostor = start_edge(job, "edge-0", port, "--ca", f"{keys}/ca.pem", "--key", f"{keys}/edge-edge-1.key")
    make_credentials(job.folder / "own", hosts=["127.0.0.1"], edges=["edge-1"])
    own = str(job.folder / "own/edge-edge-1.key")
    stranger = start_edge(job, "edge-1", port, "--ca", f"{keys}/ca.pem", "--key", own)
    out, err = server.communicate(timeout=100)
    assert server.returncode == 1, out + err
    assert "not here: edge-0, edge-1" in err
    assert any("its key is edge-1's" in e.message for e in job.events("warned"))
    for process in (impostor, stranger):
        os.killpg(process.pid, signal.SIGKILL)


def test_an_edge_that_does_not_trust_the_certificate_says_so(make_job):
    job = make_job(edges=1, rounds=1)
    job.change(lambda spec: spec.update(security={"tls": True}))
    _, port = listening(job)
    other = make_job(name="other")
    make_credentials(other.folder / "keys", hosts=["127.0.0.1"], edges=["edge-0"])
    keys = other.folder / "keys"
    edge = start_edge(job, "edge-0", port, "--ca", str(keys / "ca.pem"), "--key", str(keys / "edge-edge-0.key"))
    _, err = edge.communicate(timeout=60)
    assert edge.returncode == 4, err
    assert "do not trust each other" in err
    assert "--ca" in err


class Proxy:
    """A wire between edges and SuperLink that can be cut and mended."""

    def __init__(self, target: int) -> None:
        self._target, self._cut, self._pairs = target, threading.Event(), []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    if self._cut.is_set():
                        raise OSError
                    far = socket.create_connection(("127.0.0.1", self._target), 5)
                except OSError:
                    near.close()
                    continue
                self._pairs.append((near, far))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            end.close()

    def cut(self) -> None:
        self._cut.set()
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self.cut()
        self._listener.close()


def test_a_network_that_is_cut_and_mended_costs_no_round(make_job):
    job = make_job(edges=2, rounds=5)
    job.hook("def before_training(model, round, edge):\n    time.sleep(0.5)\n")
    port = free_port()
    server = job.start("--port", str(port), command="server")
    proxy = Proxy(port)
    try:
        edges = [start_edge(job, f"edge-{i}", proxy.port) for i in range(2)]
        job.wait_for_round(2)
        proxy.cut()
        time.sleep(3)  # the outage itself, not a wait for something
        proxy.mend()
        finish(job, server, *edges)
    finally:
        proxy.close()
    assert sorted(set(job.rounds())) == [1, 2, 3, 4, 5]


class Flower:
    """Flower's own commands, each with a home of its own; all of them end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._processes = folder, []
        folder.mkdir(parents=True, exist_ok=True)

    def environment(self, home: Path) -> dict[str, str]:
        return {
            **os.environ,
            "FLWR_HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def start(self, command: str, *arguments: str) -> None:
        name = f"{command}-{len(self._processes)}"
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).parent / command), "--insecure", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment(self.folder / name),
                start_new_session=True,
            )
        self._processes.append(process)

    def supernode(self, port: int, *arguments: str) -> None:
        self.start("flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()), *arguments)

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-2000:]}" for p in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # Flower starts its apps in sessions of their own.
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(self.folder).encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


@pytest.fixture
def flower(tmp_path):
    started = Flower(tmp_path / "flower")
    yield started
    started.end()


def listening(job, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    port = free_port()
    server = job.start("--port", str(port), *arguments, command="server")
    job.wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, "the SuperLink listens")
    return server, port


@pytest.mark.timeout(240)
@pytest.mark.parametrize("algorithm", ["fedavg", "similarity-grouping"])
def test_a_stock_supernode_and_a_warm_node_serve_one_job(make_job, flower, algorithm):
    job = make_job(edges=2, rounds=2, roundDeadline="100s", startDeadline="100s", algorithm=algorithm)
    server, port = listening(job)
    warm = start_edge(job, "edge-0", port)
    flower.supernode(port, "--node-config", f'job="{job.file}" edge="edge-1"')
    out, err = server.communicate(timeout=220)
    assert server.returncode == 0, out + err + flower.logs() + job.logs()
    assert {e.edge: e.warm for e in job.events("edge-joined")} == {"edge-0": True, "edge-1": False}
    assert [e.replied for e in job.events("round-finished")] == [2, 2]
    assert {e.edge for e in job.events("edge-finished")} == {"edge-0", "edge-1"}
    told = job.events("tasks-grouped")
    assert [{t.group for t in e.tasks} for e in told] == ([] if algorithm == "fedavg" else [{"group-1"}])
    finish(job, warm)


PULLED = """
def pull_towards(self, anchor):
    self.anchor = None if anchor is None else {name: np.array(value) for name, value in anchor.items()}

Softmax.pull_towards, Softmax.anchor = pull_towards, None

def before_training(model, round, edge):
    if model.anchor is not None:
        model.began = model.weights["kernel"].tolist()

def after_training(model, round, edge):
    if model.anchor is not None:
        line = {"edge": edge, "began": model.began, "ended": model.weights["kernel"].tolist(),
                "common": model.anchor["kernel"].tolist()}
        with open("personal.jsonl", "a") as file:
            file.write(json.dumps(line) + "\\n")
    time.sleep(0.5)
"""


@pytest.mark.timeout(240)
def test_personal_models_go_on_after_kills_of_server_and_edge_also_on_a_stock_supernode(make_job, flower):
    job = make_job(edges=2, rounds=4, roundDeadline="100s", startDeadline="100s", algorithm="ditto")
    job.hook(PULLED)
    server, port = listening(job)
    flower.supernode(port, "--node-config", f'job="{job.file}" edge="edge-1"')
    warm = start_edge(job, "edge-0", port)
    job.wait_for_round(1)
    os.killpg(warm.pid, signal.SIGKILL)
    job.kill("server")
    start_edge(job, "edge-0", port)
    out, err = server.communicate(timeout=220)
    assert server.returncode == 0, out + err + flower.logs() + job.logs()
    assert sorted(set(job.rounds())) == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (job.folder / "personal.jsonl").read_text().splitlines()]
    for edge in ("edge-0", "edge-1"):
        mine = [line for line in lines if line["edge"] == edge]
        assert len(mine) >= 4
        for i, line in enumerate(mine[1:], start=1):
            assert line["began"] in [before["ended"] for before in mine[:i]], "it goes on from one of before"
            assert line["began"] != line["common"]


@pytest.mark.timeout(240)
def test_an_ordinary_flower_app_runs_on_our_superlink(make_job, flower):
    job = make_job(edges=1, rounds=1, startDeadline="200s")
    _, port = listening(job)
    job.wait_for(lambda: job.events("job-started"), "the server has its run")
    flower.start(
        "flower-superexec",
        "--runtime-api-address",
        f"127.0.0.1:{port}",
        "--superexec-auth-secret-file",
        str(job.run_folder().secret("runtime.secret")),
    )
    for _ in range(2):
        flower.supernode(port)
    home = flower.folder / "cli"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "ours"\n\n[superlink.ours]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "flwr"),
            "run",
            str(Path(__file__).parent / "stock_app"),
            "ours",
            "--stream",
        ],
        capture_output=True,
        text=True,
        env=flower.environment(home),
        timeout=200,
        check=False,
    )
    assert "the average is [1. 1. 1.]" in done.stdout, done.stdout + done.stderr + flower.logs()
