# SPDX-License-Identifier: Apache-2.0
"""What runs on a node: outbox, uploader, models, datasets and heartbeats, put together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from ..core.hub_messages import Heartbeat, NodeModels, OutboxState, Receipt, WorkerState
from ..lib.sample_records import SampleRecord, sample_id_of, unpack
from .clock import Clock, SystemClock
from .datasets import DatasetIndex
from .heartbeats import Heartbeats
from .hub_client import HubClient
from .models import ModelStore
from .outbox import Outbox
from .quiet_hours import QuietHours
from .store_lock import locked
from .uploader import Uploader

__all__ = ["Arrivals", "Controller", "ControllerOptions", "Status", "running"]

_WORKER_SILENCE = 60.0


@dataclass(frozen=True, kw_only=True)
class ControllerOptions:
    """What one LocalController is for.

    Parameters
    ----------
    state
        Folder of all that it keeps; one LocalController at a time may use it.
    edge, job
        Whose it is.
    hub, token_file, ca
        Where samples go, the edge's token for it, and the CA of its certificate.
    model
        The model's name.
    model_path, model_sha256
        Version 1, where the job has it; None takes the first version from the hub.
    public_key
        What the hub's models are signed with.
    datasets
        The node's datasets by name.
    max_bytes
        What the outbox may hold.
    max_rate
        Bytes a second that go up at most.
    quiet
        When nothing goes up.
    """

    state: Path
    edge: str
    job: str
    hub: str
    token_file: Path
    ca: Path | None = None
    model: str = "model"
    model_path: str | None = None
    model_sha256: str | None = None
    public_key: Path | None = None
    datasets: dict[str, Path] = field(default_factory=dict)
    max_bytes: int = 1 << 30
    max_rate: int | None = None
    quiet: QuietHours | None = None


class Status(BaseModel):
    """How a node stands."""

    edge: str
    job: str
    process: int
    started_at: float
    hub: str
    hub_silence: float | None
    hub_trouble: str
    outbox: OutboxState
    models: NodeModels
    worker: WorkerState | None
    datasets: dict[str, Any]


@dataclass(frozen=True)
class Arrivals:
    """Samples of a frame that may be kept, and what is said at once of the others."""

    samples: Sequence[tuple[SampleRecord, bytes]]
    refusals: dict[int, Receipt]

    def receipts(self, kept: Sequence[Receipt]) -> list[Receipt]:
        """Return what became of all, in the frame's order."""
        rest = iter(kept)
        return [
            self.refusals[place] if place in self.refusals else next(rest)
            for place in range(len(self.samples) + len(self.refusals))
        ]


class Controller:
    """One node's LocalController; see `running`."""

    def __init__(self, options: ControllerOptions, outbox: Outbox, hub: HubClient, clock: Clock) -> None:
        self.options, self.outbox, self._hub, self._clock = options, outbox, hub, clock
        self._started_at = clock.now()
        self._worker: tuple[WorkerState, float] | None = None
        state = options.state
        self.uploader = Uploader(
            outbox, hub, edge=options.edge, max_rate=options.max_rate, quiet=options.quiet, clock=clock
        )
        self.models = ModelStore(
            state / "models" / options.model, job=options.job, public_key=options.public_key, hub=hub, clock=clock
        )
        self.datasets = DatasetIndex(options.datasets, state / "datasets.json", clock=clock)
        self.heartbeats = Heartbeats(
            hub, state=self.heartbeat, take=self.models.want, back=self.uploader.wake, clock=clock
        )
        self.models.changed = self.heartbeats.soon

    def arrivals(self, frame: bytes) -> Arrivals:
        """Check what a worker sent.

        Raises
        ------
        WireError
            If it is no frame of samples.
        """
        samples, refusals = [], {}
        for place, (record, content) in enumerate(unpack(frame)):
            reason = ""
            if record.edge != self.options.edge:
                reason = f"is of edge {record.edge!r}, and this is {self.options.edge!r}'s LocalController"
            elif record.ahead:
                reason = "comes without its content; on a node all of it has to be in the frame"
            elif sample_id_of(content) != record.id:
                reason = "its id is not the SHA-256 of its content"
            if reason:
                refusals[place] = Receipt(id=record.id, outcome="refused", reason=reason)
            else:
                samples.append((record, content))
        return Arrivals(samples, refusals)

    def take_worker(self, worker: WorkerState) -> None:
        """Take note of what a worker did, and go back a version where it could not load one."""
        self._worker = worker, self._clock.monotonic()
        if worker.load_error is not None:
            self.models.failed_to_load(worker.load_error)

    def _living_worker(self) -> WorkerState | None:
        if self._worker is None or self._clock.monotonic() - self._worker[1] > _WORKER_SILENCE:
            return None
        return self._worker[0]

    def heartbeat(self) -> Heartbeat:
        """Return the node's state, as the hub gets it."""
        return Heartbeat(
            edge=self.options.edge,
            sent_at=self._clock.now(),
            outbox=self.outbox.state(self.uploader.trouble),
            models=self.models.state(),
            worker=self._living_worker(),
            datasets=self.datasets.summary(),
        )

    def status(self) -> Status:
        """Return the node's state, as whoever stands before it gets it."""
        now = self.heartbeat()
        return Status(
            edge=now.edge,
            job=self.options.job,
            process=os.getpid(),
            started_at=self._started_at,
            hub=self.options.hub,
            hub_silence=self.heartbeats.silence,
            hub_trouble=self.heartbeats.trouble,
            outbox=now.outbox,
            models=now.models,
            worker=now.worker,
            datasets=now.datasets,
        )


@contextmanager
def running(
    options: ControllerOptions, *, clock: Clock | None = None, transport: httpx.BaseTransport | None = None
) -> Iterator[Controller]:
    """Run a LocalController, without its socket.

    Parameters
    ----------
    options
        What it is for.
    clock, transport
        Time and network, by default the machine's.

    Raises
    ------
    PlatformError
        If another one uses the state folder, or it cannot be written.
    ModelError
        If version 1 cannot be used.
    SpecError
        If the hub's address or CA cannot be used.
    """
    with ExitStack() as stack:
        stack.enter_context(locked(options.state))
        hub = HubClient(options.hub, token_file=options.token_file, ca=options.ca, transport=transport)
        stack.callback(hub.close)
        outbox = Outbox(options.state / "outbox.db", max_bytes=options.max_bytes)
        stack.callback(outbox.close)
        controller = Controller(options, outbox, hub, clock or SystemClock())
        if options.model_path is not None:
            controller.models.begin_with(options.model_path, sha256=options.model_sha256)
        parts = (controller.datasets, controller.models, controller.uploader, controller.heartbeats)
        for part in parts:
            part.start()
            stack.callback(part.stop)
        yield controller
        for part in parts:  # all at once, and each is waited for after that
            part.stop(0.0)
