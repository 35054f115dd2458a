# SPDX-License-Identifier: Apache-2.0
"""Counts what the service does, and shows it to Prometheus.

The counts are plain numbers that belong to the event loop's thread: counting a request this way costs a tenth of a
`prometheus_client.Counter` with its lock. A collector turns them into metrics when they are asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

__all__ = ["Histogram", "Metrics", "ModelCounts"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """How many values fell into each bucket, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative count up to each bound, as Prometheus wants it."""
        found, so_far = list[tuple[str, float]](), 0
        for bound, count in zip([*map(float, self.bounds), float("inf")], self.counts, strict=True):
            so_far += count
            found.append(("+Inf" if bound == float("inf") else str(bound), so_far))
        return found


class ModelCounts:
    """What one version of a model has done."""

    def __init__(self, model: str, version: str) -> None:
        self.labels = (model, version)
        self.answers: Counter[int] = Counter()
        self.seconds = Histogram(_SECONDS)
        self.batch_rows = Histogram(_ROWS)
        self.batch_seconds = Histogram(_SECONDS)
        self.waiting: Callable[[], int] = lambda: 0

    def batch(self, rows: int, seconds: float) -> None:
        """Count a batch that was run."""
        self.batch_rows.add(rows)
        self.batch_seconds.add(seconds)


class Metrics(Collector):
    """All counts of a service."""

    def __init__(self) -> None:
        self.refused: Counter[int] = Counter()
        self.connections: Callable[[], int] = lambda: 0
        self.body_bytes: Callable[[], int] = lambda: 0
        self._models: dict[tuple[str, str], ModelCounts] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def of(self, model: str, version: str) -> ModelCounts:
        """Return the counts of a model's version, which go on when it is loaded again."""
        return self._models.setdefault((model, version), ModelCounts(model, version))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text for Prometheus in the form that `accept` asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Return the metrics; `prometheus_client` calls it."""
        models = list(self._models.values())
        answers = CounterMetricFamily(
            "solar_corona_requests", "Answered requests", labels=("model", "version", "status")
        )
        for each in models:
            for status, count in each.answers.items():
                answers.add_metric([*each.labels, str(status)], count)
        refused = CounterMetricFamily("solar_corona_refused", "Requests that reached no model", labels=("status",))
        for status, count in self.refused.items():
            refused.add_metric([str(status)], count)
        waiting = GaugeMetricFamily(
            "solar_corona_queue_samples", "Samples that wait or run", labels=("model", "version")
        )
        for each in models:
            waiting.add_metric(each.labels, each.waiting())
        connections = GaugeMetricFamily("solar_corona_connections", "Open connections", value=self.connections())
        bodies = GaugeMetricFamily("solar_corona_body_bytes", "Bytes of requests in memory", value=self.body_bytes())
        yield from (answers, refused, waiting, connections, bodies)
        yield _histogram(
            "request_seconds", "Time from a request to its answer", [(m.labels, m.seconds) for m in models]
        )
        yield _histogram("batch_samples", "Samples in a batch", [(m.labels, m.batch_rows) for m in models])
        yield _histogram("batch_seconds", "Time a batch took", [(m.labels, m.batch_seconds) for m in models])


def _histogram(name: str, text: str, found: Iterable[tuple[tuple[str, str], Histogram]]) -> Metric:
    family = HistogramMetricFamily(f"solar_corona_{name}", text, labels=("model", "version"))
    for labels, histogram in found:
        family.add_metric(labels, histogram.buckets(), histogram.total)
    return family
