# SPDX-License-Identifier: Apache-2.0
"""How many requests the inference service answers, against the model alone and against MLServer and KServe.

The server has one core, the client another, ONNX Runtime one thread. Each request holds one image as a binary uint8
tensor; 32 connections each ask again as soon as they are answered, or one does. The limit is the same model in a
process of its own on the server's core, in batches of 32: it is measured before and after each repeat, and their mean
counts. All servers run at once, and those that are not asked wait. Answers are compared with the model's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from solar_corona.lib.open_inference import decode_answer
from solar_corona.lib.runners.opening import open_runner

from . import _report
from ._load import run_load
from ._report import Figure, median
from ._serving_models import LARGE, SMALL
from ._serving_peers import PEERS, PeerMissingError, pinned, ready

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._load import Load
    from ._serving_models import ServedCnn

__all__ = ["CLIENT_CORE", "SERVER_CORE", "Limit", "limit", "resident_mib", "service"]

CLIENTS, SERVER_CORE, CLIENT_CORE = 32, 0, 1
_PORTS = {"small": 18200, "large": 18210, "mlserver": 18300, "kserve": 18400}
_MODELS = (SMALL, LARGE)


@dataclass(frozen=True)
class Limit:
    """What the model does alone: samples a second in batches of 32, seconds for one sample."""

    rate: float
    call_seconds: float


def limit(model: ServedCnn, path: Path, seconds: float) -> Limit:
    """Measure the model in a process of its own, on the server's core."""
    command = [sys.executable, "-m", __spec__.name, "--limit", model.name, str(path), str(seconds)]
    done = subprocess.run(pinned(SERVER_CORE, command), stdout=subprocess.PIPE, text=True, check=True)
    return Limit(**json.loads(done.stdout.splitlines()[-1]))


def _measure_limit(model: ServedCnn, path: str, seconds: float) -> Limit:
    runner = open_runner(path)
    images = model.images(CLIENTS)
    one, all_ = {"image": images[0]}, {"image": np.concatenate(images)}
    for inputs in (one, all_, all_):
        runner.run(inputs)
    calls, begin = list[float](), time.perf_counter()
    while time.perf_counter() < begin + seconds / 3:
        start = time.perf_counter()
        runner.run(one)
        calls.append(time.perf_counter() - start)
    count, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        runner.run(all_)
        count += CLIENTS
    return Limit(count / (now - begin), median(calls))


