# SPDX-License-Identifier: Apache-2.0
"""Federated averaging that takes replies one by one, in memory that does not grow with their number."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from numpy.typing import NDArray
from scipy.linalg.blas import daxpy, saxpy
from threadpoolctl import ThreadpoolController

from ..lib.records import arrays_in, metrics_in

__all__ = ["FedAvg", "view"]


class FedAvg(FlowerFedAvg):
    """Flower's `FedAvg` (McMahan et al. 2017), with the same arguments and the same result up to rounding.

    Flower keeps every reply until the last has come. This adds each reply to one running sum as it arrives, so that
    the server holds the sum and one reply, and is done when the last edge is.
    """

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 - Flower's signature
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the average of the replies' models, weighted by `weighted_by_key`, and of their metrics."""
        mean = _RunningMean()
        metrics: list[RecordDict] = []
        for reply in replies:
            if reply.has_error():
                continue
            arrays, weight = _read(reply.content, self.weighted_by_key)
            with _threads.faster(sum(len(array.data) for array in arrays.values())):
                mean.add(arrays, weight)
            metrics.append(RecordDict(dict(metrics_in(reply.content))))
            # Let go of this reply before the next is asked for: two at once would be a model more.
            del reply, arrays
        result = mean.result()
        if result is None:
            return None, None
        return result, self.train_metrics_aggr_fn(metrics, self.weighted_by_key)


class _Threads:
    """Whether one thread or all of them add faster, tried on the first large replies a process gets.

    Adding waits for memory. On some machines one thread fills the memory's bus, and two wait for each other as well;
    on others each core has its own share of it, and two are twice as fast.
    """

    _TRIES = 2
    _LARGE = 8 << 20  # bytes; less lies in a cache and says nothing of the memory

    def __init__(self) -> None:
        self._rates: dict[int | None, list[float]] = {1: [], None: []}  # bytes a second by number, None: all
        self._blas: ThreadpoolController | None = None

    @contextmanager
    def faster(self, size: int) -> Iterator[None]:
        """Let the BLAS add `size` bytes with the better number of threads, or the one that is to be tried."""
        if size < self._LARGE:
            yield
            return
        untried = min(self._rates, key=lambda threads: len(self._rates[threads]))
        known = len(self._rates[untried]) >= self._TRIES
        threads = max(self._rates, key=lambda threads: max(self._rates[threads])) if known else untried
        self._blas = self._blas or ThreadpoolController()  # it looks through all libraries, which takes its time
        with self._blas.limit(limits=threads, user_api="blas"):
            begin = time.perf_counter()
            yield
            if not known:
                self._rates[threads].append(size / (time.perf_counter() - begin))


_threads = _Threads()


class _RunningMean:
    """Σ wᵢ·xᵢ / Σ wᵢ, kept as a sum in the arrays' own precision (float32 at least).

    All sums of a precision lie in one buffer: large memory pages, and given back at once.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[Any]] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._unit = 0.0
        self._weight = 0.0

    def add(self, arrays: ArrayRecord, weight: float) -> None:
        """Add one reply's arrays, `weight` times."""
        if not self._sums:
            self._prepare(arrays)
            # Weights count relative to the first: numbers of samples would make large values overflow.
            self._unit = weight or 1.0
        share = weight / self._unit
        if list(arrays) != list(self._sums):
            raise InconsistentMessageReplies("the replies' models have different arrays")
        for name, array in arrays.items():
            value, total = view(array), self._sums[name]
            if total.shape != value.shape:
                raise InconsistentMessageReplies(
                    f"array {name} has shape {value.shape} in one reply and {total.shape} in another"
                )
            _add_scaled(total, value, share)
        self._weight += share

    def _prepare(self, arrays: ArrayRecord) -> None:
        self._dtypes = {name: view(array).dtype for name, array in arrays.items()}
        shapes = {name: view(array).shape for name, array in arrays.items()}
        buffers = {
            kind: np.zeros(sum(math.prod(shapes[n]) for n, d in self._dtypes.items() if _sum_dtype(d) == kind), kind)
            for kind in {_sum_dtype(dtype) for dtype in self._dtypes.values()}
        }
        used = dict.fromkeys(buffers, 0)
        for name, dtype in self._dtypes.items():
            kind, size = _sum_dtype(dtype), math.prod(shapes[name])
            self._sums[name] = buffers[kind][used[kind] : used[kind] + size].reshape(shapes[name])
            used[kind] += size

    def result(self) -> ArrayRecord | None:
        """Return the mean, or None if nothing was added."""
        if not self._sums or self._weight <= 0:
            return None
        record = {}
        for name, total in self._sums.items():
            np.multiply(total, 1.0 / self._weight, out=total)
            dtype = self._dtypes[name]
            if dtype.kind not in "fc":
                np.rint(total, out=total)  # a cast alone cuts 2.9999 to 2
            record[name] = _to_array(total.astype(dtype, copy=False))
        return ArrayRecord(record)


