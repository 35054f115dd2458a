# SPDX-License-Identifier: Apache-2.0
"""A Keras model that serves several tasks: one `.keras` file, routing inside the graph, no code of the user's in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from ..core.errors import ModelError
from . import keras_models
from .multitask import Weights, choose_tasks, predict_by_task, task_index
from .routers import LIMIT, AttributeRouter, GaussianRouter, Indices, Router, RouterCard

__all__ = ["GaussianRouting", "KerasMultitaskModel", "TaskModels", "make"]

_PACKAGE = "solar_corona"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class GaussianRouting(keras.layers.Layer):  # type: ignore[misc]
    """The index of each sample's task by a `GaussianRouter`, int32 of shape (n,), with ordinary operations only.

    Parameters
    ----------
    card
        The router's card, as JSON makes it; its arrays are the layer's weights, which training leaves alone.
    """

    def __init__(self, card: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32", "trainable": False})
        self._card = _card(card)
        self._arrays: dict[str, Any] = {}
        self._refusal = ""

    def build(self, input_shape: Any) -> None:  # noqa: ARG002
        """Make the weights, whatever the samples' shape."""
        for name, shape in self._card.shapes().items():
            self._arrays[name] = self.add_weight(
                name=name, shape=shape, initializer="zeros", trainable=False, dtype="float32"
            )

    def call(self, x: Any) -> Any:
        """Return the index of the task with the highest score."""
        card, get = self._card, self._arrays
        x = ops.reshape(ops.cast(x, "float32"), (-1, card.features))
        # NaN compares as False: what is missing counts as 0, as in GaussianRouter.
        x = ops.where(ops.abs(x) <= LIMIT, x, ops.zeros_like(x))
        z = ops.matmul(x, get["projection"]) + get["offset"]
        z = ops.cos(z) * (2.0 / card.dimensions) ** 0.5 if card.embedding == "cosine" else ops.clip(z, -LIMIT, LIMIT)
        rows = (1, len(card.task_names) * card.components, card.dimensions)
        log_variances = ops.reshape(get["log_variances"], rows)
        distances = ops.square(ops.expand_dims(z, 1) - ops.reshape(get["means"], rows))
        parts = -0.5 * ops.sum(distances * ops.exp(-log_variances) + log_variances, axis=2)
        parts = ops.reshape(parts, (-1, len(card.task_names), card.components)) + get["log_weights"]
        highest = ops.max(parts, axis=2, keepdims=True)
        scores = ops.squeeze(highest, 2) + ops.log(ops.sum(ops.exp(parts - highest), axis=2))
        # The first of the highest. Not argmax: Keras's uses an operation on bits that LiteRT has not.
        best = ops.equal(scores, ops.max(scores, axis=1, keepdims=True))
        tasks = len(card.task_names)
        return ops.min(ops.where(best, ops.arange(tasks, dtype="int32"), tasks), axis=1)

    def compute_output_spec(self, x: Any) -> Any:
        """Return the form of the output."""
        return keras.KerasTensor((x.shape[0],), dtype="int32")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "card": self._card.model_dump(mode="json")}

    def load_own_variables(self, store: Any) -> None:
        """Take over weights of a file, which are checked first."""
        names = list(self._card.shapes())
        found = {name: store[str(i)] for i, name in enumerate(names) if str(i) in store}
        try:
            self.take(GaussianRouter.from_arrays(self._card, found))
        except ModelError as error:
            # Keras then looks elsewhere in the file, finds nothing there, and would tell of that.
            self._refusal = self._refusal or str(error)
            raise ModelError(self._refusal) from error

    def take(self, router: GaussianRouter) -> None:
        """Take over a router's arrays."""
        for name, array in router.to_arrays().items():
            self._arrays[name].assign(array)

    def router(self) -> GaussianRouter:
        """Return the router that the weights are."""
        return GaussianRouter.from_arrays(
            self._card, {name: ops.convert_to_numpy(value) for name, value in self._arrays.items()}
        )


