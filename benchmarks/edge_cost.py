# SPDX-License-Identifier: Apache-2.0
"""What detecting hard samples adds to `predict`, and whether `predict` ever waits for the node's LocalController.

Two models of `load_model` run the same shallow network of 45 KB, in LiteRT and in ONNX Runtime, one with
`hard_sample_detection` and one without; both get the same images in turns. As on a camera of 10 frames a second with
the default of 500 samples an hour, 1.4 % of the samples are kept: copied, looked up among the latest, and in the
background written and sent to another process over a unix socket. Shares are of medians of calls, and of all the time
together, in which the calls that look at a sample, and those that keep one, count in full: so fast a model has not
each of its samples looked at. `looked_share` is how many are.

Then the controller hangs: it takes the connection and never answers, the queue fills, and `predict` goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.context_document import ContextDocument
from ..core.incremental_spec import HardSamples
from ..core.settings import worker_environment
from . import _report
from ._report import Figure, median
from .edge_overhead import ENVIRONMENT, make_models

SIDES = (96, 32)
KEPT_SHARE = 0.0139
GOAL = 0.05

# A process of its own, so that its work is not counted as the edge's.
CONTROLLER = """
import json, socketserver, sys, time
from http.server import BaseHTTPRequestHandler
from solar_corona.lib.sample_records import unpack

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        while sys.argv[2] == "hang":
            time.sleep(1)
        answer = b""
        if self.path == "/v1/samples":
            receipts = [{"id": record.id, "outcome": "stored"} for record, _ in unpack(body)]
            answer = json.dumps({"receipts": receipts}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def address_string(self):
        return "unix"
    def log_message(self, *_):
        pass

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

server = Server(sys.argv[1], Handler)
print("ready", flush=True)
server.serve_forever()
"""


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=2000, help="in a repeat (default: %(default)s)")
    arguments = parser.parse_args()
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="sc-") as folder:
        make_models(Path(folder))
        code = (
            "import sys\nfrom pathlib import Path\nfrom solar_corona.benchmarks.edge_cost import measure\n"
            f"measure(Path(sys.argv[1]), {arguments.repeats}, {arguments.calls})\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, folder],
            env=worker_environment(ENVIRONMENT), capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the measured process failed:\n{done.stderr[-3000:]}")
    for line in done.stdout.splitlines():
        name, value = line.rsplit(" ", 1)
        taken.setdefault(name, []).append(float(value))

    def picture(axes: Any) -> None:
        names = [name for name in taken if name.endswith(" us")]
        axes.barh(names, [median(taken[name]) for name in names], color="#e8590c")
        axes.set_xlabel("microseconds added to predict for one image")

    _report.write("edge_cost", figures(taken), picture=picture)


def figures(taken: dict[str, list[float]]) -> list[Figure]:
    """Return what was measured, shares first."""
    found = []
    for kind in ("litert", "onnx"):
        for side in SIDES:
            for how, suffix in (("median", ""), ("all", "_of_all_time")):
                name = f"{kind}, {side} px, {how}"
                end = ("" if kind == "litert" else f"_{kind}") + ("" if side == SIDES[0] else f"_{side}px") + suffix
                shares = taken[f"{name} share"]
                # A network that answers in some hundredths of a millisecond is told, and has no goal.
                goal = GOAL if side == SIDES[0] else None
                found.append(Figure(f"added_share{end}", median(shares), "of predict", goal, shares, "low"))
                added = taken[f"{name} us"]
                found.append(Figure(f"added_us{end}", median(added), "us", None, added, "low"))
    for name, goal in (("hung_slowest_ms", None), ("well_slowest_ms", None), ("hung_over_well_p99", 2.0)):
        found.append(Figure(name, median(taken[name]), "x" if goal else "ms", goal, taken[name], "low"))
    found.append(Figure("kept_share", median(taken["kept"]), "of the samples", None, taken["kept"]))
    found.append(Figure("hung_longest_wait_ms", max(taken["hung_slowest_ms"]), "ms", 1000.0, (), "low"))
    return sorted(found, key=lambda figure: figure.goal is None)


def measure(folder: Path, repeats: int, calls: int) -> None:
    """Print what each repeat took, a line for each figure."""
    for side in SIDES:
        litert, onnx = folder / f"{side}.tflite", _onnx(folder, side)
        for kind, path, dtype in (("litert", litert, np.float32), ("onnx", onnx, np.uint8)):
            images = _images(side, dtype, calls)
            with _controller(folder, "answer") as socket, _models(path, socket, images[0]) as (plain, keeping):
                for _ in range(repeats):
                    _print_cost(f"{kind}, {side} px", plain, keeping, images)
                counts = keeping.hard_samples
                print("kept", counts.kept / counts.seen)
    images = _images(SIDES[0], np.float32, calls)
    for _ in range(repeats):
        waits = {}
        for how in ("answer", "hang"):
            with (
                _controller(folder, how) as socket,
                _models(folder / f"{SIDES[0]}.tflite", socket, images[0], share=1.0) as (_, keeping),
            ):
                waits[how] = np.array([_seconds(keeping.predict, image) for image in images])
        print("well_slowest_ms", 1e3 * waits["answer"].max())
        print("hung_slowest_ms", 1e3 * waits["hang"].max())
        print("hung_over_well_p99", np.quantile(waits["hang"], 0.99) / np.quantile(waits["answer"], 0.99))


def _print_cost(name: str, plain: Any, keeping: Any, images: Sequence[Any]) -> None:
    taken: list[list[float]] = [[], []]
    for number, image in enumerate(images):
        # Who comes second finds the image in the processor's cache: each is second as often.
        for place in (0, 1) if number % 2 else (1, 0):
            taken[place].append(_seconds((plain, keeping)[place].predict, image))
    for how, of in (("median", median), ("all", sum)):
        without, with_detection = of(taken[0]), of(taken[1])
        print(f"{name}, {how} share", (with_detection - without) / without)
        each = 1 if how == "median" else len(images)
        print(f"{name}, {how} us", 1e6 * (with_detection - without) / each)


def _seconds(call: Callable[[Any], Any], image: Any) -> float:
    start = time.perf_counter()
    call(image)
    return time.perf_counter() - start


def _images(side: int, dtype: Any, count: int) -> list[Any]:
    """Return images that differ, as a camera's do; more of them than fit the memory of near-duplicates."""
    rng = np.random.default_rng(1)
    scenes = rng.uniform(0, 255, (500, 1, 8, 8, 3)).repeat(side // 8, 2).repeat(side // 8, 3)
    return [scenes[number % 500].astype(dtype) for number in range(count)]


def _onnx(folder: Path, side: int) -> Path:
    from ._serving_models import ServedCnn

    return Path(ServedCnn(f"{side}", side=side, stages=((16,), (24,), (32,)), dense=32).save(folder))


@contextlib.contextmanager
def _models(path: Path, socket: str, image: Any, *, share: float = KEPT_SHARE) -> Iterator[tuple[Any, Any]]:
    """Give a model without detection and one that keeps a share of the samples, as the job says it for its stream."""
    from ..joint_inference.loading import load_model
    from ..lib import context

    with load_model(path, for_inference=True) as plain:
        plain.predict(image)
        pace = median([_seconds(plain.predict, image) for _ in range(200)])
        # Both take turns, so samples come half as fast as one model answers alone.
        per_hour = max(int(share * 3600 / (2 * pace)), 1)
        document = ContextDocument(
            job="cost", kind="IncrementalLearningJob", run="1", role="edge", worker="edge", run_folder=str(path.parent),
            controller=socket, hard_samples=HardSamples(max_per_hour=min(per_hour, 10_000_000)),
        )  # fmt: skip
        with context.using(document), load_model(path, hard_sample_detection="mixed") as keeping:
            np.testing.assert_array_equal(plain.predict(image), keeping.predict(image))
            yield plain, keeping


@contextlib.contextmanager
def _controller(folder: Path, how: str) -> Iterator[str]:
    socket = folder / "c.sock"
    socket.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", CONTROLLER, str(socket), how], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield str(socket)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    main()
