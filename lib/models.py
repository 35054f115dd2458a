# SPDX-License-Identifier: Apache-2.0
"""Saving and loading models: whole or not at all, a fingerprint and a card beside each, no pickle."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..core.errors import ModelError
from ..core.files import atomic_write, local_path, shown
from . import context
from .model_archives import packed, unpack
from .model_cards import (
    ModelCard,
    card_path,
    forget_card,
    make_card,
    memory_of,
    read_card,
    remember,
    versions_here,
    write_card,
)
from .multitask import is_a, two_tasks
from .verification import suffix_of, verified

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ModelCard",
    "card_path",
    "check_place",
    "check_saveable",
    "load_model",
    "load_weights",
    "model_bytes",
    "read_card",
    "remember",
    "save_model",
    "write_model_bytes",
]

_PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


def save_model(
    model: object,
    path: str | os.PathLike[str] | None = None,
    *,
    metrics: Mapping[str, float] | None = None,
    round: int | None = None,  # noqa: A002  # the field's word
) -> Path:
    """Save a model, whole or not at all, with a card beside it, and return its path.

    ========================= ================== ==========================================================
    model                     name of `path`     what is written
    ========================= ================== ==========================================================
    Keras model               `model.keras`      Keras's own file: architecture, weights, optimizer
    Keras model               `model` (no dot)   a SavedModel folder, for serving
    `torch.nn.Module`         `weights.npz`      its `state_dict` as NumPy arrays; see `load_weights`
    object with `save(path)`  any but a pickle's what its own `save` writes
    ========================= ================== ==========================================================

    Parameters
    ----------
    model
        The model.
    path
        File or folder on this machine; by default where the job wants this worker's model.
    metrics
        Metrics for the card; by default those that `fit` measured last.
    round
        Round for the card; by default the last that `fit` took part in.

    Raises
    ------
    ModelError
        If there is no path, the model cannot be saved, or not in that form.
    PlatformError
        If the disk is full or the folder cannot be written; what was there before stays.
    """
    place = _place(path)
    memory = memory_of(model)
    with atomic_write(place) as temporary:
        form = _write(model, temporary)
        card = make_card(
            place,
            temporary,
            form,
            round=memory.round if round is None else round,
            metrics=memory.metrics if metrics is None else metrics,
            versions=versions_here(),
        )
        forget_card(place)
    write_card(place, card)
    return place


def load_model(
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    module: Any = None,
) -> Any:
    """Return the model that was saved at a path or URL.

    A `.keras` file gives a Keras model, and no code that is in the file runs. A folder gives TensorFlow's
    SavedModel object, whose `serve` takes a batch: keep the object, for `serve` alone does not keep the weights
    alive. A SavedModel can hold any TensorFlow operation, so load only one you trust.

    Parameters
    ----------
    path
        File, folder, or a URL that fsspec opens (`https://`, `s3://`).
    sha256
        Fingerprint that the model must have; by default the job's, where it is the job's model, else that of
        the card beside it, where there is one.
    custom_objects
        Keras classes and functions of your own by their names, where importing their module is not enough.
    module
        For the `.npz` file of a torch model of several tasks: a `torch.nn.Module` of one task's form. It stays as it
        is; each task gets a copy.

    Raises
    ------
    ModelError
        If there is no such model, its fingerprint is another, or it cannot be loaded. Nothing is loaded then.
    TemporaryError
        If a server cannot be reached.
    """
    suffix = suffix_of(path)
    if suffix == ".npz" and module is None:
        raise ModelError(
            f"{shown(path)}: holds weights alone, without the module that they belong to; make the module, "
            f"then load_weights(module, path), or load_model(path, module=module) if it is a model of several tasks"
        )
    if suffix == ".npz":
        with verified(path, sha256, folder=False) as local:
            from . import torch_multitask

            return torch_multitask.read(module, local, name=shown(path))
    if suffix not in (".keras", ""):
        raise _unknown_form(path, suffix)
    with verified(path, sha256, folder=suffix == "") as local:
        try:
            from . import keras_models
        except ImportError as error:
            raise ModelError(f"{shown(path)}: needs Keras ({error}); pip install 'solar-corona[tensorflow]'") from error
        return keras_models.read(local, name=shown(path), custom_objects=custom_objects)


def load_weights(module: Any, path: str | os.PathLike[str], *, sha256: str | None = None) -> None:
    """Put the weights that `save_model` wrote into a `torch.nn.Module` of the same form.

    Raises
    ------
    ModelError
        If there is no such file, its fingerprint is another, or its names or shapes are not those of the
        module; the module is then as it was.
    TemporaryError
        If a server cannot be reached.
    """
    suffix = suffix_of(path)
    if suffix != ".npz":
        raise (
            _unknown_form(path, suffix)
            if suffix in _PICKLES
            else ModelError(f"{shown(path)}: expected a .npz file, as save_model writes for a torch module")
        )
    with verified(path, sha256, folder=False) as local:
        from . import torch_models

        torch_models.read_into(module, local, name=shown(path))


def check_saveable(model: object, path: str | os.PathLike[str], *, multitask: bool = False) -> None:
    """Save a model to a temporary folder and load it back, to find before training what cannot be saved.

    A Keras model is saveable as `.keras` if all its classes and functions are Keras's own or registered,
    each class can be made anew from its `get_config`, none is a lambda, and the copy has the same weights. A
    registered class loads in another process once the module that defines it is imported there.

    Parameters
    ----------
    model
        The model, with its weights.
    path
        Where it will be saved; only the name's ending matters.
    multitask
        Whether it may become one of several models in that file, which is then tried too.

    Raises
    ------
    ModelError
        If it cannot be saved or loaded; the message says what to add to the script.
    """
    if multitask:
        model = two_tasks(model)
    name = f"model{Path(path).suffix}"
    with TemporaryDirectory(prefix="solar-corona-") as folder:
        copy = Path(folder, name)
        with atomic_write(copy) as temporary:
            form = _write(model, temporary)
        if form in ("keras", "saved_model"):
            from . import keras_models

            keras_models.check(model, copy)
        elif is_a(model, "torch", "nn", "Module"):
            from . import torch_models

            torch_models.check(model, copy)


def model_bytes(model: object, suffix: str | None = None) -> bytes:
    """Return a model as bytes to send: a file as it is, a folder as an uncompressed tar.

    Parameters
    ----------
    model
        The path of a saved model, or a model.
    suffix
        Ending of the form in which a model is saved (`.keras`, `.npz`, or nothing for a SavedModel).
    """
    if isinstance(model, str | os.PathLike):
        return packed(Path(model))
    with TemporaryDirectory(prefix="solar-corona-") as folder:
        path = Path(folder, f"model{suffix or ''}")
        with atomic_write(path) as temporary:
            _write(model, temporary)
        return packed(path)


def write_model_bytes(
    data: bytes,
    path: str | os.PathLike[str] | None = None,
    *,
    metrics: Mapping[str, float] | None = None,
    round: int | None = None,  # noqa: A002  # the field's word
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write what `model_bytes` returned, with a card, and return the path; needs no Keras.

    Parameters
    ----------
    data
        The bytes; they may come from a stranger. Nothing is written outside `path`, nor more than they hold.
    path
        As in `save_model`; its ending must be that of the saved model.
    metrics, round
        For the card.
    versions
        For the card: versions of the process that saved the model; by default this one's.

    Raises
    ------
    ModelError
        If the bytes are not a model of that form.
    PlatformError
        If the disk is full or the folder cannot be written.
    """
    place = _place(path)
    form = {".keras": "keras", ".npz": "npz", "": "saved_model"}.get(place.suffix, place.suffix[1:])
    with atomic_write(place) as temporary:
        if form == "saved_model":
            unpack(data, temporary, path=place)
        else:
            if form in ("keras", "npz") and not zipfile.is_zipfile(io.BytesIO(data)):
                raise ModelError(f"{place}: what was received is no {place.suffix} file; nothing was written")
            temporary.write_bytes(data)
        card = make_card(
            place, temporary, form, round=round, metrics=metrics or {}, versions=versions or versions_here()
        )
        forget_card(place)
    write_card(place, card)
    return place


