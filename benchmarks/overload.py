# SPDX-License-Identifier: Apache-2.0
"""What the inference service still answers when eight times as many clients ask as it needs to be busy.

The service has one core and a model of about 10 ms; 256 connections ask it, each again as soon as it is answered or
refused: no client here heeds `Retry-After`. Its capacity is what it answers to 32 connections, measured before and
after each repeat. A process beside asks for its health 20 times a second, each time on a connection of its own. At the
end, a service with 24 requests in flight gets SIGTERM.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from . import _report
from ._load import Load, run_load
from ._report import Figure, median
from ._serving_models import LARGE
from .serving import CLIENT_CORE, service

FEW, MANY, IN_FLIGHT = 32, 256, 24
_PORT, _HEALTH_SECONDS = 18500, 0.05
_ADDRESS = ("127.0.0.1", _PORT)


def _ask_health() -> None:
    """Print the latency of each question in seconds, until standard input ends."""
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    while not stop.wait(_HEALTH_SECONDS):
        begin = time.perf_counter()
        connection = http.client.HTTPConnection(*_ADDRESS, timeout=30)
        connection.request("GET", "/v2/health/live")
        status = connection.getresponse().status
        connection.close()
        print(time.perf_counter() - begin if status == 200 else 30.0)


def _under_load(requests: list[bytes], seconds: float) -> tuple[Load, list[float]]:
    asking = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, "--health"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    load = run_load(_ADDRESS, requests, seconds=seconds)
    text, _ = asking.communicate()
    return load, [float(line) for line in text.splitlines()]


def _stopped(process: subprocess.Popen[bytes], requests: list[bytes]) -> tuple[Load, int]:
    """Ask with 24 connections, stop the service, and return what came back and how many processes it left."""
    loads = list[Load]()
    asking = threading.Thread(target=lambda: loads.append(run_load(_ADDRESS, requests, seconds=60, until_cut=True)))
    asking.start()
    time.sleep(2.0)  # a load in its stride, which is what is stopped
    process.send_signal(signal.SIGTERM)
    asking.join()
    process.wait(60)
    return loads[0], sum(_session_of(each) == process.pid for each in Path("/proc").glob("[0-9]*"))


def _session_of(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return 0


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each overload")
    parser.add_argument("--health", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.health:
        _ask_health()
        return
    os.sched_setaffinity(0, {CLIENT_CORE})
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path, requests = LARGE.save(folder), LARGE.requests(MANY)
        for _ in range(arguments.repeats):
            with service(path, folder, port=_PORT) as process:
                values = _repeat(process, requests, arguments.seconds)
            Console(stderr=True).print({name: round(value, 4) for name, value in values.items()})
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    _conclude(found)


def _repeat(process: subprocess.Popen[bytes], requests: list[bytes], seconds: float) -> dict[str, float]:
    run_load(_ADDRESS, requests[:FEW], seconds=0.5)
    before = run_load(_ADDRESS, requests[:FEW], seconds=seconds / 2)
    load, health = _under_load(requests, seconds)
    after = run_load(_ADDRESS, requests[:FEW], seconds=seconds / 2)
    capacity = (before.rate + after.rate) / 2
    if set(load.statuses) - {200, 503}:
        raise RuntimeError(f"the service answered {dict(load.statuses)}; expected 200 and 503 alone")
    end, left = _stopped(process, requests[:IN_FLIGHT])
    return {
        "served_share": load.rate / capacity,
        "health_p99_ms": 1000 * float(np.percentile(health, 99)),
        "sigterm_lost": end.lost + sum(count for status, count in end.statuses.items() if status != 200),
        "sigterm_processes": left + (process.returncode != 0),
        "capacity": capacity,
        "served": load.rate,
        "refused": load.statuses[503] / load.seconds,
        "lost": load.lost,
        "served_p50_ms": 1000 * median(load.latencies),
        "health_p50_ms": 1000 * median(health),
    }


def _conclude(found: dict[str, list[float]]) -> None:
    goals = {
        "served_share": ("of 1", 0.95),
        "health_p99_ms": ("ms", 100.0),
        "sigterm_lost": ("requests", 0.0),
        "sigterm_processes": ("processes", 0.0),
    }
    units = {"capacity": "requests/s", "served": "requests/s", "refused": "requests/s", "lost": "requests"}
    figures = [
        Figure(name, median(found[name]), unit, goal, found[name], better="high" if name == "served_share" else "low")
        for name, (unit, goal) in goals.items()
    ]
    figures += [
        Figure(name, median(values), units.get(name, "ms"), None, values)
        for name, values in found.items()
        if name not in goals
    ]

    def picture(axes: Any) -> None:
        rates = [median(found[name]) for name in ("capacity", "served", "refused")]
        axes.bar([f"{FEW} clients: answered", f"{MANY} clients: answered", f"{MANY} clients: refused"], rates)
        axes.set(ylabel="requests/s", title="A model of 10 ms on one core, asked by 256 clients that never wait")

    _report.write("overload", figures, picture=picture)


if __name__ == "__main__":
    main()
