# SPDX-License-Identifier: Apache-2.0
"""Which format a model is of: its name and what is in it have to agree before an engine sees a byte of it."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core.errors import ModelError
from . import protobuf

__all__ = ["Format", "format_of"]

Format = Literal["keras", "tensorflow_savedmodel", "litert", "onnx"]

_ENDINGS: dict[str, Format] = {".keras": "keras", ".tflite": "litert", ".onnx": "onnx"}
_SHOWN = {
    "keras": "a Keras model (.keras)",
    "litert": "a LiteRT model (.tflite)",
    "onnx": "an ONNX model (.onnx)",
}
_HEAD_BYTES = 512


@dataclass(frozen=True)
class _Other:
    """Something that is often found where a model is expected."""

    starts: tuple[bytes, ...]
    what: str
    fix: str


_OTHERS = (
    _Other((b"\x89HDF\r\n",), "a Keras model of the old HDF5 form", "load it with Keras and save it as .keras"),
    _Other((b"version https://git-lfs",), "a Git LFS pointer, not the model", "run git lfs pull"),
    _Other((b"<!doctype", b"<html", b"<?xml"), "a web page, not a model", "fetch the model's own address"),
    _Other((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle, which can run any code", "export to .onnx"),
)


def format_of(path: Path, *, name: str) -> Format:
    """Return the format of the model at a path on this machine.

    Parameters
    ----------
    path
        File or folder.
    name
        How messages name it.

    Raises
    ------
    ModelError
        If it is empty, cut off, of a format that is not known, or of another than its name says.
    """
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "tensorflow_savedmodel"
        raise ModelError(f"{name}: expected a SavedModel folder with saved_model.pb in it; check the path")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise ModelError(f"{name}: is empty; fetch or save the model anew")
    said, found = _ENDINGS.get(path.suffix), _told_by(head, path)
    if said is None:
        hint = f"it is {_SHOWN[found]}: rename it" if found else "save the model as one of these"
        raise ModelError(
            f"{name}: {path.suffix or 'no ending'} is no form of a model that runs here; expected .keras, .tflite, "
            f".onnx, or a SavedModel folder; {hint}"
        )
    if found is not None and found != said:
        raise ModelError(f"{name}: is {_SHOWN[found]} by what is in it; give it that ending, or fetch the right file")
    if found is None:
        raise _unlike(head, said, name)
    return said


def _told_by(head: bytes, path: Path) -> Format | None:
    if head[4:8] == b"TFL3":
        return "litert"
    if head.startswith(b"PK\x03\x04"):
        return "keras" if _is_keras(path) else None
    return "onnx" if protobuf.looks_like_onnx(head) else None


def _is_keras(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "config.json" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        # The list of an archive stands at its end: without it, the name's word stands, and Keras's reader says why.
        return path.suffix == ".keras"


def _unlike(head: bytes, said: Format, name: str) -> ModelError:
    text = head.lstrip().lower()
    for other in _OTHERS:
        if text.startswith(tuple(start.lower() for start in other.starts)):
            return ModelError(f"{name}: is {other.what}; expected {_SHOWN[said]}: {other.fix}")
    return ModelError(f"{name}: is not {_SHOWN[said]}, or is damaged; fetch or save it anew")
