# SPDX-License-Identifier: Apache-2.0
"""Made-up runs whose edges hold several tasks, in groups that are as they are said to be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import linkage

from solar_corona.core.events import (
    EdgeFinished,
    EdgeJoined,
    Event,
    JobFinished,
    JobStarted,
    RoundEvaluated,
    RoundFinished,
    RoundStarted,
    TaskPlace,
    TasksGrouped,
)

__all__ = ["edges", "grouped", "run"]

Named = tuple[str, str]


def edges(count: int) -> list[str]:
    """Return names of edges."""
    return [f"edge-{i}" for i in range(count)]


def grouped(
    names: Sequence[Named | str], labels: Sequence[int], *, at_round: int = 1, reason: str = "signatures came"
) -> TasksGrouped:
    """Return the event that says in which group each task is: near each other in a group, far from others."""
    tasks = [(name, "all") if isinstance(name, str) else name for name in names]
    centres = np.random.default_rng(42).uniform(-1, 1, (max(labels) + 1, 2))
    x = centres[list(labels)] + 0.01 * np.random.default_rng(0).normal(size=(len(tasks), 2))
    apart = ((centres[:, None] - centres[None]) ** 2).sum(-1) + 0.5
    places = []
    for i, (edge, task) in enumerate(tasks):
        others = [apart[labels[i], g] for g in set(labels) if g != labels[i]]
        places.append(
            TaskPlace(
                edge=edge,
                task=task,
                group=f"group-{labels[i] + 1}",
                samples=100 + i,
                own=0.01 if list(labels).count(labels[i]) > 1 else 0.0,
                next=float(min(others)) if others else None,
                map=(float(x[i, 0]), float(x[i, 1])),
            )
        )
    tree = [(int(a), int(b), float(h)) for a, b, h, _ in linkage(x, "average")] if len(tasks) > 1 else []
    return TasksGrouped(
        round=at_round, reason=reason, tasks=places, tree=tree, signature_bytes=1000 * len({edge for edge, _ in tasks})
    )


def run(
    names: Sequence[str],
    told: Sequence[Event],
    *,
    rounds: int = 3,
    algorithm: str = "similarity-grouping",
    finished: bool = True,
    tasks: Sequence[Named] = (),
) -> list[Event]:
    """Return the events of a run over edges, with those of `told` in the rounds that they name."""
    events: list[Event] = [
        JobStarted(time=100, rounds=rounds, edges=list(names), algorithm=algorithm, min_edges=len(names))
    ]
    events += [EdgeJoined(time=101, edge=edge, samples=100 + i, eval_samples=50) for i, edge in enumerate(names)]
    for number in range(1, rounds + 1):
        events.append(RoundStarted(time=110 + number, round=number, edges=len(names)))
        events += [event.model_copy(update={"time": 110 + number}) for event in told if _round(event) == number]
        events.append(
            RoundFinished(
                time=110.5 + number,
                round=number,
                asked=len(names),
                replied=len(names),
                metrics={},
                seconds=2.0,
                training_seconds=1.5,
                bytes_down=2048,
                bytes_up=1024,
            )
        )
        each = {edge: {"accuracy": 0.2 * number, "loss": 1.0, "num-examples": 50.0} for edge in names}
        mean = {"accuracy": 0.2 * number, "loss": 1.0}
        events.append(RoundEvaluated(time=110.6 + number, round=number, metrics=mean, edges=each))
    if finished:
        events += [_end(edge, [task for owner, task in tasks if owner == edge]) for edge in names]
        events.append(JobFinished(time=200, model="out/model.keras", seconds=42.0))
    return events


def _round(event: Event) -> int:
    return int(getattr(event, "round", 1))


def _end(edge: str, tasks: Sequence[str]) -> EdgeFinished:
    return EdgeFinished(
        time=199,
        edge=edge,
        metrics={"accuracy": 0.9, "loss": 0.3},
        before_finetune={"accuracy": 0.85, "loss": 0.4},
        one_model={"accuracy": 0.7, "loss": 0.9},
        alone={"accuracy": 0.8, "loss": 0.6},
        tasks={task: {"accuracy": 0.91 + 0.01 * i} for i, task in enumerate(tasks)},
    )
