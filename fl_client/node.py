# SPDX-License-Identifier: Apache-2.0
"""One edge's work: a message in, a reply out. What carries the messages is no concern of this module."""

from __future__ import annotations

import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from ..core.errors import JobFailedError, WireError
from ..lib import exchange
from ..lib.exchange import Answer, Instruction, Verb
from ..lib.records import arrays_in, configs_in
from ..lib.trainable import Scalar, Trainable

__all__ = ["Exporter", "Node"]

Exporter = Callable[[Path], Path]
"""Saves the model into a folder and returns the file or folder it wrote."""


class Node:
    """What an edge answers to the server's instructions.

    Parameters
    ----------
    edge
        Name of the edge.
    trainable
        The model with its data.
    samples, eval_samples
        Samples to train and to evaluate on.
    export
        Saves the model, or None where the object cannot be saved.
    algorithm
        The aggregation algorithm that the script asks for.
    warm
        Whether this object lives for the whole job.
    """

    def __init__(
        self,
        edge: str,
        trainable: Trainable,
        *,
        samples: int,
        eval_samples: int,
        export: Exporter | None = None,
        algorithm: str | None = None,
        warm: bool = True,
    ) -> None:
        self.edge = edge
        self.finished = False
        self.metrics: dict[str, float] = {}
        self.round = 0
        self._trainable = trainable
        self._export = export
        self._first = exchange.to_arrays(trainable.get_weights())
        self.about = Answer(
            edge=edge,
            warm=warm,
            process=uuid.uuid4().hex,
            samples=samples,
            eval_samples=eval_samples,
            algorithm=algorithm,
        )

    def answer(self, content: RecordDict) -> RecordDict:
        """Do what a message asks and return the reply's content.

        Raises
        ------
        JobFailedError
            If the server says that the job failed elsewhere.
        WireError
            If the message cannot be read.
        """
        instruction = exchange.read_instruction(content)
        started = time.monotonic()
        if instruction.verb is Verb.STOP:
            raise JobFailedError(instruction.reason or "the server stopped the job")
        self.round = max(self.round, instruction.round)
        record, answer = self._work(instruction, content)
        return exchange.attach(record, answer.model_copy(update={"seconds": time.monotonic() - started}))

    def failure(self, error: BaseException) -> RecordDict:
        """Return the reply that tells the server that the script raised `error`."""
        text = _writable("".join(traceback.format_exception(error)))
        said = {"failed": text[-20_000:], "error": _writable(f"{type(error).__name__}: {error}")[:2_000]}
        return exchange.attach(RecordDict(), self.about.model_copy(update=said))

    def _work(self, instruction: Instruction, content: RecordDict) -> tuple[RecordDict, Answer]:
        match instruction.verb:
            case Verb.HELLO:
                specs = exchange.array_specs(self._first)
                return RecordDict(), self.about.model_copy(update={"arrays": specs})
            case Verb.INITIAL:
                return RecordDict({"arrays": self._first}), self.about
            case Verb.TRAIN:
                return self._train(instruction, content), self.about
            case Verb.EXPORT:
                return self._export_model(content)
            case Verb.FINISH:
                return self._finish(instruction, content)
            case _:
                self._take(content)
                return RecordDict({"metrics": self._evaluate()}), self.about

    def _take(self, content: RecordDict) -> None:
        arrays = next(iter(arrays_in(content).values()), None)
        if arrays is None:
            raise WireError("a message that should carry a model carries none")
        self._trainable.set_weights(exchange.to_weights(arrays))

    def _train(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        self._take(content)
        record = RecordDict()
        if instruction.evaluate and self.about.eval_samples:
            record[exchange.EVALUATION] = self._evaluate()
        samples, metrics = self._trainable.train(_config(content))
        record["arrays"] = exchange.to_arrays(self._trainable.get_weights())
        record["metrics"] = exchange.to_metrics(samples, metrics)
        return record

    def _evaluate(self) -> MetricRecord:
        samples, metrics = self._trainable.evaluate()
        self.metrics = {name: float(value) for name, value in metrics.items()}
        return exchange.to_metrics(samples, metrics)

    def _export_model(self, content: RecordDict) -> tuple[RecordDict, Answer]:
        from ..lib.models import model_bytes

        self._take(content)
        if self._export is None:
            return RecordDict(), self.about
        with TemporaryDirectory(prefix="solar-corona-") as folder:
            path = self._export(Path(folder))
            record = RecordDict({"model": ConfigRecord({"data": model_bytes(path)})})
            return record, self.about.model_copy(update={"suffix": path.suffix})

    def _finish(self, instruction: Instruction, content: RecordDict) -> tuple[RecordDict, Answer]:
        alone: dict[str, float] = {}
        if instruction.alone_epochs and self.about.samples and self.about.eval_samples:
            self._trainable.set_weights(exchange.to_weights(self._first))
            for _ in range(instruction.alone_epochs):
                self._trainable.train({})
            alone = {name: float(value) for name, value in self._trainable.evaluate()[1].items()}
        self._take(content)
        record = RecordDict()
        if self.about.eval_samples:
            record["metrics"] = self._evaluate()
        self.finished = True
        return record, self.about.model_copy(update={"alone": alone})


def _writable(text: str) -> str:
    """Return `text` without the halves of characters that a file's name may hold and JSON cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def _config(content: RecordDict) -> dict[str, Scalar]:
    """Return the strategy's configuration: every ConfigRecord but ours."""
    found: dict[str, Scalar] = {}
    for key, value in configs_in(content).items():
        if key != exchange.CONTROL:
            found.update({k: v for k, v in value.items() if isinstance(v, int | float | str | bool)})
    return found
