# SPDX-License-Identifier: Apache-2.0
"""Keras models as `.keras` files and SavedModel folders."""

from __future__ import annotations

import inspect
import json
import re
import warnings
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ..core.errors import ModelError
from .multitask import ROUTER_FILE, is_multitask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["architecture", "as_json", "check", "read", "write"]

_REGISTER = "@keras.saving.register_keras_serializable()"
_MOST_CONFIG_BYTES = 256 << 20


@dataclass(frozen=True)
class _Foreign:
    """A class, function or lambda in a model's config that Keras alone cannot make."""

    kind: str
    name: str
    owner: str


def write(model: Any, path: Path) -> str:
    """Write a Keras model, as a file or a SavedModel folder by the path's ending, and return the form.

    Raises
    ------
    ModelError
        If the model has no weights yet or cannot be written in that form.
    """
    if path.suffix not in (".keras", ""):
        raise ModelError(
            f"a Keras model cannot be saved as {path.suffix}; expected a name that ends in .keras, or a "
            f"folder's name without a dot for a SavedModel"
        )
    if not model.built:
        raise _unbuilt(_title(model))
    try:
        if path.suffix:
            model.save(path)
            return "keras"
        # Keras imports TensorFlow for this, whatever its backend.
        model.export(str(path), format="tf_saved_model", verbose=False)
        if is_multitask(model):
            # Whoever serves it without this package reads here which index is which task.
            (path / ROUTER_FILE).write_text(model.router.card().model_dump_json(indent=2), encoding="utf-8")
    except NotImplementedError as error:
        raise _no_config(model, error) from error
    except ImportError as error:
        raise ModelError(f"a SavedModel needs TensorFlow ({error}); pip install 'solar-corona[tensorflow]'") from error
    except Exception as error:
        # The user's own get_config and call run in here, and may raise anything.
        form = "a .keras file" if path.suffix else "a SavedModel"
        raise ModelError(f"{_title(model)} cannot be saved as {form}: {_first_lines(error)}") from error
    return "saved_model"


