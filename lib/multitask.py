# SPDX-License-Identifier: Apache-2.0
"""One model for several tasks: a model of the same architecture for each, and the router that chooses among them.

What is here knows no framework; `keras_multitask` and `torch_multitask` do.
"""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError
from .routers import AttributeRouter, GaussianRouter, Indices, Router, RouterCard, unknown

__all__ = [
    "KERAS_CLASS",
    "ROUTER_FILE",
    "Multitask",
    "choose_tasks",
    "is_a",
    "is_multitask",
    "make_multitask",
    "parsed_router_card",
    "predict_by_task",
    "router_card_in",
    "task_index",
    "two_tasks",
]

Weights = Mapping[str, npt.NDArray[np.generic]] | Sequence[npt.NDArray[np.generic]]

# Names in saved files.
KERAS_CLASS = "solar_corona>KerasMultitaskModel"
ROUTER_FILE = "router.json"
_MOST_CONFIG_BYTES = 256 << 20
_READ_ERRORS = (OSError, KeyError, ValueError, RuntimeError, RecursionError, zipfile.BadZipFile, zlib.error, EOFError)


@runtime_checkable
class Multitask(Protocol):
    """What every multi-task model has, of Keras or torch."""

    router: Router

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""

    def model_for(self, task: str | int) -> Any:
        """Return the model of one task, by its name or index."""

    def route(self, x: Any, *, chunk: Any = None) -> Indices:
        """Return the index of each sample's task, shape (n,)."""

    def predict(self, x: Any, *, task: Any = None, attribute: Any = None, chunk: Any = None, **options: Any) -> Any:
        """Return each sample's prediction by its task's model."""


def is_multitask(model: object) -> bool:
    """Tell whether a model is one of several tasks."""
    return isinstance(getattr(model, "router", None), GaussianRouter | AttributeRouter)


def make_multitask(model: Any, weights_by_task: Sequence[Weights], *, router: Router, names: Sequence[str]) -> Any:
    """Return one model that serves several tasks, each with weights of its own for the architecture of `model`.

    Parameters
    ----------
    model
        A Keras model or a `torch.nn.Module`; it stays as it is.
    weights_by_task
        For each task the weights, as `Trainable.get_weights` gives them: under the names of a `state_dict` for torch,
        under numbered names (`"0000/kernel"`) for Keras, or as a sequence in the model's order.
    router
        Chooses each sample's task; its task names are `names`.
    names
        The tasks' names, in the order of the weights.

    Returns
    -------
    model
        A `KerasMultitaskModel` or `TorchMultitaskModel`, compiled as `model` is.

    Raises
    ------
    ModelError
        If the framework is another, the model cannot be made anew, or weights or names do not fit.
    """
    if tuple(names) != router.task_names or len(weights_by_task) != len(names):
        raise ModelError(
            f"got weights of {len(weights_by_task)} tasks, the names {', '.join(map(str, names))}, and a router for "
            f"{', '.join(router.task_names)}; expected the same tasks in the same order"
        )
    if is_a(model, "keras", "Model"):
        from . import keras_multitask

        return keras_multitask.make(model, weights_by_task, router=router)
    if is_a(model, "torch", "nn", "Module"):
        from . import torch_multitask

        return torch_multitask.make(model, weights_by_task, router=router)
    raise ModelError(
        f"a {type(model).__name__} cannot become a model of several tasks; that is there for Keras models and torch "
        f"modules: train each task in a job of its own, or give fit() one of those"
    )


def two_tasks(model: Any) -> Any:
    """Return a model of two tasks with the weights of `model`, to find before training whether it can become one.

    Raises
    ------
    ModelError
        As `make_multitask`.
    """
    router = AttributeRouter(values=(0, 1), tasks=(0, 1), task_names=("a", "b"))
    if is_a(model, "keras", "Model"):
        weights: Weights = model.get_weights()
    else:
        state = model.state_dict() if is_a(model, "torch", "nn", "Module") else {}
        weights = {name: value.detach().cpu().numpy() for name, value in state.items()}
    return make_multitask(model, [weights, weights], router=router, names=router.task_names)


def choose_tasks(
    router: Router,
    x: npt.NDArray[Any] | None,
    samples: int,
    *,
    task: Any = None,
    attribute: Any = None,
    chunk: Any = None,
) -> Indices:
    """Return the index of each sample's task, shape (n,).

    Parameters
    ----------
    router
        Decides where neither `task` nor `attribute` is given.
    x
        The samples, shape (n, …), which a learned router looks at.
    samples
        Their number n.
    task
        Name or index of the task, one for all or one for each sample.
    attribute
        Value of the router's attribute, one for all or one for each sample.
    chunk
        For a learned router: how many consecutive samples belong to one task, or a chunk id for each sample.

    Raises
    ------
    ModelError
        If there is no such task or value, there are more or fewer than samples, or the router cannot decide.
    """
    if sum(given is not None for given in (task, attribute, chunk)) > 1:
        raise ModelError("predict: task=, attribute= and chunk= are three ways to choose the task; give one of them")
    if task is not None:
        each = _one_for_each("task", task, samples)
        known: dict[Any, int] = {}
        return np.array(
            [known[t] if t in known else known.setdefault(t, task_index(router, t)) for t in each], np.int64
        )
    if isinstance(router, AttributeRouter):
        if chunk is not None:
            raise ModelError("predict: chunk= averages a learned router's scores, and this model's is by attribute")
        if attribute is not None:
            return router.route(_one_for_each("attribute", attribute, samples))
        if router.default is None:
            shown = ", ".join(str(value) for value in router.values[:10])
            raise ModelError(
                f"predict: this model chooses the task by an attribute; give attribute=, one of {shown}, …"
            )
        return np.full(samples, router.default, np.int64)
    if attribute is not None:
        raise ModelError("predict: this model's router is learned and knows no attribute; give task=, or neither")
    if x is None:
        raise ModelError("predict: a learned router reads one array of samples; give task= for inputs of another form")
    return router.route(x, _chunk_ids(chunk, samples))


