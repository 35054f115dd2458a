# SPDX-License-Identifier: Apache-2.0
"""What a model's output says of how sure it is: probabilities of classes, or scores of boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError

__all__ = ["ConfidenceFunction", "Scores", "box_scores", "class_scores", "is_boxes", "scores_of"]

ConfidenceFunction = Callable[[Any], Any]
"""A user's own: called with what `predict` would return for one sample, it gives scores between 0 and 1."""

_ROUNDING = 1e-3
_SCORE_PLACE = 4


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model is sure of in one sample.

    Parameters
    ----------
    values
        Probabilities of K classes, which add up to 1; or scores of n boxes, n from 0, each between 0 and 1. float64.
    boxes
        Whether they are boxes'.
    """

    values: NDArray[np.float64]
    boxes: bool = False


def scores_of(outputs: Sequence[NDArray[Any]], result: Any, confidence: ConfidenceFunction | None) -> Scores:
    """Return the scores of one sample.

    A list of boxes, as a detector's `post_fun` returns it, gives the boxes' scores; a vector of K numbers, as a
    classifier ends with, the probabilities of its classes.

    Parameters
    ----------
    outputs
        The model's outputs for the sample, without the batch axis.
    result
        What `post_fun` made of them.
    confidence
        A user's own function for other models.

    Raises
    ------
    ModelError
        If the model is neither, and there is no such function; or it returns anything but numbers from 0 to 1.
    """
    if confidence is not None:
        return _checked(confidence(result))
    if is_boxes(result):
        return box_scores(result)
    if len(outputs) == 1 and outputs[0].size:
        return class_scores(outputs[0])
    raise ModelError(
        f"how sure the model is cannot be told from {len(outputs)} outputs; pass load_model a confidence_fun, which is "
        f"called with a result and returns class probabilities, box scores, or one number from 0 to 1"
    )


def is_boxes(result: Any) -> bool:
    """Tell whether a result is a list of boxes, as a detector gives it; an empty list is one."""
    return isinstance(result, list | tuple) and (not result or _box_score(result[0]) is not None)


def class_scores(output: NDArray[Any]) -> Scores:
    """Return class probabilities of one sample.

    Parameters
    ----------
    output
        Probabilities, logits (which do not add up to 1), or quantised values of a classifier's last layer, any shape
        with K values. One value alone is the probability, or the logit, of the second of two classes.

    Examples
    --------
    >>> class_scores(np.array([0.25, 0.75])).values.tolist()
    [0.25, 0.75]
    >>> class_scores(np.array([2.0, 2.0])).values.tolist()
    [0.5, 0.5]
    """
    return Scores(_probabilities(output))


def _probabilities(output: NDArray[Any]) -> NDArray[np.float64]:
    values = output.reshape(-1)
    if values.dtype.kind in "iu":
        # A quantised softmax: 8 bits over the range 0 to 1.
        values = values.astype(np.float64) - (float(np.iinfo(values.dtype).min) if values.dtype.kind == "i" else 0.0)
        total = float(values.sum())
        return values / total if total > 0 else np.full(len(values), 1 / len(values))
    values = values.astype(np.float64)
    if len(values) == 1:
        p = float(values[0])
        p = p if 0 <= p <= 1 else 1 / (1 + float(np.exp(-min(max(p, -700.0), 700.0))))
        return np.array([1 - p, p])
    # Of a few numbers, sums in Python are faster than NumPy's.
    listed = values.tolist()
    if min(listed) >= -_ROUNDING and abs(sum(listed) - 1) <= _ROUNDING:
        return values
    powers = np.exp(values - values.max())
    found: NDArray[np.float64] = powers / powers.sum()
    return found


def box_scores(boxes: Sequence[Any]) -> Scores:
    """Return the scores of boxes: `[x1, y1, x2, y2, score, …]`, mappings or objects with a `score`.

    Raises
    ------
    ModelError
        If one has none.
    """
    scores = [_box_score(box) for box in boxes]
    if any(score is None for score in scores):
        place = scores.index(None)
        raise ModelError(
            f"box {place} has no score: {str(boxes[place])[:100]}; expected [x1, y1, x2, y2, score, …], or a "
            f"mapping or object with a 'score'"
        )
    return Scores(np.clip(np.array(scores, np.float64), 0.0, 1.0), boxes=True)


def _box_score(box: Any) -> float | None:
    if isinstance(box, Mapping):
        value = box.get("score")
    elif hasattr(box, "score"):
        value = box.score
    elif isinstance(box, list | tuple) or (isinstance(box, np.ndarray) and box.ndim == 1):
        value = box[_SCORE_PLACE] if len(box) > _SCORE_PLACE else None
    else:
        value = None
    return float(value) if isinstance(value, int | float | np.number) else None


def _checked(given: Any) -> Scores:
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ModelError(f"confidence_fun returned {str(given)[:100]}; expected numbers from 0 to 1") from error
    if values.ndim == 0:
        # One number is the probability of being right.
        values = np.array([values, 1 - values])
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ModelError(f"confidence_fun returned {str(given)[:100]}; expected numbers from 0 to 1")
    return Scores(values, boxes=not (len(values) > 1 and abs(float(values.sum()) - 1) <= _ROUNDING))
