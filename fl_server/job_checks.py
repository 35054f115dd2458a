# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a job that reads well, found before anything is started on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from tempfile import TemporaryFile

from ..core.errors import DatasetError, ModelError, PlatformError, SpecError
from ..core.job_file import JobFile
from ..core.preparation import check_exists, check_script, place_of
from ..core.settings import quiet_engines
from ..core.spec import Dataset, DatasetSource, Edge, Model, ModelSource
from ..lib.models import check_place

__all__ = ["check_job"]


def check_job(file: JobFile, *, edges_here: bool = True) -> None:
    """Check what a job needs beside its file: script, data, strategy, and a place for the model.

    Parameters
    ----------
    file
        The job.
    edges_here
        Whether the edges run on this machine too, so that their script and data must be here.

    Raises
    ------
    SpecError
        If the script is missing or is no Python, the strategy cannot be made, or the model would replace an input.
    DatasetError
        If a dataset is missing.
    ModelError
        If the model to start from is missing, or `output.model` cannot be a model's name.
    PlatformError
        If the model's folder cannot be written.
    """
    if edges_here:
        if file.job.spec.command is None:
            check_script(file, "spec.script", file.job.spec.script)
        for edge in file.job.spec.edges:
            for field, source in (("trainData", edge.train_data), ("evalData", edge.eval_data)):
                _check_dataset(file, edge, field, source)
        check_exists(file, "spec.model", _path_of(file.job.spec.model, "model", file.models), ModelError)
    _check_output(file)
    _check_strategy(file)


def _check_dataset(file: JobFile, edge: Edge, field: str, source: str | DatasetSource | None) -> None:
    check_exists(file, f"edge {edge.name}: {field}", _dataset_path(file, source), DatasetError)


def _path_of(
    source: str | DatasetSource | ModelSource | None, kind: str, documents: Mapping[str, Dataset | Model]
) -> str | None:
    """Return the path or URL of a source, or None where there is none, or no document of that name: plan() says so."""
    if not isinstance(source, str):
        return source.path if source is not None else None
    prefix, _, name = source.partition(":")
    if prefix != kind:
        return source
    return documents[name].spec.path if name in documents else None


def _dataset_path(file: JobFile, source: str | DatasetSource | None) -> str | None:
    return _path_of(source, "dataset", file.datasets)


def _check_output(file: JobFile) -> None:
    """Refuse a place where the model could not be written, or where something else would be lost."""
    spec = file.job.spec
    place, where = place_of(file, spec.output.model), f"{file.path}: spec.output.model is {spec.output.model}"
    if place is None:
        return
    inputs = {"the job file": str(file.path.resolve()), "the script": spec.script}
    for edge in spec.edges:
        inputs[f"{edge.name}'s trainData"] = _dataset_path(file, edge.train_data)
        inputs[f"{edge.name}'s evalData"] = _dataset_path(file, edge.eval_data)
    for what, path in inputs.items():
        used = place_of(file, path)
        if used is not None and place in (used, *used.parents):
            raise SpecError(f"{where}, where {what} is and would be lost; choose another name")
    try:
        check_place(place)
    except ModelError as error:
        raise SpecError(f"{file.path}: spec.output.model: {error}") from error
    folder = next(parent for parent in place.parents if parent.exists())
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PlatformError(
            f"{where}, and {folder} cannot be written ({error.strerror}); choose a folder that this user may write"
        ) from error


def _check_strategy(file: JobFile) -> None:
    quiet_engines()
    folder = str(file.path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a strategy of the user's own stands beside the job file
    from ..strategies import create

    spec = file.job.spec
    create(spec.algorithm, spec.aggregation.options, min_edges=spec.min_edges, fraction=spec.aggregation.fraction)
