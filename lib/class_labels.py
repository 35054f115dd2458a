# SPDX-License-Identifier: Apache-2.0
"""Labels as losses and metrics get them from Keras: whole numbers, with or without an axis of their own."""

from __future__ import annotations

from typing import Any

from keras import ops

from ..core import errors

__all__ = ["class_numbers"]


def class_numbers(y_true: Any, y_pred: Any) -> Any:
    """Return labels as int32 of the shape of the outputs without their last axis.

    Raises
    ------
    ModelError
        If they are of another shape.
    """
    if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, axis=-1)
    if len(y_true.shape) != len(y_pred.shape) - 1:
        raise errors.ModelError(
            f"the labels have shape {tuple(y_true.shape)} and the model's outputs {tuple(y_pred.shape)}, "
            f"expected whole numbers or one column for each of {y_pred.shape[-1]} classes; "
            f"change the last layer or the labels"
        )
    return ops.cast(y_true, "int32")
