# SPDX-License-Identifier: Apache-2.0
"""A torch module that serves several tasks, in one `.npz` file with its router."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..core.errors import ModelError
from . import torch_models
from .multitask import Weights, choose_tasks, predict_by_task, task_index
from .routers import Indices, Router, router_from

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TorchMultitaskModel", "make", "read"]


class TorchMultitaskModel(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """One module for several tasks; `make_multitask` makes one, and `load_model(path, module=…)` loads one.

    Parameters
    ----------
    module
        A module of one task's form; each task gets a copy.
    router
        Chooses each sample's task.
    """

    def __init__(self, module: Any, router: Router) -> None:
        super().__init__()
        try:
            copies = [copy.deepcopy(module) for _ in router.task_names]
        except Exception as error:
            # The user's own __deepcopy__ runs in here.
            raise ModelError(
                f"a {type(module).__name__} cannot be copied, once for each task ({type(error).__name__}: {error}); "
                f"keep in the module only what copy.deepcopy can copy"
            ) from error
        self.models = torch.nn.ModuleList(copies)
        self.router = router

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        return self.router.task_names

    def model_for(self, task: str | int) -> Any:
        """Return the module of one task, by its name or index."""
        return self.models[task_index(self.router, task)]

    def route(self, x: Any, *, chunk: Any = None) -> Indices:
        """Return the index of each sample's task by the learned router, shape (n,)."""
        samples = _gathered(x)
        return choose_tasks(self.router, samples, len(samples), chunk=chunk)

    def forward(self, x: Any, task: Any = None) -> Any:
        """Return the outputs for a batch; a module computes only its own samples.

        Parameters
        ----------
        x
            Samples, a tensor of shape (n, …).
        task
            Index of each sample's task, shape (n,); by default the router decides.
        """
        given = task.detach().cpu().numpy() if isinstance(task, torch.Tensor) else task
        tasks = choose_tasks(self.router, x.detach().cpu().numpy(), len(x), task=given)
        used = np.unique(tasks) if len(tasks) else np.zeros(1, np.int64)
        places = [torch.from_numpy(np.flatnonzero(tasks == each)).to(x.device) for each in used]
        outputs = torch.cat([self.models[int(each)](x[here]) for each, here in zip(used, places, strict=True)])
        return outputs[torch.argsort(torch.cat(places))]

    def predict(
        self, x: Any, *, task: Any = None, attribute: Any = None, chunk: Any = None, batch_size: int = 256
    ) -> npt.NDArray[Any]:
        """Return each sample's prediction by its task's module, in the order of the samples, as a NumPy array.

        Parameters
        ----------
        x
            Samples: an array, a tensor, or a loader of batches, which are gathered in memory first.
        task
            Name or index of the task, one for all or one for each sample.
        attribute
            Value of the router's attribute, one for all or one for each sample.
        chunk
            For a learned router: how many consecutive samples belong to one task, or a chunk id for each sample.
        batch_size
            Samples that a module computes at once.

        Raises
        ------
        ModelError
            If there is no such task or value, or the router cannot decide.
        """
        samples = _gathered(x)
        tasks = choose_tasks(self.router, samples, len(samples), task=task, attribute=attribute, chunk=chunk)
        device = next((each.device for each in self.parameters()), torch.device("cpu"))

        def of_task(index: int, part: npt.NDArray[Any]) -> npt.NDArray[Any]:
            module = self.models[index]
            batches = torch.from_numpy(np.ascontiguousarray(part)).split(batch_size)
            return np.concatenate([module(batch.to(device)).cpu().numpy() for batch in batches])

        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return np.asarray(
                    predict_by_task(tasks, samples, of_task, map_structure=lambda call, *each: call(*each))
                )
        finally:
            self.train(training)


def make(module: Any, weights_by_task: Sequence[Weights], *, router: Router) -> TorchMultitaskModel:
    """Return one module for several tasks; see `make_multitask`."""
    made = TorchMultitaskModel(module, router)
    for own, name, weights in zip(made.models, made.tasks, weights_by_task, strict=True):
        if not isinstance(weights, Mapping):
            raise ModelError(f"the weights of task {name!r} are a {type(weights).__name__}, expected names and arrays")
        try:
            own.load_state_dict({each: torch.from_numpy(np.array(value)) for each, value in weights.items()})
        except (RuntimeError, TypeError) as error:
            raise ModelError(
                f"the weights of task {name!r} do not fit {type(module).__name__} "
                f"({' '.join(str(error).split())[:300]}); make the module with the same sizes on every edge"
            ) from error
    return made


def read(module: Any, path: Path, *, name: str) -> TorchMultitaskModel:
    """Return the module for several tasks that was saved in an `.npz` file.

    Raises
    ------
    ModelError
        If the file is damaged, holds no router, or its weights are not of that module's form.
    """
    card = torch_models.router_card(path, name)
    # Weights are stored as they are: a card that asks for more than the file holds would only fill the memory.
    wanted = sum(4 * int(np.prod(shape, dtype=object)) for shape in card.shapes().values())
    if wanted > path.stat().st_size:
        raise ModelError(f"{name}: its router would take {wanted:,} bytes, more than the file has; save it anew")
    empty = {each: np.zeros(shape, np.float32) for each, shape in card.shapes().items()}
    made = TorchMultitaskModel(module, router_from(card, empty))
    torch_models.read_into(made, path, name=name)
    return made


def _gathered(x: Any) -> npt.NDArray[Any]:
    if isinstance(x, torch.Tensor):
        return np.asarray(x.detach().cpu().numpy())
    if isinstance(x, np.ndarray):
        return x
    if not isinstance(x, Iterable):
        raise ModelError(f"predict: got a {type(x).__name__}, expected an array, a tensor or a loader of batches")
    batches = [_gathered(batch[0] if isinstance(batch, list | tuple) else batch) for batch in x]
    if not batches:
        raise ModelError("predict: the loader has no batch; give it one, or an empty array")
    return np.concatenate(batches)
