# SPDX-License-Identifier: Apache-2.0
"""The card beside a saved model: where it comes from, what it reached, its fingerprint."""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, ValidationError

from ..core.errors import ModelError
from ..core.files import local_copy, sha256_of, shown, write_bytes_atomic
from . import context
from .multitask import router_card_in
from .verification import card_path

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

__all__ = [
    "Memory",
    "ModelCard",
    "card_path",
    "forget_card",
    "make_card",
    "memory_of",
    "read_card",
    "remember",
    "remote_card",
    "versions_here",
    "write_card",
]

_MOST_CARD_BYTES = 1 << 20


class ModelCard(BaseModel):
    """What is known about a saved model; the JSON file beside it."""

    # A card of a later version may say more.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    name: str
    job: str | None = None
    run: str | None = None
    worker: str | None = None
    round: int | None = None
    metrics: dict[str, float] = {}
    created: str
    format: str
    sha256: str
    bytes: int
    versions: dict[str, str] = {}
    tasks: tuple[str, ...] = ()
    router: str | None = None


@dataclass(frozen=True)
class Memory:
    """The round and metrics that a model has reached."""

    round: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


_memories: MutableMapping[Any, Memory] = WeakKeyDictionary()


def remember(
    model: object,
    *,
    round: int | None,  # noqa: A002  # the field's word
    metrics: Mapping[str, float],
) -> None:
    """Note the round and metrics that a model has reached, for the card that `save_model` writes."""
    # An object that cannot be a key has no memory; its card says less.
    with suppress(TypeError):
        _memories[model] = Memory(round, dict(metrics))


def read_card(path: str | os.PathLike[str]) -> ModelCard | None:
    """Return the card of the model at `path` on this machine, or None if it has none.

    Raises
    ------
    ModelError
        If there is a card that cannot be read.
    """
    place = card_path(path)
    try:
        with place.open("rb") as file:
            data = file.read(_MOST_CARD_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{place}: cannot be read ({error.strerror}); remove it, or give sha256=…") from error
    return _parsed_card(data, str(place))


def _parsed_card(data: bytes, name: str) -> ModelCard:
    try:
        if len(data) > _MOST_CARD_BYTES:
            raise ValueError(f"it is larger than {_MOST_CARD_BYTES} bytes")
        return ModelCard.model_validate_json(data)
    except ValueError as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ModelError(f"{name}: is no model card ({why}); remove it if you trust the model") from error


def memory_of(model: object) -> Memory:
    """Return what `remember` noted of a model."""
    try:
        return _memories.get(model, Memory())
    except TypeError:
        return Memory()


def versions_here() -> dict[str, str]:
    """Return the versions of Python, this package and the engines that are loaded."""
    found = {"python": platform.python_version()}
    with suppress(PackageNotFoundError):
        found["solar_corona"] = version("solar-corona")
    for name in ("keras", "tensorflow", "torch", "jax"):
        number = getattr(sys.modules.get(name), "__version__", None)
        if number is not None:
            found[name] = str(number)
    return found


def make_card(
    path: Path,
    written: Path,
    form: str,
    *,
    round: int | None,  # noqa: A002  # the field's word
    metrics: Mapping[str, float],
    versions: Mapping[str, str],
) -> ModelCard:
    """Return the card of a model that is written and not yet in place.

    Parameters
    ----------
    path
        Where the model will be.
    written
        Where it is.
    form
        Of the file: `keras`, `saved_model`, `npz`, or the ending of an own one.
    round, metrics, versions
        As they are.
    """
    document = context.current()
    router = router_card_in(written)
    files = [file for file in written.rglob("*") if file.is_file()] if written.is_dir() else [written]
    return ModelCard(
        name=path.stem,
        job=document.job if document is not None else None,
        run=document.run if document is not None else None,
        worker=document.worker if document is not None else None,
        round=round,
        metrics={name: float(value) for name, value in metrics.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        format=form,
        sha256=sha256_of(written),
        bytes=sum(file.stat().st_size for file in files),
        versions=dict(versions),
        tasks=router.task_names if router is not None else (),
        router=router.kind if router is not None else None,
    )


def forget_card(path: Path) -> None:
    """Remove the card of the model at `path`."""
    # Before the model is replaced: killed in between, it leaves a model without a card, never one with
    # another's.
    card_path(path).unlink(missing_ok=True)


def write_card(path: Path, card: ModelCard) -> None:
    """Write the card of the model at `path`, whole or not at all."""
    text = json.dumps(json.loads(card.model_dump_json()), indent=2)
    write_bytes_atomic(card_path(path), f"{text}\n".encode())


def remote_card(path: str | os.PathLike[str]) -> ModelCard | None:
    """Return the card beside a model at a URL, or None if there is none."""
    parts = urlsplit(os.fspath(path))
    url = parts._replace(path=f"{parts.path.rstrip('/')}.card.json").geturl()
    # A store that does not list its files refuses where it should say that there is none.
    with suppress(FileNotFoundError, PermissionError), local_copy(url) as local:
        return _parsed_card(local.read_bytes()[: _MOST_CARD_BYTES + 1], shown(url))
    return None