@keras.saving.register_keras_serializable(package=_PACKAGE)
class TaskModels(keras.layers.Layer):  # type: ignore[misc]
    """Models of the same architecture, of which each sample gets the output of its task's.

    All of them compute, since a graph is the same for every sample; `KerasMultitaskModel.predict` asks only those that
    have samples.

    Parameters
    ----------
    architecture
        A model's config with its class, as `keras.saving.serialize_keras_object` makes it.
    tasks
        How many models there are.
    """

    def __init__(self, architecture: dict[str, Any], tasks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # As text: making a model takes its config apart.
        self._architecture = json.dumps(architecture)
        self.models = [keras.saving.deserialize_keras_object(json.loads(self._architecture)) for _ in range(tasks)]

    def build(self, x_shape: Any, task_shape: Any) -> None:  # noqa: ARG002
        """Build the models that were not made with their weights."""
        for model in self.models:
            if not model.built:
                model.build(x_shape)

    def call(self, x: Any, task: Any, training: bool | None = None) -> Any:
        """Return the outputs, those of task 0 where there is no such task."""
        outputs = [model(x, training=training) for model in self.models]
        chosen = outputs[0]
        for index, output in enumerate(outputs[1:], start=1):
            chosen = keras.tree.map_structure(partial(_chosen, ops.equal(task, index)), output, chosen)
        return chosen

    def compute_output_spec(self, x: Any, task: Any, training: bool | None = None) -> Any:  # noqa: ARG002
        """Return the form of the output, which is one model's."""
        return keras.tree.map_structure(
            lambda each: keras.KerasTensor(each.shape, dtype=each.dtype), self.models[0].compute_output_spec(x)
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "architecture": self.architecture(), "tasks": len(self.models)}

    def architecture(self) -> dict[str, Any]:
        """Return the models' class and config."""
        return dict(json.loads(self._architecture))


@keras.saving.register_keras_serializable(package=_PACKAGE)
class KerasMultitaskModel(keras.Model):  # type: ignore[misc]
    """One Keras model for several tasks: it predicts, evaluates, saves and converts as any other.

    Called on samples, it routes each one inside its graph if its router is learned. If its router goes by an attribute
    it takes two inputs, the samples and the index of each one's task (int32, shape (n,)).

    `make_multitask` makes one, and `load_model` loads one.

    Parameters
    ----------
    architecture
        One task's model, as `keras.saving.serialize_keras_object` makes it.
    router
        The router's card, as JSON makes it.
    optimizer_built
        Whether the file that this config is from holds a state of the optimizer.
    """

    def __init__(
        self,
        architecture: dict[str, Any],
        router: Mapping[str, Any],
        *,
        optimizer_built: bool = False,
        name: str = "multitask",
        **kwargs: Any,
    ) -> None:
        card = _card(router)
        models = TaskModels(architecture, len(card.task_names), name="tasks")
        shape, dtype = _sample_form(models.models[0])
        x = keras.Input(shape, dtype=dtype, name="x")
        routing: GaussianRouting | None = None
        if card.kind == "gaussian":
            routing = GaussianRouting(router, name="router")
            width = None if None in shape else math.prod(size or 0 for size in shape)
            if width not in (None, card.features):
                raise ModelError(
                    f"the router was learned on samples of {card.features} numbers, and the model takes {width} "
                    f"({shape}); learn it on what the model is given"
                )
            super().__init__(inputs=x, outputs=models(x, routing(x)), name=name, **kwargs)
        else:
            task = keras.Input((), dtype="int32", name="task")
            super().__init__(inputs=[x, task], outputs=models(x, task), name=name, **kwargs)
        self._card, self._models, self._routing = card, models, routing
        self._build_optimizer = optimizer_built

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        return self._card.task_names

    @property
    def models(self) -> tuple[Any, ...]:
        """The tasks' models, in the order of `tasks`."""
        return tuple(self._models.models)

    @property
    def router(self) -> Router:
        """What chooses each sample's task."""
        if self._routing is None:
            return AttributeRouter.from_arrays(self._card, {})
        return self._routing.router()

    def take_router(self, router: Router) -> None:
        """Take over the arrays of a router of the same form."""
        if self._routing is not None and isinstance(router, GaussianRouter):
            self._routing.take(router)

    def model_for(self, task: str | int) -> Any:
        """Return the model of one task, by its name or index."""
        return self.models[task_index(self.router, task)]

    def route(self, x: Any, *, chunk: Any = None) -> Indices:
        """Return the index of each sample's task by the learned router, shape (n,)."""
        x = _gathered(x, None)
        return choose_tasks(self.router, _one_array(x), _count(x), chunk=chunk)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
        *,
        task: Any = None,
        attribute: Any = None,
        chunk: Any = None,
    ) -> Any:
        """Return each sample's prediction by its task's model, in the order of the samples.

        Only models with samples predict. A dataset's samples are gathered in memory first.

        Parameters
        ----------
        x
            Samples: an array, or a dataset of batches. With a router by attribute and none of the three parameters
            below, a pair of samples and task indices.
        batch_size, verbose, steps, callbacks
            As for `keras.Model.predict`.
        task
            Name or index of the task, one for all or one for each sample.
        attribute
            Value of the router's attribute, one for all or one for each sample.
        chunk
            For a learned router: how many consecutive samples belong to one task, or a chunk id for each sample.

        Raises
        ------
        ModelError
            If there is no such task or value, or the router cannot decide.
        """
        paired = isinstance(x, list | tuple) or not hasattr(x, "shape")
        if self._routing is None and task is None and attribute is None and chunk is None and paired:
            return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)
        samples = _gathered(x, steps)
        tasks = choose_tasks(
            self.router, _one_array(samples), _count(samples), task=task, attribute=attribute, chunk=chunk
        )

        def of_task(index: int, part: Any) -> Any:
            model = self.models[index]
            if _count(part) == 0:
                return keras.tree.map_structure(ops.convert_to_numpy, model(part, training=False))
            return model.predict(part, batch_size=batch_size, verbose=verbose, callbacks=callbacks)

        return predict_by_task(tasks, samples, of_task, map_structure=keras.tree.map_structure)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "architecture": self._models.architecture(),
            "router": self._card.model_dump(mode="json"),
            "optimizer_built": bool(self.compiled and getattr(self.optimizer, "built", False)),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> KerasMultitaskModel:  # noqa: ARG003
        """Return a model with the config's form; its weights are not in there."""
        return cls(**config)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile the model; an optimizer without a state gets none, which would be larger than the models."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self._build_optimizer and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)


