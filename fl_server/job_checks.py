# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a job that reads well, found before anything is started on this machine."""

from __future__ import annotations

import sys
from tempfile import TemporaryFile

from ..core.errors import ModelError, PlatformError, SpecError
from ..core.job_file import JobFile
from ..core.preparation import check_dataset, check_model, check_script, place_of, source_path
from ..core.settings import quiet_engines
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
                check_dataset(file, f"edge {edge.name}: {field}", source)
        check_model(file, "spec.model", file.job.spec.model)
    _check_output(file)
    _check_strategy(file)


def _check_output(file: JobFile) -> None:
    """Refuse a place where the model could not be written, or where something else would be lost."""
    spec = file.job.spec
    place, where = place_of(file, spec.output.model), f"{file.path}: spec.output.model is {spec.output.model}"
    if place is None:
        return
    inputs = {"the job file": str(file.path.resolve()), "the script": spec.script}
    for edge in spec.edges:
        inputs[f"{edge.name}'s trainData"] = source_path(edge.train_data, "dataset", file.datasets)
        inputs[f"{edge.name}'s evalData"] = source_path(edge.eval_data, "dataset", file.datasets)
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
