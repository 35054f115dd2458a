# SPDX-License-Identifier: Apache-2.0
"""Offload algorithms by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import ModelError
from ..core.files import local_path, sha256_of
from ..core.inference_spec import Offload
from ..core.named import known_or_imported
from .calibrated import Calibrated, calibration_file
from .entropy import Entropy
from .ibt import IBT
from .learned import Learned
from .margin import Margin
from .offload import OffloadAlgorithm
from .threshold import Threshold

__all__ = ["ALGORITHMS", "choose", "create"]

ALGORITHMS: Mapping[str, Callable[..., OffloadAlgorithm]] = {
    "calibrated": Calibrated,
    "entropy": Entropy,
    "ibt": IBT,
    "learned": Learned,
    "margin": Margin,
    "threshold": Threshold,
}


def choose(
    asked: OffloadAlgorithm | str | None, of_job: Offload | None, *, model: str | os.PathLike[str] | None = None
) -> OffloadAlgorithm:
    """Return the algorithm that a script asks for, else the job's, else margin.

    Parameters
    ----------
    asked
        An algorithm, or its name.
    of_job
        What the job says.
    model
        The shallow model's path; a calibration is read from beside it.

    Raises
    ------
    ModelError
        If it is no algorithm, or does not take the options.
    """
    found: object = asked
    if isinstance(asked, str):
        found = create(asked, {})
    elif asked is None:
        found = create(of_job.algorithm, of_job.options) if of_job is not None else Margin()
    if isinstance(found, type):
        raise ModelError(f"cloud_offload_algorithm is the class {found.__name__}; make one of it: {found.__name__}(…)")
    if not isinstance(found, OffloadAlgorithm):
        raise ModelError(
            f"cloud_offload_algorithm is a {type(asked).__name__}; expected an object with decide(scores) and "
            f"describe(), such as IBT(upload_ratio=0.5), or a name: {', '.join(ALGORITHMS)}"
        )
    place = local_path(model) if model is not None else None
    if isinstance(found, Calibrated) and not found.is_fitted and place is not None:
        found.load(calibration_file(place), model_sha256=sha256_of(place) if place.exists() else None)
    return found


def create(name: str, options: Mapping[str, Any]) -> OffloadAlgorithm:
    """Return the algorithm of a name, or of `module:Class`.

    Raises
    ------
    ModelError
        If there is none, or it does not take the options.
    """
    make = known_or_imported(name, ALGORITHMS, "offload algorithm", error=ModelError)
    try:
        made = make(**options)
    except TypeError as error:
        raise ModelError(f"offload algorithm {name!r} does not take these options: {error}") from error
    if not isinstance(made, OffloadAlgorithm):
        raise ModelError(f"{name} has not the methods decide(scores) and describe() of an offload algorithm")
    return made