def read(path: Path, *, name: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return the model in a `.keras` file or SavedModel folder on this machine.

    Raises
    ------
    ModelError
        If it is damaged, holds a lambda, or needs classes that are not registered here.
    """
    if path.suffix != ".keras":
        return _read_saved_model(path, name)
    # Importing them registers our own classes, which a model may have been compiled with.
    from . import keras_multitask, losses, metrics, optimizers  # noqa: F401

    for foreign in _foreign(_config_of(path, name), custom_objects):
        if foreign.kind == "lambda":
            raise ModelError(
                f"{name}: {foreign.owner} is a lambda, code inside the file, which is not run; save the "
                f"model anew with a layer of a registered class instead"
            )
        raise ModelError(
            f"{name}: needs the {foreign.kind} {foreign.name!r}, which is not registered here; import the "
            f"module that defines it with {_REGISTER} first, or pass custom_objects={{{foreign.name!r}: …}}"
        )
    try:
        return keras.saving.load_model(path, custom_objects=dict(custom_objects or {}), safe_mode=True)
    except Exception as error:
        # A damaged or hostile file raises anything.
        raise ModelError(f"{name}: cannot be loaded: {_first_lines(error)}") from error


def check(model: Any, path: Path) -> None:
    """Check that what `write` wrote at `path` comes back as the same model.

    Raises
    ------
    ModelError
        If it does not; the message says what to add to the user's own classes.
    """
    title = _title(model)
    if path.suffix == ".keras":
        _refuse_foreign(title, _config_of(path, title))
    try:
        # An optimizer that has not stepped yet is told about in warnings; it is not what is checked.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = read(path, name=title)
    except ModelError as error:
        cause = error.__cause__
        if cause is None:
            raise
        raise ModelError(
            f"{title} can be saved but not loaded again: {_first_lines(cause)}\n{_recipe(type(model))}"
        ) from cause
    mine = model.weights if path.suffix == ".keras" else model.variables
    theirs = loaded.weights if path.suffix == ".keras" else loaded.variables
    _compare(title, type(model), mine, theirs)


def architecture(model: Any) -> dict[str, Any]:
    """Return a model's class and config, without weights, from which Keras makes it anew.

    Raises
    ------
    ModelError
        If it cannot; the message says what to add to the user's own classes.
    """
    title = _title(model)
    if not model.built:
        raise _unbuilt(title)
    try:
        with warnings.catch_warnings():
            # That a lambda cannot be loaded is what is found below.
            warnings.simplefilter("ignore")
            config = keras.saving.serialize_keras_object(model)
    except NotImplementedError as error:
        raise _no_config(model, error) from error
    config.pop("compile_config", None)
    # As in a file, where a tuple is a list.
    config = json.loads(as_json(config))
    _refuse_foreign(title, config)
    try:
        # A copy: making a model takes its config apart.
        keras.saving.deserialize_keras_object(json.loads(as_json(config)))
    except Exception as error:
        # The user's own constructor runs in here.
        raise ModelError(
            f"{title} cannot be made anew from its config: {_first_lines(error)}\n{_recipe(type(model))}"
        ) from error
    return dict(config)


def as_json(config: Any) -> str:
    """Return a config as JSON, as Keras writes it."""
    return json.dumps(keras.saving.serialize_keras_object(config))


def _unbuilt(title: str) -> ModelError:
    return ModelError(
        f"{title} has no weights yet, so there is nothing to save; call it on one batch first, "
        f"or model.build(input_shape)"
    )


def _refuse_foreign(title: str, config: Any) -> None:
    found = list(_foreign(config, None))
    for foreign in found:
        if foreign.kind == "lambda":
            raise ModelError(
                f"{title} has a lambda in {foreign.owner}, which can be saved but never loaded safely; "
                f"write a named function or layer instead, with {_REGISTER} above it"
            )
    if found:
        names = ", ".join(dict.fromkeys(f"{foreign.kind} {foreign.name}" for foreign in found))
        raise ModelError(
            f"{title} can be saved but not loaded: Keras does not know the {names}; add {_REGISTER} above "
            f"each, and import the module that defines it before load_model"
        )


def _compare(title: str, kind: type, mine: list[Any], theirs: list[Any]) -> None:
    if len(mine) != len(theirs):
        raise ModelError(
            f"{title} comes back with {len(theirs)} weights instead of {len(mine)}; keep every layer in an "
            f"attribute of the model, and make all of them in build()\n{_recipe(kind)}"
        )
    # A SavedModel's variables may come back in another order; their values tell whether all are there.
    for own, other in zip(mine, theirs, strict=True):
        where = getattr(own, "path", own.name)
        if tuple(own.shape) != tuple(other.shape):
            raise ModelError(
                f"{title}: the weight {where} has shape {tuple(own.shape)} and comes back as "
                f"{tuple(other.shape)}\n{_recipe(kind)}"
            )
        before, after = np.asarray(own), np.asarray(other)
        if before.dtype != after.dtype or before.tobytes() != after.tobytes():
            raise ModelError(
                f"{title}: the weight {where} comes back with other values; make the same layers in the "
                f"same order each time the class is made, and keep each in an attribute\n{_recipe(kind)}"
            )


def _read_saved_model(path: Path, name: str) -> Any:
    if not (path / "saved_model.pb").is_file():
        raise ModelError(f"{name}: expected a SavedModel folder with saved_model.pb in it, or a .keras file")
    try:
        import tensorflow as tf

        return tf.saved_model.load(str(path))
    except ImportError as error:
        raise ModelError(
            f"{name}: a SavedModel needs TensorFlow ({error}); pip install 'solar-corona[tensorflow]'"
        ) from error
    except Exception as error:
        # TensorFlow raises its own errors, and for some damage plain ones.
        raise ModelError(f"{name}: cannot be loaded: {_first_lines(error)}") from error


def _config_of(path: Path, name: str) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > _MOST_CONFIG_BYTES:
                raise ValueError(f"its config.json is larger than {_MOST_CONFIG_BYTES} bytes")
            return json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, RuntimeError, RecursionError, zipfile.BadZipFile) as error:
        raise ModelError(f"{name}: is no .keras file, or is damaged ({error}); fetch or save it anew") from error


def _foreign(config: Any, custom_objects: Mapping[str, Any] | None, owner: str = "the model") -> Iterator[_Foreign]:
    """Yield what in a config is a lambda, or is neither Keras's own nor registered."""
    if isinstance(config, list):
        for part in config:
            yield from _foreign(part, custom_objects, owner)
    if not isinstance(config, dict):
        return
    kind, module = config.get("class_name"), config.get("module")
    if kind == "__lambda__":
        yield _Foreign("lambda", "lambda", owner)
        return
    if kind == "function":
        if not _makes_function(config, custom_objects):
            yield _Foreign("function", str(config.get("config")), owner)
        return
    if isinstance(kind, str) and "config" in config and not kind.startswith("__"):
        known = str(module).split(".", maxsplit=1)[0] in ("keras", "builtins")
        registered = config.get("registered_name") or kind
        if not known and keras.saving.get_registered_object(registered, custom_objects) is None:
            yield _Foreign("class", registered, owner)
        inner = config["config"]
        label = inner.get("name") if isinstance(inner, dict) else None
        owner = f"{kind} {label!r}" if label else kind
    for key, value in config.items():
        yield from _foreign(value, custom_objects, "compile(…)" if key == "compile_config" else owner)


def _makes_function(config: dict[str, Any], custom_objects: Mapping[str, Any] | None) -> bool:
    try:
        made = keras.saving.deserialize_keras_object(config, custom_objects=dict(custom_objects or {}), safe_mode=True)
    except (TypeError, ValueError):
        return False
    return callable(made)


def _title(model: Any) -> str:
    kind = type(model)
    return f"model {model.name!r}" if kind.__module__.startswith("keras.") else f"model {kind.__name__}"


def _classes_in(model: Any) -> dict[str, type]:
    found: dict[str, type] = {type(model).__name__: type(model)}
    for layer in getattr(model, "layers", ()):
        found.update(_classes_in(layer))
    return found


def _no_config(model: Any, error: NotImplementedError) -> ModelError:
    named = re.search(r"Object (\w+) was created", str(error))
    kind = _classes_in(model).get(named.group(1)) if named else None
    if kind is None:
        return ModelError(f"{_title(model)} cannot be saved: {_first_lines(error)}")
    return ModelError(f"{_title(model)} cannot be saved: {kind.__name__} has no get_config\n{_recipe(kind)}")


def _recipe(kind: type) -> str:
    """Return what a class needs so that Keras can make it anew, with the arguments that it has."""
    if kind.__module__.startswith("keras."):
        return "the classes of your own among its layers need get_config and build()"
    parameters = inspect.signature(kind).parameters.values()
    names = [
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        and each.name not in ("name", "trainable", "dtype")
    ]
    takes = "".join(f", {name}" for name in names)
    keeps = "".join(f"\n        self.{name} = {name}" for name in names)
    pairs = "".join(f', "{name}": self.{name}' for name in names)
    return (
        f"write the class so:\n"
        f"    {_REGISTER}\n"
        f"    class {kind.__name__}({kind.__bases__[0].__name__}):\n"
        f"      def __init__(self{takes}, **kwargs):\n"
        f"        super().__init__(**kwargs){keeps}\n"
        f"        …\n"
        f"      def get_config(self):\n"
        f"        return {{**super().get_config(){pairs}}}"
    )


def _first_lines(error: BaseException) -> str:
    """Return the words of an engine's error without the pages that may follow."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}{'…' if len(text) > 400 else ''}"
