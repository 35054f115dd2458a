# SPDX-License-Identifier: Apache-2.0
"""What server and edges say to each other to find the tasks that streams mix: sums over samples, never a sample.

Each question holds all that an edge needs for its answer, so that any process may give it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import WireError
from .questions import Question, Response
from .signature_features import SignatureSpec
from .signature_format import UNLABELLED
from .task_directions import Floats, Frame, Indices, Pull
from .task_mixture import TaskModel, TaskSums

__all__ = [
    "DISCOVERY",
    "ClassSums",
    "Clusters",
    "DiscoveryQuestion",
    "Step",
    "pulls_of",
    "pulls_to",
    "sums_of",
    "sums_to",
]

DISCOVERY = "discovery"
_MOST_CLASSES = 10_000
_NORM = 1.5  # |φ| <= √2, and rounding

Arrays = Mapping[str, NDArray[np.generic]]


class Step(StrEnum):
    """What is asked, in this order."""

    SUMS = "sums"
    PULL = "pull"
    CLUSTERS = "clusters"
    FIT = "fit"


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    step: Step
    spec: SignatureSpec
    purity: Annotated[float, Field(ge=0, le=1)] = 1.0
    frames: Annotated[int, Field(ge=0, le=2)] = 0
    tasks: Annotated[int, Field(ge=0, le=100)] = 0


@dataclass(frozen=True)
class DiscoveryQuestion:
    """A question.

    Parameters
    ----------
    step
        What is asked.
    spec
        How to make features.
    frames
        For `PULL` one, or one for each half of the samples; for the later steps one.
    tasks
        For `CLUSTERS`: how many places to look for at most.
    places, purity
        For `FIT`: the tasks so far; see `TaskModel`.
    white
        For `PULL`: what to multiply the sums of features by, D x k.
    """

    step: Step
    spec: SignatureSpec
    frames: tuple[Frame, ...] = ()
    tasks: int = 0
    places: Floats | None = None
    purity: float = 1.0
    white: Floats | None = None

    def to_question(self) -> Question:
        """Return the question as it is sent."""
        said = _Said(
            step=self.step, spec=self.spec, purity=self.purity, frames=len(self.frames), tasks=max(self.tasks, 0)
        )
        arrays: dict[str, NDArray[np.generic]] = {}
        for place, frame in enumerate(self.frames):
            model = TaskModel(self.spec, frame, _places(self.places, frame), 1.0, ())
            arrays.update({f"{place}/{name}": value for name, value in model.to_arrays().items()})
        if self.white is not None:
            arrays["white"] = self.white.astype(np.float32)
        return Question(DISCOVERY, said.model_dump_json(), arrays)

    @classmethod
    def of(cls, question: Question) -> DiscoveryQuestion:
        """Return what a question says; raise `WireError` if it cannot be read."""
        try:
            said = _Said.model_validate_json(question.text)
        except ValidationError as error:
            raise WireError(f"a question about tasks cannot be read: {error.errors()[0]['msg']}") from error
        models = [
            TaskModel.of_arrays(
                {name.partition("/")[2]: a for name, a in question.arrays.items() if name.startswith(f"{place}/")},
                spec=said.spec,
            )
            for place in range(said.frames)
        ]
        needed = {Step.SUMS: 0}.get(said.step, 1)
        if len(models) < needed:
            raise WireError(f"a question about tasks has no axes for its step {said.step}; update Solar Corona there")
        white = None
        if "white" in question.arrays:
            white = _array(question.arrays, "white", (said.spec.dimension, None))
        return cls(
            said.step,
            said.spec,
            tuple(model.frame for model in models),
            said.tasks,
            models[0].places if models else None,
            said.purity,
            white,
        )

    @property
    def model(self) -> TaskModel:
        """The tasks so far."""
        assert self.places is not None
        return TaskModel(self.spec, self.frames[0], self.places, self.purity, ())


def _places(places: Floats | None, frame: Frame) -> Floats:
    return np.zeros((1, frame.rank)) if places is None else places


@dataclass(frozen=True)
class ClassSums:
    """What one edge has of each class, in two halves, and how far its samples are spread within classes.

    Parameters
    ----------
    classes
        Class ids, ascending: C. Those with fewer samples in a half than the spec's `min_count` are no part of it.
    counts, means
        2 x C and 2 x C x D.
    scatter
        Covariance within classes: D x D.
    chunk
        Samples of its stream that belong together; None where no such number is known.
    """

    classes: Indices
    counts: Floats
    means: Floats
    scatter: Floats
    chunk: int | None

    @classmethod
    def of(
        cls, features: Floats, labels: Indices, halves: Indices, *, least: int, chunk: int | None = None
    ) -> ClassSums:
        """Return the sums of samples (n x D, with class ids and the half, 0 or 1, of each)."""
        ids = np.unique(labels)
        numbers = np.array([[((labels == c) & (halves == h)).sum() for c in ids] for h in (0, 1)]).reshape(2, len(ids))
        kept = np.flatnonzero(numbers.min(0) >= least) if len(ids) else np.zeros(0, np.int64)
        means, scatter = np.zeros((2, len(kept), features.shape[1])), np.zeros((features.shape[1],) * 2)
        free = 0
        for row, place in enumerate(kept):
            own = features[labels == ids[place]]
            for half in (0, 1):
                means[half, row] = features[(labels == ids[place]) & (halves == half)].mean(0)
            centred = own - own.mean(0)
            scatter += centred.T @ centred
            free += len(own) - 1
        return cls(
            ids[kept].astype(np.int64), numbers[:, kept].astype(np.float64), means, scatter / max(free, 1), chunk
        )

    @property
    def labelled(self) -> bool:
        """Whether any sample has a label."""
        return bool((self.classes != UNLABELLED).any())

    def to_response(self) -> Response:
        """Return the sums as they are sent: 4·(C + D/4)·(D + 1) bytes, about."""
        upper = self.scatter[np.triu_indices(len(self.scatter))]
        return Response(
            DISCOVERY,
            "{}",
            {
                "classes": self.classes,
                "counts": self.counts.astype(np.int64),
                "means": self.means.astype(np.float16),
                "scatter": upper.astype(np.float32),
                "chunk": np.array([self.chunk or 0], np.int64),
            },
        )

    @classmethod
    def of_response(cls, response: Response, size: int) -> ClassSums:
        """Return what a response of features of `size` says; raise `WireError` if it cannot be used."""
        classes = _array(response.arrays, "classes", (None,), np.int64)
        count = len(classes)
        counts = _array(response.arrays, "counts", (2, count))
        means = _array(response.arrays, "means", (2, count, size))
        upper = _array(response.arrays, "scatter", (size * (size + 1) // 2,))
        chunk = int(_array(response.arrays, "chunk", (1,), np.int64)[0])
        if count > _MOST_CLASSES or (np.diff(classes) <= 0).any() or (counts < 1).any():
            raise WireError("the sums of an edge's classes are not in order, or of nothing; it is left out")
        if (np.linalg.norm(means, axis=2) > _NORM).any() or (np.abs(upper) > _NORM**2).any():
            raise WireError("the sums of an edge's classes are larger than samples can make them; it is left out")
        scatter = np.zeros((size, size))
        scatter[np.triu_indices(size)] = upper
        scatter += np.triu(scatter, 1).T
        return cls(classes, counts, means, scatter, chunk if chunk > 1 else None)


@dataclass(frozen=True)
class Clusters:
    """Places where an edge's units gather, and how many samples are there: K x r and K."""

    places: Floats
    samples: Floats

    def to_response(self) -> Response:
        """Return them as they are sent."""
        return Response(
            DISCOVERY, "{}", {"places": self.places.astype(np.float32), "samples": self.samples.astype(np.float32)}
        )

    @classmethod
    def of_response(cls, response: Response, rank: int) -> Clusters:
        """Return what a response says; raise `WireError` if it cannot be used."""
        places = _array(response.arrays, "places", (None, rank))
        samples = _array(response.arrays, "samples", (len(places),))
        if not 1 <= len(places) <= 100 or (samples <= 0).any():
            raise WireError("an edge named no place where its samples gather, or one without samples; it is left out")
        return cls(places, samples)


