# SPDX-License-Identifier: Apache-2.0
"""A sample that is kept: its own copy, what is known of it, and its id, which its content gives."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sample_coding import CodedSample, SampleForm, encode_sample
from ..sample_records import Reason, SampleRecord, sample_id_of
from ..scores import Scores, is_boxes

__all__ = ["KeptSample", "own_copy", "plain_prediction", "probabilities_of", "size_of"]

_MOST_CLASSES, _MOST_BOXES, _LONGEST_TEXT = 4_096, 300, 10_000
_LARGEST_PREDICTION = 60_000
_DIGITS = 6


@dataclass(eq=False)
class KeptSample:
    """What a collector keeps of a sample until the node has it.

    Parameters
    ----------
    sample
        A copy of its own: the script may use its buffer anew.
    form
        How it is written.
    edge, model, taken_at, reason, confidence, hardness, prediction, embedding, subject
        See `SampleRecord`.
    scores
        What the model is sure of; a classifier's are the record's probabilities.
    size
        About how many bytes of memory it takes.
    """

    sample: Any
    form: SampleForm
    edge: str
    model: int
    taken_at: float
    reason: Reason
    confidence: float | None = None
    hardness: float | None = None
    prediction: Any = None
    scores: Scores | None = None
    embedding: NDArray[np.float32] | None = None
    subject: str | None = None
    size: int = 0
    _coded: CodedSample | None = field(default=None, repr=False)
    _id: str | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def id(self) -> str:
        """SHA-256 of the content, which is written for it if it was not before.

        Raises
        ------
        ModelError
            If the sample has no form without pickle.
        """
        if self._id is None:
            self.coded()
        assert self._id is not None
        return self._id

    def coded(self) -> CodedSample:
        """Return the content; raises as `id` does."""
        with self._lock:
            if self._coded is None:
                self._coded = encode_sample(self.sample, self.form)
                self._id = sample_id_of(self._coded.content)
            return self._coded

    def sent(self) -> None:
        """Free the sample's memory; the id stays."""
        with self._lock:
            self.sample = None
            if self._coded is not None:
                self._coded = CodedSample(b"", self._coded.media_type)

    def packed(self) -> tuple[SampleRecord, bytes]:
        """Return the record and the content, as they go to the LocalController; raises as `id` does."""
        coded = self.coded()
        record = SampleRecord(
            id=self.id,
            media_type=coded.media_type,
            size=len(coded.content),
            edge=self.edge,
            model=self.model,
            taken_at=self.taken_at,
            reason=self.reason,
            confidence=self.confidence,
            hardness=self.hardness,
            prediction=self.prediction,
            probabilities=probabilities_of(self.scores),
            embedding=None if self.embedding is None else [float(f"{value:.5g}") for value in self.embedding.tolist()],
            subject=self.subject,
        )
        return record, coded.content


def own_copy(sample: Any) -> Any:
    """Return a copy that nothing the script does will change."""
    if isinstance(sample, np.ndarray):
        return sample.copy()
    if isinstance(sample, str | bytes | int | float | bool | np.generic | None):
        return sample
    if isinstance(sample, Mapping):
        return {name: own_copy(value) for name, value in sample.items()}
    if isinstance(sample, list):
        return [own_copy(value) for value in sample]
    if isinstance(sample, tuple):
        return tuple(own_copy(value) for value in sample)
    return copy.copy(sample)


def size_of(sample: Any) -> int:
    """Return about how much memory a sample takes, in bytes."""
    if isinstance(sample, np.ndarray):
        return sample.nbytes
    if isinstance(sample, str | bytes):
        return len(sample)
    if isinstance(sample, Mapping):
        return sum(map(size_of, sample.values()))
    if isinstance(sample, list | tuple):
        return sum(map(size_of, sample)) if len(sample) <= 10_000 else 32 * len(sample)
    width, height = getattr(sample, "width", 0), getattr(sample, "height", 0)
    return width * height * 4 if isinstance(width, int) and isinstance(height, int) else 64


def plain_prediction(result: Any, scores: Scores | None) -> Any:
    """Return what a model says of a sample as plain values: a class, boxes, a text or a number; None if neither."""
    if isinstance(result, str):
        return result[:_LONGEST_TEXT]
    if isinstance(result, bool | int | float | np.number | np.bool_):
        return _number(result)
    if scores is not None and not scores.boxes and scores.values.size:
        return int(scores.values.argmax())
    if is_boxes(result):
        boxes = [_box(box) for box in result[:_MOST_BOXES]]
        while len(json.dumps(boxes)) > _LARGEST_PREDICTION:
            boxes = boxes[: len(boxes) // 2]
        return boxes
    return None


def _number(value: Any) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    return plain if not isinstance(plain, complex) and math.isfinite(plain) else None


def _box(box: Any) -> Any:
    if isinstance(box, Mapping):
        return {str(name): _field(value) for name, value in list(box.items())[:20]}
    if hasattr(box, "score"):
        return {name: _field(value) for name, value in list(vars(box).items())[:20]}
    return [_field(value) for value in list(box)[:20]]


def _field(value: Any) -> Any:
    if isinstance(value, list | tuple | np.ndarray):
        return [_field(each) for each in list(value)[:20]]
    plain = _number(value) if isinstance(value, bool | int | float | np.number | np.bool_) else str(value)[:200]
    return round(plain, _DIGITS) if isinstance(plain, float) else plain


def probabilities_of(scores: Scores | None) -> list[float] | None:
    """Return a classifier's probabilities for a record; None for others, or for too many classes."""
    if scores is None or scores.boxes or not 0 < scores.values.size <= _MOST_CLASSES:
        return None
    return [round(value, _DIGITS) for value in np.nan_to_num(scores.values).tolist()]
