# SPDX-License-Identifier: Apache-2.0
"""What an edge's joint inference has done so far: frames, uploads, bytes, latencies, and how the cloud stands.

An edge keeps count as it answers and leaves a snapshot in its run folder about once a second; `status` reads them.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

__all__ = ["Circuit", "EdgeStatistics", "Latencies", "Recorder", "Source", "SourceStatistics", "statistics_file"]

Source = Literal["edge", "cloud"]
Circuit = Literal["closed", "half-open", "open"]

_log = logging.getLogger(__name__)
_EVERY = 1.0
_WORSE: Sequence[Circuit] = ("closed", "half-open", "open")
_LONGEST_TROUBLE = 500
# Buckets of 5 %, from 1 µs to about 10 minutes.
_FIRST, _STEP, _BUCKETS = 1e-6, math.log(1.05), 416


def statistics_file(run_folder: Path, edge: str) -> Path:
    """Return where an edge leaves its snapshot."""
    return run_folder / "edges" / edge / "inference.json"


class Latencies:
    """A histogram of durations in constant memory, exact to 5 %.

    Examples
    --------
    >>> found = Latencies()
    >>> for milliseconds in range(1, 101):
    ...     found.add(milliseconds / 1000)
    >>> found.count, 0.0475 < found.quantile(0.5) < 0.0525
    (100, True)
    """

    def __init__(self) -> None:
        self.count = 0
        self._buckets = [0] * _BUCKETS

    def add(self, seconds: float, times: int = 1) -> None:
        """Count one duration, or as many of the same."""
        place = int(math.log(seconds / _FIRST) / _STEP) if seconds > _FIRST else 0
        self._buckets[min(place, _BUCKETS - 1)] += times
        self.count += times

    def include(self, other: Latencies) -> None:
        """Count what another one counted."""
        self.count += other.count
        self._buckets = [own + theirs for own, theirs in zip(self._buckets, other._buckets, strict=True)]

    def quantile(self, share: float) -> float | None:
        """Return the duration in seconds that `share` of all do not exceed; None without any."""
        wanted, seen = share * self.count, 0
        for place, number in enumerate(self._buckets):
            seen += number
            if number and seen >= wanted:
                return _FIRST * math.exp((place + 0.5) * _STEP)
        return None


@dataclass(frozen=True)
class SourceStatistics:
    """Answers that came from one source, with their latencies in milliseconds."""

    answers: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class EdgeStatistics:
    """A snapshot of one edge.

    Parameters
    ----------
    edge
        Its name.
    frames
        Samples that were answered.
    seconds
        Since the first of them.
    uploads
        Samples that were sent to the deep model, whatever came of it.
    degraded
        Samples that the shallow model answered although the deep one was wanted.
    bytes_up, bytes_down
        Bodies of requests and answers.
    circuit
        How the circuit breaker stands: `open` while the deep model is not asked at all.
    sources
        Answers by where they came from.
    model, deep_model
        Name or version of the models that answered last.
    algorithm
        What decides on uploads, with its parameters.
    trouble
        Why the deep model did not answer the last sample that was meant for it; empty if it did.
    updated
        When, in seconds since 1970.
    """

    edge: str
    frames: int
    seconds: float
    uploads: int
    degraded: int
    bytes_up: int
    bytes_down: int
    circuit: Circuit
    sources: Mapping[Source, SourceStatistics] = field(default_factory=dict)
    model: str = ""
    deep_model: str = ""
    algorithm: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""
    updated: float = 0.0

    @property
    def frames_per_second(self) -> float:
        """Frames a second since the first."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def upload_ratio(self) -> float:
        """Share of the frames that were sent to the deep model."""
        return self.uploads / self.frames if self.frames else 0.0


