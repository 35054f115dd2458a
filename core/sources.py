# SPDX-License-Identifier: Apache-2.0
"""What a job names, resolved: paths from where a worker sees them, and the Dataset and Model documents of its file."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from .errors import SpecError
from .job_file import JobFile
from .spec_parts import DatasetSource, ModelSource

__all__ = ["dataset_source", "is_absolute", "joined", "model_source"]

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+(://|::)")


def is_absolute(path: str) -> bool:
    """Tell whether a path is a URL or begins at the root."""
    return bool(_URL.match(path)) or path.startswith("/")


def joined(base: str, path: str) -> str:
    """Return a path relative to `base`, or as it is where it is absolute."""
    return path if is_absolute(path) else posixpath.normpath(posixpath.join(base, path))


def dataset_source(file: JobFile[Any], source: str | DatasetSource, base: str, where: str) -> DatasetSource:
    """Return a dataset as a worker opens it; `where` names the field for errors.

    Raises
    ------
    SpecError
        If it names a Dataset that the file does not hold.
    """
    if isinstance(source, str):
        kind, _, name = source.partition(":")
        if kind == "dataset":
            if name not in file.datasets:
                raise SpecError(_unknown(file, where, "Dataset", name, list(file.datasets)))
            source = file.datasets[name].spec
        else:
            source = DatasetSource(path=source)
    return source.model_copy(update={"path": joined(base, source.path)})


def model_source(file: JobFile[Any], source: str | ModelSource, base: str, where: str) -> ModelSource:
    """Return a model as a worker opens it; see `dataset_source`."""
    if isinstance(source, str):
        kind, _, name = source.partition(":")
        if kind == "model":
            if name not in file.models:
                raise SpecError(_unknown(file, where, "Model", name, list(file.models)))
            source = file.models[name].spec
        else:
            source = ModelSource(path=source)
    return source.model_copy(update={"path": joined(base, source.path)})


def _unknown(file: JobFile[Any], where: str, kind: str, name: str, known: list[str]) -> str:
    have = f"it has: {', '.join(sorted(known))}" if known else "it has none"
    return f"{file.path}: {where} names the {kind} {name!r}, which is not in this file; {have}. Add it after a line ---"
