# SPDX-License-Identifier: Apache-2.0
"""The same model, data, seeds and training as the stock app's, as a job of ours: a real SuperLink, warm nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from solar_corona.core.events import RoundEvaluated, RoundFinished
from solar_corona.core.run_folder import find_run

from . import _stock_app

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._stock_flower import AppConfig

__all__ = ["OurResult", "run_ours"]

_SCRIPT = '''
import os, sys, time
sys.path.insert(0, os.environ["BENCHMARK_APP"])
import solar_corona
from stock_app import task

get = solar_corona.context.get_parameters
edge = int(solar_corona.context.get_edge_name().rpartition("-")[2])
task.fix_seed(get("seed"))
TRAIN, EVALUATE = task.load_edge(get("data"), edge=edge, model=get("model"))
if get("data") and edge == 0:
    EVALUATE = task.load_test(get("data"))


class Timed:
    """The stock app's training, with the time of training and evaluation alone as metrics."""

    def __init__(self):
        self.model = task.load_model(get("model"), learning_rate=get("learning_rate"))

    def get_weights(self):
        return self.model.get_weights()

    def set_weights(self, weights):
        self.model.set_weights([weights[str(i)] for i in range(len(weights))])

    def train(self, config):
        begin = time.perf_counter()
        seed = get("seed") + 1000 * int(config["server-round"]) + edge
        loss = task.train(self.model, TRAIN, epochs=get("epochs"), batch_size=get("batch_size"), seed=seed)
        return len(TRAIN[0]), {"loss": loss, "fit-seconds": time.perf_counter() - begin}

    def evaluate(self):
        begin = time.perf_counter()
        loss, accuracy = self.model.evaluate(*EVALUATE, verbose=0)
        return len(EVALUATE[0]), {"loss": loss, "accuracy": accuracy, "evaluate-seconds": time.perf_counter() - begin}


measured = not get("data") or edge == 0
solar_corona.collaborative_training.fit(
    model=Timed(), train_loader=TRAIN, test_loader=EVALUATE if measured else (EVALUATE[0][:0], EVALUATE[1][:0])
)
'''


@dataclass(frozen=True)
class OurResult:
    """What a run gave, one entry a round; see `StockResult`."""

    round_seconds: list[float]
    train_seconds: list[float]
    evaluate_seconds: list[float]
    accuracies: list[float]

    @property
    def overhead_seconds(self) -> list[float]:
        """Each round's wall time without training and evaluation; both are the edges' mean, so this errs upwards."""
        parts = zip(self.round_seconds, self.train_seconds, self.evaluate_seconds, strict=True)
        return [total - train - evaluate for total, train, evaluate in parts]


def run_ours(nodes: int, config: AppConfig, *, environment: Mapping[str, str] | None = None) -> OurResult:
    """Run a job with `nodes` edges through the command, as a user does, and return what its events say."""
    with tempfile.TemporaryDirectory(prefix="solar-corona-benchmark-") as name:
        folder = Path(name)
        (folder / "train.py").write_text(_SCRIPT, encoding="utf-8")
        (folder / "unused").touch()
        document = {
            "apiVersion": "solar-corona.io/v1alpha1",
            "kind": "FederatedLearningJob",
            "metadata": {"name": "benchmark"},
            "spec": {
                "script": "train.py",
                "parameters": {
                    "model": config.model,
                    "data": str(config.data) if config.data else "",
                    "epochs": config.epochs,
                    "batch_size": config.batch_size,
                    "learning_rate": config.learning_rate,
                    "seed": config.seed,
                },
                # The first round is not measured: in it the framework traces its functions, on both sides.
                "aggregation": {"algorithm": "fedavg", "rounds": config.rounds},
                "edges": [{"name": f"edge-{i}", "trainData": "unused"} for i in range(nodes)],
            },
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "solar_corona.cli", "run", "job.yaml", "--json"],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, **(environment or {}), "BENCHMARK_APP": str(Path(_stock_app.__path__[0]))},
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"our job failed with code {done.returncode}:\n{done.stderr}")
        return _result(find_run(str(folder / "job.yaml"), None).events(), config)


def _result(events: list[object], config: AppConfig) -> OurResult:
    finished = {e.round: e for e in events if isinstance(e, RoundFinished)}
    evaluated = {e.round: e.metrics for e in events if isinstance(e, RoundEvaluated)}
    rounds = range(2, config.rounds + 1)
    return OurResult(
        # From the end of one round to the end of the next: all that lies between counts.
        round_seconds=[finished[r].time - finished[r - 1].time for r in rounds],
        train_seconds=[finished[r].metrics["fit-seconds"] for r in rounds],
        evaluate_seconds=[evaluated[r - 1]["evaluate-seconds"] for r in rounds],
        accuracies=[evaluated[r]["accuracy"] for r in sorted(evaluated)],
    )
