# SPDX-License-Identifier: Apache-2.0
"""What server and edges say to each other, beside the arrays and metrics that strategies see.

Each message has a record `solar-corona`: an `Instruction` from the server, an `Answer` from an edge, checked when it
is read. Everything else in a message is the strategy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import WireError

__all__ = [
    "CONTROL",
    "EVALUATION",
    "ORDER",
    "Answer",
    "ArraySpec",
    "Instruction",
    "ModelOrder",
    "Verb",
    "Weights",
    "WorkOrder",
    "array_specs",
    "attach",
    "evaluation_key",
    "message_type",
    "metrics_key",
    "ordered",
    "read_answer",
    "read_instruction",
    "read_order",
    "to_arrays",
    "to_metrics",
    "to_weights",
]

CONTROL = "solar-corona"
EVALUATION = "solar-corona-evaluation"
ORDER = "solar-corona-order"

Weights = dict[str, NDArray[np.generic]]


class Verb(StrEnum):
    """What the server asks of an edge."""

    HELLO = "hello"
    INITIAL = "initial"
    QUERY = "query"
    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"
    FINISH = "finish"
    STOP = "stop"


class _Said(BaseModel):
    # A metric may be NaN, and JSON by itself has no word for it.
    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="constants")


class ArraySpec(_Said):
    """Name, shape and dtype of one array of a model."""

    name: Annotated[str, Field(max_length=1000)]
    shape: tuple[int, ...]
    dtype: Annotated[str, Field(max_length=50)]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class Instruction(_Said):
    """What the server asks.

    `slowest` is how long the slowest edge took for the last instruction, in seconds, so that an edge that is done
    earlier knows how long nothing will come; `poll` is how often it may ask, in seconds.
    """

    verb: Verb
    round: int = 0
    evaluate: bool = Field(default=False, description="Evaluate the received model before training on it.")
    slowest: float = 0.0
    poll: float = 0.05
    alone_epochs: int = Field(default=0, description="With finish: train alone from the first model for so many fits.")
    reason: str = Field(default="", description="With stop: why.")
    run: str = Field(default="", max_length=100, description="The job's run, the same after the server resumed.")


class Answer(_Said):
    """What an edge says of itself, with every reply."""

    edge: Annotated[str, Field(max_length=63)]
    warm: bool = True
    process: str = Field(default="", max_length=64, description="Another value after each restart.")
    samples: int = Field(default=0, ge=0, description="Samples to train on.")
    eval_samples: int = Field(default=0, ge=0)
    algorithm: str | None = Field(default=None, description="The aggregation algorithm that the script asks for.")
    arrays: list[ArraySpec] = Field(default_factory=list, description="With hello: the model's form.")
    seconds: float = Field(default=0.0, ge=0, description="Time of the work itself.")
    failed: str | None = Field(default=None, max_length=20_000, description="Traceback, if the script raised.")
    error: str | None = Field(default=None, max_length=2_000, description="The error's last line.")
    suffix: str = Field(default="", max_length=20, description="With export: the model file's ending.")
    versions: dict[str, Annotated[str, Field(max_length=100)]] = Field(
        default_factory=dict, max_length=20, description="With export: versions of the engines that saved the model."
    )
    alone: dict[str, float] = Field(default_factory=dict, description="With finish: metrics of training alone.")
    one_model: dict[str, float] = Field(
        default_factory=dict, description="With finish: metrics of one model for all edges, where there are several."
    )
    before_finetune: dict[str, float] = Field(
        default_factory=dict, description="With finish: metrics before the edge went on alone."
    )
    tasks: dict[str, dict[str, float]] = Field(
        default_factory=dict, max_length=1000, description="With finish: metrics of each task, where there are several."
    )


class ModelOrder(_Said):
    """One of several models in a message, and what it is for."""

    key: Annotated[str, Field(max_length=1000)] = Field(description="Name of the model's ArrayRecord.")
    tasks: tuple[int, ...] | None = Field(default=None, description="Tasks of the edge that it serves; None: all.")
    aside: bool = Field(default=False, description="For comparison only: no part of what the edge reports as its own.")


class WorkOrder(_Said):
    """What an edge does with the models of a message; without one there is one model for all samples."""

    models: tuple[ModelOrder, ...] = Field(max_length=1000)
    choose: bool = Field(default=False, description="Train only the model with the lowest loss on the edge's samples.")
    personal: float = Field(
        default=0.0, ge=0, description="Also train a model of the edge's own, pulled towards the common one so much."
    )
    finetune: int = Field(default=0, ge=0, description="With finish: fits alone at the end, kept if they help.")
    notice: str = Field(default="", max_length=2_000, description="What the edge's user should know.")


def message_type(verb: Verb) -> str:
    """Return Flower's message type for `verb`."""
    kinds: Mapping[Verb, Literal["train", "evaluate"]] = {Verb.TRAIN: "train", Verb.EVALUATE: "evaluate"}
    return kinds.get(verb, "query")


