# SPDX-License-Identifier: Apache-2.0
"""The peer: a stock Flower 1.41 deployment on this machine, as its own manual sets it up.

`flower-superlink`, one `flower-supernode` for each node and `flwr run` are real processes on free loopback
ports. The app (`_stock_app/`) follows Flower's TensorFlow quickstart and uses Flower's `FedAvg.start`.
Everything that decides about speed stays as a user gets it:

* `Grid.send_and_receive` sleeps 3 s between two looks for replies; a SuperNode sleeps 3 s when it finds no
  message, and looks each 0.5 s whether its ClientApp has replied; a SuperExec looks for a task each 1 s; an
  object that has not arrived is asked for again after 1 s.
* Isolation is `subprocess`: each message starts a new Python process, which imports Keras and builds a model.
* `FedAvg` trains and evaluates on all nodes in each round: two exchanges.
* The SuperLink keeps its state in memory.

Changed is only what has nothing to do with a round's time: no TLS (`--insecure`), no telemetry, no check
for updates, no `uv sync` of the app's dependencies (they are installed), and a temporary `FLWR_HOME` for each
process. Imports find compiled bytecode (see `_bytecode`). The run is submitted once all nodes are there, so
that the first round uses all of them.

Run it alone: `python -m solar_corona.benchmarks._stock_flower --nodes 2 --model dense-4kb --rounds 3`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from . import _data
from ._bytecode import compiled_environment
from ._report import median

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["AppConfig", "StockFlower", "StockResult", "free_ports"]

_APP = Path(__file__).parent / "_stock_app"
_CONNECTION = "benchmark"


@dataclass(frozen=True)
class AppConfig:
    """What the app does.

    Parameters
    ----------
    model
        `dense-4kb` and `dense-4mb` train on one synthetic batch and measure overhead; `cnn-cifar10` and
        `mlp-fashion` train on `data`.
    rounds
        Number of rounds.
    data
        Folder that `_data.write_shards` has written, with as many edges as there are nodes.
    epochs, batch_size, learning_rate
        Of the training on a node (SGD).
    seed
        Fixes weights and the order of samples.
    """

    model: str = "dense-4kb"
    rounds: int = 3
    data: Path | None = None
    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.01
    seed: int = 1


@dataclass(frozen=True)
class StockResult:
    """What a run gave, one entry a round.

    Parameters
    ----------
    round_seconds
        Wall time from the end of one round to the end of the next, without the server's own evaluation.
    train_seconds
        `model.fit` alone, of the slowest node.
    evaluate_seconds
        `model.evaluate` alone, of the slowest node.
    accuracies
        Of the global model on the global test set, before the first round and after each one; empty without
        `data`.
    run_seconds
        From `flwr run` to the end of the last round, start-up of the ServerApp included.
    """

    round_seconds: list[float]
    train_seconds: list[float]
    evaluate_seconds: list[float]
    accuracies: list[float]
    run_seconds: float

    @property
    def overhead_seconds(self) -> list[float]:
        """Each round's wall time without training and evaluation on the slowest node."""
        return [
            total - train - evaluate
            for total, train, evaluate in zip(
                self.round_seconds, self.train_seconds, self.evaluate_seconds, strict=True
            )
        ]


