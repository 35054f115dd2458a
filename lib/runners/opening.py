# SPDX-License-Identifier: Apache-2.0
"""Opens a saved model to run it, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ModelError
from ...core.files import local_path, sha256_of, shown
from ..verification import expected_sha256, suffix_of, verified
from . import flatbuffer, protobuf
from .formats import Format, format_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..tensors import Tensors
    from .runner import Runner

__all__ = ["open_runner"]

_EXTRAS: dict[Format, tuple[str, str]] = {
    "keras": ("Keras", "tensorflow"),
    "tensorflow_savedmodel": ("TensorFlow", "tensorflow"),
    "litert": ("LiteRT", "litert"),
    "onnx": ("ONNX Runtime", "onnx"),
}


def open_runner(
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    threads: int = 1,
    convert: bool = False,
    samples: Tensors | None = None,
) -> Runner:
    """Return what runs the model at a path or URL, of whatever format it is.

    ============ ======================= ==================================================================
    name         format                  needs
    ============ ======================= ==================================================================
    `m.keras`    Keras v3, safe mode     `solar-corona[tensorflow]`, or Keras with the JAX or torch backend
    `m` (folder) TensorFlow's SavedModel `solar-corona[tensorflow]`
    `m.tflite`   LiteRT                  `solar-corona[litert]`
    `m.onnx`     ONNX                    `solar-corona[onnx]`
    ============ ======================= ==================================================================

    Parameters
    ----------
    path
        File, folder, or a URL that fsspec opens.
    sha256
        Fingerprint that the model must have; by default the job's, where it is the job's model, else that of the card
        beside it, where there is one.
    custom_objects
        For a `.keras` file: Keras classes and functions of your own by their names.
    threads
        How many threads compute, for LiteRT and ONNX; TensorFlow's are the process's, set by
        `TF_NUM_INTRAOP_THREADS`.
    convert
        Whether a `.keras` file is run by LiteRT, which answers single samples several times faster. It is converted
        once: the file is kept beside the model, and the next start needs no TensorFlow. If the two do not answer the
        same, or it cannot be converted, the Keras model runs, and the log says why.
    samples
        For `convert`: inputs on which both must answer the same, beside random ones.

    Raises
    ------
    ModelError
        If there is no such model, its fingerprint is another, it is damaged, of another format than its name says, or
        what runs it is not installed.
    TemporaryError
        If a server cannot be reached.
    """
    if threads < 1:
        raise ModelError(f"threads is {threads}, expected a whole number from 1")
    name = shown(path)
    here = local_path(path)
    folder = here.is_dir() if here is not None else suffix_of(path) == ""
    with verified(path, sha256, folder=folder) as local:
        form = format_of(local, name=name)
        if form == "litert":
            flatbuffer.check_litert(local, name=name)
        if form == "onnx":
            _check_onnx(local, name, expected_sha256(path, sha256))
        try:
            if form == "keras" and convert:
                return _converted(local, here, name, custom_objects, threads, samples)
            return _opened(local, form, name, custom_objects, threads)
        except ImportError as error:
            engine, extra = _EXTRAS[form]
            raise ModelError(f"{name}: needs {engine} ({error}); pip install 'solar-corona[{extra}]'") from error


def _opened(path: Path, form: Format, name: str, custom_objects: Mapping[str, Any] | None, threads: int) -> Runner:
    # Each engine takes a second or hundred megabytes: only the one that is needed is imported.
    if form == "litert":
        from .litert_runner import LiteRtRunner

        return LiteRtRunner(path, name=name, threads=threads)
    if form == "onnx":
        from .onnx_runner import OnnxRunner

        return OnnxRunner(path, name=name, threads=threads)
    if form == "keras":
        from .keras_runner import KerasRunner

        return KerasRunner.load(path, name=name, custom_objects=custom_objects)
    from .saved_model_runner import SavedModelRunner

    return SavedModelRunner(path, name=name)


def _converted(
    path: Path,
    here: Path | None,
    name: str,
    custom_objects: Mapping[str, Any] | None,
    threads: int,
    samples: Tensors | None,
) -> Runner:
    from . import conversion

    sha256 = sha256_of(path)
    if here is not None:
        kept = conversion.kept_conversion(here, sha256, name=name, threads=threads)
        if kept is not None:
            return kept
    from .keras_runner import KerasRunner

    runner = KerasRunner.load(path, name=name, custom_objects=custom_objects)
    return conversion.convert(runner, here, sha256, name=name, samples=samples, threads=threads)


def _check_onnx(path: Path, name: str, fingerprint: tuple[str, str] | None) -> None:
    external = protobuf.check_onnx(path, name=name)
    if external and fingerprint is not None:
        raise ModelError(
            f"{name}: keeps weights in {external[0]}, which the fingerprint ({fingerprint[1]}'s) does not cover; save "
            f"it in one file: onnx.save(onnx.load(…), …), and take that file's fingerprint"
        )
