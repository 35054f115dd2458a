# SPDX-License-Identifier: Apache-2.0
"""Whether the same rounds give the same model: ours against stock Flower's FedAvg, same data, seeds and training."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from . import _report
from ._bytecode import compiled_environment
from ._data import add_data_option, dirichlet_split, load_cifar10, load_fashion_mnist, write_shards
from ._our_federation import run_ours
from ._report import Figure, median
from ._stock_flower import AppConfig, StockFlower

EDGES, ALPHA = 8, 0.3
# One standard error of the accuracy of 2,000 test images near 50 % is 1.1 points.
NOISE = 1.1


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--set", choices=("cifar10", "fashion"), default="cifar10", dest="name")
    add_data_option(parser)
    arguments = parser.parse_args()
    cifar = arguments.name == "cifar10"
    images = load_cifar10(arguments.data) if cifar else load_fashion_mnist(arguments.data)
    model = "cnn-cifar10" if cifar else "mlp-fashion"
    ours: list[list[float]] = []
    stock: list[list[float]] = []
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    with compiled_environment() as environment:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory(prefix="solar-corona-accuracy-") as name:
                parts = dirichlet_split(images.y_train, edges=EDGES, alpha=ALPHA, seed=seed, min_samples=50)
                folder = write_shards(Path(name), images, parts)
                config = AppConfig(model, rounds=arguments.rounds, data=folder, epochs=1, seed=seed)
                result = run_ours(EDGES, config, environment=environment)
                ours.append(result.accuracies)
                times["ours"] += result.round_seconds
                with StockFlower(nodes=EDGES, environment=environment, patience=900.0) as flower:
                    theirs = flower.run(config)
                stock.append(theirs.accuracies)
                times["stock"] += theirs.round_seconds
                Console(stderr=True).print(f"seed {seed}: {ours[-1]} against {stock[-1]}")
    gaps = [100 * abs(a[-1] - b[-1]) for a, b in zip(ours, stock, strict=True)]
    figures = [
        Figure("gap_points", max(gaps), "points", NOISE, gaps, better="low"),
        Figure("ours_accuracy", median([a[-1] for a in ours]), "of 1", None, [a[-1] for a in ours]),
        Figure("stock_accuracy", median([b[-1] for b in stock]), "of 1", None, [b[-1] for b in stock]),
        Figure("ours_seconds_a_round", median(times["ours"]), "s", None, times["ours"]),
        Figure("stock_seconds_a_round", median(times["stock"]), "s", None, times["stock"]),
    ]

    def picture(axes: Any) -> None:
        for runs, colour, name in ((stock, "#868e96", "stock Flower"), (ours, "#e8590c", "ours")):
            for i, run in enumerate(runs):
                style = {"linestyle": "--" if name == "ours" else "-", "label": name if not i else None}
                axes.plot(range(len(run)), run, color=colour, **style)
        axes.set_xlabel("round")
        axes.set_ylabel("accuracy on the test set")
        axes.legend()

    _report.write("accuracy", figures, extra={"ours": ours, "stock": stock}, picture=picture)


if __name__ == "__main__":
    main()
