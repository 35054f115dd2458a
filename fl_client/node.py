# SPDX-License-Identifier: Apache-2.0
"""One edge's work: a message in, a reply out. What carries the messages is no concern of this module."""

from __future__ import annotations

import logging
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from ..core.errors import JobFailedError, ModelError, WireError
from ..lib import exchange
from ..lib.exchange import Answer, Instruction, Verb, Weights, WorkOrder
from ..lib.questions import Question
from ..lib.records import arrays_in, configs_in
from ..lib.trainable import Scalar, Trainable
from .edge_data import EdgeData, Split
from .orders import Finished, Orders, order_of
from .personal import PersonalModel
from .survey import Survey

__all__ = ["Exporter", "Node"]

Exporter = Callable[[Path, Sequence[Weights], RecordDict], Path]
"""Saves the models, given by their weights, into a folder and returns the file or folder it wrote."""

log = logging.getLogger(__name__)


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
    data
        The samples themselves, for questions about them and for several tasks; None where only the model has them.
    folder
        Where the edge keeps what the next process needs; None: nowhere.
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
        data: EdgeData | None = None,
        folder: Path | None = None,
    ) -> None:
        self.edge = edge
        self.finished = False
        self.metrics: dict[str, float] = {}
        self.round = 0
        self.result: Finished | None = None
        self._trainable = trainable
        self._export = export
        kept = None if folder is None else folder / "personal.bin"
        personal = PersonalModel(trainable, kept, lives=warm)
        self._orders = Orders(trainable, eval_samples=eval_samples, personal=personal)
        file = None if folder is None else folder / "tasks.npz"
        self.survey = Survey(data, self._orders, edge=edge, file=file, lives=warm)
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

    @property
    def split(self) -> Split | None:
        """The edge's tasks, where they were ever told apart."""
        return self._orders.split

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
            case Verb.QUERY:
                return self.survey.respond(Question.from_content(content)).to_content(), self.about
            case Verb.TRAIN:
                return self._train(instruction, content), self.about
            case Verb.EXPORT:
                return self._export_model(content)
            case Verb.FINISH:
                return self._finish(instruction, content)
            case _:
                return self._evaluate(order_of(content), content), self.about

    def _train(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        order = order_of(content)
        if order.notice:
            log.warning("%s", order.notice)
        record = self._orders.train(order, content, _config(content), evaluate=instruction.evaluate)
        self._remember(record.get(exchange.EVALUATION))
        changed = self.survey.look_again()
        if changed is not None:
            record.update(changed.to_content())
        return record

    def _evaluate(self, order: WorkOrder, content: RecordDict) -> RecordDict:
        record = self._orders.evaluate(order, content)
        record["metrics"] = record.pop(exchange.EVALUATION)
        self._remember(record["metrics"])
        return record

    def _remember(self, metrics: object) -> None:
        if isinstance(metrics, MetricRecord):
            self.metrics = {
                name: float(value)
                for name, value in metrics.items()
                if name != "num-examples" and isinstance(value, int | float)
            }

    def _export_model(self, content: RecordDict) -> tuple[RecordDict, Answer]:
        from ..lib.models import model_bytes

        models = [exchange.to_weights(arrays) for arrays in arrays_in(content).values()]
        if not models:
            raise WireError("a message that should carry a model carries none")
        if self._export is None:
            return RecordDict(), self.about
        self._trainable.set_weights(models[0])
        with TemporaryDirectory(prefix="solar-corona-") as folder:
            try:
                path = self._export(Path(folder), models, content)
            except ModelError as error:
                if len(models) < 2:
                    raise
                log.warning("the groups' models cannot be saved in one file: %s", error)
                return RecordDict(), self.about
            record = RecordDict({"model": ConfigRecord({"data": model_bytes(path)})})
            return record, self.about.model_copy(update={"suffix": path.suffix})

    def _finish(self, instruction: Instruction, content: RecordDict) -> tuple[RecordDict, Answer]:
        alone: dict[str, float] = {}
        if instruction.alone_epochs and self.about.samples and self.about.eval_samples:
            self._trainable.set_weights(exchange.to_weights(self._first))
            for _ in range(instruction.alone_epochs):
                self._trainable.train({})
            alone = {name: float(value) for name, value in self._trainable.evaluate()[1].items()}
        self.result = result = self._orders.finish(order_of(content), content, _config(content))
        self.metrics = result.metrics
        record = RecordDict()
        if self.about.eval_samples:
            record["metrics"] = exchange.to_metrics(self.about.eval_samples, result.metrics)
        self.finished = True
        said = {
            "alone": alone,
            "one_model": result.one_model,
            "before_finetune": result.before_finetune,
            "tasks": result.tasks,
        }
        return record, self.about.model_copy(update=said)


def _writable(text: str) -> str:
    """Return `text` without the halves of characters that a file's name may hold and JSON cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def _config(content: RecordDict) -> dict[str, Scalar]:
    """Return the strategy's configuration: every ConfigRecord but ours."""
    found: dict[str, Scalar] = {}
    for key, value in configs_in(content).items():
        if key not in (exchange.CONTROL, exchange.ORDER):
            found.update({k: v for k, v in value.items() if isinstance(v, int | float | str | bool)})
    return found
