# SPDX-License-Identifier: Apache-2.0
"""Turns a Keras model into a LiteRT one that answers the same, once: the file is kept beside the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError, PlatformError
from ...core.files import atomic_write, sha256_of, write_bytes_atomic
from ..tensors import Tensors, TensorSpec
from ..verification import verified

if TYPE_CHECKING:
    from .keras_runner import KerasRunner
    from .litert_runner import LiteRtRunner
    from .runner import Runner

__all__ = ["conversion_path", "convert", "difference", "kept_conversion"]

_log = logging.getLogger(__name__)

_RANDOM_SAMPLES = 4
_MOST_SAMPLES = 256
_VARIABLE_SIZE = 32
# Of the largest output: float32 sums in another order stay far below it, a wrong operation far above.
_TOLERANCE = 1e-3
_SHOWN_BYTES = 400
_MOST_RECORD_BYTES = 1 << 20
_SHA256_DIGITS = 16


@dataclass(frozen=True)
class _Record:
    """What stands beside a kept conversion: its fingerprint, and the order of its tensors, which LiteRT sorts."""

    sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def read(cls, kept: Path) -> _Record | None:
        try:
            with _record_path(kept).open("rb") as file:
                said = json.loads(file.read(_MOST_RECORD_BYTES))
            return cls(str(said["sha256"]), tuple(map(str, said["inputs"])), tuple(map(str, said["outputs"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, kept: Path) -> None:
        write_bytes_atomic(_record_path(kept), f"{json.dumps(asdict(self), indent=2)}\n".encode())


def conversion_path(path: Path, sha256: str) -> Path:
    """Return where the LiteRT form of the Keras model at `path` is kept: beside it, under its fingerprint."""
    return path.with_name(f"{path.name}.{sha256[:_SHA256_DIGITS]}.tflite")


def kept_conversion(path: Path, sha256: str, *, name: str, threads: int) -> LiteRtRunner | None:
    """Return the runner of a conversion that an earlier `convert` kept, or None if there is none that is whole.

    Parameters
    ----------
    path
        The Keras model.
    sha256
        Its fingerprint.
    name
        How messages name it.
    threads
        How many threads compute.
    """
    kept = conversion_path(path, sha256)
    record = _Record.read(kept)
    # The record is written last: without it the conversion was cut short.
    if record is None or not kept.is_file():
        return None
    try:
        from .litert_runner import LiteRtRunner

        with verified(kept, record.sha256, folder=False) as local:
            return LiteRtRunner(local, name=name, threads=threads, order=(record.inputs, record.outputs))
    except ImportError:
        # What makes it anew says what is missing.
        return None
    except ModelError as error:
        _log.warning("%s; it is made anew", error)
        return None


def convert(
    runner: KerasRunner, path: Path | None, sha256: str, *, name: str, samples: Tensors | None = None, threads: int = 1
) -> Runner:
    """Return a LiteRT runner that answers as a Keras model does, or its own runner with a note in the log.

    Parameters
    ----------
    runner
        Of the Keras model; closed if it is no longer needed.
    path
        Where the model is, to keep the conversion beside it; None keeps none.
    sha256
        The model's fingerprint.
    name
        How messages name the model.
    samples
        Inputs on which both must answer the same, beside random ones.
    threads
        How many threads compute.
    """
    try:
        with TemporaryDirectory(prefix="solar-corona-") as folder:
            made = Path(folder, "model.tflite")
            made.write_bytes(_converted(runner))
            converted = _checked(runner, made, name=name, samples=samples, threads=threads)
            if path is not None:
                _keep(made, conversion_path(path, sha256), converted)
                _forget_others(path, conversion_path(path, sha256))
    except (ImportError, ModelError) as error:
        _log.warning("%s: stays a Keras model, which answers more slowly than LiteRT: %s", name, error)
        return runner
    runner.close()
    return converted


def difference(one: Runner, other: Runner, batches: Iterator[Tensors]) -> str | None:
    """Say how two runners differ on some batches, or None if they answer the same.

    Floats are the same if each is within 0.1 % of the largest, and the largest along the last axis is the same one
    where it stands out by more than that. All else must be equal.
    """
    for batch in batches:
        wanted, found = one.run(batch), other.run(batch)
        for name, value in wanted.items():
            problem = _value_difference(value, found[name])
            if problem is not None:
                return f"output {name!r} {problem}"
    return None


def _value_difference(wanted: NDArray[Any], found: NDArray[Any]) -> str | None:
    if wanted.shape != found.shape:
        return f"has shape {list(found.shape)} instead of {list(wanted.shape)}"
    if wanted.dtype.kind != "f":
        return None if np.array_equal(wanted, found) else "differs"
    finite = np.abs(wanted[np.isfinite(wanted)])
    allowed = _TOLERANCE * max(float(finite.max(initial=0.0)), 1e-6)
    if not np.allclose(found, wanted, rtol=0.0, atol=allowed, equal_nan=True):
        far = float(np.nan_to_num(np.abs(found - wanted), nan=np.inf).max())
        return f"differs by up to {far:.3g}, and {allowed:.3g} is allowed"
    if wanted.ndim > 1 and wanted.shape[-1] > 1:
        ordered = np.sort(wanted, axis=-1)
        clear = ordered[..., -1] - ordered[..., -2] > 2 * allowed
        if np.any((wanted.argmax(-1) != found.argmax(-1)) & clear):
            return "has its largest number elsewhere"
    return None


def _converted(runner: KerasRunner) -> bytes:
    """Return the LiteRT file of a Keras model, with the same names and LiteRT's own operations alone."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ModelError(f"Keras runs on {keras.backend.backend()} here, and only TensorFlow converts")
    import tensorflow as tf

    module = tf.Module()
    # What the module holds is saved with it, and becomes constants of the file.
    module.weights = [each.value for each in runner.model.variables]
    function = runner.exported()
    try:
        with TemporaryDirectory(prefix="solar-corona-") as folder:
            tf.saved_model.save(module, folder, signatures={"serving_default": function})
            converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
            return bytes(converter.convert())
    except Exception as error:
        # The converter raises errors of its own that go on for pages.
        text = " ".join(str(error).split())[:_SHOWN_BYTES]
        raise ModelError(f"it cannot be converted ({type(error).__name__}: {text})") from error


