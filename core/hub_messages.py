# SPDX-License-Identifier: Apache-2.0
"""What a LocalController and the hub say to each other, beside samples themselves (`lib/sample_records.py`).

All go over HTTP with a bearer token of the edge's own:

=======  ==============================  ==========================================================
POST     /v1/samples                     a frame of samples → `Receipts`; safe to repeat
HEAD     /v1/contents/{id}               `Upload-Offset` of a large content that is under way
PATCH    /v1/contents/{id}               its bytes from `Upload-Offset` on; 409 says the right offset
POST     /v1/labels                      `Labels` → `Receipts`; truth that arrives later
POST     /v1/heartbeat                   `Heartbeat` → `Orders`
POST     /v1/observations                `Observations` → 204; safe to repeat, by sequence number
GET      /v1/models/{version}/file       a model's file, with `Range`; a folder comes as one .zip
=======  ==============================  ==========================================================

Contents of more than `PIECE` bytes go in pieces, before their record, which then says `ahead`:

* HEAD answers 200 with `Upload-Offset`, the bytes that the hub has, or 404 where it has none. An offset that is the
  content's size means that the content is whole, also where it came with another sample or long ago.
* PATCH carries `Upload-Offset` and `Upload-Length` (the content's size) and at most `PIECE` bytes; the answer is 204
  with the new `Upload-Offset`. With another offset than the hub's it is 409, with the hub's `Upload-Offset`. When the
  last bytes do not make the content that its id says, the answer is 422, and the hub has forgotten the pieces; 413
  says that the content is larger than it takes, 507 that a quota is reached.
* A record that says `ahead` without a whole content gets the outcome `later`, and the pieces are sent again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "PIECE",
    "Heartbeat",
    "Label",
    "Labels",
    "LoadError",
    "ModelOffer",
    "NodeModels",
    "Observation",
    "Observations",
    "Orders",
    "OutboxState",
    "Receipt",
    "Receipts",
    "WorkerState",
]

PIECE = 1 << 20
"""Bytes of the largest piece of a content, and of the largest content that travels within a frame."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Receipt(_Message):
    """What became of one sample or label."""

    id: Sha256
    outcome: Literal["stored", "known", "refused", "later"] = Field(
        description="`known`: it was there already. `refused`: it will never be taken. `later`: try again."
    )
    reason: str = ""


class Receipts(_Message):
    """What became of each, in order."""

    receipts: list[Receipt]


class Label(_Message):
    """One label of one sample."""

    sample: Sha256
    value: Any = Field(description="A class's number or name, a list of boxes, or a text.")
    at: float = Field(ge=0, description="Seconds since 1970.")
    by: str = Field(default="", max_length=200, description="Who says so.")


class Labels(_Message):
    """Labels that arrive from an edge or through the API."""

    labels: list[Label] = Field(max_length=10_000)


class OutboxState(_Message):
    """What waits on an edge."""

    queued: int = 0
    bytes: int = 0
    uploaded: int = 0
    evicted: int = 0
    refused: int = 0
    oldest_at: float | None = None
    trouble: str = Field(default="", description="Why nothing goes up; empty if all is well.")


class LoadError(_Message):
    """A version that an edge could not use, and why; it goes on with the one before."""

    version: int
    error: str = Field(max_length=4_000)


class WorkerState(_Message):
    """What an edge's script did since it began, as it tells its LocalController."""

    started_at: float
    seen: int = 0
    hard: int = 0
    random: int = 0
    kept: int = 0
    near_duplicates: int = 0
    over_budget: int = 0
    dropped: int = Field(default=0, description="Kept samples lost because the LocalController did not keep up.")
    version: int = Field(default=0, description="The version that answers.")
    confidence: float | None = Field(default=None, description="Mean over the latest samples.")
    drift_at: list[float] = Field(default_factory=list, description="When its detectors saw a drift.", max_length=100)
    load_error: LoadError | None = None


class NodeModels(_Message):
    """The versions on an edge."""

    active: int = 0
    previous: int | None = None
    here: list[int] = Field(default_factory=list, description="All that are on the node, whole and checked.")
    error: LoadError | None = None


class Heartbeat(_Message):
    """One edge's state; every few seconds."""

    edge: str = Field(max_length=63)
    sent_at: float
    outbox: OutboxState = Field(default_factory=OutboxState)
    models: NodeModels = Field(default_factory=NodeModels)
    worker: WorkerState | None = Field(default=None, description="None where no script runs.")
    datasets: dict[str, Any] = Field(default_factory=dict, description="Counts and fingerprints of the node's own.")


class ModelOffer(_Message):
    """A version that an edge may fetch."""

    version: int = Field(ge=1)
    file: str = Field(pattern=r"^[\w.-]{1,200}$", description="Name to keep it under; its ending tells the format.")
    size: int = Field(ge=1)
    sha256: Sha256 = Field(description="Of the file as it is fetched.")
    signature: str = Field(description="Ed25519, base64, of `signed_text`.")

    def signed_text(self, job: str) -> bytes:
        """Return what the hub signs: the job, the version and the content."""
        return f"solar-corona model\n{job}\n{self.version}\n{self.file}\n{self.size}\n{self.sha256}\n".encode()


class Orders(_Message):
    """What the hub wants of an edge."""

    model: ModelOffer | None = Field(default=None, description="The version to answer with; None: as it is.")
    shadow: ModelOffer | None = Field(
        default=None, description="On a canary: the version before, which answers in the background to compare."
    )
    next_heartbeat: float = Field(default=5.0, gt=0, le=3600, description="Seconds.")


class Observation(_Message):
    """One sample that a canary answered, compared with what the version before says of it."""

    seq: int = Field(ge=0, description="Counted by the edge, over restarts too.")
    version: int
    reference: int
    at: float
    agrees: bool = Field(description="Whether both give the same answer.")
    confidence: float = Field(ge=0, le=1)
    reference_confidence: float = Field(ge=0, le=1)
    answer: int | None = Field(default=None, description="The class, for classifiers.")
    reference_answer: int | None = Field(default=None, description="The version before's class.")
    milliseconds: float = Field(default=0.0, ge=0)
    reference_milliseconds: float = Field(default=0.0, ge=0)
    error: bool = Field(default=False, description="Whether the candidate raised or answered with no numbers.")
    sample: str | None = Field(default=None, description="The sample's id, where it was kept.")


class Observations(_Message):
    """What a canary observed."""

    edge: str = Field(max_length=63)
    observations: list[Observation] = Field(max_length=10_000)
