# SPDX-License-Identifier: Apache-2.0
"""Weights of torch modules as `.npz` files: names and numbers, no pickle."""

from __future__ import annotations

import zipfile
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..core.errors import ModelError
from .multitask import ROUTER_FILE, is_multitask, parsed_router_card
from .numpy_errors import NUMPY_ERRORS
from .routers import RouterCard, router_from

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check", "read_into", "router_card", "write"]

Arrays = dict[str, npt.NDArray[Any]]

# More than any array's header takes; with it, a file can be told from one that would fill the memory.
_HEADER_BYTES = 1 << 16
_MOST_CARD_BYTES = 64 << 20
_ROUTER = "router/"


def write(module: Any, path: Path) -> str:
    """Write a module's `state_dict` as an `.npz` file and return the form.

    Raises
    ------
    ModelError
        If the ending is another, or the state holds what NumPy cannot.
    """
    if path.suffix != ".npz":
        raise ModelError(
            f"a torch module cannot be saved as {path.suffix or 'a folder'}; expected a name that ends in "
            f".npz: its weights as NumPy arrays, which load_weights(module, path) reads"
        )
    arrays = _state(module)
    # np.savez would take a weight named `file` for its own argument.
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        if is_multitask(module):
            archive.writestr(ROUTER_FILE, module.router.card().model_dump_json())
    return "npz"


def read_into(module: Any, path: Path, *, name: str) -> None:
    """Put the weights of an `.npz` file into a module.

    Raises
    ------
    ModelError
        If the file is damaged, or its names or shapes are not the module's; nothing is changed then.
    """
    card = _same_tasks(module, path, name) if is_multitask(module) else None
    own = _state(module)
    arrays = _arrays(path, name, own)
    for wanted in own:
        if wanted not in arrays:
            near = get_close_matches(wanted, arrays, n=1)
            hint = f"; it has {near[0]!r}" if near else ""
            raise ModelError(f"{name}: has no weight {wanted!r} for this {type(module).__name__}{hint}; use its module")
    for found, array in arrays.items():
        if found not in own:
            raise ModelError(
                f"{name}: has a weight {found!r} that this {type(module).__name__} has not; use its module"
            )
        if array.shape != own[found].shape:
            raise ModelError(
                f"{name}: weight {found!r} has shape {array.shape}, and this {type(module).__name__} takes "
                f"{own[found].shape}; make the module with the same sizes"
            )
    router = None
    if card is not None:
        # Checked before anything changes.
        router = router_from(card, {each: arrays.pop(f"{_ROUTER}{each}") for each in card.shapes()})
    module.load_state_dict({found: torch.from_numpy(array) for found, array in arrays.items()})
    if router is not None:
        module.router = router


def _same_tasks(module: Any, path: Path, name: str) -> RouterCard:
    """Return the card of a file's router, which must have the same tasks and form as the model's."""
    card, own = router_card(path, name), module.router.card()
    if card.task_names != own.task_names or card.kind != own.kind or card.shapes() != own.shapes():
        raise ModelError(
            f"{name}: is for the tasks {', '.join(card.task_names)} ({card.kind} router), and this model for "
            f"{', '.join(own.task_names)} ({own.kind} router); load_model(path, module=…) makes the right one"
        )
    return card


def router_card(path: Path, name: str) -> RouterCard:
    """Return the router's card of an `.npz` file of a model of several tasks.

    Raises
    ------
    ModelError
        If there is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(ROUTER_FILE).file_size > _MOST_CARD_BYTES:
                raise ModelError(f"{name}: its {ROUTER_FILE} is larger than {_MOST_CARD_BYTES} bytes; save it anew")
            return parsed_router_card(archive.read(ROUTER_FILE))
    except KeyError as error:
        raise ModelError(
            f"{name}: is no model of several tasks, for it has no {ROUTER_FILE}; load_weights(module, path) reads it"
        ) from error
    except ModelError:
        raise
    except NUMPY_ERRORS as error:
        raise ModelError(f"{name}: is no .npz file, or is damaged ({error}); fetch or save it anew") from error


def check(module: Any, path: Path) -> None:
    """Check that what `write` wrote at `path` holds the module's weights.

    Raises
    ------
    ModelError
        If it does not.
    """
    state = _state(module)
    arrays = _arrays(path, type(module).__name__, state)
    for name, own in state.items():
        if name not in arrays or arrays[name].dtype != own.dtype or arrays[name].tobytes() != own.tobytes():
            raise ModelError(f"{type(module).__name__}: the weight {name!r} does not come back as it was saved")


def _state(module: Any) -> Arrays:
    arrays: Arrays = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{type(module).__name__}: the state {name!r} is a {type(value).__name__}, expected a "
                f"tensor; an object could only be pickled: keep it outside get_extra_state"
            )
        try:
            arrays[name] = value.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:
            raise ModelError(
                f"{type(module).__name__}: the weight {name!r} ({value.dtype}) has no form in NumPy; "
                f"convert the module with module.float() before it is saved"
            ) from error
    if is_multitask(module):
        arrays |= {f"{_ROUTER}{name}": array for name, array in module.router.to_arrays().items()}
    return arrays


def _arrays(path: Path, name: str, own: Arrays) -> Arrays:
    room = sum(array.nbytes for array in own.values()) + _HEADER_BYTES * (len(own) + 1)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename != ROUTER_FILE]
            held = sum(info.file_size for info in members)
            if held > room:
                raise ModelError(
                    f"{name}: holds {held:,} bytes of weights, and this module takes {room:,} at most; make the module "
                    f"with the same sizes"
                )
            arrays: Arrays = {}
            for info in members:
                with archive.open(info) as member:
                    arrays[info.filename.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
            return arrays
    except ModelError:
        raise
    except NUMPY_ERRORS as error:
        raise ModelError(
            f"{name}: is no .npz file of weights, or is damaged ({error}); fetch or save it anew"
        ) from error
