# SPDX-License-Identifier: Apache-2.0
"""How long a server takes to group 100 to 100,000 signatures, on one core, and how much memory that takes.

Signatures of 20 true tasks (Fashion-MNIST, 14x14: four rotations times five labellings) are made from the images of
200 edges, 200 to 500 each; a fleet is drawn from them, every copy with means that vary as another sample of the same
task would. Each size runs in a process of its own, in one thread; seconds are those
that the process had the core for. Memory is the process's peak above what it held with the
signatures loaded. The exponent is that of the power law through the seconds of the sizes that are grouped online.

Beside it, in the same run: scikit-learn's `AgglomerativeClustering` (average linkage, the same class means as one row,
the true number of groups given to it) for the sizes that it manages; it keeps all distances of pairs, so 10,000 is
its end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from solar_corona.lib.signatures import Signature, SignatureSpec, sign
from solar_corona.strategies.grouping import assign, group

from . import _report
from ._data import add_data_option, load_fashion_mnist
from ._report import Figure, median

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SIZES", "fleet"]

SIZES = (100, 1_000, 10_000, 100_000)
_PEER_MOST = 10_000
_TASKS, _EDGES = 20, 200
_JOINERS = 50
_MANY_GROUPS = 300


def _edges(data: Path) -> tuple[list[Signature], list[int]]:
    """Return the signatures of `_EDGES` real edges, and the task of each."""
    images = load_fashion_mnist(data)
    x = images.x_train[..., 0].astype(np.float32).reshape(-1, 14, 2, 14, 2).mean((2, 4))
    rng = np.random.default_rng(0)
    labellings = [np.arange(10), *(rng.permutation(10) for _ in range(4))]
    found, tasks = [], []
    for edge in range(_EDGES):
        task = edge % _TASKS
        rows = rng.choice(len(x), rng.integers(200, 501), replace=False)
        turned = np.rot90(x[rows], task % 4, (1, 2))
        found.append(sign(turned, labellings[task // 4][images.y_train[rows]], SignatureSpec()))
        tasks.append(task)
    return found, tasks


def fleet(count: int, data: Path) -> tuple[list[Signature], list[int]]:
    """Return `count` signatures as an edge would send them, and the task of each."""
    real, tasks = _edges(data)
    rng = np.random.default_rng(count)
    picked = rng.integers(0, len(real), count)
    made = []
    for index in picked:
        s = real[index]
        # The real edge's mean already has one share of chance in it.
        spread = np.sqrt(s.traces / s.counts / s.dimension)[:, None]
        means = (s.means + rng.standard_normal(s.means.shape) * spread).astype(np.float16).astype(np.float32)
        made.append(Signature(s.identity, s.labelled, s.classes, s.counts, means, s.traces, s.squares, s.noise))
    return made, [tasks[index] for index in picked]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _measure(count: int, who: str, data: Path) -> dict[str, float]:
    """Group one fleet in this process."""
    signatures, tasks = fleet(count, data)
    # What is loaded at first use is no part of it.
    group(signatures[:50])
    _ari(tasks[:50], tasks[:50])
    import sklearn.cluster  # noqa: F401

    before, begin = _peak_bytes(), time.process_time()
    if who == "ours":
        found = group(signatures)
        labels = found.labels
    else:
        from sklearn.cluster import AgglomerativeClustering

        rows = np.stack([s.means.reshape(-1) for s in signatures])
        labels = tuple(AgglomerativeClustering(_TASKS, linkage="average").fit(rows).labels_.tolist())
    seconds = time.process_time() - begin
    peak = _peak_bytes() - before
    result = {"seconds": seconds, "memory": float(peak), "groups": float(len(set(labels))), "ari": _ari(tasks, labels)}
    if who == "ours":
        result["joiner"] = _joiner_seconds(signatures, count)
    return result


def _joiner_seconds(signatures: Sequence[Signature], count: int) -> float:
    """Return the median seconds to place one joiner among `_MANY_GROUPS` groups."""
    groups = group(signatures[: min(count, 500)]).groups
    many = [groups[i % len(groups)] for i in range(_MANY_GROUPS)]
    times = []
    for signature in signatures[:_JOINERS]:
        begin = time.perf_counter()
        assign(signature, many)
        times.append(time.perf_counter() - begin)
    return median(times)


def _ari(true: Sequence[int], found: Sequence[int]) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(true, found))


def _in_process(count: int, who: str, data: Path) -> dict[str, float]:
    one_core = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", __spec__.name, "--one", str(count), "--who", who, "--data", str(data)]
    done = subprocess.run(
        command, env={**os.environ, **one_core}, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise SystemExit(f"grouping {count} signatures ({who}) failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_option(parser)
    parser.add_argument("--repeats", type=int, default=3, help="how often each size runs (default: 3)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--who", choices=("ours", "peer"), default="ours", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(_measure(chosen.one, chosen.who, chosen.data)))
        return
    ours: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    peer: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES if size <= _PEER_MOST}
    for _ in range(chosen.repeats):
        # In turns, so that whatever else the machine does meets both.
        for size in SIZES:
            ours[size].append(_in_process(size, "ours", chosen.data))
            if size in peer:
                peer[size].append(_in_process(size, "peer", chosen.data))
    _write(ours, peer)


def _write(ours: dict[int, list[dict[str, float]]], peer: dict[int, list[dict[str, float]]]) -> None:
    def values(runs: list[dict[str, float]], what: str, unit: float = 1.0) -> list[float]:
        return [run[what] / unit for run in runs]

    largest = SIZES[-1]
    seconds = {size: median(values(runs, "seconds")) for size, runs in ours.items()}
    # The first size that is grouped online is 10,000.
    exponent = math.log(seconds[largest] / seconds[10_000]) / math.log(largest / 10_000)
    joiner = values(ours[largest], "joiner", 1e-3)
    memory = values(ours[largest], "memory", 1e9)
    found = [run["ari"] for runs in ours.values() for run in runs]
    figures = [
        Figure("seconds_100k", seconds[largest], "s", 10, values(ours[largest], "seconds"), "low"),
        Figure("memory_100k", max(memory), "GB", 0.5, memory, "low"),
        Figure("joiner_ms", median(joiner), "ms", 20, joiner, "low"),
        Figure("worst_ari", min(found), "ARI", 0.98, found, "high"),
        Figure("exponent", exponent, "", None),
        *(Figure(f"seconds_{size}", seconds[size], "s", None, values(ours[size], "seconds")) for size in SIZES[:-1]),
        *(
            Figure(f"peer_seconds_{size}", median(values(runs, "seconds")), "s", None, values(runs, "seconds"))
            for size, runs in peer.items()
        ),
        *(
            Figure(f"times_faster_{size}", median(values(runs, "seconds")) / seconds[size], "x")
            for size, runs in peer.items()
        ),
        *(
            Figure(f"peer_memory_{size}", max(values(runs, "memory", 1e9)), "GB", None, values(runs, "memory", 1e9))
            for size, runs in peer.items()
        ),
        *(Figure(f"peer_ari_{size}", min(values(runs, "ari")), "ARI") for size, runs in peer.items()),
    ]

    def picture(axes: Any) -> None:
        lines = {
            "ours, the number of groups not told": (ours, "#e8590c", "o"),
            "scikit-learn's, the number told": (peer, "#868e96", "s"),
        }
        for name, (runs, colour, marker) in lines.items():
            sizes = list(runs)
            middle = [median(values(runs[size], "seconds")) for size in sizes]
            axes.plot(sizes, middle, label=name, color=colour, marker=marker, linewidth=2)
            for size, value in zip(sizes, middle, strict=True):
                below = (runs is ours) == (size > 1_000)
                place = (0, -14) if below else (0, 8)
                text = f"{value:.2g} s"
                axes.annotate(text, (size, value), place, textcoords="offset points", ha="center", fontsize=8)
        axes.scatter([largest], [10], marker="_", s=900, color="#212529", label="goal: 100,000 in 10 s on one core")
        axes.set(xscale="log", yscale="log", xlim=(60, 200_000), ylim=(0.005, 60))
        axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
        axes.minorticks_off()
        axes.grid(color="#e9ecef")
        axes.set_xlabel("signatures of 20 tasks")
        axes.set_ylabel("seconds of one core")
        axes.legend(frameon=False, fontsize=9, loc="upper left")

    _report.write("grouping_scale", figures, picture=picture)


if __name__ == "__main__":
    main()
