# SPDX-License-Identifier: Apache-2.0
"""Finds models and their versions on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ModelError, SpecError

__all__ = ["Fingerprint", "ModelPlace", "find_models", "fingerprint"]

Fingerprint = tuple[tuple[str, int, int], ...]
"""Name, size and time of each file of a model, to see whether it is another one now."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_SUFFIXES = (".onnx", ".tflite", ".keras")
_SAVED_MODEL = "saved_model.pb"
_FORMS = "a .onnx, .tflite or .keras file, or a SavedModel folder"


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is.

    Parameters
    ----------
    name
        Under which it is served.
    path
        A model, which is its version 1, or a folder `VERSION/model`, versions being whole numbers.
    """

    name: str
    path: Path

    def versions(self) -> dict[str, Path]:
        """Return the versions that are there now, lowest first.

        Raises
        ------
        ModelError
            If there is none, or a version's folder does not hold just one model.
        """
        if _is_model(self.path):
            return {"1": self.path}
        if not self.path.exists():
            raise ModelError(f"{self.path}: there is no such model; expected {_FORMS}, or a folder of versions")
        folders = _numbered(self.path)
        if not folders:
            raise ModelError(f"{self.path}: is no model; expected {_FORMS}, or a folder of versions such as 1/")
        return {folder.name: _only_model(folder) for folder in folders}


def fingerprint(path: Path) -> Fingerprint:
    """Return the fingerprint of a model's files."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return tuple(
        (str(each.relative_to(path)), stat.st_size, stat.st_mtime_ns) for each in files for stat in (each.stat(),)
    )


def find_models(arguments: Sequence[str]) -> tuple[ModelPlace, ...]:
    """Return the models that a command line names.

    ====================== =============================================================
    argument               what is served
    ====================== =============================================================
    `digits.onnx`          the model as `digits`, version 1
    `mine=digits.onnx`     the same as `mine`
    `models/digits`        a folder of versions (`1/model.onnx`, `2/…`), as `digits`
    `models`               a folder of such folders and of models, each under its name
    ====================== =============================================================

    Raises
    ------
    SpecError
        If a name cannot be part of a URL, or two models have one name.
    ModelError
        If there is no model at a path.
    """
    found: dict[str, ModelPlace] = {}
    for place in (place for argument in arguments for place in _places(argument)):
        if not _NAME.fullmatch(place.name):
            raise SpecError(
                f"{place.name!r} cannot be a model's name; expected up to 128 letters, digits, '.', '_' or '-'; "
                f"name it with NAME={place.path}"
            )
        if place.name in found:
            raise SpecError(
                f"{found[place.name].path} and {place.path} are both named {place.name!r}; name one with NAME=PATH"
            )
        found[place.name] = place
    return tuple(found.values())


def _places(argument: str) -> Iterator[ModelPlace]:
    name, named, rest = argument.partition("=")
    if named and not Path(argument).exists():
        place = ModelPlace(name, Path(rest))
        place.versions()
        yield place
        return
    path = Path(argument)
    if _is_model(path) or not path.is_dir() or _numbered(path):
        place = ModelPlace(_stem(path), path)
        place.versions()
        yield place
        return
    inner = [each for each in sorted(path.iterdir()) if _is_model(each) or (each.is_dir() and _numbered(each))]
    if not inner:
        raise ModelError(f"{path}: holds no model; expected {_FORMS}, a folder of versions, or a folder of those")
    for each in inner:
        place = ModelPlace(_stem(each), each)
        place.versions()
        yield place


def _stem(path: Path) -> str:
    path = path.resolve()
    return path.stem if path.suffix in _SUFFIXES else path.name


def _is_model(path: Path) -> bool:
    return (path.suffix in _SUFFIXES and path.is_file()) or (path / _SAVED_MODEL).is_file()


def _numbered(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    folders = [each for each in path.iterdir() if each.is_dir() and re.fullmatch(r"[1-9][0-9]{0,17}", each.name)]
    return sorted(folders, key=lambda each: int(each.name))


def _only_model(folder: Path) -> Path:
    if _is_model(folder):
        return folder
    models = [each for each in sorted(folder.iterdir()) if _is_model(each)]
    if len(models) != 1:
        names = ", ".join(each.name for each in models) or "none"
        raise ModelError(f"{folder}: holds {len(models)} models ({names}); expected just one, {_FORMS}")
    return models[0]