def free_ports(count: int) -> list[int]:
    """Return `count` different free TCP ports of the loopback address."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class StockFlower:
    """A running stock deployment; a context manager that ends all its processes, also on Ctrl-C and SIGTERM.

    Parameters
    ----------
    nodes
        Number of SuperNodes.
    patience
        Seconds without any progress after which it gives up.
    environment
        From `compiled_environment`; by default it makes its own. Pass one when the other side uses it too.
    """

    def __init__(self, *, nodes: int, patience: float = 300.0, environment: Mapping[str, str] | None = None) -> None:
        self.nodes = nodes
        self._given_environment = environment
        self._resources = ExitStack()
        self.patience = patience
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runs = 0
        self._sigterm: Any = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="stock-flower-"))
        if threading.current_thread() is threading.main_thread():
            self._sigterm = signal.signal(signal.SIGTERM, _exit)
        try:
            given = self._given_environment
            self._base = dict(given or self._resources.enter_context(compiled_environment()))
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def run(self, config: AppConfig | None = None) -> StockResult:
        """Submit the app with `flwr run`, wait for its last round, and return what it measured.

        Raises
        ------
        RuntimeError
            If a process ended, the app failed, or nothing happened for `patience` seconds.
        """
        config = config or AppConfig()
        self._runs += 1
        folder = self._folder / f"run-{self._runs}"
        shutil.copytree(_APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
        report = folder / "report.jsonl"
        report.touch()
        overrides = {
            "num-server-rounds": config.rounds,
            "local-epochs": config.epochs,
            "batch-size": config.batch_size,
            "learning-rate": config.learning_rate,
            "model": config.model,
            "seed": config.seed,
            "data": str(config.data.resolve()) if config.data else "",
            "report": str(report),
        }
        # A JSON string or number is the same in TOML.
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in overrides.items())
        (folder / "run.toml").write_text(text, encoding="utf-8")
        submitted = time.time()
        self._submit(folder)
        events = self._follow(report)
        return _result(events, submitted)

    def _start(self) -> None:
        link, *node_ports = free_ports(1 + self.nodes)
        self._spawn("superlink", "flower-superlink", "--insecure", "--port", str(link))
        self._wait("the SuperLink's port", lambda: _accepts(link))
        home = self._home("flwr")
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n'
            f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{link}"\ninsecure = true\n',
            encoding="utf-8",
        )
        for index, port in enumerate(node_ports):
            self._spawn(
                f"supernode-{index}",
                "flower-supernode",
                "--insecure",
                *("--superlink", f"127.0.0.1:{link}"),
                *("--port", str(port)),
                *("--node-config", f"partition-id={index} num-partitions={self.nodes}"),
            )
        for index in range(self.nodes):
            log = self._log(f"supernode-{index}")
            self._wait(f"SuperNode {index}", lambda log=log: "SuperNode ID" in _text(log))

    def _stop(self) -> None:
        if self._sigterm is not None:
            signal.signal(signal.SIGTERM, self._sigterm)
            self._sigterm = None
        # Nodes first: a node whose SuperLink is gone keeps trying to reach it.
        for process in reversed(self._processes.values()):
            _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
        # The SuperLink starts its SuperExec, and with it the ServerApp, in a session of its own.
        for pid in _started_with(self._folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._processes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._resources.close()

    def _home(self, name: str) -> Path:
        # Each process has its own, as if it were on its own machine.
        home = self._folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _environment(self, name: str) -> dict[str, str]:
        scripts = sysconfig.get_path("scripts")
        return self._base | {
            "PATH": f"{scripts}{os.pathsep}{self._base.get('PATH', os.defpath)}",
            "FLWR_HOME": str(self._home(name)),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def _spawn(self, name: str, command: str, *arguments: str) -> None:
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [Path(sysconfig.get_path("scripts"), command), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment(name),
                # A group of its own: Ctrl-C reaches us alone, and we end the nodes with all they started.
                start_new_session=True,
            )

    def _submit(self, folder: Path) -> None:
        done = subprocess.run(
            [
                Path(sysconfig.get_path("scripts"), "flwr"),
                "run",
                folder / "app",
                _CONNECTION,
                "--run-config",
                folder / "run.toml",
            ],
            env=self._environment("flwr"),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=self.patience,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"flwr run failed with code {done.returncode}:\n{done.stdout}{done.stderr}")

    def _follow(self, report: Path) -> list[dict[str, Any]]:
        """Return the ServerApp's events once the last one is there."""
        seen: list[dict[str, Any]] = []

        def grew() -> bool:
            before = len(seen)
            # A line without its end is still being written.
            lines = [line for line in _text(report).splitlines(keepends=True) if line.endswith("\n")]
            seen[:] = [json.loads(line) for line in lines]
            return len(seen) > before

        while True:
            self._wait("the app's next event", grew)
            if seen[-1]["event"] == "failed":
                raise RuntimeError(f"the stock app failed: {seen[-1]['reason']}\n{self._tails()}")
            if seen[-1]["event"] == "finished":
                return seen

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience
        while not done():
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended:
                raise RuntimeError(f"{', '.join(ended)} ended while waiting for {what}\n{self._tails()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not come in {self.patience:g} s\n{self._tails()}")
            # Long enough to cost nothing; times come from the events themselves.
            time.sleep(0.2)

    def _tails(self) -> str:
        return "\n".join(f"--- {name}\n{_text(self._log(name))[-3000:]}" for name in self._processes)


def _result(events: list[dict[str, Any]], submitted: float) -> StockResult:
    begins = {e["round"]: e["time"] for e in events if e["event"] == "round-begin"}
    ends = {e["round"]: e["time"] for e in events if e["event"] == "round-end"}
    accuracies = [e["accuracy"] for e in events if e["event"] == "round-begin" and e["accuracy"] is not None]
    rounds = range(1, max(ends) + 1)
    result = StockResult(
        round_seconds=[ends[r] - begins[r] for r in rounds],
        train_seconds=[max(e["seconds"]) for e in events if e["event"] == "train"],
        evaluate_seconds=[max(e["seconds"]) for e in events if e["event"] == "evaluate"],
        accuracies=accuracies,
        run_seconds=ends[max(ends)] - submitted,
    )
    if not len(result.round_seconds) == len(result.train_seconds) == len(result.evaluate_seconds):
        raise RuntimeError("a round of the stock app had no valid reply, so its times cannot be compared")
    return result


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _started_with(folder: Path) -> list[int]:
    """Return the processes whose environment names `folder`, which is theirs alone: ours and what they started."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        # It may end while we look, or belong to somebody else.
        with suppress(OSError):
            if f"FLWR_HOME={folder}/".encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def main() -> None:
    """Run the stock side alone and print what it measured."""
    parser = argparse.ArgumentParser(description="Run stock Flower alone.")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--model", default="dense-4kb", choices=["dense-4kb", "dense-4mb", "cnn-cifar10", "mlp-fashion"]
    )
    parser.add_argument("--seed", type=int, default=1)
    _data.add_data_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = None
        if not arguments.model.startswith("dense"):
            load = _data.load_cifar10 if arguments.model == "cnn-cifar10" else _data.load_fashion_mnist
            images = load(arguments.data)
            parts = _data.dirichlet_split(images.y_train, edges=arguments.nodes, alpha=0.3, seed=arguments.seed)
            shards = _data.write_shards(Path(folder), images, parts)
        config = AppConfig(model=arguments.model, rounds=arguments.rounds, data=shards, seed=arguments.seed)
        with StockFlower(nodes=arguments.nodes) as flower:
            result = flower.run(config)
    print(json.dumps(result.__dict__ | {"overhead_seconds": result.overhead_seconds}, indent=2))
    print(f"median round {median(result.round_seconds):.1f} s")
    print(f"median overhead {median(result.overhead_seconds):.1f} s")


if __name__ == "__main__":
    main()