def predict_by_task(
    tasks: Indices, x: Any, predict: Callable[[int, Any], Any], *, map_structure: Callable[..., Any]
) -> Any:
    """Return predictions in the order of the samples; only models with samples predict.

    Parameters
    ----------
    tasks
        Index of each sample's task, shape (n,).
    x
        Samples, an array or a structure of arrays.
    predict
        Called with a task's index and its samples; returns an array or a structure of arrays. With no samples at all
        it is called once, for an empty prediction of the right form.
    map_structure
        The framework's own, for structures of arrays.
    """
    used = np.unique(tasks)
    if len(used) < 2:
        return predict(int(used[0]) if len(used) else 0, x)
    places = [np.flatnonzero(tasks == task) for task in used]
    parts = [
        predict(int(task), map_structure(lambda each, here=here: each[here], x))
        for task, here in zip(used, places, strict=True)
    ]
    order = np.argsort(np.concatenate(places), kind="stable")
    return map_structure(lambda *each: np.concatenate(each)[order], *parts)


def task_index(router: Router, task: Any) -> int:
    """Return the index of a task that is given by its name or index.

    Raises
    ------
    ModelError
        If there is no such task.
    """
    names = router.task_names
    if isinstance(task, bytes):
        task = task.decode(errors="replace")
    if isinstance(task, str):
        if task not in names:
            raise unknown("task", task, names)
        return names.index(task)
    if isinstance(task, bool | np.bool_) or not isinstance(task, int | np.integer) or not 0 <= task < len(names):
        raise ModelError(f"there is no task {task!r:.100}; expected a name, or an index from 0 to {len(names) - 1}")
    return int(task)


def router_card_in(path: Path) -> RouterCard | None:
    """Return the router's card of the saved model at `path`, or None if it is no model of several tasks.

    No framework is needed, and what is damaged or hostile has none: `load_model` is what tells about it.
    """
    try:
        if path.is_dir():
            place = path / ROUTER_FILE
            if place.stat().st_size > _MOST_CONFIG_BYTES:
                return None
            return parsed_router_card(place.read_bytes())
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            name = ROUTER_FILE if ROUTER_FILE in members else "config.json"
            if archive.getinfo(name).file_size > _MOST_CONFIG_BYTES:
                return None
            data = archive.read(name)
        if name == ROUTER_FILE:
            return parsed_router_card(data)
        if KERAS_CLASS.encode() not in data:
            return None
        config = json.loads(data)
        if config["registered_name"] != KERAS_CLASS:
            return None
        return RouterCard.model_validate(config["config"]["router"], strict=False)
    except (*_READ_ERRORS, TypeError):
        return None


def parsed_router_card(data: bytes | str) -> RouterCard:
    """Return a router's card from its JSON.

    Raises
    ------
    ModelError
        If it is none.
    """
    try:
        return RouterCard.model_validate_json(data)
    except ValueError as error:
        raise ModelError(f"router: its card cannot be read ({' '.join(str(error).split())[:300]})") from error


def _one_for_each(what: str, given: Any, samples: int) -> Iterable[Any]:
    values = given if isinstance(given, str | bytes) else np.asarray(given, dtype=object)
    if isinstance(values, str | bytes) or values.ndim == 0:
        return [values if isinstance(values, str | bytes) else values.item()] * samples
    if values.shape not in ((samples,), (samples, 1)):
        raise ModelError(
            f"predict: {what} has shape {values.shape}, expected one value, or one for each of {samples} samples"
        )
    return list(values.reshape(-1))


def _chunk_ids(chunk: Any, samples: int) -> npt.NDArray[Any] | None:
    if chunk is None:
        return None
    ids = np.asarray(chunk)
    if ids.ndim > 0:
        return ids
    if ids.dtype.kind not in "iu" or ids < 1:
        raise ModelError(
            f"predict: chunk is {chunk!r:.100}, expected a number of samples from 1, or an id for each sample"
        )
    return np.arange(samples) // int(ids)


def is_a(model: object, module: str, *names: str) -> bool:
    """Tell whether a model is of a class of an engine, without importing the engine."""
    # A model whose engine was never imported is none of that engine's.
    kind: Any = sys.modules.get(module)
    for name in names:
        kind = getattr(kind, name, None)
    return isinstance(kind, type) and isinstance(model, kind)
