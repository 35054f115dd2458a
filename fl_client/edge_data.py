# SPDX-License-Identifier: Apache-2.0
"""An edge's samples as arrays, and which task each of them is of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DatasetError, SpecError
from ..core.named import imported
from ..core.spec import Tasks
from .loaders import Part

__all__ = ["ALL_SAMPLES", "Divide", "EdgeData", "Samples", "Split", "named_division"]

Values = NDArray[Any]
Divide = Callable[[NDArray[Any], NDArray[Any] | None], Sequence[Any] | NDArray[Any]]
"""Says which task each sample is of: called with x and y, returns a name or number for each sample."""

ALL_SAMPLES = "all"
_LOOKED_AT = 4096


@dataclass(frozen=True)
class Samples:
    """Samples in the loader's order; `tasks` is what the data itself says of each one's task."""

    x: NDArray[Any]
    y: NDArray[Any] | None
    tasks: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def of(self, indices: NDArray[np.int64] | None) -> Samples:
        """Return some of the samples."""
        if indices is None:
            return self
        return Samples(
            self.x[indices],
            None if self.y is None else self.y[indices],
            None if self.tasks is None else self.tasks[indices],
        )

    def digest(self) -> str:
        """Return a short text that is another for other samples; of many, some thousands are looked at."""
        found = hashlib.sha256(str(len(self)).encode())
        step = max(1, len(self) // _LOOKED_AT)
        for part in (self.x, self.y):
            if part is not None:
                found.update(np.ascontiguousarray(part[::step]).tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class Split:
    """An edge's tasks by name, and the task of each sample as its place among them."""

    names: tuple[str, ...]
    train: NDArray[np.int64]
    evaluate: NDArray[np.int64]

    def indices(self, which: str, tasks: Sequence[int] | None) -> NDArray[np.int64] | None:
        """Return the places of the samples of some tasks; None stands for all samples."""
        if tasks is None or len(set(tasks)) >= len(self.names):
            return None
        return np.flatnonzero(np.isin(self.train if which == "train" else self.evaluate, list(tasks)))


