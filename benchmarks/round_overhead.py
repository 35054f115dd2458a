# SPDX-License-Identifier: Apache-2.0
"""How long a round takes beside the training: ours against stock Flower, on the same machine in the same run."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from . import _report
from ._bytecode import compiled_environment
from ._our_federation import run_ours
from ._report import Figure, median
from ._stock_flower import AppConfig, StockFlower

CASES = {"4kb": "dense-4kb", "4mb": "dense-4mb"}
GOALS = {("4kb", 2): 50.0, ("4mb", 2): 30.0}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours a case (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of a run of ours (default: %(default)s)")
    parser.add_argument("--stock-rounds", type=int, default=4, help="rounds of a stock run (default: %(default)s)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 8], help="edges (default: 2 8)")
    arguments = parser.parse_args()
    ours: dict[tuple[str, int], list[float]] = {}
    stock: dict[tuple[str, int], list[float]] = {}
    with compiled_environment() as environment:
        for nodes in arguments.nodes:
            for name, model in CASES.items():
                for _ in range(arguments.repeats):
                    result = run_ours(nodes, AppConfig(model, rounds=arguments.rounds), environment=environment)
                    ours.setdefault((name, nodes), []).append(median(result.overhead_seconds))
                with StockFlower(nodes=nodes, environment=environment) as flower:
                    # Eight stock nodes take minutes a round: two rounds say enough.
                    rounds = arguments.stock_rounds if nodes == 2 else 2
                    stock[name, nodes] = flower.run(AppConfig(model, rounds=rounds)).overhead_seconds
                Console(stderr=True).print(f"{name}, {nodes} edges: {ours[name, nodes]} against {stock[name, nodes]}")
    figures = []
    for (name, nodes), seconds in ours.items():
        theirs = median(stock[name, nodes])
        ratios = [theirs / each for each in seconds]
        figures.append(Figure(f"ratio_{name}_{nodes}_edges", median(ratios), "x", GOALS.get((name, nodes)), ratios))
    for (name, nodes), seconds in ours.items():
        figures.append(Figure(f"ours_{name}_{nodes}_edges", median(seconds), "s", None, seconds))
        figures.append(Figure(f"stock_{name}_{nodes}_edges", median(stock[name, nodes]), "s", None, stock[name, nodes]))

    def picture(axes: Any) -> None:
        labels = [f"{name}, {nodes} edges" for name, nodes in ours]
        axes.barh([f"{x} · ours" for x in labels], [median(s) for s in ours.values()], color="#e8590c")
        axes.barh([f"{x} · stock Flower" for x in labels], [median(s) for s in stock.values()], color="#868e96")
        axes.set_xscale("log")
        axes.set_xlabel("seconds a round beside training (logarithmic)")

    _report.write("round_overhead", figures, picture=picture)


if __name__ == "__main__":
    main()
