# SPDX-License-Identifier: Apache-2.0
"""A message's records by kind, without keeping the message alive.

Flower's own `RecordDict.array_records` makes a reference cycle with each call, so that a whole model lives on until
Python's cycle collector comes by. These return plain dictionaries.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

__all__ = ["arrays_in", "configs_in", "metrics_in"]


def arrays_in(record: RecordDict) -> dict[str, ArrayRecord]:
    """Return the records that hold arrays."""
    return {key: value for key, value in record.items() if isinstance(value, ArrayRecord)}


def configs_in(record: RecordDict) -> dict[str, ConfigRecord]:
    """Return the records that hold configuration."""
    return {key: value for key, value in record.items() if isinstance(value, ConfigRecord)}


def metrics_in(record: RecordDict) -> dict[str, MetricRecord]:
    """Return the records that hold metrics."""
    return {key: value for key, value in record.items() if isinstance(value, MetricRecord)}
