# SPDX-License-Identifier: Apache-2.0
"""Makes batches of what comes in at the same time, and runs them on the model's own thread."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError, RefusedRequestError

if TYPE_CHECKING:
    from ...lib.runners.runner import Runner
    from ...lib.tensors import Tensors
    from .metrics import ModelCounts

__all__ = ["Batcher", "Outputs", "Waiter", "Work"]

Outputs = dict[str, NDArray[Any]]

_SWEEP_SECONDS = 0.25
_STOP_SECONDS = 10.0
_LONGEST_TEXT = 1000
_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Work:
    """One request's share of a batch.

    Parameters
    ----------
    inputs
        Tensors by name that fit the model.
    rows
        Length of their first axis.
    shapes
        What has to be equal within a batch; None where the model leaves no choice.
    deadline
        When nobody waits for it any more, on the monotonic clock.
    gone
        Tells whether the client has gone.
    done
        Gets the outputs.
    """

    inputs: Tensors
    rows: int
    shapes: tuple[tuple[int, ...], ...] | None
    deadline: float
    gone: Callable[[], bool]
    done: Waiter


class Waiter(Protocol):
    """Who waits for a batch: a future, or what has its three methods."""

    def done(self) -> bool:
        """Tell whether nobody waits any more."""

    def set_result(self, outputs: Outputs, /) -> None:
        """Take the outputs."""

    def set_exception(self, error: Exception, /) -> None:
        """Take the error that there is instead."""


_Result = tuple[Work, Outputs | Exception]


class Batcher:
    """A model's queue and the one thread that runs it.

    All methods belong to the event loop's thread. Queued work goes to the model's thread through a `SimpleQueue`,
    which is C and takes no Python lock; results come back once a batch.

    Parameters
    ----------
    runner
        The model.
    max_batch, max_queue, batch_wait
        As in `ServiceOptions`.
    path
        Where the model is, which clients are not told.
    counts
        Where batches are counted.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_batch: int,
        max_queue: int,
        batch_wait: float,
        counts: ModelCounts,
        path: str = "",
    ) -> None:
        self.waiting = 0
        self._runner = runner
        self._names = tuple(spec.name for spec in runner.inputs)
        self._max_batch, self._max_queue, self._batch_wait = max_batch, max_queue, batch_wait
        self._counts, self._path = counts, path
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._open: set[Work] = set()
        self._fresh: list[Work] = []
        self._seconds_a_row = 0.0
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether not even one more sample has room."""
        return self.waiting >= self._max_queue

    @property
    def retry_after(self) -> float:
        """Seconds until what waits now is done, as far as the last batches tell."""
        return self.waiting * self._seconds_a_row

    def reserve(self, rows: int) -> None:
        """Take room in the queue, which `submit` uses and `release` gives back.

        Raises
        ------
        RefusedRequestError
            With status 503, if there is not so much.
        """
        if self.waiting + rows > self._max_queue:
            raise RefusedRequestError(
                503, f"the queue is full ({self.waiting} samples wait); try again later", retry_after=self.retry_after
            )
        self.waiting += rows

    def release(self, rows: int) -> None:
        """Give back what `reserve` took and `submit` was not called for."""
        self.waiting -= rows

    def submit(self, work: Work) -> None:
        """Queue work for which room is reserved; its future gets the outputs, or the error."""
        self._open.add(work)
        if not self._fresh:
            self._loop.call_soon(self._hand_over)
        self._fresh.append(work)

    async def close(self) -> None:
        """End the thread, after the work that is queued; one that hangs in the model is left behind."""
        self._sweeper.cancel()
        self._hand_over()
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join, _STOP_SECONDS)
        if self._thread.is_alive():
            _log.error("a model has not come back from its batch; it is left behind")
            return
        self._runner.close()

    # --- on the event loop

    def _hand_over(self) -> None:
        """Queue what came in this turn of the loop.

        Once a turn, and last in it: the model's thread wakes at the first piece, and would have to wait for the
        interpreter until the turn ends.
        """
        fresh, self._fresh = self._fresh, []
        for work in fresh:
            self._queue.put(work)

    def _deliver(self, results: Sequence[_Result], seconds: float, rows: int) -> None:
        if rows:
            self._seconds_a_row += 0.2 * (seconds / rows - self._seconds_a_row)
            self._counts.batch(rows, seconds)
        for work, result in results:
            self.waiting -= work.rows
            self._open.discard(work)
            if work.done.done():
                continue
            if isinstance(result, Exception):
                work.done.set_exception(result)
            else:
                work.done.set_result(result)

    def _sweep(self) -> None:
        """Answer work whose deadline has passed while it waits or runs: the thread may hang in the model."""
        now = time.monotonic()
        for work in self._open:
            if work.deadline <= now and not work.done.done():
                work.done.set_exception(_too_late())
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    # --- on the model's thread

    def _work(self) -> None:
        held = None
        while True:
            first = self._queue.get() if held is None else held
            if first is None:
                return
            batch, held, stop = self._gathered(first)
            results, seconds, rows = self._answered(batch)
            try:
                self._loop.call_soon_threadsafe(self._deliver, results, seconds, rows)
            except RuntimeError:  # the loop is closed: nobody is left to hear it
                return
            if stop:
                return

    def _gathered(self, first: Work) -> tuple[list[Work], Work | None, bool]:
        """Return a batch that begins with `first`, what came next and does not fit, and whether that was the end."""
        batch, rows = [first], first.rows
        until = time.monotonic() + self._batch_wait if self._batch_wait else 0.0
        while rows < self._max_batch:
            try:
                rest = until - time.monotonic() if until else 0.0
                work = self._queue.get(timeout=rest) if rest > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if work is None:
                return batch, None, True
            if rows + work.rows > self._max_batch or work.shapes != first.shapes:
                return batch, work, False
            batch.append(work)
            rows += work.rows
        return batch, None, False

    def _answered(self, batch: Sequence[Work]) -> tuple[list[_Result], float, int]:
        now = time.monotonic()
        wanted: list[Work] = []
        results: list[_Result] = []
        for work in batch:
            if work.gone():
                results.append((work, {}))
            elif work.deadline <= now:
                results.append((work, _too_late()))
            else:
                wanted.append(work)
        if not wanted:
            return results, 0.0, 0
        begin = time.perf_counter()
        results += self._run(wanted)
        return results, time.perf_counter() - begin, sum(work.rows for work in wanted)

    def _run(self, batch: Sequence[Work]) -> list[_Result]:
        try:
            return self._run_together(batch)
        except BaseException as error:  # noqa: BLE001  # whatever a model raises, its thread goes on
            if len(batch) == 1:
                return [(batch[0], self._told(error))]
        # One bad sample must not cost its neighbours their answers.
        return [result for work in batch for result in self._run([work])]

    def _run_together(self, batch: Sequence[Work]) -> list[_Result]:
        if len(batch) == 1:
            rows, inputs = batch[0].rows, batch[0].inputs
        else:
            rows = sum(work.rows for work in batch)
            inputs = {name: np.concatenate([work.inputs[name] for work in batch]) for name in self._names}
        outputs = self._runner.run(inputs)
        for name, value in outputs.items():
            if not value.shape or value.shape[0] != rows:
                raise ModelError(
                    f"the model's output {name!r} has shape {list(value.shape)} for a batch of {rows}; "
                    f"expected the batch to be its first axis"
                )
        if len(batch) == 1:
            return [(batch[0], outputs)]
        results: list[_Result] = []
        begin = 0
        for work in batch:
            end = begin + work.rows
            results.append((work, {name: value[begin:end] for name, value in outputs.items()}))
            begin = end
        return results

    def _told(self, error: BaseException) -> Exception:
        """Return an error as the client hears it."""
        text = str(error)[:_LONGEST_TEXT]
        if self._path:
            text = text.replace(f"{self._path}: ", "").replace(self._path, "the model")
        if isinstance(error, ModelError):
            return RefusedRequestError(422, f"the model cannot answer this: {text}")
        _log.error("the model raised %s: %s", type(error).__name__, error, exc_info=error)
        return RefusedRequestError(500, f"the model raised {type(error).__name__}: {text}")


def _too_late() -> RefusedRequestError:
    return RefusedRequestError(504, "the deadline passed before the model had answered; allow more time, or try later")
