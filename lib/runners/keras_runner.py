# SPDX-License-Identifier: Apache-2.0
"""Runs Keras models, on whatever backend Keras has here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError
from .. import keras_models
from ..tensors import Tensors, TensorSpec
from .batches import BatchRunner, spec_of

__all__ = ["KerasRunner"]

_Arrays = Sequence[NDArray[Any]]
_Call = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class _Form:
    """How a model is called: with its tensors in the order of `inputs`; what it returns is flattened to `outputs`."""

    call: _Call
    inputs: Mapping[str, Any]
    outputs: Sequence[str]


class KerasRunner(BatchRunner):
    """A Keras model as one function, compiled once; `keras.Model.predict` sets up a loop at each call.

    Parameters
    ----------
    model
        The model; it computes as in inference.
    name
        How messages name it.

    Raises
    ------
    ModelError
        If it does not say what it takes, or cannot be run on a batch.
    """

    platform = "keras"

    def __init__(self, model: Any, *, name: str) -> None:
        self.model: Any = model
        structure = _input_structure(model, name)
        tensors = keras.tree.flatten(structure)
        inputs = tuple(
            spec_of(key, _dtype(tensor), tensor.shape, model=name, what="input")
            for key, tensor in zip(_names(structure, [each.name for each in tensors]), tensors, strict=True)
        )

        def call(arrays: Sequence[Any]) -> Any:
            return model(keras.tree.pack_sequence_as(structure, list(arrays)), training=False)

        try:
            found = keras.tree.map_structure(_as_tensor, model.compute_output_spec(structure, training=False))
        except Exception as error:
            # The user's own layers run in here.
            raise _cannot_run(name, error) from error
        given = keras.tree.flatten(found)
        keys = _names(found, list(getattr(model, "output_names", ())) or [f"output_{i}" for i in range(len(given))])
        outputs = tuple(
            spec_of(key, _dtype(each), each.shape, model=name, what="output")
            for key, each in zip(keys, given, strict=True)
        )
        compute = _compiled(model, call, tensors)
        self._form: _Form | None = _Form(
            call, {spec.name: each for spec, each in zip(inputs, tensors, strict=True)}, keys
        )

        def run(given: Tensors) -> dict[str, NDArray[Any]]:
            return dict(zip(keys, compute([given[spec.name] for spec in inputs]), strict=True))

        super().__init__(run, inputs=inputs, outputs=outputs, model=name)
        self._warm(inputs)

    @classmethod
    def load(cls, path: Path, *, name: str, custom_objects: Mapping[str, Any] | None = None) -> KerasRunner:
        """Return the runner of a `.keras` file; no code that is in the file runs.

        Raises
        ------
        ModelError
            If it cannot be loaded, or not be run.
        """
        return cls(keras_models.read(path, name=name, custom_objects=custom_objects), name=name)

    def close(self) -> None:
        """Free what the model holds."""
        super().close()
        self._form = None
        self.model = None

    def exported(self) -> Any:
        """Return a `tf.function` that takes and gives the runner's tensors by their names, for another format."""
        import tensorflow as tf

        form = self._form
        assert form is not None

        def by_name(**tensors: Any) -> dict[str, Any]:
            found = form.call([tensors[name] for name in form.inputs])
            return dict(zip(form.outputs, keras.tree.flatten(found), strict=True))

        given = {name: tf.TensorSpec(each.shape, each.dtype, name=name) for name, each in form.inputs.items()}
        return tf.function(by_name).get_concrete_function(**given)

    def _warm(self, inputs: Sequence[TensorSpec]) -> None:
        # The first call of a function takes many times what the others take: not while a camera waits.
        if all(-1 not in spec.shape[1:] and spec.datatype != "BYTES" for spec in inputs):
            batch = max(*(spec.shape[0] for spec in inputs), 1)
            self.run({spec.name: np.zeros((batch, *spec.shape[1:]), spec.dtype) for spec in inputs})


def _input_structure(model: Any, name: str) -> Any:
    """Return the model's inputs as KerasTensors, in the form in which it is called."""
    # A functional or sequential model says; a subclassed one knows the shape it was built with.
    if getattr(model, "inputs", None):
        return keras.tree.map_structure(
            _as_tensor, model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        )
    shape = (model.get_build_config() or {}).get("input_shape")
    if not isinstance(shape, list | tuple) or not all(size is None or isinstance(size, int) for size in shape):
        raise ModelError(
            f"{name}: the model {type(model).__name__} does not say what it takes; build it with one input shape "
            f"(model.build((None, …))) before it is saved, or make it a functional model"
        )
    return keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype, name="input")


def _as_tensor(tensor: Any) -> Any:
    return keras.KerasTensor(tensor.shape, dtype=tensor.dtype, name=tensor.name)


def _dtype(tensor: Any) -> str:
    # NumPy's word for texts of any length.
    return "object" if tensor.dtype == "string" else str(tensor.dtype)


def _names(structure: Any, otherwise: list[str]) -> list[str]:
    """Return a name for each tensor of a structure: a dict's keys, else the tensors' own names, each once."""
    if isinstance(structure, dict) and len(structure) == len(otherwise):
        return [str(key) for key in sorted(structure)]
    count = len(keras.tree.flatten(structure))
    names = otherwise if len(otherwise) == count else [f"tensor_{i}" for i in range(count)]
    return [each if names.count(each) == 1 else f"{each}_{names[:i].count(each)}" for i, each in enumerate(names)]


def _compiled(model: Any, call: _Call, tensors: Sequence[Any]) -> Callable[[_Arrays], _Arrays]:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _concrete(call, tensors)
    if backend == "jax":
        return _jitted(model, call)
    if backend == "torch":
        import torch

        return _called(call, torch.inference_mode)
    return _called(call, nullcontext)


def _concrete(call: _Call, tensors: Sequence[Any]) -> Callable[[_Arrays], _Arrays]:
    import tensorflow as tf

    signature = [tf.TensorSpec(each.shape, each.dtype) for each in tensors]
    function = tf.function(lambda *arrays: keras.tree.flatten(call(arrays)), input_signature=signature)
    concrete = function.get_concrete_function()

    def compute(arrays: _Arrays) -> _Arrays:
        return [each.numpy() for each in concrete(*map(tf.constant, arrays))]

    return compute


def _jitted(model: Any, call: _Call) -> Callable[[_Arrays], _Arrays]:
    import jax

    variables = [each.value for each in model.variables]

    def stateless(values: Any, arrays: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
            return keras.tree.flatten(call(arrays))

    function = jax.jit(stateless)

    def compute(arrays: _Arrays) -> _Arrays:
        return [np.array(each) for each in function(variables, list(arrays))]

    return compute


def _called(call: _Call, inference: Callable[[], AbstractContextManager[Any]]) -> Callable[[_Arrays], _Arrays]:
    def compute(arrays: _Arrays) -> _Arrays:
        with inference():
            return [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(call(arrays))]

    return compute


def _cannot_run(name: str, error: Exception) -> ModelError:
    text = " ".join(str(error).split())[:400]
    return ModelError(f"{name}: cannot be run on a batch: {type(error).__name__}: {text}; try model(batch) in Python")
