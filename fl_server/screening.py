# SPDX-License-Identifier: Apache-2.0
"""Says whether a reply may count: complete, of the job's form, and finite."""

from __future__ import annotations

from flwr.app import MetricRecord

from ..lib.exchange import EVALUATION, ArraySpec, WorkOrder, array_specs, metrics_key
from ..lib.records import arrays_in, metrics_in
from ..strategies.model_form import describe_difference, model_fault
from .mail import Reply

__all__ = ["evaluation_fault", "train_fault"]

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
