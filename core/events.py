# SPDX-License-Identifier: Apache-2.0
"""What happens in a run, as records that the server writes one per line and every view reads.

The live table, `status`, `--json` and the report are all made from these; nothing else is asked.
"""

from __future__ import annotations

import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

__all__ = [
    "EdgeFinished",
    "EdgeJoined",
    "EdgeLeftOut",
    "Event",
    "JobFailed",
    "JobFinished",
    "JobStarted",
    "RoundEvaluated",
    "RoundFinished",
    "RoundStarted",
    "TaskPlace",
    "TasksGrouped",
    "TransferChosen",
    "Warned",
    "event_adapter",
]


class _Event(BaseModel):
    # A metric may be NaN, and JSON by itself has no word for it.
    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="constants")
    time: float = Field(default_factory=time.time, description="Seconds since 1970.")


class JobStarted(_Event):
    """The server is up and waits for edges; `resumed_at` is the last round that was done before."""

    event: Literal["job-started"] = "job-started"
    rounds: int
    edges: list[str]
    algorithm: str
    min_edges: int
    resumed_at: int = 0


class EdgeJoined(_Event):
    """An edge answered for the first time, or came back."""

    event: Literal["edge-joined"] = "edge-joined"
    edge: str
    samples: int
    eval_samples: int
    warm: bool = True
    back: bool = False


class EdgeLeftOut(_Event):
    """An edge's work does not count, and why; it may come back."""

    event: Literal["edge-left-out"] = "edge-left-out"
    edge: str
    round: int
    reason: str


class RoundStarted(_Event):
    """A round's messages are on their way."""

    event: Literal["round-started"] = "round-started"
    round: int
    edges: int


class RoundFinished(_Event):
    """A round's models are aggregated. Times in seconds, sizes in bytes on the wire, with what was asked before it."""

    event: Literal["round-finished"] = "round-finished"
    round: int
    asked: int
    replied: int
    metrics: dict[str, float]
    seconds: float
    training_seconds: float
    bytes_down: int
    bytes_up: int


class RoundEvaluated(_Event):
    """How good the global model is after a round (0: before the first), over all edges and on each."""

    event: Literal["round-evaluated"] = "round-evaluated"
    round: int
    metrics: dict[str, float]
    edges: dict[str, dict[str, float]]


class EdgeFinished(_Event):
    """An edge has the final model.

    `alone` are its metrics when it trains without the others, `one_model` under one model for all where there are
    groups, `before_finetune` before it went on alone, `tasks` those of each task where it has several.
    """

    event: Literal["edge-finished"] = "edge-finished"
    edge: str
    metrics: dict[str, float]
    alone: dict[str, float] = Field(default_factory=dict)
    one_model: dict[str, float] = Field(default_factory=dict)
    before_finetune: dict[str, float] = Field(default_factory=dict)
    tasks: dict[str, dict[str, float]] = Field(default_factory=dict)


class TaskPlace(BaseModel):
    """One task of one edge: its group, and how near that is beside the next one.

    `own` and `next` are relative distances of the task's data to its group and to the nearest other (`eta`: 0 where
    they are alike, above about 0.1 where they are not); `map` is its place on a map of all tasks. Where it is not
    `signed`, its edge gave no signature of it that can be used, and these numbers say nothing.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="constants")
    edge: str
    task: str
    group: str
    samples: int
    own: float
    next: float | None = None
    map: tuple[float, float] = (0.0, 0.0)
    labelled: bool = True
    signed: bool = True


class TasksGrouped(_Event):
    """Which tasks of which edges are taken as similar, from a round on."""

    event: Literal["tasks-grouped"] = "tasks-grouped"
    round: int
    reason: str
    tasks: list[TaskPlace]
    tree: list[tuple[int, int, float]] = Field(
        default_factory=list,
        description="How groups came about: two nodes and their distance; the tasks are the first nodes, in order, and "
        "each merge makes the next.",
    )
    signature_bytes: int = Field(default=0, description="Bytes that edges sent to be compared, in all; 0 if none was.")


class TransferChosen(_Event):
    """What groups take from each other from a round on, and what was measured for that."""

    event: Literal["transfer-chosen"] = "transfer-chosen"
    round: int
    group: str
    choice: str
    reason: str
    gains: dict[str, float] = Field(default_factory=dict)


class Warned(_Event):
    """Something the user should know that does not stop the job."""

    event: Literal["warned"] = "warned"
    message: str


class JobFinished(_Event):
    """The job succeeded."""

    event: Literal["job-finished"] = "job-finished"
    model: str | None
    seconds: float


class JobFailed(_Event):
    """The job failed, and what to do about it."""

    event: Literal["job-failed"] = "job-failed"
    error: str
    exit_code: int


Event = Annotated[
    JobStarted
    | EdgeJoined
    | EdgeLeftOut
    | RoundStarted
    | RoundFinished
    | RoundEvaluated
    | EdgeFinished
    | TasksGrouped
    | TransferChosen
    | Warned
    | JobFinished
    | JobFailed,
    Field(discriminator="event"),
]
event_adapter: TypeAdapter[Event] = TypeAdapter(Event)
