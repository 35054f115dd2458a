# SPDX-License-Identifier: Apache-2.0
"""Carries what a script keeps to the node's LocalController, in a thread that nothing waits for."""

from __future__ import annotations

import atexit
import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...core.errors import ModelError, TemporaryError, WireError
from ..said_once import SaidOnce
from ..sample_records import FRAME_TYPE, SampleRecord, pack
from .controller_client import ControllerClient
from .kept_sample import KeptSample
from .worker_counts import WorkerCounts

__all__ = ["Sender"]

_log = logging.getLogger(__name__)

_EVERY = 2.0
_FRAME_SAMPLES, _FRAME_BYTES = 64, 8 << 20
_MOST_SAMPLES, _MOST_BYTES = 256, 64 << 20
_MOST_LABELS, _MOST_OBSERVATIONS = 10_000, 2_000
_AT_ONCE = 1_000
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0
_FAREWELL = 3.0


@dataclass(frozen=True)
class _Label:
    sample: str
    value: Any
    at: float
    by: str


class Sender:
    """Queues of what is to go to a LocalController, each bounded, and the thread that empties them.

    Whoever puts something in never waits: what does not fit is dropped and counted. Samples hold at most 64 MiB, as
    they are in memory.

    Parameters
    ----------
    client
        The controller; None where there is none: then samples are counted and not kept, and labels are dropped.
    edge
        This edge's name.
    """

    def __init__(self, client: ControllerClient | None, edge: str) -> None:
        self._client, self._edge = client, edge
        self.reporters: list[Callable[[WorkerCounts], None]] = []
        """Each writes what it knows into the report, which goes up every two seconds."""
        self._started_at = time.time()
        self._collectors = 0
        self._lock = threading.Lock()
        self._samples: deque[KeptSample] = deque()
        self._labels: deque[_Label] = deque(maxlen=_MOST_LABELS)
        self._observations: deque[Mapping[str, Any]] = deque(maxlen=_MOST_OBSERVATIONS)
        self._bytes = 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._trouble = ""
        self._said = SaidOnce(_log)
        self.dropped = 0

    @property
    def connected(self) -> bool:
        """Whether there is a LocalController to send to."""
        return self._client is not None

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closing.is_set()

    @property
    def trouble(self) -> str:
        """Why the controller takes nothing; empty if all is well."""
        return self._trouble

    def counts(self) -> WorkerCounts:
        """Return what the script did so far."""
        counts = WorkerCounts(self._started_at, dropped=self.dropped)
        for report in self.reporters:
            report(counts)
        return counts

    def start(self) -> None:
        """Begin to report, before there is anything to keep."""
        if self._client is not None and self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="hard-samples", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def keep(self, kept: KeptSample) -> bool:
        """Put a sample in; return False if there is no room, and it was dropped."""
        if self._client is None:
            return True
        with self._lock:
            full = len(self._samples) >= _MOST_SAMPLES or self._bytes + kept.size > _MOST_BYTES
            if (full and self._samples) or self._closing.is_set():
                self.dropped += 1
                return False
            self._samples.append(kept)
            self._bytes += kept.size
        self._go()
        return True

    def label(self, sample: str, value: Any) -> None:
        """Put a label in; the oldest goes where there are 10,000."""
        if self._client is not None:
            self._labels.append(_Label(sample, value, time.time(), self._edge))
            self._go()

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Put an observation of a canary in; the oldest goes where there are 2,000."""
        if self._client is not None:
            self._observations.append(observation)
            # They come with every sample: they go with the next report.
            self.start()

    def join(self, reporter: Callable[[WorkerCounts], None]) -> None:
        """Begin to report for a collector."""
        self.reporters.append(reporter)
        self._collectors += 1
        self.start()

    def leave(self, reporter: Callable[[WorkerCounts], None]) -> None:
        """Send what is there if no other collector of this process does, and report no longer for this one."""
        if reporter in self.reporters:
            self._collectors -= 1
            if not self._collectors:
                self.close()
            self.reporters.remove(reporter)

    def close(self) -> None:
        """Send what is there, for some seconds at most."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.set()
        atexit.unregister(self.close)
        if self._thread is not None:
            self._thread.join(_FAREWELL)

    def _go(self) -> None:
        self.start()
        self._wake.set()

    def _run(self) -> None:
        assert self._client is not None
        wait, last = _FIRST_WAIT, 0.0
        while True:
            closing = self._closing.is_set()
            due = time.monotonic() - last >= _EVERY or closing
            try:
                self._send(self._client, report=due)
                last = time.monotonic() if due else last
                self._trouble = ""
                wait = _FIRST_WAIT
            except TemporaryError as error:
                self._trouble = str(error)
                self._told_once(self._trouble)
                if closing:
                    break
                # Waited with some chance in it: all edges of a node find a controller again at the same time.
                self._closing.wait(wait * random.uniform(0.7, 1.3))  # noqa: S311
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            except Exception:  # noqa: BLE001
                # Whatever it is, answers go on, and so does the next try.
                _log.exception("hard samples could not be sent")
                self._closing.wait(wait)
            if closing and not (self._samples or self._labels or self._observations):
                break
            if not self._samples and not self._labels:
                self._wake.wait(max(_EVERY - (time.monotonic() - last), 0.05))
            self._wake.clear()
        self._client.close()

    def _send(self, client: ControllerClient, *, report: bool) -> None:
        while self._samples:
            self._send_samples(client)
        while self._labels:
            labels = list(self._labels)[:_AT_ONCE]
            self._post(client, "/v1/labels", {"labels": [asdict(label) for label in labels]})
            _forget(self._labels, labels)
        if report:
            while self._observations:
                observed = list(self._observations)[:_AT_ONCE]
                self._post(client, "/v1/observations", {"edge": self._edge, "observations": observed})
                _forget(self._observations, observed)
            if self.reporters:
                self._post(client, "/v1/worker", asdict(self.counts()))

    def _send_samples(self, client: ControllerClient) -> None:
        frame, size = self._frame()
        try:
            packed = self._packed(frame)
            if packed:
                self._count_refusals(client.post("/v1/samples", pack(packed), FRAME_TYPE))
        except TemporaryError:
            raise
        except Exception as error:  # noqa: BLE001
            # Sent again, the frame would fail again, and hold up all behind it.
            self.dropped += len(frame)
            self._told_once(f"{len(frame)} samples are lost: {type(error).__name__}: {error}")
        with self._lock:
            for kept in frame:
                self._samples.popleft()
                kept.sent()
            self._bytes -= size

    def _packed(self, frame: list[KeptSample]) -> list[tuple[SampleRecord, bytes]]:
        packed = []
        for kept in frame:
            try:
                packed.append(kept.packed())
            except ModelError as error:
                self.dropped += 1
                self._told_once(str(error))
        return packed

    def _frame(self) -> tuple[list[KeptSample], int]:
        """Return the next samples; they stay in the queue until the controller has them."""
        with self._lock:
            frame: list[KeptSample] = []
            size = 0
            for kept in self._samples:
                if frame and (len(frame) == _FRAME_SAMPLES or size + kept.size > _FRAME_BYTES):
                    break
                frame.append(kept)
                size += kept.size
            return frame, size

    def _count_refusals(self, answer: Any) -> None:
        receipts = answer.get("receipts") if isinstance(answer, dict) else None
        refused = [r for r in receipts or () if isinstance(r, dict) and r.get("outcome") == "refused"]
        if refused:
            self.dropped += len(refused)
            self._told_once(f"the LocalController refuses a sample: {str(refused[0].get('reason', ''))[:200]}")

    def _post(self, client: ControllerClient, path: str, message: Mapping[str, Any]) -> None:
        try:
            client.post(path, json.dumps(message, allow_nan=False).encode())
        except (WireError, ValueError) as error:
            # Sent again it would be refused again.
            self._told_once(str(error))

    def _told_once(self, trouble: str) -> None:
        self._said.warn(trouble[:60], f"hard samples: {trouble}")


def _forget(queue: deque[Any], sent: list[Any]) -> None:
    """Take out what was sent; a full queue may have lost some of it meanwhile."""
    for each in sent:
        if queue and queue[0] is each:
            queue.popleft()
