# SPDX-License-Identifier: Apache-2.0
"""How fast a server averages 8 and 32 replies of 25 million parameters, and how much memory that takes.

Each strategy runs in a process of its own and gets the same ordinary `flwr.app.Message`s, made one by one as
they would arrive. The time to make them is measured inside the generator and taken off. Peak memory is that
of the process above what it held before, counted in models (100 MB), the reply being looked at included.

The physical limit is the machine's memory: an average has to read each reply once, and to read and write the
running sum. `bandwidth_share` says how much of the best bandwidth that NumPy reaches (all cores) it uses.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from solar_corona.core.memory import keep_freed_memory

from . import _report
from ._report import Figure, median

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flwr.app import ArrayRecord, Message

__all__ = ["SHAPES", "STRATEGIES", "Measured", "Replies", "bandwidth", "measure"]

# The two sides; `--ours` names another class, which gets the same replies.
STRATEGIES = {"flower": "flwr.serverapp.strategy:FedAvg", "ours": "solar_corona.strategies:FedAvg"}
COUNTS = (8, 32)


def _resnet50() -> list[tuple[int, ...]]:
    """Return the shapes of ResNet-50's convolutions and classifier: 55 arrays, 25.5 million parameters."""
    shapes: list[tuple[int, ...]] = [(7, 7, 3, 64)]
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(1, 1, before, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                shapes.append((1, 1, before, 4 * width))
            before = 4 * width
    return [*shapes, (2048, 1000), (1000,)]


SHAPES = _resnet50()
MODEL_BYTES = 4 * sum(math.prod(shape) for shape in SHAPES)


class Replies:
    """Replies to a train message, made one by one when they are asked for.

    Each reply has bytes of its own, as a received one has; reply `i` differs from reply `i + 1`. All are cut
    from one pool of numbers, so making a reply is a copy.
    """

    _STEP = 1021

    def __init__(self, count: int, *, shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.count = count
        self.seconds = 0.0
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        self._pool = rng.standard_normal(sum(self._sizes) + self._STEP * count, dtype=np.float32)
        self._headers = [_npy_header(shape) for shape in shapes]
        self._examples = rng.integers(50, 500, count).tolist()

    def __iter__(self) -> Iterator[Message]:
        for index in range(self.count):
            begin = time.perf_counter()
            reply = self.message(index)
            self.seconds += time.perf_counter() - begin
            yield reply
            # Else it would live on until the next one is made: two models where one is enough.
            del reply

    def message(self, index: int) -> Message:
        """Return the reply of node `index`."""
        from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

        asked = Message(content=RecordDict(), message_type="train", dst_node_id=index + 1)
        begin = index * self._STEP
        arrays = {}
        for key, (shape, header) in enumerate(zip(self._shapes, self._headers, strict=True)):
            end = begin + self._sizes[key]
            data = b"".join((header, self._pool[begin:end].data))
            arrays[str(key)] = Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=data)
            begin = end
        metrics = MetricRecord({"num-examples": self._examples[index], "train_loss": 1.0 / (index + 1)})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content=content, reply_to=asked)

    def check(self, result: ArrayRecord) -> None:
        """Raise ValueError if `result` is not the replies' weighted mean."""
        total = sum(self._examples)
        for key in (0, len(self._sizes) - 1):
            first, size = sum(self._sizes[:key]), self._sizes[key]
            expected = np.zeros(size)
            for index, examples in enumerate(self._examples):
                begin = first + index * self._STEP
                expected += examples / total * self._pool[begin : begin + size].astype(np.float64)
            if not np.allclose(result[str(key)].numpy().reshape(-1), expected, rtol=1e-4, atol=1e-5):
                raise ValueError(f"array {key} is not the weighted mean of the replies; the strategy is wrong")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@dataclass(frozen=True)
class Measured:
    """One aggregation: seconds without making the replies, seconds to make them, peak memory in models."""

    seconds: float
    making_seconds: float
    peak_models: float


def measure(strategy: str, replies: int) -> Measured:
    """Aggregate `replies` replies with the class at `module:Class`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--worker", strategy, str(replies)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{strategy} with {replies} replies failed with code {done.returncode}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _worker(strategy: str, count: int) -> Measured:
    from flwr.supercore.task_identity import TaskIdentity

    # Our server does so; both get it, so that the ratio is the algorithm's alone.
    keep_freed_memory()
    # Flower's own runtime does this before it starts an app; a message cannot be made without.
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    module, _, name = strategy.partition(":")
    make: Any = getattr(importlib.import_module(module), name)
    # Once with little, so that lazy imports are no part of what is measured.
    make().aggregate_train(1, iter(Replies(2, shapes=SHAPES[-1:])))
    aggregator = make()
    replies = Replies(count)
    before = _reset_peak()
    begin = time.perf_counter()
    arrays, _ = aggregator.aggregate_train(1, iter(replies))
    seconds = time.perf_counter() - begin
    peak = _memory("VmHWM") - before
    replies.check(arrays)
    return Measured(
        seconds=seconds - replies.seconds,
        making_seconds=replies.seconds,
        peak_models=peak / MODEL_BYTES,
    )


def _reset_peak() -> int:
    """Forget the peak so far and return what the process holds now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: this benchmark needs Linux")


