# SPDX-License-Identifier: Apache-2.0
"""Jobs that start in a second: a NumPy model in the user's script, so that no process loads a framework."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml

from solar_corona.core.events import Event
from solar_corona.core.run_folder import RunFolder, RunState, find_run

TRAIN = '''
import json, os, time
import numpy as np
import solar_corona

class Softmax:
    """Softmax regression with the four methods of a Trainable."""

    def __init__(self, x, y, x_test, y_test):
        self.x, self.y, self.x_test, self.y_test = x, y, x_test, y_test
        self.weights = {"kernel": np.zeros((x_test.shape[1], 3), np.float32), "bias": np.zeros(3, np.float32)}

    def get_weights(self):
        return {name: value.copy() for name, value in self.weights.items()}

    def set_weights(self, weights):
        self.weights = {name: np.array(value) for name, value in weights.items()}

    def _p(self, x):
        z = x @ self.weights["kernel"] + self.weights["bias"]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def train(self, config):
        ROUND = int(config.get("server-round", 0))
        EDGE = solar_corona.context.get_edge_name()
        before_training(self, ROUND, EDGE)
        for _ in range(5):
            error = self._p(self.x) - np.eye(3)[self.y]
            self.weights["kernel"] -= (0.5 / len(self.y) * self.x.T @ error).astype(np.float32)
            self.weights["bias"] -= (0.5 * error.mean(axis=0)).astype(np.float32)
        after_training(self, ROUND, EDGE)
        return len(self.y), {"loss": 0.0}

    def evaluate(self):
        p = self._p(self.x_test)
        loss = -np.log(p[np.arange(len(self.y_test)), self.y_test] + 1e-9).mean()
        return len(self.y_test), {"loss": float(loss), "accuracy": float((p.argmax(1) == self.y_test).mean())}

    def save(self, path):
        np.savez(path, **self.weights) if str(path).endswith(".npz") else np.savez(open(path, "wb"), **self.weights)

def before_training(model, round, edge): pass
def after_training(model, round, edge): pass

# HOOKS

x, y = solar_corona.load_train_dataset()
x_test, y_test = solar_corona.load_eval_dataset()
model = Softmax(x, y, x_test, y_test)
# BEFORE FIT
model = solar_corona.collaborative_training.fit(model=model, train_loader=(x, y), test_loader=(x_test, y_test))
# AFTER FIT
solar_corona.save_model(model)
'''


@dataclass
class Job:
    """A job in a folder of its own, run through the command as a user does."""

    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "job.yaml"

    def hook(self, code: str, place: str = "# HOOKS") -> None:
        script = self.folder / "train.py"
        script.write_text(script.read_text().replace(place, textwrap.dedent(code), 1))

    def change(self, change: Callable[[dict], None]) -> None:
        document = yaml.safe_load(self.file.read_text())
        change(document["spec"])
        self.file.write_text(yaml.safe_dump(document))

    def start(
        self, *arguments: str, command: str = "run", job: bool = True, background: bool = False
    ) -> subprocess.Popen[str]:
        # As a shell without job control does for a command with & behind it.
        shell = ["sh", "-c", """trap '' INT; exec "$@" """, "sh"] if background else []
        program = [*shell, sys.executable, "-m", "solar_corona.cli", command]
        process = subprocess.Popen(
            [*program, *([str(self.file)] if job else []), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, timeout: float = 120, command: str = "run") -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, command=command)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run_folder(self) -> RunFolder:
        return find_run(str(self.file), None)

    def state(self) -> RunState:
        state = self.run_folder().read_state()
        assert state is not None
        return state

    def events(self, kind: str | None = None) -> list[Event]:
        return [e for e in self.run_folder().events() if kind is None or e.event == kind]

    def rounds(self) -> list[int]:
        return [e.round for e in self.events("round-finished")]

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                if condition():
                    return
            except (AssertionError, ValueError, OSError):
                pass  # nothing there yet
            time.sleep(0.02)
        pytest.fail(f"after {timeout} s still not: {what}\n{self.logs()}")

    def wait_for_round(self, number: int) -> None:
        self.wait_for(lambda: number in self.rounds(), f"round {number} is finished")

    def pid(self, worker: str) -> int:
        return self.state().workers[worker].pid

    def kill(self, worker: str) -> None:
        os.kill(self.pid(worker), signal.SIGKILL)

    def logs(self) -> str:
        found = sorted(self.folder.glob(".solar-corona/*/*/logs/*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in found)

    def leftovers(self) -> list[str]:
        """Return the command lines of processes that still belong to this job."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                cwd = (entry / "cwd").readlink()
            except OSError:
                continue
            if str(self.folder).encode() in environment or cwd == self.folder or str(self.folder) in command:
                found.append(f"{entry.name}: {command[:120]}")
        return found

    def assert_no_leftovers(self) -> None:
        self.wait_for(lambda: not self.leftovers(), f"all processes are gone: {self.leftovers()}", timeout=10)


def blobs(seed: int, samples: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return points around one centre a class: easy to learn, and no file to load."""
    rng = np.random.default_rng(seed)
    y = np.arange(samples) % classes
    return (rng.normal(scale=0.6, size=(samples, 4)) + 2 * np.eye(4)[y]).astype(np.float32), y.astype(np.int64)


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Return a function that lays out a job; every process it starts is ended with the test."""
    made: list[Job] = []

    def make(*, edges: int = 2, rounds: int = 3, name: str = "blobs", **aggregation: object) -> Job:
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        for i in range(edges):
            x, y = blobs(i, 60)
            np.savez(folder / "data" / f"edge-{i}.npz", x=x, y=y)
        x, y = blobs(99, 90)
        np.savez(folder / "data" / "eval.npz", x=x, y=y)
        (folder / "train.py").write_text(TRAIN)
        spec = {
            "script": "train.py",
            "aggregation": {"rounds": rounds, "roundDeadline": "30s", "startDeadline": "60s", **aggregation},
            "edges": [
                {"name": f"edge-{i}", "trainData": f"data/edge-{i}.npz", "evalData": "data/eval.npz"}
                for i in range(edges)
            ],
            "output": {"model": "out/model.npz"},
        }
        document = {
            "apiVersion": "solar-corona.io/v1alpha1",
            "kind": "FederatedLearningJob",
            "metadata": {"name": name},
            "spec": spec,
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(document))
        made.append(Job(folder))
        return made[-1]

    yield make
    for job in made:
        for process in job.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