def make(model: Any, weights_by_task: Sequence[Weights], *, router: Router) -> KerasMultitaskModel:
    """Return one model for several tasks; see `make_multitask`."""
    architecture = keras_models.architecture(model)
    made = KerasMultitaskModel(architecture, router.card().model_dump(mode="json"), name=f"{model.name}_multitask")
    for own, name, weights in zip(made.models, made.tasks, weights_by_task, strict=True):
        _set_weights(own, name, weights)
    made.take_router(router)
    config = model.get_compile_config() if getattr(model, "compiled", False) else None
    if config:
        # A loss that Keras cannot make anew is no hindrance to predicting.
        try:
            made.compile_from_config(config)
        except (TypeError, ValueError):
            pass
    return made


def _set_weights(model: Any, task: str, weights: Weights) -> None:
    values = [weights[name] for name in sorted(weights)] if isinstance(weights, Mapping) else list(weights)
    wanted = [tuple(variable.shape) for variable in model.weights]
    given = [np.shape(value) for value in values]
    if given != wanted:
        raise ModelError(
            f"the weights of task {task!r} have the shapes {given}, and the model takes {wanted}; make the model with "
            f"the same sizes on every edge"
        )
    model.set_weights(values)


def _card(card: Mapping[str, Any]) -> RouterCard:
    try:
        return RouterCard.model_validate_json(keras_models.as_json(card))
    except ValueError as error:
        raise ModelError(f"router: its card cannot be read ({' '.join(str(error).split())[:300]})") from error


def _sample_form(model: Any) -> tuple[tuple[int | None, ...], str]:
    """Return shape and dtype of one sample."""
    inputs = getattr(model, "inputs", None)
    if inputs:
        if len(inputs) != 1:
            raise ModelError(
                f"model {model.name!r} has {len(inputs)} inputs, expected one for a model of several tasks; "
                f"concatenate them"
            )
        return tuple(inputs[0].shape[1:]), str(inputs[0].dtype)
    # A subclassed model knows the shape it was built with.
    shape = (model.get_build_config() or {}).get("input_shape")
    if not isinstance(shape, list | tuple) or not all(size is None or isinstance(size, int) for size in shape):
        raise ModelError(
            f"model {type(model).__name__} was built with inputs of the form {shape}, expected one array for a model "
            f"of several tasks"
        )
    return tuple(shape[1:]), str(model.input_dtype)


def _chosen(here: Any, new: Any, old: Any) -> Any:
    # Not a sum weighted by 0 and 1: one model's NaN would be every task's.
    return ops.where(ops.reshape(here, (-1,) + (1,) * (len(new.shape) - 1)), new, old)


def _gathered(x: Any, steps: int | None) -> Any:
    """Return the samples of an array, a structure of arrays, or a dataset of batches, as NumPy arrays."""
    if isinstance(x, keras.utils.PyDataset):
        x = (x[i] for i in range(len(x)))
    elif hasattr(x, "shape") or isinstance(x, list | tuple | dict):
        return np.asarray(x) if isinstance(x, list) else keras.tree.map_structure(ops.convert_to_numpy, x)
    batches = [
        keras.tree.map_structure(ops.convert_to_numpy, batch[0] if isinstance(batch, tuple) else batch)
        for batch in islice(x, steps)
    ]
    if not batches:
        raise ModelError("predict: the dataset has no batch; give it one, or an empty array")
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)


def _one_array(x: Any) -> npt.NDArray[Any] | None:
    return x if isinstance(x, np.ndarray) else None


def _count(x: Any) -> int:
    return len(keras.tree.flatten(x)[0])