def pulls_to(pulls: Sequence[Pull]) -> Response:
    """Return what an edge's samples pull at the axes of each frame that was asked about."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for place, each in enumerate(pulls):
        # Half the bytes, and what is lost is far less than one sample more or less would change.
        most = max(float(np.abs(each.linear).max(initial=0)), 1e-30)
        arrays[f"{place}/square"] = each.square.astype(np.float32)
        arrays[f"{place}/linear"] = (each.linear / most).astype(np.float16)
        arrays[f"{place}/scale"] = np.array([most])
    return Response(DISCOVERY, "{}", arrays)


def pulls_of(response: Response, frames: Sequence[Frame], size: int) -> list[Pull]:
    """Return what a response says of each frame, in `size` features; raise `WireError` if it cannot be used."""
    found = []
    for place, frame in enumerate(frames):
        count, _, rank = frame.axes.shape
        square = _array(response.arrays, f"{place}/square", (count, rank + 1, rank + 1))
        linear = _array(response.arrays, f"{place}/linear", (count, rank + 1, size))
        (scale,) = _array(response.arrays, f"{place}/scale", (1,))
        if scale < 0 or (np.diagonal(square, axis1=1, axis2=2) < 0).any():
            raise WireError("an edge's sums have squares below 0; it is left out")
        found.append(Pull(square, linear * float(scale)))
    return found


def sums_to(sums: TaskSums) -> Response:
    """Return what an edge's samples say of the tasks' places."""
    return Response(
        DISCOVERY,
        "{}",
        {
            "linear": sums.linear.astype(np.float32),
            "square": sums.square.astype(np.float32),
            "samples": sums.samples.astype(np.float32),
            "loyal": np.array([sums.loyal, sums.counted], np.float32),
        },
    )


def sums_of(response: Response, tasks: int, rank: int) -> TaskSums:
    """Return what a response says; raise `WireError` if it cannot be used."""
    linear = _array(response.arrays, "linear", (tasks, rank))
    square = _array(response.arrays, "square", (tasks, rank, rank))
    samples = _array(response.arrays, "samples", (tasks,))
    loyal, counted = _array(response.arrays, "loyal", (2,))
    diagonal = np.diagonal(square, axis1=1, axis2=2)
    if (samples < 0).any() or (diagonal < 0).any() or not 0 <= loyal <= counted + 1:
        raise WireError("an edge's sums have counts or squares below 0; it is left out")
    return TaskSums(linear, square, samples, float(loyal), float(counted))


def _array(arrays: Arrays, name: str, shape: tuple[int | None, ...], kind: Any = np.float64) -> NDArray[Any]:
    """Return an array of an answer as `kind`; raise `WireError` if it is missing, of another form or not finite."""
    value = arrays.get(name)
    if value is None or value.dtype.kind not in ("iu" if kind is np.int64 else "iuf"):
        raise WireError(f"an answer about tasks has no numbers under {name!r}; update Solar Corona on that edge")
    if len(value.shape) != len(shape) or any(w is not None and h != w for h, w in zip(value.shape, shape, strict=True)):
        wanted = "x".join("?" if size is None else str(size) for size in shape)
        raise WireError(f"an answer about tasks has {name!r} of shape {value.shape}, expected {wanted}")
    found = np.asarray(value, kind)
    if not np.isfinite(found).all():
        raise WireError(f"an answer about tasks has values of {name!r} that are not finite; its edge is left out")
    return found
