# SPDX-License-Identifier: Apache-2.0
"""What a train or test loader holds, whatever framework it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DatasetError

__all__ = ["LoaderSummary", "Part", "arrays_of", "first_batch", "is_arrays", "summarize"]

_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class LoaderSummary:
    """Number of samples, and how many there are of each class where labels are classes."""

    samples: int
    class_counts: NDArray[np.int64] | None = None


class Part:
    """A loader's samples as arrays, all or some of them, in batches of the loader's own size.

    Whoever divides samples and whoever trains on them share one `Part`: a loader that mixes its samples gives them in
    another order each time that it is read.

    Parameters
    ----------
    loader
        A pair of arrays, or an iterable of batches; read once, when its samples are first asked for.
    batch_size
        Samples in a batch; by default as many as the loader's first batch has, or 32.
    """

    def __init__(self, loader: Any, *, batch_size: int | None = None) -> None:
        self._loader, self._given = loader, batch_size
        self._whole: tuple[NDArray[Any], NDArray[Any] | None] | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a loader at all."""
        return self._loader is not None

    @property
    def in_place(self) -> bool:
        """Whether the samples are arrays in memory, which can be looked at again at no cost."""
        return is_arrays(self._loader)

    def whole(self, *, anew: bool = False) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return x and y of all samples; `anew` reads the loader once more."""
        if anew or self._whole is None or self.in_place:  # a pair of arrays may have been changed in place
            self._whole = arrays_of(self._loader)
        return self._whole

    def of(self, indices: NDArray[np.int64] | None) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return x and y of the samples at some places, or of all."""
        x, y = self.whole()
        return (x, y) if indices is None else (x[indices], None if y is None else y[indices])

    @property
    def keeps_order(self) -> bool:
        """Whether the loader gives its samples in the same order when it is read once more."""
        if self.in_place:
            return True
        (x, y), (again, labels) = self.whole(), arrays_of(self._loader)
        same_labels = y is labels or (y is not None and labels is not None and np.array_equal(y, labels))
        return same_labels and np.array_equal(x, again)

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        if self._given is None:
            batch = None if self.in_place else first_batch(self._loader)
            self._given = len(batch[0]) if batch is not None and hasattr(batch[0], "__len__") else 32
        return self._given


def is_arrays(loader: Any) -> bool:
    """Tell whether a loader is a pair of arrays, or `(x, None)`, rather than an iterable of batches."""
    return (
        isinstance(loader, tuple)
        and len(loader) == 2
        and hasattr(loader[0], "shape")
        and (loader[1] is None or hasattr(loader[1], "shape"))
    )


def _batches(loader: Any) -> Iterator[Any]:
    if is_arrays(loader):
        if len(loader[0]):
            yield loader
        return
    if hasattr(loader, "__getitem__") and hasattr(loader, "__len__") and not hasattr(loader, "cardinality"):
        yield from (loader[i] for i in range(len(loader)))  # keras.utils.PyDataset
        return
    try:
        batches = iter(loader)
    except TypeError:
        raise DatasetError(
            f"a loader must give batches of (x, y), and {type(loader).__name__} gives none; pass a tf.data.Dataset, a "
            f"DataLoader, or a pair of arrays"
        ) from None
    if batches is loader:
        raise DatasetError(
            f"a loader of type {type(loader).__name__} can be read only once, and each round reads it anew; pass a "
            f"list of its batches, or a tf.data.Dataset"
        )
    yield from batches


def first_batch(loader: Any) -> Any:
    """Return the first batch, or None if there is none."""
    return next(_batches(loader), None)


def arrays_of(loader: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return all samples of `loader` as the arrays x and y, in the order in which it gives them.

    Raises
    ------
    DatasetError
        If its batches are no pairs of single arrays.
    """
    if is_arrays(loader):
        return np.asarray(loader[0]), None if loader[1] is None else np.asarray(loader[1])
    xs, ys = list[NDArray[Any]](), list[NDArray[Any]]()
    for batch in _batches(loader):
        if not isinstance(batch, tuple | list) or len(batch) < 2 or isinstance(batch[0], tuple | list | dict):
            raise DatasetError(
                f"tasks can be told apart only where a loader gives batches of (x, y) with x one array, and this one "
                f"gave {type(batch[0] if isinstance(batch, tuple | list) and batch else batch).__name__}"
            )
        xs.append(np.asarray(batch[0]))
        if batch[1] is not None:
            ys.append(_labels(batch[1])[1])
    if not xs:
        return np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
    return np.concatenate(xs), np.concatenate(ys) if len(ys) == len(xs) else None


def summarize(loader: Any, *, limit: int | None = None) -> LoaderSummary:
    """Count the samples and labels of `loader` in one pass over it.

    Parameters
    ----------
    loader
        A pair of arrays, or an iterable of batches `(x, y)` or `(x, y, sample_weight)`; y is None without labels.
    limit
        Batches to look at; needed where the loader never ends.

    Raises
    ------
    DatasetError
        If the loader never ends and there is no limit, or a batch is not of that form.
    """
    cardinality = getattr(loader, "cardinality", None)
    if limit is None and callable(cardinality) and int(cardinality()) == -1:
        raise DatasetError(
            "the train loader repeats for ever; pass steps_per_epoch=… to fit(), or drop .repeat() from the loader"
        )
    samples, classes = 0, Counter[int]()
    countable = True
    for batch in islice(_batches(loader), limit):
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise DatasetError(
                f"a loader must give batches of (x, y), and gave {type(batch).__name__}; map it to pairs first"
            )
        if batch[1] is None:
            samples, countable = samples + len(batch[0]), False
            continue
        several, labels = _labels(batch[1])
        samples += len(labels)
        countable = countable and not several and _count(labels, classes)
    if not countable or not classes:
        return LoaderSummary(samples)
    counts = np.zeros(max(classes) + 1, dtype=np.int64)
    for label, n in classes.items():
        counts[label] = n
    return LoaderSummary(samples, counts)


def _labels(given: Any) -> tuple[bool, NDArray[Any]]:
    """Return whether a batch has labels for several outputs, and the labels or the first of them."""
    if isinstance(given, dict):
        given = tuple(given.values())
    several = isinstance(given, tuple | list) and bool(given) and all(hasattr(part, "shape") for part in given)
    labels = np.asarray(given[0] if several else given)
    if not labels.ndim:
        raise DatasetError(f"a loader must give batches of (x, y), and gave {labels} as y; batch the samples first")
    return several, labels


def _count(labels: NDArray[Any], classes: Counter[int]) -> bool:
    """Add a batch's labels to `classes`; False if they are no classes."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        sums = labels.sum(axis=1)
        if not np.allclose(sums, 1, atol=1e-3):
            return False
        found = labels.argmax(axis=1)
        classes.setdefault(labels.shape[1] - 1, 0)
    elif labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1):
        found = labels.reshape(-1)
        if not np.issubdtype(found.dtype, np.integer):
            return False
    else:
        return False
    if len(found) and (found.min() < 0 or found.max() >= _MOST_CLASSES):
        return False
    for label, n in zip(*np.unique(found, return_counts=True), strict=True):
        classes[int(label)] += int(n)
    return True
