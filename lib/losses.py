# SPDX-License-Identifier: Apache-2.0
"""A loss for edges that each see other classes: cross-entropy adjusted by the edge's own label counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

from ..core import errors
from .class_labels import class_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ADifferentCategoricalCrossentropy"]

# A class that an edge never saw counts as one sample: its prior must be small, and its logarithm finite.
_PSEUDO_COUNT = 1.0
# Softmax outputs add up to one within half a digit of bfloat16, the coarsest type that models put out.
_SUM_TOLERANCE = 2.0**-8


@keras.saving.register_keras_serializable(package="solar_corona")
class ADifferentCategoricalCrossentropy(keras.losses.Loss):  # type: ignore[misc]
    r"""Categorical cross-entropy that does not teach a model how often its edge happens to see each class.

    With logits :math:`z` and this edge's label prior :math:`\pi`, the loss of a sample of class :math:`y` is

    .. math:: -\log \frac{\pi_y^\tau e^{z_y}}{\sum_c \pi_c^\tau e^{z_c}}

    The prior takes over what the edge's label counts alone would teach, so that the logits of classes that
    are rare here are not pushed down in the aggregated model. The prior is part of the training only:
    predictions are the model's own outputs.

    Until `set_class_counts` is called (or `class_counts` is given), with `tau=0`, with equal counts, and
    while `set_training(False)` holds, this is plain categorical cross-entropy.

    Parameters
    ----------
    tau
        Strength of the adjustment, from 0 (none). 1 is the value that is consistent for the balanced error
        where every class occurs. Where edges lack whole classes, 1 makes an edge's own problem so easy that
        little is learned from it; 0.5 was better in the measurements of `examples/04_label_skew`.
    from_logits
        Whether the model puts out logits (True) or probabilities (False). `"auto"` tells for each batch:
        outputs of which no one is negative and every row adds up to 1 (within 0.4 %) are probabilities, all
        others are logits. Both get the same adjustment, as the logarithm of a probability is a logit.
        Probabilities under 1e-30 count as 1e-30.
    label_smoothing
        Share in [0, 1) of each label that is spread evenly over all classes.
    class_counts
        Samples of each class that this edge trains on, shape (classes,), where they are known beforehand.
    reduction
        As in every Keras loss.
    name
        Name of the loss.
    dtype
        Type of the computation; by default Keras's `floatx`.

    Raises
    ------
    ValueError
        If `tau`, `from_logits` or `label_smoothing` is out of range.

    Notes
    -----
    Labels are one-hot or soft, shape (n, classes), or whole numbers, shape (n,) or (n, 1).

    Counts and the training switch live in Keras variables, so a step that TensorFlow has traced follows them.
    JAX compiles them into a step as constants: there, call `set_class_counts` before the first training step,
    and `set_training` before the first training step and before the first evaluation step.

    The configuration has the `class_counts` that were given to the constructor and never those of
    `set_class_counts`: what labels an edge holds does not leave it inside a saved model.

    References
    ----------
    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, arXiv:2007.07314.
    Zhang et al., "Federated learning with label distribution skew via logits calibration", ICML 2022,
    arXiv:2209.00189, for the federated case.
    """

    def __init__(
        self,
        tau: float = 0.5,
        *,
        from_logits: bool | Literal["auto"] = "auto",
        label_smoothing: float = 0.0,
        class_counts: Sequence[float] | np.ndarray | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "a_different_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not 0 <= tau < float("inf"):
            raise ValueError(f"tau is {tau}, expected a number from 0; 1 is the usual value")
        if from_logits not in (True, False, "auto"):
            raise ValueError(f"from_logits is {from_logits!r}, expected True, False or 'auto'")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected a number from 0 to below 1")
        self.tau = float(tau)
        self.from_logits = from_logits
        self.label_smoothing = float(label_smoothing)
        self._configured_counts = None if class_counts is None else _checked_counts(class_counts)
        self._counts = self._configured_counts
        self._training = keras.Variable(1.0, dtype="float32", trainable=False, name="training")
        self._log_prior: Any = None

    def set_class_counts(self, counts: Sequence[float] | np.ndarray) -> None:
        """Adjust from now on by these label counts.

        The training loop calls this once, before the first round.

        Parameters
        ----------
        counts
            Samples of each class that this edge trains on, shape (classes,), not negative. A class with none
            counts as one sample, and classes beyond the last count have none, so `numpy.bincount(labels)`
            will do. All zeros mean no adjustment.

        Raises
        ------
        DatasetError
            If the counts are not one row of finite numbers from 0.
        ModelError
            If there are counts for more classes than the model has outputs.
        """
        self._counts = _checked_counts(counts)
        if self._log_prior is not None:
            self._log_prior.assign(self._log_prior_of(int(self._log_prior.shape[0])))

    def set_training(self, training: bool) -> None:
        """Say whether the steps that follow are training (adjusted) or evaluation (plain cross-entropy).

        The training loop calls this with False before each evaluation and with True before each training; a
        loss cannot tell by itself. It starts with True.

        Parameters
        ----------
        training
            True for training.
        """
        self._training.assign(float(training))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each sample, shape (n,).

        Parameters
        ----------
        y_true
            Labels, one-hot or soft with shape (n, classes), or whole numbers with shape (n,) or (n, 1).
        y_pred
            Outputs of the model, shape (n, classes): logits or probabilities.

        Raises
        ------
        ModelError
            If the model has one output alone, or the labels or counts are for another number of classes.
        """
        classes = y_pred.shape[-1]
        if classes is None or classes < 2:
            raise errors.ModelError(
                f"the model puts out {classes} value(s) a sample, expected one for each class, two or more; "
                f"give its last layer a unit for each class, or use keras.losses.BinaryCrossentropy"
            )
        target = _one_hot(y_true, y_pred)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / classes
        logits = self._logits(y_pred)
        strength = self.tau * ops.cast(self._training, logits.dtype)
        logits = logits + strength * ops.cast(self._prior_term(classes), logits.dtype)
        return -ops.sum(target * ops.log_softmax(logits, axis=-1), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "tau": self.tau,
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
            "class_counts": None if self._configured_counts is None else self._configured_counts.tolist(),
            "dtype": self.dtype,
        }

    def _prior_term(self, classes: int) -> Any:
        if keras.config.backend() != "tensorflow":
            return self._log_prior_of(classes)
        if self._log_prior is None:
            # A step traced now sees counts that are set later only through a variable that exists by now.
            self._log_prior = keras.Variable(
                lambda shape, dtype: ops.convert_to_tensor(self._log_prior_of(shape[0]), dtype),
                shape=(classes,),
                dtype="float32",
                trainable=False,
                name="log_prior",
            )
        _check_classes(counted=int(self._log_prior.shape[0]), outputs=classes)
        return self._log_prior

    def _log_prior_of(self, classes: int) -> np.ndarray:
        if self._counts is None:
            return np.zeros(classes, "float32")
        _check_classes(counted=len(self._counts), outputs=classes)
        smoothed = np.pad(self._counts, (0, classes - len(self._counts))) + _PSEUDO_COUNT
        log_prior: np.ndarray = np.log(smoothed / smoothed.sum()).astype("float32")
        return log_prior

    def _logits(self, y_pred: Any) -> Any:
        if self.from_logits is True:
            return y_pred
        # float16 has nothing between 0 and 6e-8.
        floor = 1e-7 if self.dtype == "float16" else 1e-30
        logarithms = ops.log(ops.maximum(y_pred, floor))
        if self.from_logits is False:
            return logarithms
        row_sums = ops.sum(y_pred, axis=-1)
        are_probabilities = ops.logical_and(ops.all(y_pred >= 0), ops.all(ops.abs(row_sums - 1) <= _SUM_TOLERANCE))
        return ops.where(are_probabilities, logarithms, y_pred)


def _one_hot(y_true: Any, y_pred: Any) -> Any:
    classes, width = y_pred.shape[-1], y_true.shape[-1] if len(y_true.shape) else None
    if len(y_true.shape) == len(y_pred.shape) and width in (classes, None):
        return ops.cast(y_true, y_pred.dtype)
    return ops.one_hot(class_numbers(y_true, y_pred), classes, dtype=y_pred.dtype)


def _checked_counts(counts: Sequence[float] | np.ndarray) -> np.ndarray:
    known = np.asarray(counts, dtype="float64")
    if known.ndim != 1 or known.size == 0 or not np.isfinite(known).all() or (known < 0).any():
        raise errors.DatasetError(
            f"class counts are {np.array2string(known, threshold=20)}, expected a number from 0 each; "
            f"count labels with numpy.bincount(labels, minlength=classes)"
        )
    return known


def _check_classes(*, counted: int, outputs: int) -> None:
    if counted > outputs:
        raise errors.ModelError(
            f"there are label counts for {counted} classes, but the model has {outputs} outputs; "
            f"give its last layer a unit for each class"
        )
