# SPDX-License-Identifier: Apache-2.0
"""Finds strategies by name and makes them.

A name is looked up in this order: the entry-point group `solar_corona.strategies` (ours and plug-ins'), Flower's own
strategies by their class name in lower case, then `module:Class`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from ..core.errors import StrategyError, StrategySpecError
from .cfl import Cfl
from .ditto import Ditto
from .fedavg import FedAvg
from .fl_hc import FlHc
from .ifca import Ifca
from .pacfl import Pacfl
from .similarity_grouping import SimilarityGrouping

__all__ = ["GROUP", "StrategyInfo", "available", "create", "resolve"]

GROUP = "solar_corona.strategies"


@dataclass(frozen=True)
class StrategyInfo:
    """A strategy that a job file may name."""

    name: str
    origin: str
    summary: str
    options: tuple[str, ...]


@lru_cache(maxsize=1)
def _flower() -> dict[str, type[Strategy]]:
    found = {name: getattr(flower_strategies, name) for name in flower_strategies.__all__}
    return {
        name.lower(): kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Strategy) and not inspect.isabstract(kind)
    }


@lru_cache(maxsize=1)
def _own() -> dict[str, type[Strategy]]:
    return {
        "cfl": Cfl,
        "ditto": Ditto,
        "fedavg": FedAvg,
        "fl-hc": FlHc,
        "ifca": Ifca,
        "pacfl": Pacfl,
        "similarity-grouping": SimilarityGrouping,
    }


def _plug_ins() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def available() -> list[StrategyInfo]:
    """Return every strategy that has a name, sorted by it."""
    infos = {name: _info(name, "Flower", kind) for name, kind in _flower().items()}
    infos |= {name: _info(name, "Solar Corona", kind) for name, kind in _own().items()}
    for name, entry in _plug_ins().items():
        origin = entry.dist.name if entry.dist is not None else "plug-in"
        try:
            infos[name] = _info(name, origin, resolve(name))
        except StrategyError as error:
            infos[name] = StrategyInfo(name, origin, f"cannot be loaded: {error}", ())
    return [infos[name] for name in sorted(infos)]


def _info(name: str, origin: str, kind: type[Strategy]) -> StrategyInfo:
    summary = (inspect.getdoc(kind) or "").partition("\n")[0]
    return StrategyInfo(name, origin, summary, tuple(_parameters(kind)))


def resolve(name: str) -> type[Strategy]:
    """Return the strategy class that `name` stands for.

    Raises
    ------
    StrategyError
        If there is none, or it cannot be imported.
    """
    plug_ins = _plug_ins()
    if name in plug_ins:
        return _checked(name, _load(name, plug_ins[name].load))
    if name.lower() in _own():
        return _own()[name.lower()]
    if name.lower() in _flower():
        return _flower()[name.lower()]
    if ":" in name:
        module, _, attribute = name.partition(":")
        return _checked(name, _load(name, lambda: getattr(import_module(module), attribute)))
    known = sorted({*_flower(), *plug_ins, *_own()})
    near = get_close_matches(name, known, n=1)
    raise StrategySpecError(
        f"there is no strategy {name!r}; "
        + (f"did you mean {near[0]!r}? " if near else "")
        + "`solar-corona strategies` lists them; your own is module:Class"
    )


def _load(name: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:
        # Whatever the module of somebody else raises while it is imported.
        raise StrategySpecError(
            f"strategy {name!r} cannot be loaded: {type(error).__name__}: {error}; "
            f"is its module beside the job file, or installed?"
        ) from error


def _checked(name: str, kind: Any) -> type[Strategy]:
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise StrategySpecError(f"{name!r} is no subclass of flwr.serverapp.strategy.Strategy")
    return kind


def _parameters(kind: type[Strategy]) -> dict[str, inspect.Parameter]:
    """Return the constructor's named arguments; through **kwargs also those of the classes above."""
    found: dict[str, inspect.Parameter] = {}
    for cls in kind.__mro__:
        init = cls.__dict__.get("__init__")
        if init is None or cls is object:
            continue
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _check_type(name: str, kind: type[Strategy], option: str, value: Any) -> None:
    """Refuse a value that is not of the type which the constructor's signature says, where that can be told."""
    init = next(c.__dict__["__init__"] for c in kind.__mro__ if _takes(c, option))
    try:
        hint = get_type_hints(init).get(option, Any)
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (NameError, TypeError, AttributeError, PydanticUserError, PydanticSchemaGenerationError):
        return  # a hint that cannot be read here; the constructor has the last word anyway
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        if isinstance(value, str | list | dict) and _fits_as_json(adapter, value):
            return  # a list where a tuple is meant: a job file knows no other
        wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise StrategySpecError(
            f"strategy {name!r}: option {option} is {value!r}, expected {wanted}; set aggregation.options.{option}"
        ) from error


def _fits_as_json(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError):
        return False
    return True


def _takes(cls: type, option: str) -> bool:
    init = cls.__dict__.get("__init__")
    return init is not None and option in inspect.signature(init).parameters


def create(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    min_edges: int = 1,
    fraction: float = 1.0,
    job: Mapping[str, Any] | None = None,
) -> Strategy:
    """Make the strategy `name` for a job.

    Parameters
    ----------
    name
        See `resolve`.
    options
        Arguments of its constructor, checked against the signature. Where an argument is itself a strategy, a name
        is enough.
    min_edges, fraction
        The job's, handed to the strategy's own arguments for them unless `options` has these.
    job
        What else the job knows, under the names of arguments that a strategy may have, such as `rounds`.

    Raises
    ------
    StrategyError
        If an option is unknown, missing or refused.
    """
    kind = resolve(name)
    known = _parameters(kind)
    given = dict(options or {})
    for option in given:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            raise StrategySpecError(
                f"strategy {name!r} has no option {option!r}; "
                + (f"did you mean {near[0]!r}? " if near else "")
                + f"it takes: {', '.join(sorted(known)) or 'none'}"
            )
    defaults = {
        "fraction_train": fraction,
        "fraction_evaluate": 1.0,
        "min_train_nodes": min_edges,
        "min_evaluate_nodes": 1,
        # What is there is told to the strategy before it is asked; more than it needs, it would wait for in vain.
        "min_available_nodes": 1,
        "train_loss_key": "loss",  # as our edges call it
        **(job or {}),
    }
    arguments = {**{k: v for k, v in defaults.items() if k in known}, **given}
    for option, value in given.items():
        if isinstance(value, str) and "Strategy" in str(known[option].annotation):
            arguments[option] = create(value, min_edges=min_edges, fraction=fraction)
        else:
            _check_type(name, kind, option, value)
    missing = [n for n, p in known.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise StrategySpecError(f"strategy {name!r} needs {', '.join(missing)}; add it under aggregation.options")
    try:
        return kind(**arguments)
    except StrategySpecError:  # it says itself what is wrong, as of a strategy inside it
        raise
    except Exception as error:
        raise StrategySpecError(f"strategy {name!r} refuses its options {given}: {error}") from error
