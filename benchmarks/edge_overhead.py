# SPDX-License-Identifier: Apache-2.0
"""What an edge pays beside its model: a Keras file against `keras.Model.predict`, imports and memory with LiteRT."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.settings import worker_environment
from . import _report
from ._report import Figure, median

IMAGE = (28, 28, 1)
# One thread computes on either side, so that another process on the machine counts as little as it can.
ENVIRONMENT = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}

# A process of its own for each: what one leaves in memory or loads would count as the other's.
EDGE = """
import time
start = time.perf_counter()
import sys
import numpy as np
import solar_corona
model = solar_corona.load_model(sys.argv[1])
seconds = time.perf_counter() - start
for _ in range(20):
    model.predict(np.zeros((1, 28, 28, 1), np.float32))
with open("/proc/self/status") as file:
    kibibytes = next(line.split()[1] for line in file if line.startswith("VmHWM"))
print(seconds, int(kibibytes) / 1024)
"""


@dataclass
class Seconds:
    """Seconds that one image took, the median of a repeat each, by who answered."""

    by_name: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Note a repeat."""
        self.by_name.setdefault(name, []).append(value)

    def ratios(self, slow: str, fast: str) -> list[float]:
        """Return how many times as long one took as the other, repeat by repeat."""
        return [a / b for a, b in zip(self.by_name[slow], self.by_name[fast], strict=True)]


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=300, help="in a repeat, of what is fast (default: %(default)s)")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="a part (default: all)")
    arguments = parser.parse_args()
    seconds = Seconds()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="edge-overhead-") as folder:
        make_models(Path(folder))
        for name in arguments.only or PARTS:
            figures += PARTS[name](Path(folder), arguments.repeats, arguments.calls, seconds)

    def picture(axes: Any) -> None:
        names = list(seconds.by_name)
        axes.barh(names, [1e3 * median(seconds.by_name[name]) for name in names], color="#e8590c")
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds for one image (logarithmic)")

    _report.write("edge_overhead", sorted(figures, key=lambda f: f.goal is None), picture=picture)


def make_models(folder: Path) -> None:
    """Write a shallow classifier of 25 KB as `m.keras`, and as `m.tflite` what `open_runner` makes of it."""
    _python(
        """
import sys
from pathlib import Path
import keras
from solar_corona.core.files import sha256_of
from solar_corona.lib.runners.conversion import conversion_path
from solar_corona.lib.runners.opening import open_runner
folder, shape = Path(sys.argv[1]), (28, 28, 1)
layers = keras.layers
keras.utils.set_random_seed(1)
keras.Sequential([
    keras.Input(shape, name="image"),
    layers.Rescaling(1 / 255),
    layers.Conv2D(8, 3, strides=2, activation="relu"),
    layers.Conv2D(16, 3, strides=2, activation="relu"),
    layers.Conv2D(24, 3, activation="relu"),
    layers.GlobalAveragePooling2D(),
    layers.Dense(10, activation="softmax"),
]).save(folder / "m.keras")
runner = open_runner(folder / "m.keras", convert=True)
assert runner.platform == "litert", "the conversion failed; its note stands above"
conversion_path(folder / "m.keras", sha256_of(folder / "m.keras")).rename(folder / "m.tflite")
""",
        folder,
    )


def keras_figures(folder: Path, repeats: int, calls: int, seconds: Seconds) -> list[Figure]:
    """Compare a Keras file that `load_model` loads for inference, and its function alone, with Keras's `predict`."""
    code = f"""
import sys
from pathlib import Path
import keras
from solar_corona.benchmarks.edge_overhead import measure_keras
measure_keras(Path(sys.argv[1]), {repeats}, {calls})
"""
    for line in _python(code, folder).splitlines():
        name, value = line.rsplit(" ", 1)
        seconds.add(name, float(value))
    figures = []
    for name, who in (("vs_keras_predict", LOADED), ("vs_keras_predict_unconverted", FUNCTION)):
        ratios = seconds.ratios(PREDICT, who)
        figures.append(Figure(name, median(ratios), "x", 50.0, ratios))
    for name, who in (("keras_predict", PREDICT), ("loaded", LOADED), ("unconverted", FUNCTION)):
        values = [1e3 * each for each in seconds.by_name[who]]
        figures.append(Figure(f"{name}_ms", median(values), "ms", None, values, better="low"))
    return figures


# The last is what answers where a model cannot be converted.
PREDICT, LOADED, FUNCTION = "keras.Model.predict", "load_model(…).predict", "the same, not converted"


def measure_keras(folder: Path, repeats: int, calls: int) -> None:
    """Print the median seconds of one image, a line for each way and repeat; the ways take turns."""
    import keras

    from ..joint_inference.loading import load_model
    from ..lib.runners.opening import open_runner

    model = keras.saving.load_model(folder / "m.keras")
    loaded, function = load_model(folder / "m.keras", for_inference=True), open_runner(folder / "m.keras")
    image = np.random.default_rng(1).uniform(0, 255, (1, *IMAGE)).astype(np.float32)
    ways: Mapping[str, tuple[Callable[[], object], int]] = {
        PREDICT: (lambda: model.predict(image, verbose=0), max(10, calls // 20)),
        LOADED: (lambda: loaded.predict(image), calls),
        FUNCTION: (lambda: function.run({"image": image}), calls),
    }
    for call, _ in ways.values():
        call()
    for _ in range(repeats):
        for name, (call, count) in ways.items():
            print(name, median([_seconds(call) for _ in range(count)]))


def litert_figures(folder: Path, repeats: int, calls: int, seconds: Seconds) -> list[Figure]:  # noqa: ARG001
    """Measure a process that imports Solar Corona, loads a LiteRT file and predicts with it."""
    found = [tuple(map(float, _python(EDGE, folder / "m.tflite").split())) for _ in range(repeats + 1)]
    # The first one reads files that the others find in memory.
    imports, resident = [each[0] for each in found[1:]], [each[1] for each in found[1:]]
    return [
        Figure("litert_import_seconds", median(imports), "s", 0.6, imports, better="low"),
        Figure("litert_resident_mib", median(resident), "MiB", 80.0, resident, better="low"),
    ]


# Each part adds its figures, and what one image took to the picture.
PARTS: Mapping[str, Callable[[Path, int, int, Seconds], list[Figure]]] = {
    "keras": keras_figures,
    "litert": litert_figures,
}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _python(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=worker_environment(ENVIRONMENT),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a measured process failed:\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