def _place(path: str | os.PathLike[str] | None) -> Path:
    if path is None:
        document = context.current()
        path = document.output_model if document is not None else None
        if path is None:
            why = "the script runs alone" if document is None else f"job {document.job!r} wants no model of this worker"
            raise ModelError(f"save_model has no path, and {why}; give one: save_model(model, 'model.keras')")
    place = local_path(path)
    if place is None:
        raise ModelError(f"{shown(path)}: models are saved on this machine; give a path, then copy the file there")
    check_place(place)
    return place


def check_place(path: Path) -> None:
    """Check that a model may be written at a path of this machine, and nothing but a model be lost there.

    Raises
    ------
    ModelError
        If the name is a pickle's, or a folder is there that is no saved model.
    """
    if path.suffix.lower() in _PICKLES:
        raise _unknown_form(path, path.suffix)
    if not path.is_dir():
        return
    if path.suffix:
        raise ModelError(f"{path}: is a folder, and the model would be a file; choose another name")
    ours = (path / "saved_model.pb").exists() or card_path(path).exists()
    if not ours and any(path.iterdir()):
        raise ModelError(f"{path}: is a folder with files that are no model, which would be lost; choose another name")


def _unknown_form(path: str | os.PathLike[str], suffix: str) -> ModelError:
    if suffix.lower() in _PICKLES:
        return ModelError(
            f"{shown(path)}: {suffix} files are pickles, and loading a pickle can run any code; use .npz "
            f"for a torch module, .keras for a Keras model"
        )
    return ModelError(
        f"{shown(path)}: {suffix} is no form of a model that is known here; expected .keras, or a SavedModel folder"
    )


def _write(model: Any, temporary: Path) -> str:
    """Write a model in the form that its kind and the path's ending ask for, and return the form."""
    # Keras comes first: with its torch backend a Keras model is a torch module too.
    if is_a(model, "keras", "Model"):
        from . import keras_models

        return keras_models.write(model, temporary)
    if is_a(model, "torch", "nn", "Module"):
        from . import torch_models

        return torch_models.write(model, temporary)
    save = getattr(model, "save", None)
    if not callable(save):
        raise ModelError(
            f"a {type(model).__name__} cannot be saved; expected a Keras model, a torch.nn.Module, or an "
            f"object with a method save(path)"
        )
    save(os.fspath(temporary))
    if not temporary.exists():
        raise ModelError(f"{type(model).__name__}.save(path) wrote nothing at the path it was given; write there")
    return temporary.suffix[1:] or "folder"
