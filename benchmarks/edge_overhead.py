# SPDX-License-Identifier: Apache-2.0
"""What an edge pays beside its model: `predict` against the bare interpreter and `keras.Model.predict`, and a process.

The interpreter runs a shallow model of 45 KB in LiteRT, and one like it in ONNX Runtime, as one would call it by hand:
one image in, its probabilities out. `predict` of `load_model` gets the same images, with an offload algorithm that
looks at each and sends none. Both take turns image by image. Images have 96 pixels a side, for which LiteRT takes some
tenths of a millisecond, and 32, for which it takes so little that any Python around it shows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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

    def take(self, printed: str) -> None:
        """Note what a measured process printed: a name and a repeat in each line."""
        for line in printed.splitlines():
            name, value = line.rsplit(" ", 1)
            self.add(name, float(value))

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
    """Write shallow classifiers, `m.keras` of 25 KB and one for each side, and what `open_runner` makes of them."""
    _python(
        """
import sys
from pathlib import Path
import keras
from solar_corona.benchmarks._cascade import shallow_model
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
for side in (96, 32):
    shallow_model((side, side, 3)).save(folder / f"{side}.keras")
for name in ("m", "96", "32"):
    path = folder / f"{name}.keras"
    runner = open_runner(path, convert=True)
    assert runner.platform == "litert", "the conversion failed; its note stands above"
    conversion_path(path, sha256_of(path)).rename(path.with_suffix(".tflite"))
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
    seconds.take(_python(code, folder))
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


def predict_figures(folder: Path, repeats: int, calls: int, seconds: Seconds) -> list[Figure]:
    """Compare `predict`, with an algorithm that sends nothing, with the bare interpreter of the same format."""
    code = f"""
import sys
from pathlib import Path
from solar_corona.benchmarks.edge_overhead import measure_predict
measure_predict(Path(sys.argv[1]), {repeats}, {calls})
"""
    seconds.take(_python(code, folder))
    figures = []
    for kind in FORMATS:
        for side in SIDES:
            bare, ours = (seconds.by_name[f"{who}, {kind}, {side} px"] for who in (BARE, OFFLOADING))
            added = [1e6 * (b - a) for a, b in zip(bare, ours, strict=True)]
            shares = [(b - a) / a for a, b in zip(bare, ours, strict=True)]
            name = ("" if kind == FORMATS[0] else f"_{kind}") + ("" if side == SIDES[0] else f"_{side}px")
            figures += [
                Figure(f"added_share{name}", median(shares), "of the interpreter's", 0.1, shares, "low"),
                Figure(f"added_us{name}", median(added), "us", 50.0, added, "low"),
                Figure(f"bare_us{name}", 1e6 * median(bare), "us", None, [1e6 * each for each in bare], "low"),
            ]
    return figures


FORMATS, SIDES = ("litert", "onnx"), (96, 32)
BARE, OFFLOADING = "bare interpreter", "predict, nothing sent"


def measure_predict(folder: Path, repeats: int, calls: int) -> None:
    """Print the median seconds of one image, a line for each format, way and repeat; the ways take turns."""
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    from ..joint_inference import Margin
    from ..joint_inference.loading import load_model
    from ._serving_models import ServedCnn

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for side in SIDES:
        images = np.random.default_rng(1).uniform(0, 255, (200, 1, side, side, 3))
        interpreter = Interpreter(model_path=str(folder / f"{side}.tflite"), num_threads=1)
        interpreter.allocate_tensors()
        given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        path = ServedCnn(f"{side}", side=side, stages=((16,), (24,), (32,)), dense=32).save(folder)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def litert(image: Any, interpreter: Any = interpreter, given: int = given, made: int = made) -> Any:
            interpreter.set_tensor(given, image)
            interpreter.invoke()
            return interpreter.get_tensor(made)

        def onnx(image: Any, session: Any = session) -> Any:
            return session.run(None, {"image": image})[0]

        for kind, bare, dtype in (("litert", litert, np.float32), ("onnx", onnx, np.uint8)):
            file = path if kind == "onnx" else folder / f"{side}.tflite"
            algorithm = Margin(threshold=0.0)
            with load_model(file, cloud_offload_algorithm=algorithm, big_model_endpoint=lambda batch: batch) as model:
                batch = images.astype(dtype)
                np.testing.assert_allclose(model.predict(batch[0]), bare(batch[0]), atol=1e-5)
                for _ in range(repeats):
                    for name, value in zip(
                        (BARE, OFFLOADING), _in_turns((bare, model.predict), batch, calls), strict=True
                    ):
                        print(f"{name}, {kind}, {side} px", value)


def _in_turns(calls: Sequence[Callable[[Any], Any]], batch: Any, count: int) -> list[float]:
    """Return the median seconds of each call, which get the same images in turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(count):
        image = batch[number % len(batch)]
        # Who comes second finds the image in the processor's cache: each is second as often.
        for place in range(len(calls))[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            calls[place](image)
            taken[place].append(time.perf_counter() - start)
    return [median(values) for values in taken]


# Each part adds its figures, and what one image took to the picture.
PARTS: Mapping[str, Callable[[Path, int, int, Seconds], list[Figure]]] = {
    "predict": predict_figures,
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
