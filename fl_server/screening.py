# SPDX-License-Identifier: Apache-2.0
"""Says whether a reply may count: complete, of the job's form, and finite."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord

from ..lib.exchange import EVALUATION, ArraySpec, WorkOrder, array_specs, metrics_key
from ..lib.records import arrays_in, metrics_in
from ..strategies.fedavg import view
from .mail import Reply
from .roster import describe_difference

__all__ = ["evaluation_fault", "model_fault", "of_form", "train_fault"]

_MOST_SAMPLES = 10**12


def train_fault(reply: Reply, expected: list[ArraySpec], order: WorkOrder | None = None) -> str | None:
    """Return why a train reply may not count, or None if it may.

    With an order there may be several models, each under a key of the order; else there is exactly one.
    """
    if reply.error is not None:
        return reply.error
    arrays = arrays_in(reply.content)
    metrics = {k: v for k, v in metrics_in(reply.content).items() if not k.startswith(EVALUATION)}
    if order is None:
        if len(arrays) != 1 or len(metrics) != 1:
            return "its reply has no model or no metrics"
    else:
        asked = {model.key for model in order.models}
        if not arrays or not arrays.keys() <= asked or metrics.keys() != {metrics_key(key) for key in arrays}:
            return f"its reply has the models {', '.join(arrays) or 'none'}, and asked were {', '.join(sorted(asked))}"
    for model, measured in zip(arrays.values(), metrics.values(), strict=True):
        fault = (
            describe_difference(array_specs(model), expected)
            or _samples_fault(measured, "trained")
            or model_fault(model, expected)
        )
        if fault is not None:
            return fault
    return None


def evaluation_fault(metrics: MetricRecord) -> str | None:
    """Return why an evaluation may not count, or None if it may."""
    return _samples_fault(metrics, "evaluated")


def _samples_fault(metrics: MetricRecord, did: str) -> str | None:
    samples = metrics.get("num-examples")
    if not isinstance(samples, int | float) or not 0 < samples <= _MOST_SAMPLES:
        return f"its reply says that it {did} on {samples!r} samples"
    return None


def of_form(arrays: ArrayRecord, expected: list[ArraySpec]) -> ArrayRecord:
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


def model_fault(arrays: ArrayRecord, expected: list[ArraySpec]) -> str | None:
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
