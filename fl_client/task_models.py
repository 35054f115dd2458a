# SPDX-License-Identifier: Apache-2.0
"""The model that `fit()` returns, and the job leaves behind, where there are several tasks with models of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.app import RecordDict

from ..lib.exchange import Weights
from ..lib.multitask import make_multitask
from ..lib.router_fitting import fit_router
from ..lib.routers import AttributeRouter, Router
from ..lib.survey import TaskNames
from .edge_data import EdgeData, Split
from .node import Node

__all__ = ["model_for_all_tasks", "model_of_all_groups"]


def model_for_all_tasks(model: Any, node: Node, data: EdgeData) -> Any:
    """Return a model for all of this edge's tasks: `model` itself if one set of weights serves them all.

    Where the data say which task a sample is of, so must whoever predicts; else the model's router finds it.
    """
    result, split = node.result, node.split
    if result is None or split is None or len(result.weights) < 2:
        return model
    served = [tuple(tasks if tasks is not None else range(len(split.names))) for tasks, _ in result.weights]
    names = ["+".join(split.names[task] for task in tasks) for tasks in served]
    router = _router(data, split, served, names)
    return make_multitask(model, [weights for _, weights in result.weights], router=router, names=names)


def _router(data: EdgeData, split: Split, served: Sequence[Sequence[int]], names: Sequence[str]) -> Router:
    if data.rules.task_attribute is not None:
        values: dict[str | int, str] = {
            split.names[task]: name for tasks, name in zip(served, names, strict=True) for task in tasks
        }
        return AttributeRouter.from_mapping(values, task_names=names)
    samples = data.samples("train")
    model_of = {task: place for place, tasks in enumerate(served) for task in tasks}
    return fit_router(samples.x, samples.y, [model_of[int(task)] for task in split.train], names)


def model_of_all_groups(model: Any, weights: Sequence[Weights], content: RecordDict) -> Any:
    """Return a model with one task for each group of the job; edges' names, and `EDGE/TASK`, lead to theirs."""
    said = TaskNames.of(content)
    names = tuple(f"group-{i + 1}" for i in range(len(weights))) if said is None else said.groups
    group_of = {} if said is None else said.group_of
    sizes = [sum(group == name for group in group_of.values()) for name in names]
    router = AttributeRouter.from_mapping(
        dict[str | int, str](group_of.items()), task_names=names, default=names[sizes.index(max(sizes))]
    )
    return make_multitask(model, list(weights), router=router, names=names)
