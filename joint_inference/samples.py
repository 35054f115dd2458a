# SPDX-License-Identifier: Apache-2.0
"""What a script hands to `predict`, as a batch for the model, and what goes back in the same form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError
from ..lib.tensors import Tensors, TensorSpec

__all__ = ["Function", "Given", "given", "named_inputs", "user_function"]

Function = Callable[[Any], Any]


def user_function(function: Callable[..., Any] | None) -> Function | None:
    """Return a script's `pre_fun` or `post_fun` as a function of one argument; None leaves data as it is.

    One that takes no argument leaves data as it is, and so does one that returns nothing.
    """
    if function is None or not _takes_one(function):
        return None

    def call(value: Any) -> Any:
        found = function(value)
        return value if found is None else found

    return call


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True  # written in C, such as np.squeeze
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)


@dataclass(frozen=True)
class Given:
    """One call's samples.

    Parameters
    ----------
    samples
        As the script has them, one by one; before `pre_fun`.
    inputs
        What the model takes: arrays by name, batch first.
    single
        Whether it was one sample without a batch axis, so that the answer has none either.
    """

    samples: Sequence[Any]
    inputs: Tensors
    single: bool

    def __len__(self) -> int:
        return len(self.samples)

    def of(self, places: Sequence[int]) -> tuple[list[Any], Tensors]:
        """Return some of the samples, and their inputs."""
        if len(places) == len(self.samples):
            return list(self.samples), self.inputs
        chosen = list(places)
        return [self.samples[i] for i in chosen], {name: value[chosen] for name, value in self.inputs.items()}


def given(sample: Any, prepared: Any, specs: Sequence[TensorSpec]) -> Given:
    """Return what was handed to `predict` as a batch.

    Parameters
    ----------
    sample
        One sample, or a batch of them.
    prepared
        What `pre_fun` made of it: an array; several in the model's order; or a mapping of arrays by input name.
    specs
        The model's inputs. An array with one axis less than its spec is one sample.

    Raises
    ------
    ModelError
        If it is no array at all, such as None from a camera that is gone, or rows of several lengths.
    """
    if len(specs) == 1 and isinstance(prepared, np.ndarray):
        spec, missing = specs[0], len(specs[0].shape) - prepared.ndim
        if missing == 1:
            # One sample of the only input: what a camera gives, frame by frame.
            return Given((sample,), {spec.name: _cast(prepared, spec.dtype)[None]}, single=True)
        if missing == 0 and sample is prepared:
            return Given(list(sample), {spec.name: _cast(prepared, spec.dtype)}, single=False)
    arrays = named_inputs(prepared, specs)
    single = all(len(array.shape) == len(spec.shape) - 1 for array, spec in zip(arrays.values(), specs, strict=False))
    if single:
        arrays = {name: array[None] for name, array in arrays.items()}
    first = next(iter(arrays.values()))
    if not first.ndim:
        takes = ", ".join(f"{spec.name!r} {spec.datatype} {list(spec.shape)}" for spec in specs)
        raise ModelError(
            f"a {type(prepared).__name__} is no sample of this model, which takes {takes}; expected an array of that "
            f"shape, or without its first axis for one sample"
        )
    return Given(_each(sample, first, len(first), single=single), arrays, single)


def named_inputs(prepared: Any, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """Return arrays by input name, in the model's dtypes where nothing is lost by it that Keras would keep."""
    if isinstance(prepared, Mapping):
        values = {str(name): _array(value) for name, value in prepared.items()}
    elif len(specs) > 1 and isinstance(prepared, list | tuple):
        values = {spec.name: _array(value) for spec, value in zip(specs, prepared, strict=False)}
    else:
        values = {specs[0].name: _array(prepared)}
    by_name = {spec.name: spec.dtype for spec in specs}
    return {name: _cast(value, by_name.get(name)) for name, value in values.items()}


def _array(value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ModelError(f"a sample is no array ({error}); expected rows of one length, batch first") from error


def _cast(value: NDArray[Any], dtype: np.dtype[Any] | None) -> NDArray[Any]:
    """Bring numbers to floats, and whole numbers to wider ones, as frameworks do; anything else is the user's to do."""
    if dtype is None or value.dtype == dtype:
        return value
    harmless = (dtype.kind == "f" and value.dtype.kind in "biuf") or np.can_cast(value.dtype, dtype, "safe")
    return value.astype(dtype) if harmless else value


def _each(sample: Any, batch: NDArray[Any], count: int, *, single: bool) -> Sequence[Any]:
    if single:
        return [sample]
    whole = isinstance(sample, list | tuple | np.ndarray) and len(sample) == count
    if whole and (count != 1 or not isinstance(sample, np.ndarray) or sample.ndim >= batch.ndim):
        return sample if isinstance(sample, list | tuple) else list(sample)
    # pre_fun made a batch of its one sample, or what cannot be told apart: then the inputs stand for the samples.
    return [sample] if count == 1 else list(batch)
