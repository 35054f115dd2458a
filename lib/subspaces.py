# SPDX-License-Identifier: Apache-2.0
"""The few directions in which an edge's samples of each class lie, and how far those of two edges are apart.

PACFL (Vahidian et al. 2022) groups edges by the principal angles between such subspaces.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import DatasetError, WireError
from .questions import Question, Response
from .signature_features import classes_of
from .signature_format import UNLABELLED

__all__ = ["SUBSPACE", "ClassSubspaces", "SubspaceQuestion"]

SUBSPACE = "subspace"
_MOST_SAMPLES = 1_000
_MOST_CLASSES = 10_000
_MOST_BYTES = 64 * 2**20


class SubspaceQuestion(BaseModel):
    """How many directions p are asked of each class."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    p: Annotated[int, Field(ge=1, le=100)]

    def to_question(self) -> Question:
        """Return the question as it is sent."""
        return Question(SUBSPACE, self.model_dump_json())

    @classmethod
    def of(cls, question: Question) -> SubspaceQuestion:
        """Return what a question says; raise `WireError` if it cannot be read."""
        try:
            return cls.model_validate_json(question.text)
        except ValidationError as error:
            raise WireError(f"a question about subspaces cannot be read: {error.errors()[0]['msg']}") from error


class _About(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    classes: Annotated[tuple[int, ...], Field(max_length=_MOST_CLASSES)]
    counts: Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], Field(max_length=_MOST_CLASSES)]
    samples: Annotated[int, Field(ge=0, le=10**12)]


class ClassSubspaces:
    """For each class of an edge, an orthonormal basis of the p directions in which its samples are largest.

    Parameters
    ----------
    bases
        Class → k x d float32, k ≤ p, the left singular vectors of the class's samples by falling singular value.
    samples
        How many samples the edge has.
    """

    def __init__(self, bases: dict[int, NDArray[np.float32]], samples: int) -> None:
        self.bases, self.samples = bases, samples

    @classmethod
    def of(cls, x: NDArray[Any], y: NDArray[Any] | None, p: int) -> ClassSubspaces:
        """Return the subspaces of samples x (n x …) with labels y (numbers or one-hot; None: all are one class).

        Of a class with more than 1,000 samples, so many are looked at, evenly over all. A class with p samples or
        fewer is left out: its directions would be its samples.

        Raises
        ------
        DatasetError
            If no class has more than p samples, they are no finite numbers, or the answer would be above 64 MiB.
        """
        if not len(x) or x.dtype.kind not in "fiub":
            raise DatasetError(f"subspaces are made of samples that are numbers; these are {len(x)} of {x.dtype}")
        flat = x.reshape(len(x), -1)
        labels = None if y is None else classes_of(y, len(x))
        labels = np.full(len(x), UNLABELLED, np.int64) if labels is None else labels
        names = np.unique(labels)
        if len(names) * p * flat.shape[1] * 4 > _MOST_BYTES:
            raise DatasetError(
                f"subspaces of {len(names)} classes with {p} directions of {flat.shape[1]} numbers are above 64 MiB; "
                f"lower the strategy's option p, or use another strategy"
            )
        bases: dict[int, NDArray[np.float32]] = {}
        for name in names:
            rows = np.flatnonzero(labels == name)
            if len(rows) <= p:
                continue
            rows = rows[:: -(-len(rows) // _MOST_SAMPLES)]
            part = flat[rows].astype(np.float32)
            if not np.isfinite(part).all():
                raise DatasetError(f"samples of class {name} have values that are NaN or infinite")
            basis = _largest_directions(part, p)
            if len(basis):
                bases[int(name)] = basis
        if not bases:
            raise DatasetError(f"no class has more than {p} samples that are not all zero, which subspaces are made of")
        return cls(bases, len(x))

    def to_response(self) -> Response:
        """Return the subspaces as they are sent."""
        classes = tuple(self.bases)
        about = _About(classes=classes, counts=tuple(len(self.bases[c]) for c in classes), samples=self.samples)
        stacked = {"bases": np.concatenate([self.bases[c] for c in classes])}
        return Response(SUBSPACE, about.model_dump_json(), stacked)

    @classmethod
    def from_response(cls, response: Response) -> ClassSubspaces:
        """Return what an edge answered; raise `WireError` if it cannot be used."""
        try:
            about = _About.model_validate_json(response.text)
        except ValidationError as error:
            raise WireError(f"subspaces cannot be read: {error.errors()[0]['msg']}") from error
        rows = response.arrays.get("bases")
        if (
            response.kind != SUBSPACE
            or not isinstance(rows, np.ndarray)
            or rows.dtype != np.float32
            or rows.ndim != 2
            or rows.nbytes > _MOST_BYTES
            or len(about.classes) != len(about.counts)
            or len(set(about.classes)) != len(about.classes)
            or len(rows) != sum(about.counts)
        ):
            raise WireError("the answer has no subspaces of the expected form; update Solar Corona on that edge")
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        if not np.allclose(lengths, 1.0, atol=1e-3):  # NaN is no 1 either
            raise WireError("the answer's directions are not of length 1")
        ends = np.cumsum(about.counts)
        parts: list[NDArray[np.float32]] = list(np.split(rows.astype(np.float32, copy=False), ends[:-1]))
        return cls(dict(zip(about.classes, parts, strict=True)), about.samples)


def _largest_directions(part: NDArray[np.float32], p: int) -> NDArray[np.float32]:
    """Return up to p right singular vectors of n x d samples, of which some singular value is above rounding."""
    _, sizes, directions = np.linalg.svd(part, full_matrices=False)
    kept = int((sizes[:p] > sizes[0] * 1e-6).sum()) if sizes[0] > 0 else 0
    found: NDArray[np.float32] = directions[:kept].astype(np.float32)
    return found
