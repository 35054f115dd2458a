# SPDX-License-Identifier: Apache-2.0
"""On a canary, what the version before says of the same samples: asked in the background, and sent to be judged."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError, PlatformError
from ..core.files import write_bytes_atomic
from .confidences import max_confidence
from .hard_samples.kept_sample import KeptSample
from .scores import Scores
from .serving import Serving
from .tensors import Tensors, TensorSpec

__all__ = ["Compared", "Numbers", "Observed", "ShadowModel", "renamed"]

_log = logging.getLogger(__name__)
_MOST_CALLS, _MOST_BYTES = 32, 64 << 20
_BLOCK = 1_000
_SURE = 0.5
_SECONDS = 3.0


@dataclass(frozen=True)
class Observed:
    """One sample that a canary answered; the fields are those of `core.hub_messages.Observation`."""

    seq: int
    version: int
    reference: int
    at: float
    agrees: bool
    confidence: float
    reference_confidence: float
    answer: int | None = None
    reference_answer: int | None = None
    milliseconds: float = 0.0
    reference_milliseconds: float = 0.0
    error: bool = False
    sample: str | None = None


@dataclass(frozen=True)
class Compared:
    """A call that the canary answered, or could not.

    Parameters
    ----------
    inputs
        What the model took, batch first.
    version
        The version that was to answer.
    seconds
        That it took, for the whole batch.
    scores
        What it is sure of, sample by sample; None where that cannot be told.
    error
        Whether it raised, or gave no numbers.
    kept
        What was kept of each sample.
    at
        When, in seconds since 1970.
    """

    inputs: Tensors
    version: int
    seconds: float
    scores: Sequence[Scores | None]
    error: bool
    kept: Sequence[KeptSample | None]
    at: float


class Numbers:
    """Counts up over restarts: numbers are taken from the file a thousand at a time, so a crash leaves a gap at most.

    Parameters
    ----------
    file
        Where the next thousand is noted. Where it cannot be read or written, numbers go on from the microseconds since
        1970, which are larger than any count.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._next = self._end = 0

    def next(self) -> int:
        """Return the next number."""
        if self._next >= self._end:
            self._next = max(self._begin(), self._next)
            self._end = self._next + _BLOCK
            try:
                write_bytes_atomic(self._file, f"{self._end}\n".encode())
            except PlatformError as error:
                self._next = max(self._next, _microseconds())
                self._end = self._next + _BLOCK
                _log.warning("observations are counted by the clock: %s", error)
        found = self._next
        self._next += 1
        return found

    def _begin(self) -> int:
        try:
            with self._file.open("rb") as file:
                return int(file.read(32))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError):
            return _microseconds()


def _microseconds() -> int:
    return time.time_ns() // 1_000


class ShadowModel:
    """Answers what the canary answered, one call at a time, and sends what it finds.

    Calls that come while 32 are waiting are left out: the canary never waits for it.

    Parameters
    ----------
    serving
        The version before.
    read
        Says what its outputs are sure of: called with outputs and the number of samples.
    send
        Takes an observation's fields.
    numbers
        Counts observations.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        read: Callable[[Mapping[str, NDArray[Any]], int], Sequence[Scores | None]],
        send: Callable[[Mapping[str, Any]], None],
        numbers: Numbers,
    ) -> None:
        self.version = serving.version
        self._runner, self._read, self._send, self._numbers = serving.runner, read, send, numbers
        self._lock, self._state = threading.Lock(), threading.Lock()
        self._calls: deque[Compared] = deque()
        self._bytes = 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="shadow-model", daemon=True)
        self._thread.start()

    def offer(self, call: Compared) -> None:
        """Take a call in, if there is room; its inputs are copied then."""
        size = sum(value.nbytes for value in call.inputs.values())
        with self._state:
            if len(self._calls) >= _MOST_CALLS or (self._calls and self._bytes + size > _MOST_BYTES):
                return
            inputs = {name: value.copy() for name, value in call.inputs.items()}
            self._calls.append(
                Compared(inputs, call.version, call.seconds, call.scores, call.error, call.kept, call.at)
            )
            self._bytes += size
        self._wake.set()

    def answer(self, inputs: Tensors) -> Mapping[str, NDArray[Any]]:
        """Return the outputs of the version before, for a call that the canary could not answer.

        Raises
        ------
        ModelError
            If it cannot either.
        """
        with self._lock:
            return self._runner.run(renamed(inputs, self._runner.inputs))

    def close(self) -> None:
        """Stop, and free the model when the call that is under way is done."""
        self._closing.set()
        self._wake.set()
        self._thread.join(_SECONDS)
        with self._lock:
            self._runner.close()

    def _work(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            while self._calls and not self._closing.is_set():
                with self._state:
                    call = self._calls.popleft()
                    self._bytes -= sum(value.nbytes for value in call.inputs.values())
                try:
                    self._compare(call)
                except ModelError:
                    # A sample that neither version takes says nothing about either.
                    continue
                except Exception:  # noqa: BLE001
                    _log.exception("a canary's answer could not be compared")

    def _compare(self, call: Compared) -> None:
        begin = time.perf_counter()
        outputs = self.answer(call.inputs)
        milliseconds = 1e3 * (time.perf_counter() - begin)
        count = len(call.scores)
        for own, theirs, kept in zip(call.scores, self._read(outputs, count), call.kept, strict=True):
            observed = Observed(
                seq=self._numbers.next(),
                version=call.version,
                reference=self.version,
                at=call.at,
                agrees=not call.error and _agree(own, theirs),
                confidence=_confidence(own),
                reference_confidence=_confidence(theirs),
                answer=_class(own),
                reference_answer=_class(theirs),
                milliseconds=1e3 * call.seconds / count,
                reference_milliseconds=milliseconds / count,
                error=call.error,
                sample=_id_of(kept),
            )
            self._send(asdict(observed))


def renamed(inputs: Tensors, specs: Sequence[TensorSpec]) -> Tensors:
    """Return inputs under another version's names, by their order: a training may name layers anew."""
    if [spec.name for spec in specs] == list(inputs) or len(specs) != len(inputs):
        return inputs
    if {spec.name for spec in specs} == set(inputs):
        return inputs
    return {spec.name: value for spec, value in zip(specs, inputs.values(), strict=True)}


def _agree(one: Scores | None, other: Scores | None) -> bool:
    """Tell whether two versions say the same: the same class, or as many boxes that either is sure of."""
    if one is None or other is None:
        return one is other
    if one.boxes or other.boxes:
        return int((one.values >= _SURE).sum()) == int((other.values >= _SURE).sum())
    return _class(one) == _class(other)


def _class(scores: Scores | None) -> int | None:
    if scores is None or scores.boxes or not scores.values.size or not np.isfinite(scores.values).all():
        return None
    return int(scores.values.argmax())


def _id_of(kept: KeptSample | None) -> str | None:
    try:
        return kept.id if kept is not None else None
    except ModelError:
        return None  # it has no form to be kept in, and whoever sends it says so


def _confidence(scores: Scores | None) -> float:
    found = max_confidence(scores) if scores is not None else 0.0
    return min(max(found, 0.0), 1.0) if math.isfinite(found) else 0.0