def _checked(runner: Runner, made: Path, *, name: str, samples: Tensors | None, threads: int) -> LiteRtRunner:
    from .litert_runner import LiteRtRunner

    order = tuple(tuple(spec.name for spec in specs) for specs in (runner.inputs, runner.outputs))
    converted = LiteRtRunner(made, name=name, threads=threads, order=(order[0], order[1]))
    for what, wanted, found in (
        ("inputs", runner.inputs, converted.inputs),
        ("outputs", runner.outputs, converted.outputs),
    ):
        if _described(wanted) != _described(found):
            raise ModelError(f"its {what} change from {_described(wanted)} to {_described(found)} in LiteRT")
    problem = difference(runner, converted, _batches(runner.inputs, samples))
    if problem is not None:
        raise ModelError(f"LiteRT does not answer the same: {problem}")
    return converted


def _described(specs: tuple[TensorSpec, ...]) -> list[tuple[str, str, int]]:
    return sorted((spec.name, spec.datatype, len(spec.shape)) for spec in specs)


def _batches(specs: tuple[TensorSpec, ...], samples: Tensors | None) -> Iterator[Tensors]:
    """Yield what the user gave, then random batches of several ranges, then one sample alone."""
    if samples is not None:
        yield {name: value[:_MOST_SAMPLES] for name, value in samples.items()}
    rng = np.random.default_rng(0)
    for draw in (_normal, _pixels, _unit):
        batch = {spec.name: _random(spec, rng, draw, samples) for spec in specs}
        yield batch
    yield {name: value[:1] for name, value in batch.items()}


def _random(spec: TensorSpec, rng: np.random.Generator, draw: Any, samples: Tensors | None) -> NDArray[Any]:
    like = spec.shape[1:] if samples is None else samples[spec.name].shape[1:]
    shape = (_RANDOM_SAMPLES, *(size if size > 0 else _VARIABLE_SIZE for size in like))
    kind, dtype = spec.dtype.kind, spec.dtype
    if kind == "f":
        return np.asarray(draw(rng, shape), dtype)
    if spec.datatype in ("UINT8", "INT8"):
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    # What other integers stand for, and so which there are, only the user knows: 0 and 1 are there in most models.
    return rng.integers(0, 2, shape).astype(dtype)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return rng.normal(size=shape)


def _pixels(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return rng.uniform(0, 255, shape)


def _unit(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return rng.uniform(0, 1, shape)


def _keep(made: Path, kept: Path, converted: LiteRtRunner) -> None:
    names = [tuple(spec.name for spec in specs) for specs in (converted.inputs, converted.outputs)]
    try:
        with atomic_write(kept) as temporary:
            temporary.write_bytes(made.read_bytes())
        _Record(sha256_of(made), *names).write(kept)
    except PlatformError as error:
        _log.warning("the conversion is not kept, so that it is made anew at the next start: %s", error)


def _forget_others(path: Path, kept: Path) -> None:
    """Remove the conversions of what was at `path` before."""
    for old in path.parent.glob(f"{escape(path.name)}.{'[0-9a-f]' * _SHA256_DIGITS}.tflite"):
        if old != kept:
            _record_path(old).unlink(missing_ok=True)
            old.unlink(missing_ok=True)


def _record_path(kept: Path) -> Path:
    return kept.with_name(f"{kept.name}.json")