class Recorder:
    """Counts what an edge does, at the cost of a microsecond a sample; any thread may call it.

    Parameters
    ----------
    edge
        The edge's name.
    path
        Where to leave snapshots, about one a second while something happens; None keeps them here. What recorders of
        one process have the same path, as in a script with two models, leave there what they counted together.
    algorithm
        What decides on uploads, for the snapshot.
    """

    _of_path: ClassVar[dict[Path, list[Recorder]]] = {}
    _writing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, edge: str, path: Path | None = None, *, algorithm: Mapping[str, Any] | None = None) -> None:
        self._edge, self._path, self._algorithm = edge, path, dict(algorithm or {})
        self._lock = threading.Lock()
        self._begin: float | None = None
        self._frames = self._uploads = self._degraded = self._bytes_up = self._bytes_down = 0
        self._latencies: dict[Source, Latencies] = {"edge": Latencies(), "cloud": Latencies()}
        self._model = self._deep_model = self._trouble = ""
        self._circuit: Circuit = "closed"
        self._closed = threading.Event()
        self._writer: threading.Thread | None = None

    def answered(self, source: Source, seconds: float, *, degraded: bool = False, samples: int = 1) -> None:
        """Count samples that were answered together, and how long that took."""
        with self._lock:
            if self._begin is None:
                self._begin = time.monotonic() - seconds
                self._start()
            self._frames += samples
            self._degraded += samples if degraded else 0
            self._latencies[source].add(seconds, samples)

    def uploaded(self, samples: int = 1, *, bytes_up: int = 0, bytes_down: int = 0) -> None:
        """Count samples that were sent to the deep model, and the bytes of it."""
        with self._lock:
            self._uploads += samples
            self._bytes_up += bytes_up
            self._bytes_down += bytes_down

    def told(
        self,
        *,
        circuit: Circuit | None = None,
        model: str | None = None,
        deep_model: str | None = None,
        trouble: str | None = None,
    ) -> None:
        """Take what is known of the circuit breaker, the models, and why the deep one did not answer."""
        with self._lock:
            self._circuit = circuit or self._circuit
            self._model = self._model if model is None else model
            self._deep_model = self._deep_model if deep_model is None else deep_model
            self._trouble = self._trouble if trouble is None else trouble[:_LONGEST_TROUBLE]

    def snapshot(self) -> EdgeStatistics:
        """Return what there is so far."""
        with self._lock:
            return EdgeStatistics(
                edge=self._edge,
                frames=self._frames,
                seconds=0.0 if self._begin is None else time.monotonic() - self._begin,
                uploads=self._uploads,
                degraded=self._degraded,
                bytes_up=self._bytes_up,
                bytes_down=self._bytes_down,
                circuit=self._circuit,
                sources={source: _as_told(found) for source, found in self._latencies.items()},
                model=self._model,
                deep_model=self._deep_model,
                algorithm=self._algorithm,
                trouble=self._trouble,
                updated=time.time(),
            )

    @classmethod
    def _together(cls, recorders: Sequence[Recorder]) -> EdgeStatistics:
        """Return what the recorders of one script counted, as one snapshot."""
        found = [recorder.snapshot() for recorder in recorders]
        if len(found) == 1:
            return found[0]
        latencies: dict[Source, Latencies] = {"edge": Latencies(), "cloud": Latencies()}
        for recorder in recorders:
            recorder.add_to(latencies)
        return replace(
            found[-1],
            frames=sum(each.frames for each in found),
            seconds=max(each.seconds for each in found),
            uploads=sum(each.uploads for each in found),
            degraded=sum(each.degraded for each in found),
            bytes_up=sum(each.bytes_up for each in found),
            bytes_down=sum(each.bytes_down for each in found),
            circuit=max((each.circuit for each in found), key=_WORSE.index),
            sources={source: _as_told(whole) for source, whole in latencies.items()},
            model=", ".join(dict.fromkeys(each.model for each in found if each.model)),
            deep_model=", ".join(dict.fromkeys(each.deep_model for each in found if each.deep_model)),
            trouble=next((each.trouble for each in found if each.trouble), ""),
        )

    def add_to(self, whole: Mapping[Source, Latencies]) -> None:
        """Count this one's durations in `whole` too."""
        with self._lock:
            for source, own in self._latencies.items():
                whole[source].include(own)

    def close(self) -> None:
        """Leave the last snapshot."""
        if not self._closed.is_set():
            self._closed.set()
            atexit.unregister(self.close)
            if self._writer is not None:
                self._writer.join()
                self._write()

    def _start(self) -> None:
        if self._path is not None:
            with self._writing:
                self._of_path.setdefault(self._path, []).append(self)
            self._writer = threading.Thread(target=self._write_often, name="inference-statistics", daemon=True)
            self._writer.start()
            atexit.register(self.close)

    def _write_often(self) -> None:
        while not self._closed.wait(_EVERY):
            self._write()

    def _write(self) -> None:
        assert self._path is not None
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._writing:
                found = self._together(self._of_path[self._path])
                # Not synced to the disk: after a power cut the last second's numbers are of no use to anybody.
                temporary.write_text(json.dumps(asdict(found), default=str), encoding="utf-8")
                temporary.replace(self._path)
        except OSError as error:
            _log.warning("%s: statistics cannot be written (%s); answers go on", self._path, error.strerror)


def _as_told(found: Latencies) -> SourceStatistics:
    return SourceStatistics(answers=found.count, p50_ms=_ms(found.quantile(0.5)), p99_ms=_ms(found.quantile(0.99)))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 4)
