# SPDX-License-Identifier: Apache-2.0
"""Whether models are of one form, and a strategy's model in the form that edges can take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord

from ..lib.exchange import ArraySpec, array_specs
from .fedavg import view

__all__ = ["describe_difference", "model_fault", "of_form"]


def of_form(arrays: ArrayRecord, expected: Sequence[ArraySpec]) -> ArrayRecord:
    """Return a strategy's model in the job's form: its order and dtypes, which some strategies change.

    Raises
    ------
    ValueError
        If its arrays are not the job's, or hold values that are not finite.
    """
    if arrays.keys() != {spec.name for spec in expected}:
        names = sorted(arrays.keys() ^ {spec.name for spec in expected})
        raise ValueError(f"its arrays are not those of the replies (of one and not the other: {', '.join(names[:5])})")
    made: dict[str, Array] = {}
    for spec in expected:
        values = view(arrays[spec.name])
        wanted = np.dtype(spec.dtype)
        if values.dtype == wanted:
            made[spec.name] = arrays[spec.name]
        else:
            whole = np.asarray(np.rint(values)) if wanted.kind in "iu" else values
            made[spec.name] = Array(whole.astype(wanted))
    record = ArrayRecord(made)
    fault = describe_difference(array_specs(record), expected) or model_fault(record, expected)
    if fault is not None:
        raise ValueError(fault)
    return record


def model_fault(arrays: ArrayRecord, expected: Sequence[ArraySpec]) -> str | None:
    """Return why a model may not be used: it cannot be read, or has values that are not finite."""
    for spec in expected:
        try:
            values = view(arrays[spec.name])
        except ValueError as error:
            return f"its array {spec.name} cannot be read: {error}"
        if values.shape != spec.shape or str(values.dtype) != spec.dtype:
            return f"its array {spec.name} is not what its label says"
        # One sum tells: a NaN or an infinity stays in it, and float64 does not overflow.
        widest = {"f": np.float64, "c": np.complex128}.get(values.dtype.kind)
        with np.errstate(invalid="ignore"):  # the sum of both infinities
            total = values.sum(dtype=widest) if widest is not None else 0
        if not np.isfinite(total):
            return f"its model has NaN or infinite values (in {spec.name}); a smaller learning rate may help"
    return None


def describe_difference(found: Sequence[ArraySpec], expected: Sequence[ArraySpec]) -> str | None:
    """Say in words how one model's form differs from another's, or None where it does not."""
    if found == expected:
        return None
    if len(found) != len(expected):
        return f"its model has {len(found)} arrays, the job's has {len(expected)}; every edge must build the same model"
    ours, theirs = next((a, b) for a, b in zip(found, expected, strict=True) if a != b)
    return f"its model has {ours} where the job's has {theirs}; every edge must build the same model"