@contextmanager
def service(path: Path, folder: Path, *, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run our service with a model on the server's core, until the context ends."""
    command = [sys.executable, "-m", "solar_corona.cli", "serve", str(path), "--port", str(port)]
    with (folder / f"{path.stem}.log").open("wb") as log:
        process = subprocess.Popen(
            pinned(SERVER_CORE, command), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        ready(f"http://127.0.0.1:{port}/v2/health/ready", process)
        yield process
    finally:
        process.kill()
        process.wait()


def resident_mib(process: subprocess.Popen[bytes]) -> float:
    """Return the memory that a process holds, in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc has no VmRSS: this benchmark needs Linux")
    return int(found[1]) / 1024


def _load(port: int, requests: Sequence[bytes], seconds: float) -> Load:
    run_load(("127.0.0.1", port), requests, seconds=min(0.5, seconds))
    found = run_load(("127.0.0.1", port), requests, seconds=seconds)
    if set(found.statuses) != {200} or found.lost:
        raise RuntimeError(f"port {port} answered {dict(found.statuses)} and lost {found.lost}")
    return found


def _check(load: Load, model: ServedCnn, path: Path) -> None:
    """Raise if the first answer is none of the model's."""
    length = load.first.index(b"}]}") + 3
    found = decode_answer(load.first, length).outputs["probabilities"]
    wanted = open_runner(path).run({"image": np.concatenate(model.images(CLIENTS))})["probabilities"]
    if not any(np.allclose(found[0], row, atol=1e-4) for row in wanted):
        raise RuntimeError(f"{model.name}: the service's answer is not the model's")


@dataclass
class _Found:
    """What was measured: a value for each repeat, by what it is and whose; and which peers are missing, and why."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, whose: str, value: float) -> None:
        self.values.setdefault((what, whose), []).append(value)

    def last(self, what: str, whose: str) -> float:
        return self.values[what, whose][-1]

    def figure(
        self, name: str, what: str, whose: str, unit: str, goal: float | None = None, *, low: bool = False
    ) -> Figure:
        values = self.values.get((what, whose), [0.0])  # a peer that is missing is no peer that was beaten
        return Figure(name, median(values), unit, goal, values, better="low" if low else "high")


def _repeat(found: _Found, paths: dict[str, Path], process: subprocess.Popen[bytes], seconds: float) -> None:
    for model in _MODELS:
        path, port, requests = paths[model.name], _PORTS[model.name], model.requests(CLIENTS)
        before = limit(model, path, seconds / 2)
        many = _load(port, requests, seconds)
        one = _load(port, requests[:1], seconds / 2)
        after = limit(model, path, seconds / 2)
        _check(many, model, path)
        found.add("limit", model.name, (before.rate + after.rate) / 2)
        found.add("call", model.name, (before.call_seconds + after.call_seconds) / 2)
        found.add("rate", model.name, many.rate)
        found.add("p50", model.name, median(one.latencies))
        found.add("share", model.name, many.rate / found.last("limit", model.name))
        found.add("p50_ratio", model.name, found.last("p50", model.name) / found.last("call", model.name))
        if model is SMALL:
            found.add("resident", "small", resident_mib(process))
            for peer in (each for each in PEERS if each.name not in found.missing):
                rates = [_load(_PORTS[peer.name], each, seconds / 2).rate for each in peer.requests(model, CLIENTS)]
                found.add("rate", peer.name, max(rates))
                found.add("versus", peer.name, many.rate / max(rates))
        Console(stderr=True).print({key: round(values[-1], 4) for key, values in found.values.items()})


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--limit", nargs=3, metavar=("MODEL", "PATH", "SECONDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.limit:
        name, path, seconds = arguments.limit
        model = next(each for each in _MODELS if each.name == name)
        print(json.dumps(vars(_measure_limit(model, path, float(seconds)))))
        return
    os.sched_setaffinity(0, {CLIENT_CORE})
    found = _Found()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = {model.name: model.save(folder) for model in _MODELS}
        small, _ = [stack.enter_context(service(paths[each.name], folder, port=_PORTS[each.name])) for each in _MODELS]
        for peer in PEERS:
            place, port = folder / peer.name, _PORTS[peer.name]
            try:
                stack.enter_context(peer.running(SMALL, paths[SMALL.name], place, port, SERVER_CORE))
            except PeerMissingError as error:
                found.missing[peer.name] = str(error)
        for _ in range(arguments.repeats):
            _repeat(found, paths, small, arguments.seconds)
    _conclude(found)


def _conclude(found: _Found) -> None:
    figure = found.figure
    figures = [
        figure("limit_share_small_32", "share", "small", "of 1", 0.60),
        figure("limit_share_large_32", "share", "large", "of 1", 0.90),
        figure("vs_mlserver", "versus", "mlserver", "x", 4.0),
        figure("vs_kserve", "versus", "kserve", "x", 10.0),
        figure("one_client_p50", "p50_ratio", "small", "of the call", 2.0, low=True),
        figure("resident_mib", "resident", "small", "MiB", 100.0, low=True),
        figure("one_client_p50_large", "p50_ratio", "large", "of the call", low=True),
        *(figure(f"{name}_limit", "limit", name, "samples/s") for name in ("small", "large")),
        *(figure(f"{name}_rate_32", "rate", name, "requests/s") for name in ("small", "large")),
        *(figure(f"{peer.name}_rate_32", "rate", peer.name, "requests/s") for peer in PEERS),
        *(figure(f"{name}_p50", "p50", name, "s", low=True) for name in ("small", "large")),
    ]

    def picture(axes: Any) -> None:
        limits = median(found.values["limit", "small"])
        names = {"small": "Solar Corona", "mlserver": "MLServer", "kserve": "KServe"}
        shares = [median(found.values.get(("rate", name), [0.0])) / limits for name in names]
        axes.barh(list(names.values())[::-1], shares[::-1])
        axes.axvline(1.0, color="k", linestyle="--", label="the model alone")
        axes.set(xlabel="share of the in-process limit", title="Requests a second, small CNN, 32 clients, one core")
        axes.legend()

    peers = {peer.name: found.missing.get(peer.name, peer.version) for peer in PEERS}
    extra = {"peers": peers, "parameters": {model.name: model.parameters for model in _MODELS}}
    _report.write("serving", figures, extra=extra, picture=picture)


if __name__ == "__main__":
    main()