class EdgeData:
    """The samples behind an edge's loaders, read once when something asks for them.

    Parameters
    ----------
    train_loader, test_loader
        What `fit()` got: a pair of arrays, an iterable of batches, or the `Part` that whoever trains reads too.
    tasks
        How the job divides samples into tasks.
    train_tasks, eval_tasks
        What the data says of each sample's task, where the job names such an attribute.
    """

    def __init__(
        self,
        train_loader: Any,
        test_loader: Any = None,
        *,
        tasks: Tasks | None = None,
        train_tasks: Values | None = None,
        eval_tasks: Values | None = None,
    ) -> None:
        self.rules = tasks or Tasks()
        loaders = {"train": train_loader, "evaluate": test_loader}
        self._parts = {which: part if isinstance(part, Part) else Part(part) for which, part in loaders.items()}
        self._attributes = {"train": train_tasks, "evaluate": eval_tasks}
        self._kept: dict[str, Samples] = {}

    def samples(self, which: str, *, anew: bool = False) -> Samples:
        """Return the samples of `which`, "train" or "evaluate".

        Raises
        ------
        DatasetError
            If the loader does not give arrays, or the task attribute is not that of its samples.
        """
        if anew or which not in self._kept:
            part = self._parts[which]
            if not part.is_there:
                self._kept[which] = Samples(np.zeros((0, 1), np.float32), np.zeros(0, np.int64))
            else:
                x, y = part.whole(anew=anew)
                self._check_order(part, which)
                self._kept[which] = Samples(x, y, self._attribute(which, len(x)))
        return self._kept[which]

    def _attribute(self, which: str, count: int) -> Values | None:
        if self.rules.task_attribute is None:
            return None
        values = self._attributes[which]
        if values is None or len(values) != count:
            has = "none was loaded" if values is None else f"the dataset has {len(values)} samples"
            raise DatasetError(
                f"tasks.taskAttribute is {self.rules.task_attribute!r}, but it is not known which of the {count} "
                f"samples of fit()'s {'train' if which == 'train' else 'test'} loader it belongs to ({has}); pass the "
                f"arrays of load_train_dataset() and load_eval_dataset(), all of them and in their order"
            )
        return values

    def _check_order(self, part: Part, which: str) -> None:
        """Raise `DatasetError` if the job's division goes by the samples' order, and the loader mixes them."""
        rules = self.rules
        if (rules.task_attribute is None and rules.chunk is None) or part.keeps_order:
            return
        field = "taskAttribute" if rules.task_attribute is not None else "chunk"
        raise DatasetError(
            f"fit()'s {'train' if which == 'train' else 'test'} loader gives its samples in another order each time, "
            f"and tasks.{field} goes by their order in the data; pass the pair of "
            f"arrays, which training mixes by itself, or leave the mixing out of the loader"
        )

    @property
    def changes(self) -> bool:
        """Whether the samples can be looked at again at little cost, to see if they are others by now."""
        return self._parts["train"].in_place

    def split(self, divide: Divide | None) -> Split:
        """Return the tasks of this edge, as `divide` (or the data's own attribute) tells them.

        A task with fewer samples than the job's `minSamples` joins the largest; a task that occurs in evaluation
        alone does too.
        """
        train, evaluate = self.samples("train"), self.samples("evaluate")
        if divide is None and self.rules.task_attribute is None:
            return Split((ALL_SAMPLES,), np.zeros(len(train), np.int64), np.zeros(len(evaluate), np.int64))
        given = self._values(train, divide)
        names, counts = np.unique(given, return_counts=True)
        kept = names[counts >= self.rules.min_samples]
        if not len(kept):
            kept = names[[int(counts.argmax())]] if len(names) else np.asarray([ALL_SAMPLES])
        largest = int(np.argmax([counts[names == name].sum() for name in kept]))
        place = partial(_places, kept, largest)
        evaluated = self._values(evaluate, divide) if len(evaluate) else np.zeros(0, kept.dtype)
        return Split(tuple(str(name) for name in kept), place(given), place(evaluated))

    def _values(self, samples: Samples, divide: Divide | None) -> Values:
        if divide is None:
            assert samples.tasks is not None
            values = samples.tasks
        else:
            values = np.asarray(divide(samples.x, samples.y))
            if values.shape != (len(samples),) or values.dtype.kind not in "iubUS":
                raise DatasetError(
                    f"the division function returned {values.dtype} of shape {values.shape} for {len(samples)} "
                    f"samples; expected one whole number or name for each sample"
                )
        # Discovery keeps chunks together as far as it found them pure.
        whole = self.rules.chunk if self.rules.division != "discovery" else None
        return _smoothed(values, whole) if whole else values


def _places(names: Values, default: int, values: Values) -> NDArray[np.int64]:
    order = np.argsort(names)
    found = np.clip(np.searchsorted(names, values, sorter=order), 0, len(names) - 1)
    places = order[found]
    return np.where(names[places] == values, places, default).astype(np.int64)


def _smoothed(values: Values, chunk: int) -> Values:
    """Give all samples of a chunk the task that most of them have."""
    names, places = np.unique(values, return_inverse=True)
    ids = np.arange(len(values)) // chunk
    counts = np.zeros((ids[-1] + 1 if len(ids) else 0, len(names)), np.int64)
    np.add.at(counts, (ids, places), 1)
    smoothed: Values = names[counts.argmax(axis=1)[ids]]
    return smoothed


def named_division(name: str) -> Divide:
    """Return the function that a job names as `module:function`.

    Raises
    ------
    SpecError
        If there is none of that name.
    """
    subject = f"tasks.division is {name!r}, which"
    found = imported(name, subject, error=SpecError, kind="function")
    if not callable(found):
        raise SpecError(f"{subject} is no function; it is called with x and y")
    return found  # type: ignore[no-any-return]
