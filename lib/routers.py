# SPDX-License-Identifier: Apache-2.0
"""Routers: which task's model a sample belongs to, learned from the samples or looked up by an attribute.

A router is arrays and a `RouterCard`, both without pickle, so that it travels in the same file as the models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from ..core.errors import ModelError

__all__ = ["LIMIT", "AttributeRouter", "GaussianRouter", "Router", "RouterCard", "router_from", "unknown"]

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Embedding = Literal["linear", "cosine"]

# Numbers beyond it count as missing: its square over the smallest variance, summed over all dimensions, still fits
# float32, which is what a model file computes with on a device.
LIMIT = 1e12
_MOST_TASKS, _MOST_COMPONENTS, _MOST_DIMENSIONS = 1000, 10_000, 4096
_MOST_NUMBERS = 1 << 27
_MOST_LOG_VARIANCE = 20.0
# The weight of a component that is not there. Minus infinity would become NaN where a whole task has none.
_NO_LOG_WEIGHT = -1e30
_BLOCK_NUMBERS = 1 << 22


class RouterCard(BaseModel):
    """What a router is besides its arrays; JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["gaussian", "attribute"]
    task_names: tuple[StrictStr, ...] = Field(min_length=1, max_length=_MOST_TASKS)
    embedding: Embedding = "linear"
    features: StrictInt = Field(default=1, ge=1, le=_MOST_NUMBERS)
    dimensions: StrictInt = Field(default=1, ge=1, le=_MOST_DIMENSIONS)
    components: StrictInt = Field(default=1, ge=1, le=_MOST_COMPONENTS)
    values: tuple[StrictStr | StrictInt, ...] = Field(default=(), max_length=1_000_000)
    tasks: tuple[StrictInt, ...] = Field(default=(), max_length=1_000_000)
    default: StrictInt | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of this router by its name."""
        if self.kind == "attribute":
            return {}
        tasks, components, dimensions = len(self.task_names), self.components, self.dimensions
        found = {
            "projection": (self.features, dimensions),
            "offset": (dimensions,),
            "means": (tasks, components, dimensions),
            "log_variances": (tasks, components, dimensions),
            "log_weights": (tasks, components),
        }
        for name, shape in found.items():
            if np.prod(shape, dtype=float) > _MOST_NUMBERS:
                raise ModelError(
                    f"router: {name} would be {shape}, more than {_MOST_NUMBERS:,} numbers; use fewer dimensions"
                )
        return found


@dataclass(frozen=True, eq=False)
class GaussianRouter:
    r"""Routes by the likelihood of a sample under each task's mixture of diagonal Gaussians.

    With the embedding :math:`z`, the score of task :math:`t` is

    .. math:: \log \sum_c \exp\Big(w_{tc} - \tfrac12 \sum_d \big((z_d - m_{tcd})^2 / v_{tcd} + \log v_{tcd}\big)\Big)

    A feature that is no finite number, or beyond ±1e12, counts as 0.

    Parameters
    ----------
    projection
        Shape (d, D): from the d numbers of a sample to D dimensions.
    offset
        Shape (D,), added to the projected sample.
    means, log_variances
        Shape (T, C, D): component c of task t. Logarithms of variances are within ±20.
    log_weights
        Shape (T, C): logarithms of the components' weights; minus infinity for one that is not there.
    task_names
        The T tasks' names, no two alike.
    embedding
        "linear": z = x · projection + offset. "cosine": z = √(2/D) · cos(x · projection + offset), random features.

    Raises
    ------
    ModelError
        If an array has another shape, or holds what is no number.

    References
    ----------
    Rahimi & Recht, "Random features for large-scale kernel machines", NeurIPS 2007.
    """

    projection: Floats
    offset: Floats
    means: Floats
    log_variances: Floats
    log_weights: Floats
    task_names: tuple[str, ...]
    embedding: Embedding = "linear"

    kind: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        object.__setattr__(self, "task_names", _names(self.task_names))
        if self.embedding not in ("linear", "cosine"):
            raise ModelError(f"router: embedding is {self.embedding!r}, expected 'linear' or 'cosine'")
        weights = np.asarray(self.log_weights)
        if weights.dtype.kind == "f":
            object.__setattr__(self, "log_weights", np.maximum(weights, _NO_LOG_WEIGHT))
        for name, rank in (("projection", 2), ("offset", 1), ("means", 3), ("log_variances", 3), ("log_weights", 2)):
            bound = {"log_variances": _MOST_LOG_VARIANCE, "log_weights": -_NO_LOG_WEIGHT}.get(name, LIMIT)
            object.__setattr__(self, name, _numbers(name, getattr(self, name), rank, bound))
        if len(self.means) != len(self.task_names):
            raise ModelError(f"router: has means of {len(self.means)} tasks and {len(self.task_names)} task names")
        for name, shape in _card_of(self).shapes().items():
            found = getattr(self, name).shape
            if found != shape:
                raise ModelError(f"router: {name} has shape {found}, expected {shape}, which follows from the others")

    @property
    def features(self) -> int:
        """How many numbers a sample has."""
        return int(self.projection.shape[0])

    def embed(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the embedding of samples, shape (n, D)."""
        flat = self._flat(x)
        # NaN compares as False.
        flat = np.where(np.abs(flat) <= LIMIT, flat, 0).astype(np.float32)
        z = (flat @ self.projection + self.offset).astype(np.float64)
        if self.embedding == "cosine":
            return np.asarray(np.sqrt(2.0 / z.shape[1]) * np.cos(z))
        return np.clip(z, -LIMIT, LIMIT)

    def scores(self, x: npt.ArrayLike, chunks: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
        """Return each task's log-likelihood of each sample, up to a constant, shape (n, T).

        Parameters
        ----------
        x
            Samples, shape (n, …) with d numbers each.
        chunks
            Shape (n,): samples with the same chunk id (a time window, a camera) belong to one task, so that each gets
            the mean score of its chunk.
        """
        flat = self._flat(x)
        found = np.empty((len(flat), len(self.task_names)))
        step = max(1, _BLOCK_NUMBERS // max(self.features, self.log_weights.size, 1))
        # The square is taken apart, for the speed of two matrix products; about a common centre, to lose no digits.
        shape = (self.log_weights.size, self.means.shape[2])
        log_variances = self.log_variances.reshape(shape).astype(np.float64)
        precisions = np.exp(-log_variances)
        centre = self.means.reshape(shape).mean(axis=0, dtype=np.float64)
        means = self.means.reshape(shape) - centre
        constants = self.log_weights.reshape(-1) - 0.5 * (means**2 * precisions + log_variances).sum(axis=1)
        for start in range(0, len(flat), step):
            z = self.embed(flat[start : start + step]) - centre
            parts = z @ (means * precisions).T - 0.5 * (z**2 @ precisions.T) + constants
            parts = parts.reshape(len(z), *self.log_weights.shape)
            highest = parts.max(axis=2)
            found[start : start + step] = highest + np.log(np.exp(parts - highest[:, :, None]).sum(axis=2))
        return found if chunks is None else _averaged(found, chunks)

    def route(self, x: npt.ArrayLike, chunks: npt.ArrayLike | None = None) -> Indices:
        """Return the index of each sample's task, shape (n,); parameters as in `scores`."""
        return np.asarray(self.scores(x, chunks).argmax(axis=1), np.int64)

    def card(self) -> RouterCard:
        """Return what this router is besides its arrays."""
        return _card_of(self)

    def to_arrays(self) -> dict[str, Floats]:
        """Return the arrays by their names."""
        return {name: getattr(self, name) for name in self.card().shapes()}

    @classmethod
    def from_arrays(cls, card: RouterCard, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Return the router that `card` and `to_arrays` came from.

        Raises
        ------
        ModelError
            If an array is missing, has another shape than the card says, or holds what is no number.
        """
        shapes = card.shapes()
        for name, shape in shapes.items():
            found = np.shape(arrays[name]) if name in arrays else None
            if found != shape:
                has = "is missing" if found is None else f"has shape {found}"
                raise ModelError(f"router: {name} {has}, expected shape {shape}, as its card says; save the model anew")
        taken = {name: arrays[name] for name in shapes}
        return cls(**taken, task_names=card.task_names, embedding=card.embedding)

    def _flat(self, x: npt.ArrayLike) -> npt.NDArray[Any]:
        samples = np.asarray(x)
        if samples.ndim < 1 or samples.dtype.kind not in "fiub":
            raise ModelError(
                f"router: got {samples.dtype} samples of shape {samples.shape}, expected numbers of shape (n, …)"
            )
        width = int(np.prod(samples.shape[1:]))
        if width != self.features:
            raise ModelError(
                f"router: a sample of shape {samples.shape[1:]} has {width} numbers, and this router was learned on "
                f"{self.features}; prepare the samples as in training"
            )
        return samples.reshape(len(samples), width)


@dataclass(frozen=True)
class AttributeRouter:
    """Routes by a value that is known with each sample: a season, a camera, an edge's name.

    Parameters
    ----------
    values
        The attribute's values, strings or whole numbers, no two alike.
    tasks
        For each value the index of its task.
    task_names
        The tasks' names, no two alike.
    default
        Index of the task of all other values; by default such a value is an error.
    """

    values: tuple[str | int, ...]
    tasks: tuple[int, ...]
    task_names: tuple[str, ...]
    default: int | None = None

    kind: ClassVar[str] = "attribute"

    def __post_init__(self) -> None:
        object.__setattr__(self, "task_names", _names(self.task_names))
        object.__setattr__(self, "values", tuple(_value(value) for value in self.values))
        object.__setattr__(self, "tasks", tuple(int(task) for task in self.tasks))
        if len(self.values) != len(self.tasks):
            raise ModelError(
                f"router: has {len(self.values)} values and {len(self.tasks)} tasks, expected one for each"
            )
        if len(set(self.values)) < len(self.values):
            raise ModelError("router: an attribute value is there twice; give each value once")
        for task in (*self.tasks, *(() if self.default is None else (self.default,))):
            if not 0 <= task < len(self.task_names):
                raise ModelError(f"router: task {task} is not one of 0 to {len(self.task_names) - 1}")

    @classmethod
    def from_mapping(
        cls, tasks: Mapping[str | int, str], *, task_names: Sequence[str] | None = None, default: str | None = None
    ) -> Self:
        """Return the router that sends each attribute value to the task of the given name.

        >>> AttributeRouter.from_mapping({"summer": "warm", "winter": "cold"}).route(["winter", "summer"]).tolist()
        [1, 0]
        """
        named = [*tasks.values(), *(() if default is None else (default,))]
        names = tuple(dict.fromkeys(named)) if task_names is None else tuple(task_names)
        for name in named:
            if name not in names:
                raise unknown("task", name, names)
        return cls(
            values=tuple(tasks),
            tasks=tuple(names.index(name) for name in tasks.values()),
            task_names=names,
            default=None if default is None else names.index(default),
        )

    def route(self, attributes: Iterable[Any]) -> Indices:
        """Return the index of each value's task, shape (n,).

        Raises
        ------
        ModelError
            If a value is unknown and there is no default.
        """
        table = dict(zip(self.values, self.tasks, strict=True))
        given = attributes.tolist() if isinstance(attributes, np.ndarray) else list(attributes)
        found = np.empty(len(given), np.int64)
        for i, each in enumerate(given):
            value = _value(each)
            task = table.get(value, self.default)
            if task is None:
                raise unknown("attribute value", value, self.values)
            found[i] = task
        return found

    def card(self) -> RouterCard:
        """Return the whole router, which has no arrays."""
        return _card_of(self)

    def to_arrays(self) -> dict[str, Floats]:
        """Return no arrays: the card says everything."""
        return {}

    @classmethod
    def from_arrays(cls, card: RouterCard, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:  # noqa: ARG003
        """Return the router that a card describes."""
        return cls(values=card.values, tasks=card.tasks, task_names=card.task_names, default=card.default)


Router = GaussianRouter | AttributeRouter


def router_from(card: RouterCard, arrays: Mapping[str, npt.NDArray[Any]]) -> Router:
    """Return the router of a card and arrays, of the kind that the card says.

    Raises
    ------
    ModelError
        If they do not fit each other, or are out of range.
    """
    kind = GaussianRouter if card.kind == "gaussian" else AttributeRouter
    return kind.from_arrays(card, arrays)


def _card_of(router: Router) -> RouterCard:
    if isinstance(router, AttributeRouter):
        given = {each.name: getattr(router, each.name) for each in fields(router)}
        return RouterCard(kind="attribute", **given)
    # Bounds are checked here too: a ValidationError is a ValueError that says which field.
    try:
        return RouterCard(
            kind="gaussian",
            task_names=router.task_names,
            embedding=router.embedding,
            features=int(router.projection.shape[0]),
            dimensions=int(router.projection.shape[1]),
            components=int(router.means.shape[1]),
        )
    except ValueError as error:
        raise ModelError(f"router: projection {router.projection.shape} or means {router.means.shape}: {error}") from (
            error
        )


def _names(names: Sequence[str]) -> tuple[str, ...]:
    found = tuple(names)
    for name in found:
        if not isinstance(name, str) or not 0 < len(name) <= 200:
            raise ModelError(f"router: a task's name is {name!r:.100}, expected a text of 1 to 200 characters")
    if not 0 < len(found) <= _MOST_TASKS or len(set(found)) < len(found):
        raise ModelError(f"router: has {len(found)} task names, expected 1 to {_MOST_TASKS}, no two alike")
    return found


def _numbers(name: str, array: npt.ArrayLike, rank: int, bound: float) -> Floats:
    given = np.asarray(array)
    if given.ndim != rank or given.dtype.kind not in "fiu":
        raise ModelError(f"router: {name} is {given.dtype} of shape {given.shape}, expected numbers of {rank} axes")
    # Not the other way round: a NaN is not above the bound either.
    if not np.all(np.abs(given) <= bound):
        raise ModelError(f"router: {name} holds a number that is not finite, or beyond ±{bound:g}; learn it anew")
    own = np.array(given, np.float32, order="C")
    own.setflags(write=False)
    return own


def _averaged(scores: npt.NDArray[np.float64], chunks: npt.ArrayLike) -> npt.NDArray[np.float64]:
    ids = np.asarray(chunks)
    if ids.shape != (len(scores),):
        raise ModelError(f"router: got chunk ids of shape {ids.shape}, expected one for each sample: ({len(scores)},)")
    _, places, counts = np.unique(ids, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), scores.shape[1]))
    np.add.at(sums, places, scores)
    return np.asarray((sums / counts[:, None])[places])


def _value(value: Any) -> str | int:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        # What TensorFlow calls a string.
        value = value.decode(errors="replace")
    if isinstance(value, float) and value.is_integer():
        # A table's column of whole numbers that was read as floats.
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ModelError(f"router: an attribute value is {value!r:.100}, expected a text or a whole number")
    return value


def unknown(what: str, value: str | int, known: Sequence[str | int]) -> ModelError:
    """Return the error that there is no such value, with near ones."""
    near = get_close_matches(str(value), [str(each) for each in known], n=3)
    kinds = {type(each) for each in known}
    if near and type(value) not in kinds:
        other = "text" if isinstance(value, str) else "whole number"
        hint = f"{value!r} is a {other}, and this router's values are not"
    elif near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        shown = ", ".join(str(each) for each in known[:10])
        hint = f"known are {shown}{', …' if len(known) > 10 else ''}"
    return ModelError(f"router: there is no {what} {value!r:.100}; {hint}")
