# SPDX-License-Identifier: Apache-2.0
"""Whether an answer was right, as the labels of samples that were drawn at random say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..tables import Sample

__all__ = ["accuracy_of", "answer_of", "was_wrong"]


def answer_of(prediction: Any, probabilities: Any) -> Any:
    """Return what a model answered, in the form that labels have: a class's number, or what else it said.

    >>> answer_of([0.1, 0.9], None), answer_of(3, None), answer_of(None, [0.2, 0.8])
    (1, 3, 1)
    """
    if isinstance(prediction, bool | float) and float(prediction).is_integer():
        return int(prediction)
    if prediction is not None and not _is_vector(prediction):
        return prediction
    vector = probabilities if _is_vector(probabilities) else prediction
    return int(np.argmax(vector)) if _is_vector(vector) else None


def was_wrong(sample: Sample, classes: Sequence[str] = ()) -> bool | None:
    """Tell whether the answer to a labelled sample was wrong; None where that cannot be told."""
    answer = answer_of(sample.prediction, sample.probabilities)
    if isinstance(answer, str) and answer in classes:
        answer = list(classes).index(answer)
    if answer is None or sample.label is None or isinstance(answer, list | dict):
        return None
    return bool(answer != sample.label)


def accuracy_of(session: Session, version: int, *, latest: int, classes: Sequence[str] = ()) -> tuple[float, int]:
    """Return a version's accuracy on the latest labels of random samples, and of how many labels it is."""
    query = (
        select(Sample)
        .where(Sample.state == "labelled", Sample.reason == "random", Sample.model == version)
        .order_by(Sample.labelled_at.desc(), Sample.id)
        .limit(latest)
    )
    wrong = [found for row in session.scalars(query) if (found := was_wrong(row, classes)) is not None]
    return (1 - sum(wrong) / len(wrong) if wrong else 0.0), len(wrong)


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(each, int | float) for each in value)