def attach(record: RecordDict, said: Instruction | Answer) -> RecordDict:
    """Return a record with everything of `record`, and `said` under `CONTROL`."""
    content = RecordDict(dict(record.items()))
    content[CONTROL] = ConfigRecord({"json": said.model_dump_json(exclude_defaults=True)})
    return content


def _control(record: RecordDict) -> str:
    control = record.get(CONTROL)
    text = control.get("json") if isinstance(control, ConfigRecord) else None
    if not isinstance(text, str):
        raise WireError("a message is none of Solar Corona's")
    return text


def read_instruction(record: RecordDict) -> Instruction:
    """Return the instruction of a message from the server; raise `WireError` if there is none."""
    try:
        return Instruction.model_validate_json(_control(record))
    except ValidationError as error:
        raise WireError(f"an instruction cannot be read: {error.errors()[0]['msg']}") from error


def read_answer(record: RecordDict) -> Answer:
    """Return the answer of a message from an edge; raise `WireError` if there is none."""
    try:
        return Answer.model_validate_json(_control(record))
    except ValidationError as error:
        raise WireError(f"an answer cannot be read: {error.errors()[0]['msg']}") from error


def metrics_key(key: str) -> str:
    """Return the name of the MetricRecord that goes with a model's ArrayRecord."""
    return key.replace("arrays", "metrics", 1)


def evaluation_key(key: str, tasks: Sequence[int] | None = None) -> str:
    """Return the name of the MetricRecord with the evaluation of one model of several; on some tasks' samples alone."""
    return f"{EVALUATION}/{key}" if tasks is None else f"{EVALUATION}/{key}@{','.join(map(str, tasks))}"


def ordered(content: RecordDict, order: WorkOrder) -> RecordDict:
    """Return a record with everything of `content`, and `order` beside it."""
    told = RecordDict(dict(content.items()))
    told[ORDER] = ConfigRecord({"json": order.model_dump_json(exclude_defaults=True)})
    return told


def read_order(content: RecordDict) -> WorkOrder | None:
    """Return a message's work order, or None where it has none; raise `WireError` if it cannot be followed."""
    record = content.get(ORDER)
    if record is None:
        return None
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    try:
        order = WorkOrder.model_validate_json(text if isinstance(text, str) else "")
    except ValidationError as error:
        raise WireError(f"a work order cannot be read: {error.errors()[0]['msg']}") from error
    lacking = [model.key for model in order.models if not isinstance(content.get(model.key), ArrayRecord)]
    if lacking or not order.models:
        raise WireError(f"a work order names models that the message does not have: {', '.join(lacking) or 'none'}")
    return order


def to_arrays(weights: Mapping[str, NDArray[np.generic]] | Sequence[NDArray[np.generic]]) -> ArrayRecord:
    """Return `weights` as Flower's record; a sequence gets its indices as names.

    What NumPy's files have no name for, such as bfloat16, goes as float32.
    """
    named = weights if isinstance(weights, Mapping) else {str(i): w for i, w in enumerate(weights)}
    return ArrayRecord({name: Array(_storable(np.asarray(value))) for name, value in named.items()})


def _storable(value: NDArray[np.generic]) -> NDArray[np.generic]:
    foreign = value.dtype.kind == "V" and value.dtype.names is None
    return np.asarray(value, dtype=np.float32 if foreign else None, order="C")


def to_weights(arrays: ArrayRecord) -> Weights:
    """Return Flower's record as named NumPy arrays."""
    return {name: array.numpy() for name, array in arrays.items()}


def array_specs(arrays: ArrayRecord) -> list[ArraySpec]:
    """Return the form of a model."""
    return [ArraySpec(name=name, shape=tuple(a.shape), dtype=a.dtype) for name, a in arrays.items()]


def to_metrics(samples: int, metrics: Mapping[str, float]) -> MetricRecord:
    """Return metrics as Flower's record, with the number of samples that strategies weigh by."""
    return MetricRecord({**{name: float(v) for name, v in metrics.items()}, "num-examples": int(samples)})
