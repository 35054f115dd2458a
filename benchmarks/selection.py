# SPDX-License-Identifier: Apache-2.0
"""How many labels random choice needs for what the default reaches, in eight kinds of drift.

Four rounds of 100 labels; each trains the model of the round before on all labels so far and as many old samples.
Random choice goes on to eight rounds, so that it can be told how many labels it needs. Label efficiency of a rule is
the labels that random choice needs for what the rule reaches after four rounds, over 400; 2 is the most that can be
told. That over all rounds stands beside it: in the first, only the model that drifted is there to choose by. Runs are
appended to a file as they come; a run that was cut goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from solar_corona.incremental.choosing import Choice, Pool, choose, margins, unlearned_classes

from . import _report
from ._data import add_data_option
from ._drifts import SCENARIOS, Drift, drift_of
from ._report import Figure
from ._simulation import Floats
from ._small_net import SmallNet, batches_of

ROUNDS, RANDOM_ROUNDS, LABELS = 4, 8, 100
_STEPS, _HALF = 300, 16
RULES = ("random", "mixed", "margin", "entropy", "badge")


@dataclass(frozen=True)
class Run:
    """What one rule reached in one scenario and seed.

    `new` has the accuracy before and after each round; `old` that on old samples before, and after four rounds.
    """

    scenario: str
    seed: int
    rule: str
    new: list[float]
    old: list[float]
    unusable: float


def _badge(p: NDArray[Any], vectors: NDArray[Any], count: int, rng: np.random.Generator) -> Choice:
    """Return k-means++ on the gradients of the last layer (Ash et al. 2020), without forming them."""
    a = p.copy()
    a[np.arange(len(a)), p.argmax(1)] -= 1
    squares = (a**2).sum(1) * (vectors**2).sum(1)
    rows = [int(squares.argmax())]
    nearest = np.full(len(a), np.inf)
    while len(rows) < count:
        last = rows[-1]
        distance = squares + squares[last] - 2 * (a @ a[last]) * (vectors @ vectors[last])
        nearest = np.minimum(nearest, np.maximum(distance, 0))
        nearest[rows] = 0
        sums = np.cumsum(nearest, dtype=np.float64)
        rows.append(min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), len(a) - 1))
    return Choice(np.array(rows), np.zeros(len(rows), np.bool_))


def _chosen(rule: str, said: tuple[Floats, Floats], seed: int, errors: float | None, unlearned: list[int]) -> Choice:
    p, vectors = said
    if rule == "badge":
        return _badge(p, vectors, LABELS, np.random.default_rng(seed))
    pool = Pool(1 - margins(p), vectors, p)
    share = 0.0 if rule in ("margin", "entropy") else 0.3
    return choose(pool, LABELS, seed=seed, rule=rule, random_share=share, audit_errors=errors, unlearned=unlearned)


def simulate(drift: Drift, base: SmallNet, rule: str, seed: int, rounds: int) -> Run:
    """Return what a rule reaches."""
    rng = np.random.default_rng([seed, RULES.index(rule) if rule in RULES else 99])
    net, (x, y) = base.copy(), drift.pool
    old_seen, old_y = net.seen(drift.base[0]), drift.base[1]
    first = margins(net.answers(x)[0])
    unsure = first <= np.quantile(first, 0.2)
    left, used = np.arange(len(y)), np.zeros(0, np.int64)
    labels, answers = np.zeros(0, np.int64), np.zeros(0, np.int64)
    errors, wasted = None, 0
    new, old = [net.accuracy(*drift.test)], [net.accuracy(*drift.old_test)]
    for _ in range(rounds):
        said = net.answers(x[left])
        choice = _chosen(rule, said, int(rng.integers(1 << 31)), errors, unlearned_classes(labels, answers))
        rows, answered = left[choice.rows], said[0][choice.rows].argmax(1)
        audit = rows[choice.audit & drift.usable[rows]]
        if len(audit):
            errors = 1 - net.accuracy(x[audit], y[audit])
        wasted += int((~drift.usable[rows]).sum())
        left, answers = np.setdiff1d(left, rows), np.append(answers, answered[drift.usable[rows]])
        rows = rows[drift.usable[rows]]
        told = y[rows].copy()
        wrong = unsure[rows] & (rng.random(len(rows)) < drift.wrong_if_unsure)
        told[wrong] = rng.integers(0, drift.classes, int(wrong.sum()))
        used, labels = np.append(used, rows), np.append(labels, told)
        batches = np.hstack(
            [
                batches_of(len(used), (_STEPS, _HALF), rng),
                len(used) + batches_of(len(old_y), (_STEPS, _HALF), rng),
            ]
        )
        net.fit(np.concatenate([net.seen(x[used]), old_seen]), np.append(labels, old_y), batches)
        new.append(net.accuracy(*drift.test))
        if len(new) == ROUNDS + 1:
            old.append(net.accuracy(*drift.old_test))
    return Run(drift.name, seed, rule, new, old, wasted / (rounds * LABELS))


def runs(
    folder: Path, seeds: range, rules: tuple[str, ...], known: set[tuple[str, int, str]], scenarios: tuple[str, ...]
) -> Iterator[Run]:
    """Yield the runs that are not known yet, seed after seed, so that a cut series has whole seeds."""
    for seed in seeds:
        for scenario in scenarios:
            missing = [rule for rule in rules if (scenario, seed, rule) not in known]
            if not missing:
                continue
            drift = drift_of(scenario, folder, seed)
            base = drift.trained(seed, convolutions=False)
            for rule in missing:
                yield simulate(drift, base, rule, seed, RANDOM_ROUNDS if rule == "random" else ROUNDS)


def needed(curve: NDArray[np.float64], accuracy: float) -> float:
    """Return the labels with which random choice reaches an accuracy; `curve` is of 0, 100, … labels.

    >>> needed(np.array([0.5, 0.6, 0.7]), 0.65)
    150.0
    """
    # More labels are no worse: what is falling is chance, and is evened out.
    rising = isotonic_regression(curve).x + 1e-9 * np.arange(len(curve))
    return float(np.interp(accuracy, rising, LABELS * np.arange(len(curve))))


def efficiency(random: NDArray[np.float64], rule: NDArray[np.float64]) -> float:
    """Return the label efficiency of mean curves after four rounds."""
    return needed(random, rule[ROUNDS]) / (LABELS * ROUNDS)


def mean_efficiency(random: NDArray[np.float64], rule: NDArray[np.float64]) -> float:
    """Return the label efficiency of mean curves, over all of the four rounds."""
    return sum(needed(random, rule[i]) for i in range(1, ROUNDS + 1)) / sum(LABELS * i for i in range(1, ROUNDS + 1))


def _curves(all_runs: list[Run], scenario: str, rule: str, kind: str = "new") -> NDArray[np.float64]:
    return np.array([getattr(run, kind) for run in all_runs if (run.scenario, run.rule) == (scenario, rule)])


def summary(all_runs: list[Run]) -> dict[str, Any]:
    """Return efficiencies, gains at 400 labels, and what was forgotten, by rule and scenario; errors by bootstrap."""
    found: dict[str, Any] = defaultdict(dict)
    for rule in dict.fromkeys(run.rule for run in all_runs):
        for scenario in SCENARIOS:
            random, own = _curves(all_runs, scenario, "random"), _curves(all_runs, scenario, rule)
            n = min(len(random), len(own))
            if not n:
                continue
            rng = np.random.default_rng(0)
            draws = [rng.integers(0, n, n) for _ in range(200)]
            again = [efficiency(random[rows].mean(0), own[rows].mean(0)) for rows in draws]
            old = _curves(all_runs, scenario, rule, "old")
            found[rule][scenario] = {
                "seeds": n,
                "efficiency": efficiency(random[:n].mean(0), own[:n].mean(0)),
                "efficiency_of_all_rounds": mean_efficiency(random[:n].mean(0), own[:n].mean(0)),
                "low": float(np.quantile(again, 0.1)),
                "high": float(np.quantile(again, 0.9)),
                "accuracy": own.mean(0).tolist(),
                "gain_at_400": float((own[:n, ROUNDS] - random[:n, ROUNDS]).mean()),
                "forgotten": float((old[:, 0] - old[:, 1]).mean()),
                "unusable": float(np.mean([r.unusable for r in all_runs if (r.scenario, r.rule) == (scenario, rule)])),
            }
    return dict(found)


def report(all_runs: list[Run], rule: str = "mixed") -> None:
    """Write the figures."""
    told = summary(all_runs)
    own = told[rule]
    efficiencies = {scenario: row["efficiency"] for scenario, row in own.items()}
    forgotten = {scenario: row["forgotten"] for scenario, row in own.items()}
    figures = [
        Figure("worst_efficiency", min(efficiencies.values()), "x", 0.9, list(efficiencies.values())),
        Figure("new_class_efficiency", efficiencies["new2"], "x", 1.5),
        Figure("mixed_corruption_efficiency", efficiencies["mix"], "x", 1.7),
        Figure("forgotten", 100 * max(forgotten.values()), "points", 1.0, [100 * v for v in forgotten.values()], "low"),
    ]
    figures += [Figure(f"efficiency_{name}", value, "x") for name, value in efficiencies.items()]
    over_all = [row["efficiency_of_all_rounds"] for row in own.values()]
    figures.append(Figure("worst_efficiency_of_all_rounds", min(over_all), "x", repeats=over_all))
    figures.append(Figure("new_class_efficiency_of_all_rounds", own["new2"]["efficiency_of_all_rounds"], "x"))
    for peer in told:
        if peer != "random":
            values = [row["efficiency"] for row in told[peer].values()]
            figures.append(Figure(f"mean_efficiency_{peer}", float(np.mean(values)), "x", repeats=values))
            figures.append(Figure(f"worst_efficiency_{peer}", min(values), "x"))

    def picture(axes: Any) -> None:
        names = [name for name in told if name != "random"]
        for i, name in enumerate(names):
            at = np.arange(len(own)) + 0.8 * i / len(names)
            axes.bar(at, [told[name][s]["efficiency"] for s in own], 0.8 / len(names), label=name)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(np.arange(len(own)) + 0.4, list(own))
        axes.set_ylabel("labels that random choice needs, over those had")
        axes.legend(fontsize=8)

    _report.write("selection", figures, extra=told, picture=picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--runs", type=Path, default=Path("selection_runs.jsonl"), help="where runs are appended to")
    parser.add_argument("--report-only", action="store_true", help="make the figures of the runs that there are")
    options = parser.parse_args()
    known = [Run(**json.loads(line)) for line in options.runs.read_text().splitlines()] if options.runs.exists() else []
    done = {(run.scenario, run.seed, run.rule) for run in known}
    if not options.report_only:
        with options.runs.open("a", encoding="utf-8") as file:
            for run in runs(options.data, range(options.seeds), tuple(options.rules), done, tuple(options.scenarios)):
                known.append(run)
                file.write(json.dumps(asdict(run)) + "\n")
                file.flush()
                os.fsync(file.fileno())
                print(run.scenario, run.seed, run.rule, *(f"{v:.3f}" for v in run.new), flush=True)
    report(known)


if __name__ == "__main__":
    main()
