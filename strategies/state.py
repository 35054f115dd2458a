# SPDX-License-Identifier: Apache-2.0
"""What a strategy must remember between rounds, so that a killed server goes on where it was.

A strategy may say so itself, with `state_dict()` and `load_state_dict()`. For all others, Flower's own among them, the
attributes that hold numbers or arrays are taken: FedAdam's moments, for one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from ..core.errors import StrategyError
from ..lib.records import arrays_in, configs_in

__all__ = ["restore", "state_of"]


def state_of(strategy: Strategy) -> RecordDict:
    """Return the state of `strategy` as records.

    Raises
    ------
    StrategyError
        If its own `state_dict()` holds what cannot be written: all but JSON, arrays, and lists and dicts of arrays.
    """
    own = getattr(strategy, "state_dict", None)
    state: Mapping[str, Any] = own() if callable(own) else vars(strategy)
    arrays: dict[str, Array] = {}
    plain: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Strategy):  # one wraps the other, as differential privacy does
            inner.update({f"{name}/{key}": record for key, record in state_of(value).items()})
        elif not _keep(name, value, arrays, plain) and callable(own):
            raise StrategyError(
                f"state_dict() of {type(strategy).__name__} holds {name!r}, a {type(value).__name__} that cannot be "
                f"written; give plain values, NumPy arrays, or lists and dicts of arrays"
            )
    return RecordDict({"arrays": ArrayRecord(arrays), "plain": ConfigRecord({"json": json.dumps(plain)}), **inner})


def _keep(name: str, value: Any, arrays: dict[str, Array], plain: dict[str, Any]) -> bool:
    """Put `value` into `arrays` or `plain`; False if it fits neither."""
    parts: dict[str, Any] = {}
    if isinstance(value, np.generic):
        form, parts = "scalar", {"": np.asarray(value)}
    elif isinstance(value, np.ndarray):
        form, parts = "array", {"": value}
    elif isinstance(value, ArrayRecord):
        form, parts = "record", dict(value)
    elif isinstance(value, dict) and value and all(isinstance(v, np.ndarray) for v in value.values()):
        form, parts = "dict", dict(value)
    elif isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
        form, parts = "list", {str(i): v for i, v in enumerate(value)}
    else:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            return False
        # What JSON would bring back as something else, such as a tuple, is not kept.
        if not _same(json.loads(text), value):
            return False
        plain[name] = value
        return True
    if any(
        not isinstance(key, str) or (isinstance(part, np.ndarray) and part.dtype.hasobject)
        for key, part in parts.items()
    ):
        return False
    arrays.update({json.dumps([form, name, key]): p if isinstance(p, Array) else Array(p) for key, p in parts.items()})
    return True


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other or (one != one and other != other))  # noqa: PLR0124 - NaN is no other value


def restore(strategy: Strategy, record: RecordDict) -> None:
    """Give `strategy` back what `state_of` took from one made with the same options."""
    state: dict[str, Any] = json.loads(str(configs_in(record)["plain"]["json"]))
    for label, array in arrays_in(record)["arrays"].items():
        form, name, key = json.loads(label)
        if form == "array":
            state[name] = array.numpy()
        elif form == "scalar":
            state[name] = array.numpy()[()]
        elif form == "list":
            state.setdefault(name, []).append(array.numpy())
        elif form == "record":
            state.setdefault(name, ArrayRecord())[key] = array
        else:
            state.setdefault(name, {})[key] = array.numpy()
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            prefix = f"{name}/"
            inner = {key.removeprefix(prefix): part for key, part in record.items() if key.startswith(prefix)}
            restore(value, RecordDict(inner))
    own = getattr(strategy, "load_state_dict", None)
    if callable(own):
        # Strategies that it made itself get their state back from its own hands.
        for key, part in record.items():
            name, slash, rest = key.partition("/")
            if slash and name not in vars(strategy):
                state.setdefault(name, RecordDict())[rest] = part
        own(state)
    else:
        vars(strategy).update(state)
