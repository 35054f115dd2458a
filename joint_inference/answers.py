# SPDX-License-Identifier: Apache-2.0
"""The form in which answers go back to a script: as the model's own `predict` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..lib.scores import is_boxes
from .samples import Given

__all__ = ["Outputs", "fit", "in_form", "of_sample"]

Outputs = Mapping[str, NDArray[Any]]
"""A model's outputs by name, batch first."""


def in_form(outputs: Outputs, batch: Given) -> Any:
    """Return outputs as a model's own `predict` does: the array, or several by name; without a batch axis for one."""
    if batch.single:
        outputs = {name: value[0] for name, value in outputs.items()}
    return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)


def of_sample(result: Any, place: int, batch: Given) -> Any:
    """Return what a call's result says of one of its samples."""
    if batch.single or (len(batch) == 1 and is_boxes(result)):
        return result
    if isinstance(result, Mapping):
        return {name: value[place] for name, value in result.items()}
    if isinstance(result, list | tuple | np.ndarray) and len(result) == len(batch):
        return result[place]
    return result


def fit(own: Outputs, theirs: Outputs) -> bool:
    """Tell whether two models' outputs are of one form, sample by sample."""
    return [value.shape[1:] for value in own.values()] == [value.shape[1:] for value in theirs.values()]
