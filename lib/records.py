# SPDX-License-Identifier: Apache-2.0
"""A message's records by kind, without keeping the message alive.

Flower's own `RecordDict.array_records` makes a reference cycle with each call, so that a whole model lives on until
Python's cycle collector comes by. These return plain dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

__all__ = ["arrays_in", "configs_in", "metrics_in", "with_content"]


def arrays_in(record: RecordDict) -> dict[str, ArrayRecord]:
    """Return the records that hold arrays."""
    return {key: value for key, value in record.items() if isinstance(value, ArrayRecord)}


def configs_in(record: RecordDict) -> dict[str, ConfigRecord]:
    """Return the records that hold configuration."""
    return {key: value for key, value in record.items() if isinstance(value, ConfigRecord)}


def metrics_in(record: RecordDict) -> dict[str, MetricRecord]:
    """Return the records that hold metrics."""
    return {key: value for key, value in record.items() if isinstance(value, MetricRecord)}


def with_content(message: Message, records: Mapping[str, ArrayRecord | ConfigRecord | MetricRecord]) -> Message:
    """Return a message with the same sender and other content; the original stays as it is."""
    copy = Message.__new__(Message)
    copy.__dict__.update(message.__dict__)
    copy.content = RecordDict(dict(records))
    return copy
