# SPDX-License-Identifier: Apache-2.0
"""Sends what is in the outbox to the hub, in the background, for as long as it takes."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from ..core.errors import InterruptedJobError, SolarCoronaError
from ..core.hub_messages import PIECE, Receipt
from ..lib.sample_records import SampleRecord, pack, pack_encoded
from .channel import Channel
from .clock import Clock, SystemClock
from .hub_client import HubClient
from .large_contents import send_content
from .outbox import Outbox, QueuedLabel, QueuedObservation, QueuedSample
from .patience import patiently
from .quiet_hours import QuietHours

__all__ = ["Uploader"]

_log = logging.getLogger(__name__)
_MOST_SAMPLES, _MOST_LABELS, _MOST_OBSERVATIONS = 256, 1_000, 1_000
_MOST_WAIT = 300.0
# A clock that jumps is noticed after so long.
_QUIET_SECONDS = 60.0
_RATE_SECONDS = 10.0
_FEWEST_BYTES = 4_096
_BYTES_OF_LABEL = 150


class Uploader:
    """Sends samples, labels and observations, the oldest first.

    What the hub takes, has already, or will never take is struck off the outbox; all else stays and is sent again. A
    request that was answered and not yet struck off when the process was killed is sent once more, and the hub knows
    it by its content.

    Parameters
    ----------
    outbox
        What there is to send.
    hub
        Where to.
    edge
        This edge's name.
    max_rate
        Bytes a second, on average over ten seconds; None for as fast as it goes.
    quiet
        When nothing is sent.
    clock
        Waits, and tells the time.
    """

    def __init__(
        self,
        outbox: Outbox,
        hub: HubClient,
        *,
        edge: str,
        max_rate: int | None = None,
        quiet: QuietHours | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._outbox, self._hub, self._edge = outbox, hub, edge
        self._max_rate, self._quiet, self._clock = max_rate, quiet, clock or SystemClock()
        self._batch_bytes = PIECE if max_rate is None else min(PIECE, max(_FEWEST_BYTES, int(max_rate * _RATE_SECONDS)))
        self._stopping, self._wake, self._arrived = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self.run, name="uploader", daemon=True)
        self._unsettled: list[Callable[[], Future[None]]] = []
        self._channels = (self._observations(), self._labels(), self._samples())
        self._free_at, self._trouble = 0.0, ""
        outbox.on_arrival = self._arrived.set

    @property
    def trouble(self) -> str:
        """Why nothing goes up; empty if all is well."""
        return self._trouble or next((each.trouble for each in self._channels if each.trouble), "")

    def start(self) -> None:
        """Send in a thread of its own."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End after the request that is under way, if that is answered in time."""
        self._stopping.set()
        self.wake()
        self._arrived.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def wake(self) -> None:
        """Try now, where it waits for the hub to come back."""
        self._wake.set()

    def run(self) -> None:
        """Send until `stop` is called."""
        while not self._stopping.is_set():
            try:
                idle = patiently(
                    self._step,
                    clock=self._clock,
                    wake=self._wake,
                    stopping=self._stopping,
                    most_wait=_MOST_WAIT,
                    trouble=self._tell,
                )
                if idle:
                    self._clock.wait(self._arrived, idle)
            except InterruptedJobError:
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, what waits must go up in the end
                if self._stopping.is_set():
                    return
                self._tell(str(error))
                (_log.error if isinstance(error, SolarCoronaError) else _log.exception)("uploading failed: %s", error)
                self._clock.wait(self._stopping, _QUIET_SECONDS)

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            _log.warning("nothing goes up: %s", trouble) if trouble else _log.info("the hub takes samples again")
        self._trouble = trouble

    def _step(self) -> float:
        """Send one batch of each kind; return how long there is nothing to do, unless something arrives."""
        self._arrived.clear()
        self._settle_all()
        if left := self._quiet_left():
            return min(left, _QUIET_SECONDS)
        return min(channel.step() for channel in self._channels)

    def _quiet_left(self) -> float:
        return self._quiet.left(self._clock.now()) if self._quiet is not None else 0.0

    # --- striking off

    def _settle(self, settle: Callable[[], Future[None]]) -> None:
        """Strike off what was answered for. On a full disk that may have to wait, and nothing is sent meanwhile."""
        self._unsettled.append(settle)
        self._settle_all()

    def _settle_all(self) -> None:
        while self._unsettled:
            self._unsettled[0]().result()
            del self._unsettled[0]

    # --- what is sent

    def _samples(self) -> Channel[QueuedSample]:
        def settle(taken: Sequence[QueuedSample], refused: Sequence[QueuedSample]) -> None:
            ids = [each.id for each in taken], [each.id for each in refused]
            self._settle(lambda: self._outbox.settle(taken=ids[0], refused=ids[1]))

        return Channel(
            "sample",
            clock=self._clock,
            fetch=lambda after: self._outbox.samples(after=after, most=_MOST_SAMPLES, most_bytes=self._batch_bytes),
            send=self._send_samples,
            name=lambda sample: sample.id,
            settle=settle,
        )

    def _send_samples(self, samples: Sequence[QueuedSample]) -> Sequence[Receipt] | None:
        if samples[0].size <= PIECE:
            frame = pack_encoded((each.record, each.content) for each in samples)
        else:
            whole = send_content(
                samples[0],
                outbox=self._outbox,
                hub=self._hub,
                piece_bytes=self._batch_bytes,
                may_send=self._may_send,
            )
            if not whole:
                return None
            record = SampleRecord.from_json(json.loads(samples[0].record))
            frame = pack([(replace(record, ahead=True), b"")])
        return self._hub.send_samples(frame).receipts if self._may_send(len(frame)) else None

    def _labels(self) -> Channel[QueuedLabel]:
        def send(labels: Sequence[QueuedLabel]) -> Sequence[Receipt] | None:
            if not self._may_send(_BYTES_OF_LABEL * len(labels)):
                return None
            return self._hub.send_labels([each.label for each in labels]).receipts

        def settle(taken: Sequence[QueuedLabel], refused: Sequence[QueuedLabel]) -> None:
            ids = [each.id for each in taken], [each.id for each in refused]
            self._settle(lambda: self._outbox.settle_labels(taken=ids[0], refused=ids[1]))

        return Channel(
            "a label of sample",
            clock=self._clock,
            fetch=lambda after: self._outbox.labels(after=after, most=_MOST_LABELS),
            send=send,
            name=lambda label: label.label.sample,
            settle=settle,
        )

    def _observations(self) -> Channel[QueuedObservation]:
        def send(observations: Sequence[QueuedObservation]) -> Sequence[Receipt] | None:
            if not self._may_send(sum(len(each.value) for each in observations)):
                return None
            self._hub.send_observations(self._edge, [each.value for each in observations])
            return [Receipt(id=f"{each.seq:064x}", outcome="stored") for each in observations]

        def settle(taken: Sequence[QueuedObservation], refused: Sequence[QueuedObservation]) -> None:
            seqs = [each.seq for each in (*taken, *refused)]
            self._settle(lambda: self._outbox.settle_observations(seqs))

        return Channel(
            "observation",
            clock=self._clock,
            first=-1,
            fetch=lambda after: self._outbox.observations(after=after, most=_MOST_OBSERVATIONS),
            send=send,
            name=lambda observation: f"{observation.seq:064x}",
            settle=settle,
        )

    def _may_send(self, size: int) -> bool:
        """Wait until the rate allows so many bytes more; False if uploading has to end."""
        if self._max_rate is not None:
            now = self._clock.monotonic()
            if self._free_at > now:
                self._clock.wait(self._stopping, self._free_at - now)
            self._free_at = max(now, self._free_at) + size / self._max_rate
        return not (self._stopping.is_set() or self._quiet_left())
