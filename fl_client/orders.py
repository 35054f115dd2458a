# SPDX-License-Identifier: Apache-2.0
"""What an edge does with the models of a message: which it trains and evaluates, on which of its samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from ..core.errors import WireError
from ..lib import exchange
from ..lib.exchange import ModelOrder, Weights, WorkOrder
from ..lib.records import arrays_in
from ..lib.trainable import Scalar, Trainable
from .clipping import clipped, clipping_norm
from .edge_data import Split
from .personal import PersonalModel

__all__ = ["Divisible", "Finished", "Orders", "order_of"]

_HOLD_OUT = 0.2
_FEWEST_HELD_OUT = 10


@runtime_checkable
class Divisible(Protocol):
    """A `Trainable` that can be told which of its samples to use; ours for Keras and torch can."""

    def use_samples(self, train: NDArray[np.int64] | None, evaluate: NDArray[np.int64] | None) -> None:
        """Train and evaluate from now on with these samples alone, by their places; None stands for all."""

    def evaluate_on_train(self, indices: NDArray[np.int64] | None) -> Mapping[str, float]:
        """Return the metrics on some of the training samples, or on all."""


@dataclass(frozen=True)
class Finished:
    """What an edge ends with: the weights for each group of its tasks, and what they are worth."""

    weights: tuple[tuple[tuple[int, ...] | None, Weights], ...]
    metrics: dict[str, float]
    one_model: dict[str, float]
    before_finetune: dict[str, float]
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)


def order_of(content: RecordDict) -> WorkOrder:
    """Return a message's work order; without one, its only model is for all samples.

    Raises
    ------
    WireError
        If there is no model.
    """
    order = exchange.read_order(content)
    if order is not None:
        return order
    key = next(iter(arrays_in(content)), None)
    if key is None:
        raise WireError("a message that should carry a model carries none")
    return WorkOrder(models=(ModelOrder(key=key),))


class Orders:
    """Trains and evaluates the models of a message.

    Parameters
    ----------
    trainable
        The model with its data; its weights are replaced by each model in turn.
    eval_samples
        How many samples there are to evaluate on.
    personal
        The edge's own model, for jobs that train one; kept in memory unless it is given.
    """

    def __init__(self, trainable: Trainable, *, eval_samples: int, personal: PersonalModel | None = None) -> None:
        self._trainable, self._eval_samples = trainable, eval_samples
        self._personal = personal or PersonalModel(trainable)
        self.split: Split | None = None
        self.find_split: Callable[[], Split | None] = lambda: None

    @property
    def divisible(self) -> bool:
        """Whether parts of the samples can be trained on."""
        return isinstance(self._trainable, Divisible)

    def train(
        self, order: WorkOrder, content: RecordDict, config: Mapping[str, Scalar], *, evaluate: bool
    ) -> RecordDict:
        """Train the ordered models and return them with their metrics; evaluate each before, if asked."""
        record, order = RecordDict(), self._chosen(order, content)
        if evaluate and self._eval_samples:
            record = self.evaluate(order, content)
        for model in order.models:
            with self._on(model.tasks):
                self._take(content, model.key)
                samples, metrics = self._trainable.train(config)
                arrays = exchange.to_arrays(self._trainable.get_weights())
                if (norm := clipping_norm(config)) is not None:
                    weights, within = clipped(_weights_of(content, model.key), exchange.to_weights(arrays), norm)
                    arrays, metrics = exchange.to_arrays(weights), {**metrics, **within}
                # A reply without an order is an ordinary one, with the names that every strategy knows.
                key = model.key if exchange.ORDER in content else "arrays"
                record[key] = arrays
                record[exchange.metrics_key(key)] = exchange.to_metrics(samples, metrics)
                if order.personal:
                    self._personal.train(_weights_of(content, model.key), order.personal, config)
        return record

    def evaluate(self, order: WorkOrder, content: RecordDict) -> RecordDict:
        """Return the edge's metrics under its models, and with an order also each model's own."""
        record, own = RecordDict(), list[tuple[int, Mapping[str, float]]]()
        order = self._chosen(order, content)
        for model in order.models:
            with self._on(model.tasks):
                self._take(content, model.key)
                samples, metrics = self._trainable.evaluate()
            if not samples:
                continue
            if exchange.ORDER in content:
                record[exchange.evaluation_key(model.key)] = exchange.to_metrics(samples, metrics)
            if model.aside and model.tasks is None:  # to be compared with each of the others, on the same samples
                for tasks in {other.tasks for other in order.models if other.tasks is not None}:
                    with self._on(tasks):
                        measured = exchange.to_metrics(*self._trainable.evaluate())
                    record[exchange.evaluation_key(model.key, tasks)] = measured
            if order.personal and self._personal.weights is not None:
                self._trainable.set_weights(self._personal.weights)
                samples, metrics = self._trainable.evaluate()
            if not model.aside:
                own.append((samples, metrics))
        record[exchange.EVALUATION] = _mean(own)
        return record

    def finish(self, order: WorkOrder, content: RecordDict, config: Mapping[str, Scalar]) -> Finished:
        """Take the final models, fine-tune where that helps, and say what they are worth on this edge."""
        kept, one, own = [], dict[str, float](), list[tuple[int, Mapping[str, float]]]()
        before, tasks = list[tuple[int, Mapping[str, float]]](), dict[str, dict[str, float]]()
        order = self._chosen(order, content)
        for model in order.models:
            with self._on(model.tasks):
                self._take(content, model.key)
                shared = self._trainable.evaluate() if self._eval_samples else (0, {})
                if model.aside:
                    one = _plain(shared[1])
                    continue
                if order.personal and self._personal.weights is not None:
                    one = _plain(shared[1])
                    self._trainable.set_weights(self._personal.weights)
                    shared = self._trainable.evaluate() if self._eval_samples else (0, {})
                before.append(shared)
                if order.finetune and self._finetune(order.finetune, config, model.tasks):
                    self._use(model.tasks)
                    shared = self._trainable.evaluate() if self._eval_samples else (0, {})
                own.append(shared)
                kept.append((model.tasks, self._weights()))
                if self.split is not None and len(self.split.names) > 1:
                    for task in model.tasks or range(len(self.split.names)):
                        with self._on((task,)):
                            tasks[self.split.names[task]] = _plain(self._trainable.evaluate()[1])
        self._personal.forget()
        self._trainable.set_weights(kept[0][1])
        return Finished(
            weights=tuple(kept),
            metrics=_plain(_mean(own)),
            one_model=one,
            before_finetune=_plain(_mean(before)) if order.finetune else {},
            tasks=tasks,
        )

    def _finetune(self, fits: int, config: Mapping[str, Scalar], tasks: Sequence[int] | None) -> bool:
        """Go on alone, and keep the mean of the weights along the way if held-out samples are clearly better off.

        The mean over the fits (stochastic weight averaging, Izmailov et al. 2018) is better than the last of them by
        about as much as a group gains by fine-tuning at all. Held out is the evaluation data, or without any a fifth
        of the training data.
        """
        trainable, start = self._trainable, self._weights()
        judge: Callable[[], Mapping[str, float]] = partial(_evaluated, trainable)
        held_out = self._eval_samples
        if not held_out:
            train, held = self._held_out(tasks)
            if train is None or not isinstance(trainable, Divisible):
                return False
            trainable.use_samples(train, None)
            judge, held_out = partial(trainable.evaluate_on_train, held), len(held)
        before = judge()
        sums = {name: np.zeros(value.shape, np.float64) for name, value in start.items() if value.dtype.kind == "f"}
        for _ in range(fits):
            trainable.train(config)
            for name, value in exchange.to_weights(exchange.to_arrays(trainable.get_weights())).items():
                if name in sums:
                    sums[name] += value.astype(np.float64)
        last = self._weights()
        mean = {n: (sums[n] / fits).astype(value.dtype) if n in sums else value for n, value in last.items()}
        trainable.set_weights(mean)
        if _is_clearly_better(judge(), before, held_out):
            return True
        trainable.set_weights(start)
        return False

    def _weights(self) -> Weights:
        """Return a copy of the current weights."""
        weights = exchange.to_weights(exchange.to_arrays(self._trainable.get_weights()))
        return {name: value.copy() for name, value in weights.items()}

    def _held_out(self, tasks: Sequence[int] | None) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        nothing = np.zeros(0, np.int64)
        self.split = self.split or self.find_split()
        if self.split is None or not self.divisible:
            return None, nothing
        indices = self.split.indices("train", tasks)
        indices = np.arange(len(self.split.train)) if indices is None else indices
        mixed = np.random.default_rng(0).permutation(indices)
        count = int(len(mixed) * _HOLD_OUT)
        if count < _FEWEST_HELD_OUT:
            return None, nothing
        return np.sort(mixed[count:]), np.sort(mixed[:count])

    def _chosen(self, order: WorkOrder, content: RecordDict) -> WorkOrder:
        """Return an order in which the edge has chosen: the model with the lowest loss on its own training samples."""
        if not order.choose:
            return order
        losses = []
        for model in order.models:
            self._take(content, model.key)
            metrics: Mapping[str, float]
            if isinstance(self._trainable, Divisible):
                metrics = self._trainable.evaluate_on_train(None)
            else:
                _, metrics = self._trainable.evaluate()
            loss = metrics.get("loss", math.inf)
            losses.append(loss if math.isfinite(loss) else math.inf)
        return order.model_copy(update={"models": (order.models[int(np.argmin(losses))],), "choose": False})

    def _take(self, content: RecordDict, key: str) -> None:
        self._trainable.set_weights(_weights_of(content, key))

    @contextmanager
    def _on(self, tasks: Sequence[int] | None) -> Iterator[None]:
        self._use(tasks)
        try:
            yield
        finally:
            self._use(None)

    def _use(self, tasks: Sequence[int] | None) -> None:
        if not isinstance(self._trainable, Divisible):
            return
        if tasks is not None and self.split is None:
            self.split = self.find_split()
        split = self.split
        if split is None or tasks is None:
            self._trainable.use_samples(None, None)
        else:
            self._trainable.use_samples(split.indices("train", tasks), split.indices("evaluate", tasks))


def _weights_of(content: RecordDict, key: str) -> Weights:
    arrays = content[key]
    assert isinstance(arrays, ArrayRecord)
    return exchange.to_weights(arrays)


def _evaluated(trainable: Trainable) -> Mapping[str, float]:
    return trainable.evaluate()[1]


def _is_clearly_better(now: Mapping[str, float], before: Mapping[str, float], samples: int) -> bool:
    """Tell whether metrics are better by more than chance: the loss, which says more of few samples, and the accuracy.

    The accuracy counts by half a standard error: both were measured on the same samples, so that most of the error is
    common to them.
    """
    loss = now.get("loss", math.inf) < 0.95 * before.get("loss", -math.inf)
    if "accuracy" not in before or "accuracy" not in now:
        return loss
    share = min(max(before["accuracy"], 1 / (samples + 1)), samples / (samples + 1))
    error = 0.5 * math.sqrt(share * (1 - share) / max(samples, 1))
    gain = now["accuracy"] - before["accuracy"]
    return gain > error or (loss and gain > -error)


def _mean(parts: Sequence[tuple[int, Mapping[str, float]]]) -> MetricRecord:
    """Return metrics averaged over samples; a task of which none are held out says nothing of the others."""
    parts = [part for part in parts if part[0]] or parts
    if len(parts) == 1:  # as it was said, with no rounding
        return exchange.to_metrics(*parts[0])
    total = sum(samples for samples, _ in parts)
    names = set.intersection(*(set(metrics) for _, metrics in parts)) if parts else set()
    return exchange.to_metrics(
        total, {name: sum(n * m[name] for n, m in parts) / max(total, 1) for name in sorted(names)}
    )


def _plain(metrics: Mapping[str, object]) -> dict[str, float]:
    return {k: float(v) for k, v in metrics.items() if k != "num-examples" and isinstance(v, int | float)}
