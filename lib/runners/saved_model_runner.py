# SPDX-License-Identifier: Apache-2.0
"""Runs TensorFlow's SavedModel folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from ...core.errors import ModelError
from .. import keras_models
from ..tensors import Tensors, TensorSpec
from .batches import BatchRunner, spec_of

__all__ = ["SavedModelRunner"]

_SIGNATURE = "serving_default"


class SavedModelRunner(BatchRunner):
    """A SavedModel folder, run by its signature `serving_default`, or by its only one.

    Parameters
    ----------
    path
        The folder. Its graph can hold any TensorFlow operation, so run only one you trust.
    name
        How messages name it.

    Raises
    ------
    ModelError
        If it is damaged, or has no such signature.
    """

    platform = "tensorflow_savedmodel"

    def __init__(self, path: Path, *, name: str) -> None:
        loaded = keras_models.read(path, name=name)
        known = dict(loaded.signatures)
        signature = known.get(_SIGNATURE) or (next(iter(known.values())) if len(known) == 1 else None)
        if signature is None:
            raise ModelError(
                f"{name}: has the signatures {', '.join(map(repr, known)) or 'none at all'}, expected "
                f"{_SIGNATURE!r}; save it anew with tf.saved_model.save(…, signatures=…), or Keras's model.export"
            )
        wanted = signature.structured_input_signature[1]
        inputs = tuple(_spec(each, spec, name, "input") for each, spec in wanted.items())
        outputs = tuple(_spec(each, spec, name, "output") for each, spec in signature.structured_outputs.items())

        # The signature alone does not keep the weights alive; the default argument does.
        def run(given: Tensors, _weights: Any = loaded) -> dict[str, NDArray[Any]]:
            found = signature(**{each: tf.constant(value) for each, value in given.items()})
            return {each: value.numpy() for each, value in found.items()}

        super().__init__(run, inputs=inputs, outputs=outputs, model=name)


def _spec(name: str, spec: Any, model: str, what: str) -> TensorSpec:
    shape = spec.shape.as_list() if spec.shape.rank is not None else None
    return spec_of(name, spec.dtype.as_numpy_dtype, shape, model=model, what=what)