def bandwidth(*, repeats: int = 5, threads: int = 0) -> float:
    """Return the memory bandwidth in bytes a second that NumPy reaches with `threads` threads (0: all cores).

    The better of a copy (reads one array, writes one) and an addition in place (reads two, writes one).
    """
    threads = threads or len(os.sched_getaffinity(0))
    size = MODEL_BYTES // 4 // threads
    pairs = [(np.ones(size, np.float32), np.ones(size, np.float32)) for _ in range(threads)]

    def copy(a: Any, b: Any) -> None:
        np.copyto(a, b)

    def add(a: Any, b: Any) -> None:
        np.add(a, b, out=a)

    best = 0.0
    for moved, work in ((2, copy), (3, add)):
        for _ in range(repeats):
            best = max(best, moved * 4 * size * threads / _timed(work, pairs))
    return best


def _timed(work: Callable[[Any, Any], None], pairs: list[tuple[Any, Any]]) -> float:
    workers = [threading.Thread(target=work, args=pair) for pair in pairs]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - begin


def _share(seconds: float, replies: int, limit: float) -> float:
    return 3 * MODEL_BYTES * replies / seconds / limit


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only",
        choices=STRATEGIES,
        help="measure this side alone, and write no results",
    )
    parser.add_argument("--ours", default=STRATEGIES["ours"], metavar="MODULE:CLASS", help="default: %(default)s")
    parser.add_argument("--worker", nargs=2, metavar=("STRATEGY", "REPLIES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        strategy, count = arguments.worker
        print(json.dumps(asdict(_worker(strategy, int(count)))))
        return

    sides = STRATEGIES | {"ours": arguments.ours}
    names = [arguments.only] if arguments.only else list(sides)
    limits = [bandwidth()]
    found: dict[tuple[str, int], list[Measured]] = {}
    for _ in range(arguments.repeats):
        for count in COUNTS:
            # Taking turns: a machine that slows down slows both.
            for name in names:
                found.setdefault((name, count), []).append(measure(sides[name], count))
                Console(stderr=True).print(f"{name}, {count} replies: {found[name, count][-1]}")
        limits.append(bandwidth())
    if arguments.only:
        return
    _report_all(found, limits)


def _report_all(found: dict[tuple[str, int], list[Measured]], limits: list[float]) -> None:
    seconds = {key: [m.seconds for m in runs] for key, runs in found.items()}
    peaks = {key: [m.peak_models for m in runs] for key, runs in found.items()}
    most = max(COUNTS)
    limit = max(limits)
    ratios = {
        n: [theirs / ours for theirs, ours in zip(seconds["flower", n], seconds["ours", n], strict=True)]
        for n in COUNTS
    }
    # Memory must not grow with the number of replies: the largest of all counts stands for it.
    worst = [max(run) for run in zip(*(peaks["ours", n] for n in COUNTS), strict=True)]
    shares = {name: [_share(s, most, limit) for s in seconds[name, most]] for name in STRATEGIES}
    figures = [
        Figure("peak_models", max(worst), "models", 3.0, worst, better="low"),
        Figure(f"ratio_{most}_replies", median(ratios[most]), "x", 5.0, ratios[most]),
        Figure("bandwidth_share", median(shares["ours"]), "of 1", None, shares["ours"]),
    ]
    figures += [Figure(f"ratio_{n}_replies", median(ratios[n]), "x", None, ratios[n]) for n in COUNTS if n != most]
    for (name, n), values in seconds.items():
        figures.append(Figure(f"{name}_seconds_{n}_replies", median(values), "s", None, values))
    figures.append(Figure("flower_peak_models", max(peaks["flower", most]), "models", None, peaks["flower", most]))
    figures.append(Figure("flower_bandwidth_share", median(shares["flower"]), "of 1", None, shares["flower"]))
    for name in STRATEGIES:
        # Not in the ratio: memory that is held cannot be reused, so making the next reply takes longer too.
        making = [m.making_seconds for m in found[name, most]]
        figures.append(Figure(f"{name}_making_{most}_replies", median(making), "s", None, making))
    figures.append(Figure("memory_bandwidth", limit / 1e9, "GB/s", None, [each / 1e9 for each in limits]))

    def picture(axes: Any) -> None:
        for name in STRATEGIES:
            axes.plot(COUNTS, [median(seconds[name, n]) for n in COUNTS], marker="o", label=name)
        axes.plot(COUNTS, [3 * MODEL_BYTES * n / limit for n in COUNTS], "k--", label="memory bandwidth")
        axes.set(xlabel="replies of 25 M parameters", ylabel="seconds", yscale="log", title="FedAvg on the server")
        axes.set_xticks(COUNTS)
        axes.legend()

    _report.write("aggregation", figures, picture=picture)


if __name__ == "__main__":
    main()
