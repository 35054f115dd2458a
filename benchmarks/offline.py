# SPDX-License-Identifier: Apache-2.0
"""A cloud that is cut off and comes back, again and again: what the edge's answers wait for, and how soon it returns.

A camera gives a frame each 10 ms. Its edge asks a service of ours through a proxy, which every few seconds resets all
connections, or, each second time, swallows what is sent and answers nothing. The same frames go to the same model
with no cloud, in turns, so that what else the machine does counts for both.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from solar_corona.joint_inference import Margin
from solar_corona.joint_inference.edge_model import EdgeModel
from solar_corona.joint_inference.loading import load_model

from . import _report
from ._report import Figure, median
from ._serving_models import SMALL, ServedCnn
from .serving import service

_SHALLOW = ServedCnn("shallow", side=SMALL.side, stages=((8,), (16,)), dense=32)
_PORT, _PROXY_PORT = 18250, 18251
_RATIO, _DEADLINE, _FRAME_SECONDS = 0.1, 0.2, 0.01
_State = Literal["whole", "cut", "silent"]


class Proxy:
    """Between edge and service; it can be cut, or fall silent, and be mended."""

    def __init__(self, port: int, target: int) -> None:
        self._target, self._state = target, "whole"
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def put(self, state: str) -> None:
        """Cut all connections, or swallow what they carry, or be whole again."""
        self._state = state
        if state != "silent":
            ends, self._open = self._open, []
            for end in ends:  # also those that were silent, whose answers would come too late
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self._state == "cut":
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self._state == "whole":
                    sink.sendall(data)
        source.close()
        sink.close()


def _run_proxy() -> None:
    proxy = Proxy(_PROXY_PORT, _PORT)
    print("ready", flush=True)
    for line in sys.stdin:
        proxy.put(line.strip())


@contextmanager
def _proxy() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "solar_corona.benchmarks.offline", "--proxy"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


@dataclass
class Found:
    """What came of the frames."""

    edge: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    cloud: int = 0
    degraded: int = 0
    exceptions: int = 0
    unanswered: int = 0


def run(model: EdgeModel, alone: EdgeModel, proxy: subprocess.Popen[str], frames: int, cuts: int) -> Found:
    """Give frames to both models while the cloud comes and goes."""
    found, images = Found(), [image[0] for image in _SHALLOW.images(500)]
    period = frames // cuts
    mended: float | None = None
    begin = time.perf_counter()
    for number in range(frames):
        if number % period == period // 4:
            _put(proxy, "silent" if number // period % 2 else "cut")
            mended = None
        elif number % period == 3 * period // 4:
            _put(proxy, "whole")
            mended = time.perf_counter()
        time.sleep(max(0.0, begin + number * _FRAME_SECONDS - time.perf_counter()))
        frame = images[number % len(images)]
        for each in (model, alone) if number % 2 else (alone, model):
            start = time.perf_counter()
            try:
                story = each.infer(frame)
            except Exception:  # noqa: BLE001 - what must not be is counted, whatever it is
                found.exceptions += 1
                continue
            seconds = time.perf_counter() - start
            if isinstance(story, list) or np.shape(story.result) != (10,):
                found.unanswered += 1
            elif each is alone:
                found.alone.append(seconds)
            elif story.source == "cloud":
                found.cloud += 1
                if mended is not None:
                    found.recoveries.append(time.perf_counter() - mended)
                    mended = None
            else:
                found.edge.append(seconds)
                found.degraded += story.degraded
    return found


def _put(proxy: subprocess.Popen[str], state: _State) -> None:
    assert proxy.stdin is not None
    proxy.stdin.write(f"{state}\n")
    proxy.stdin.flush()


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--cuts", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--proxy", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.proxy:
        _run_proxy()
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(service(SMALL.save(folder), folder, port=_PORT))
        proxy = stack.enter_context(_proxy())
        shallow, url = _SHALLOW.save(folder), f"http://127.0.0.1:{_PROXY_PORT}/v2/models/{SMALL.name}"
        model = stack.enter_context(
            load_model(
                shallow,
                cloud_offload_algorithm=Margin(upload_ratio=_RATIO),
                big_model_endpoint=url,
                deadline=_DEADLINE,
            )
        )
        alone = stack.enter_context(load_model(shallow, for_inference=True))
        for each in (model, alone):
            for image in _SHALLOW.images(50):
                each.predict(image[0])
        found = run(model, alone, proxy, arguments.frames, arguments.cuts)
    lost = arguments.frames - found.cloud - len(found.edge)
    edge, alone_p99 = (float(np.quantile(each, 0.99)) for each in (found.edge, found.alone))
    figures = [
        Figure("exceptions", found.exceptions, "of all frames", 0, better="low"),
        Figure("frames_lost", lost + found.unanswered, "frames", 0, better="low"),
        Figure("edge_p99_ratio", edge / alone_p99, "x of no cloud", 1.2, better="low"),
        Figure("recovery_seconds_max", max(found.recoveries), "s", 5.0, found.recoveries, "low"),
        Figure("recoveries", len(found.recoveries), "times", arguments.cuts),
        Figure("edge_p99_ms", 1e3 * edge, "ms", better="low"),
        Figure("edge_p50_ms", 1e3 * median(found.edge), "ms", better="low"),
        Figure("alone_p99_ms", 1e3 * alone_p99, "ms", better="low"),
        Figure("alone_p50_ms", 1e3 * median(found.alone), "ms", better="low"),
        Figure("edge_worst_ms", 1e3 * max(found.edge), "ms", better="low"),
        Figure("cloud_answers", found.cloud, "frames"),
        Figure("degraded_answers", found.degraded, "frames"),
    ]

    def picture(axes: Any) -> None:
        share = np.linspace(0, 1, 2000)
        for name, values, colour in (("no cloud", found.alone, "#868e96"), ("cloud cut", found.edge, "#e8590c")):
            axes.plot(1e3 * np.quantile(values, share), 1 - share, color=colour, label=name)
        axes.set(xscale="log", yscale="log", xlabel="ms until the edge's answer", ylabel="share that takes longer")
        axes.legend()

    _report.write("offline", figures, picture=picture)


if __name__ == "__main__":
    main()
