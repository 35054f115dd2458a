# SPDX-License-Identifier: Apache-2.0
"""The ServerApp: Flower's own FedAvg, which logs to a file when each round began and ended."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from stock_app import task

app = ServerApp()


class _Report:
    """Appends one JSON object a line, for the benchmark that waits outside."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def add(self, event: str, **values: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")

    def metrics(self, event: str) -> Any:
        """Return Flower's own aggregation of metrics, which also logs each node's seconds."""

        def aggregate(records: list[RecordDict], weighted_by_key: str) -> MetricRecord:
            self.add(event, seconds=[next(iter(r.metric_records.values()))["seconds"] for r in records])
            return aggregate_metricrecords(records, weighted_by_key)

        return aggregate


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    config = context.run_config
    report = _Report(config["report"])
    try:
        task.fix_seed(int(config["seed"]))
        model = task.load_model(config["model"], learning_rate=float(config["learning-rate"]))
        test = task.load_test(config["data"]) if config["data"] else None

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            report.add("round-end", round=server_round)
            accuracy = None
            if test is not None:
                model.set_weights(arrays.to_numpy_ndarrays())
                accuracy = float(model.evaluate(*test, verbose=0)[1])
            # The server's own evaluation is no part of the next round's time.
            report.add("round-begin", round=server_round + 1, accuracy=accuracy)
            return None if accuracy is None else MetricRecord({"accuracy": accuracy})

        strategy = FedAvg(
            train_metrics_aggr_fn=report.metrics("train"),
            evaluate_metrics_aggr_fn=report.metrics("evaluate"),
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(model.get_weights()),
            num_rounds=int(config["num-server-rounds"]),
            evaluate_fn=evaluate,
        )
        report.add("finished")
    except Exception as error:
        report.add("failed", reason=repr(error))
        raise
