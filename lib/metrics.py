# SPDX-License-Identifier: Apache-2.0
"""A metric that a common class cannot decorate: accuracy averaged over classes."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ..core import errors
from .class_labels import class_numbers

__all__ = ["ADifferentCategoricalAccuracy"]


@keras.saving.register_keras_serializable(package="solar_corona")
class ADifferentCategoricalAccuracy(keras.metrics.Metric):  # type: ignore[misc]
    """Balanced accuracy: the mean, over the classes that occur, of the share of each that was found.

    On an edge where nine of ten samples are of one class, always answering that class scores 0.9 in plain
    accuracy and 1 / classes here. Where all classes are equally frequent the two are the same.

    Parameters
    ----------
    num_classes
        Number of classes; by default that of the first outputs seen.
    name
        Name in Keras's logs. The default is the one that plain accuracy has, so that tables, callbacks and
        the round's report find it under `accuracy`; give another to compile it beside plain accuracy.
    dtype
        Type of the counts and of the result; by default Keras's `floatx`.

    Notes
    -----
    Counts are kept per class, so the result over many batches is that over all their samples at once, and
    not a mean of the batches' results. Without any sample it is 0.

    References
    ----------
    Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.
    """

    def __init__(self, num_classes: int | None = None, *, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}, expected a whole number from 2, or None")
        # Keras reads it in callbacks such as EarlyStopping(mode="auto").
        self._direction = "up"
        self.num_classes = num_classes
        self._found: Any = None
        self._seen: Any = None
        if num_classes is not None:
            self._create_counts(num_classes)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count one batch.

        Parameters
        ----------
        y_true
            Labels, one-hot or soft with shape (n, classes), or whole numbers with shape (n,) or (n, 1).
        y_pred
            Scores, shape (n, classes), logits or probabilities alike: the largest is the answer.
        sample_weight
            Weight of each sample, shape (n,) or (n, 1); by default 1.

        Raises
        ------
        ModelError
            If outputs or labels are not for this number of classes.
        """
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        classes = y_pred.shape[-1]
        if self._seen is None and classes is not None and classes >= 2:
            self._create_counts(classes)
        if self._seen is None or classes != self._seen.shape[0]:
            expected = "at least two" if self._seen is None else self._seen.shape[0]
            raise errors.ModelError(
                f"the model puts out {classes} value(s) a sample, expected {expected}, one for each class; "
                f"change its last layer, or use keras.metrics.BinaryAccuracy"
            )
        labels = ops.reshape(_labels(y_true, y_pred), (-1,))
        answers = ops.reshape(ops.argmax(y_pred, axis=-1), (-1,))
        found = ops.cast(ops.equal(ops.cast(answers, "int32"), labels), self.dtype)
        per_class = ops.one_hot(labels, classes, dtype=self.dtype)
        if sample_weight is not None:
            weights = ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
            per_class = per_class * weights
        self._seen.assign_add(ops.sum(per_class, axis=0))
        self._found.assign_add(ops.sum(per_class * ops.expand_dims(found, -1), axis=0))

    def result(self) -> Any:
        """Return the balanced accuracy, from 0 to 1."""
        if self._seen is None:
            return ops.zeros((), dtype=self.dtype)
        seen, found = ops.convert_to_tensor(self._seen), ops.convert_to_tensor(self._found)
        occurring = ops.sum(ops.cast(seen > 0, self.dtype))
        return ops.divide_no_nan(ops.sum(ops.divide_no_nan(found, seen)), occurring)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "num_classes": self.num_classes}

    def _create_counts(self, classes: int) -> None:
        self._found = self.add_variable(shape=(classes,), initializer="zeros", dtype=self.dtype, name="found")
        self._seen = self.add_variable(shape=(classes,), initializer="zeros", dtype=self.dtype, name="seen")


def _labels(y_true: Any, y_pred: Any) -> Any:
    classes, width = y_pred.shape[-1], y_true.shape[-1] if len(y_true.shape) else None
    if len(y_true.shape) == len(y_pred.shape) and width in (classes, None):
        return ops.cast(ops.argmax(y_true, axis=-1), "int32")
    return class_numbers(y_true, y_pred)
