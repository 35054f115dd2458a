# SPDX-License-Identifier: Apache-2.0
"""A Keras 3 model (TensorFlow, JAX or torch backend) as a `Trainable`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError
from ..lib.trainable import Scalar
from .loaders import LoaderSummary, Part, first_batch, is_arrays, summarize

__all__ = ["KerasTrainable"]


class KerasTrainable:
    """Trains with `model.fit` and evaluates with `model.evaluate`, as the user's script would.

    Parameters
    ----------
    model
        The user's model; it is built from the first batch if it is not built yet.
    train_loader, test_loader
        Whatever `model.fit` takes: a `tf.data.Dataset`, a `PyDataset`, a `DataLoader`, or a pair of arrays.
    loss, metric, optimizer
        As for `model.compile`; without a loss the model must be compiled already.
    batch_size, epochs, callbacks, steps_per_epoch, verbose
        As for `model.fit`, for one round.
    keep_optimizer_state
        By default each round starts with a fresh optimizer, as in federated averaging; True keeps its moments.
    summary
        Samples and labels of the train loader, if they have been counted already.
    """

    def __init__(
        self,
        model: Any,
        *,
        train_loader: Any,
        test_loader: Any = None,
        loss: Any = None,
        metric: Any = None,
        optimizer: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        callbacks: Sequence[Any] = (),
        steps_per_epoch: int | None = None,
        verbose: int = 0,
        keep_optimizer_state: bool = False,
        summary: LoaderSummary | None = None,
    ) -> None:
        self.model = model
        self._train_loader, self._test_loader = train_loader, test_loader
        self._fit = {
            "batch_size": batch_size if is_arrays(train_loader) else None,
            "epochs": epochs,
            "callbacks": list(callbacks),
            "steps_per_epoch": steps_per_epoch,
            "verbose": verbose,
            # Any other loader shuffles by itself, and Keras warns of a request that it cannot meet.
            "shuffle": is_arrays(train_loader) or isinstance(train_loader, keras.utils.PyDataset),
        }
        self._batch_size = batch_size
        self.parts = (Part(train_loader, batch_size=batch_size), Part(test_loader, batch_size=batch_size))
        self._chosen: tuple[NDArray[np.int64] | None, NDArray[np.int64] | None] = (None, None)
        self._keep = keep_optimizer_state
        self._anchor: list[NDArray[np.generic]] | None = None
        self._hidden: Any = None
        self._build(train_loader)
        if loss is not None:
            metrics = metric if isinstance(metric, list | tuple) else [metric] if metric is not None else None
            model.compile(optimizer=optimizer or "rmsprop", loss=loss, metrics=metrics)
        elif not getattr(model, "compiled", False):
            raise ModelError(
                "fit() got no loss, and the model is not compiled; pass loss=…, or call model.compile first"
            )
        self.summary = summary or summarize(train_loader, limit=steps_per_epoch)
        self.eval_samples = summarize(test_loader).samples if test_loader is not None else 0
        if hasattr(model.loss, "set_class_counts") and self.summary.class_counts is not None:
            model.loss.set_class_counts(self.summary.class_counts)
        model.optimizer.build(model.trainable_variables)
        # The learning rate stays with the optimizer: a callback may have lowered it on purpose.
        self._fresh = [
            (v, keras.ops.convert_to_numpy(v.value)) for v in model.optimizer.variables if "learning_rate" not in v.path
        ]

    def _build(self, loader: Any) -> None:
        if self.model.built and self.model.weights:
            return
        batch = first_batch(loader)
        if batch is None:
            raise ModelError(
                "the model is not built, and there is no sample to build it from; give its first layer an input shape"
            )
        self.model(keras.tree.map_structure(keras.ops.convert_to_tensor, batch[0]))

    def get_weights(self) -> Mapping[str, NDArray[np.generic]]:
        """Return all weights under unique names: the variable's own, numbered.

        Not its path: Keras numbers layers through the process, so the same model built twice has other paths.
        """
        weights = zip(self.model.weights, self.model.get_weights(), strict=True)
        return {f"{i:04d}/{variable.name}": value for i, (variable, value) in enumerate(weights)}

    def set_weights(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over weights in the order of their names' numbers."""
        self.model.set_weights([weights[name] for name in sorted(weights)])

    def train(self, config: Mapping[str, Scalar]) -> tuple[int, Mapping[str, float]]:
        """Run `model.fit` for one round; a strategy's `proximal-mu` pulls towards the round's first weights."""
        model = self.model
        if not self._keep:
            for variable, value in self._fresh:
                variable.assign(value)
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # inside loss scaling, if any
        anchored = hasattr(optimizer, "set_anchor")
        if anchored:
            optimizer.set_anchor(model.trainable_variables)
        self._mark_training(training=True)
        fit = dict(self._fit)
        mu = config.get("proximal-mu", 0.0)
        if isinstance(mu, int | float) and mu > 0 and (not anchored or self._anchor is not None):
            fit["callbacks"] = [*self._fit["callbacks"], _ProximalPull(float(mu), self._anchor)]  # type: ignore[misc]
        samples = self.summary.samples
        if self._chosen[0] is not None:
            samples = len(self._chosen[0])
            fit |= {"batch_size": self.parts[0].batch_size, "steps_per_epoch": None, "shuffle": True}
            history = model.fit(*self.parts[0].of(self._chosen[0]), **fit)
        elif is_arrays(self._train_loader):
            history = model.fit(*self._train_loader, **fit)
        else:
            fit.pop("batch_size")
            history = model.fit(self._train_loader, **fit)
        self._mark_training(training=False)
        return samples, {name: float(values[-1]) for name, values in history.history.items() if values}

    def evaluate(self) -> tuple[int, Mapping[str, float]]:
        """Run `model.evaluate` on the test loader; without one there are no metrics."""
        if self._test_loader is None:
            return 0, {}
        self._mark_training(training=False)
        if self._chosen[1] is not None:
            return len(self._chosen[1]), self._measure(self.parts[1], self._chosen[1])
        if is_arrays(self._test_loader):
            metrics = self.model.evaluate(*self._test_loader, batch_size=self._batch_size, verbose=0, return_dict=True)
        else:
            metrics = self.model.evaluate(self._test_loader, verbose=0, return_dict=True)
        return self.eval_samples, {name: float(value) for name, value in metrics.items()}

    def pull_towards(self, anchor: Mapping[str, NDArray[np.generic]] | None) -> None:
        """Let `proximal-mu` pull towards `anchor` in the next `train`; None: towards the weights at its start."""
        self._anchor = None
        if anchor is not None:
            values = dict(zip((id(v) for v in self.model.weights), (anchor[n] for n in sorted(anchor)), strict=True))
            self._anchor = [values[id(v)] for v in self.model.trainable_variables]

    def use_samples(self, train: NDArray[np.int64] | None, evaluate: NDArray[np.int64] | None) -> None:
        """Train and evaluate from now on with these samples alone, by their places; None stands for all."""
        self._chosen = (train, evaluate)

    def evaluate_on_train(self, indices: NDArray[np.int64] | None) -> Mapping[str, float]:
        """Return the metrics on some of the training samples, or on all."""
        self._mark_training(training=False)
        return self._measure(self.parts[0], indices)

    def embed(self, x: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return what the last layer with weights gets, for samples x (n x …) and the current weights: n x k.

        Raises
        ------
        ModelError
            If the model is no graph of layers with one input and one output, or has no hidden layer.
        """
        hidden = self._hidden or _up_to_last_layer(self.model)
        self._hidden = hidden
        found = hidden.predict(x, batch_size=max(self.parts[0].batch_size, 256), verbose=0)
        features: NDArray[np.floating[Any]] = np.asarray(found, np.float32).reshape(len(x), -1)
        return features

    def _measure(self, part: Part, indices: NDArray[np.int64] | None) -> Mapping[str, float]:
        x, y = part.of(indices)
        if not len(x):
            return {}
        metrics = self.model.evaluate(x, y, batch_size=part.batch_size, verbose=0, return_dict=True)
        return {name: float(value) for name, value in metrics.items()}

    def _mark_training(self, *, training: bool) -> None:
        if hasattr(self.model.loss, "set_training"):
            self.model.loss.set_training(training)


def _up_to_last_layer(model: Any) -> Any:
    """Return a model of the same weights that ends where the last layer with weights begins."""
    name = type(model).__name__
    try:
        graph = len(model.inputs) == len(model.outputs) == 1
        layers = [layer for layer in model.layers if layer.weights] if graph else []
        hidden = layers[-1].input if layers else None
    except (AttributeError, ValueError):  # a subclassed model has no graph
        graph, hidden = False, None
    if not graph or (not keras.ops.is_tensor(hidden) and not isinstance(hidden, keras.KerasTensor)):
        raise ModelError(
            f"samples cannot be signed as the last hidden layer of {name} sees them: it is no Sequential or functional "
            f"model with one input and one output; make it one, or leave aggregation.options.embedding out"
        )
    if len(layers) < 2:
        raise ModelError(
            f"samples cannot be signed as the last hidden layer of {name} sees them, for it has one layer with weights "
            f"and no hidden one; leave aggregation.options.embedding out"
        )
    return keras.Model(model.inputs, hidden)


class _ProximalPull(keras.callbacks.Callback):  # type: ignore[misc]
    """FedProx's proximal term (Li et al. 2020), applied after each batch as a decoupled step.

    w ← w − lr·μ·(w − w₀), where w₀ are the weights at the start of the round, or others that are given (Ditto).
    """

    def __init__(self, mu: float, anchor: Sequence[Any] | None = None) -> None:
        super().__init__()
        self._mu, self._given = mu, anchor
        self._anchor: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        if self._given is not None:
            self._anchor = [keras.ops.convert_to_tensor(value) for value in self._given]
        else:
            self._anchor = [keras.ops.copy(v.value) for v in self.model.trainable_variables]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        step = self._mu * float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        for variable, anchor in zip(self.model.trainable_variables, self._anchor, strict=True):
            variable.assign(variable - step * (variable - anchor))