def _sum_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.promote_types(dtype, np.float32) if dtype.kind in "fc" else np.dtype(np.float64)


def _add_scaled(total: NDArray[Any], x: NDArray[Any], weight: float) -> None:
    """Add `weight`·`x` to `total`, in one pass over the memory where the BLAS can: that is what costs."""
    axpy = {np.dtype(np.float32): saxpy, np.dtype(np.float64): daxpy}.get(x.dtype)
    if axpy is not None and x.dtype == total.dtype and x.size and x.flags.c_contiguous:
        axpy(x.reshape(-1), total.reshape(-1), a=weight)
    else:
        total += np.multiply(x, total.dtype.type(weight), dtype=total.dtype)


def _to_array(value: NDArray[Any]) -> Array:
    """Return Flower's array of `value`, copied once, where `Array(value)` copies it twice."""
    if not value.size:
        return Array(value)
    body = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    data = b"".join([_npy_head(value.dtype.str, value.shape), body.data])
    return Array(dtype=str(value.dtype), shape=tuple(value.shape), stype=SType.NUMPY, data=data)


@lru_cache(maxsize=4096)
def _npy_head(descr: str, shape: tuple[int, ...]) -> bytes:
    """Return the head of NumPy's file format for a C-ordered array."""
    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
    return head.getvalue()


def view(array: Array) -> NDArray[Any]:
    """Return an array's values without copying them; they cannot be written to.

    Raises
    ------
    ValueError
        If the bytes are not those of an array in NumPy's own format.
    """
    try:
        return _view(array)
    except ValueError:
        raise
    except Exception as error:  # Bytes and label come from elsewhere, and NumPy refuses them in many ways.
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _view(array: Array) -> NDArray[Any]:
    if array.stype != SType.NUMPY:
        return np.asarray(array.numpy())
    # The usual head is compared rather than parsed: parsing 50 of them takes as long as adding 50 MB.
    try:
        dtype = np.dtype(array.dtype)
    except TypeError:
        dtype = np.dtype(np.object_)
    if not dtype.hasobject and array.data.startswith(head := _npy_head(dtype.str, tuple(array.shape))):
        return np.frombuffer(array.data, dtype, math.prod(array.shape), len(head)).reshape(array.shape)
    return np.asarray(array.numpy())


def _read(content: RecordDict, weighted_by: str) -> tuple[ArrayRecord, float]:
    arrays, metrics = list(arrays_in(content).values()), list(metrics_in(content).values())
    if len(arrays) != 1 or len(metrics) != 1 or weighted_by not in metrics[0]:
        raise InconsistentMessageReplies(
            f"a reply must have one ArrayRecord and one MetricRecord with {weighted_by!r}; it has {list(content)}"
        )
    weight = metrics[0][weighted_by]
    if not isinstance(weight, int | float):
        raise InconsistentMessageReplies(f"a reply's {weighted_by!r} is {weight!r}, expected a number")
    return arrays[0], float(weight)
