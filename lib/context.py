# SPDX-License-Identifier: Apache-2.0
"""What a worker knows about its job: the only reader of the context document.

In a script, `solar_corona.context` is this module. Without a job around it, the script runs alone on this machine:
parameters have then only the defaults that the script gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ContextError
from ..core.settings import CONTEXT_VARIABLE, Settings

if TYPE_CHECKING:
    from ..core.context_document import ContextDocument

__all__ = ["current", "get_edge_name", "get_job_name", "get_model_path", "get_parameters", "in_job", "using"]

_REQUIRED = object()
# Edges that share a process (`solar-corona run --in-process`) have one document each.
_override: ContextVar[ContextDocument | None] = ContextVar("solar_corona_context", default=None)


@lru_cache(maxsize=1)
def _read(path: Path) -> ContextDocument:
    # A script that runs alone, as a small edge's may, does not wait for pydantic.
    from pydantic import ValidationError

    from ..core.context_document import ContextDocument

    try:
        return ContextDocument.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ContextError(
            f"{CONTEXT_VARIABLE} names {path}, which cannot be read ({error.strerror}); "
            f"unset it to run the script alone"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ContextError(
            f"{path}: {where}: {first['msg']}; it was written by another version, start the job anew"
        ) from error


def current() -> ContextDocument | None:
    """Return this worker's context document, or None in a script that runs alone."""
    document = _override.get()
    if document is not None:
        return document
    path = Settings.from_environment().context
    return _read(path) if path is not None else None


@contextmanager
def using(document: ContextDocument) -> Iterator[None]:
    """Make `document` the context of the code inside, in this thread alone."""
    token = _override.set(document)
    try:
        yield
    finally:
        _override.reset(token)


def in_job() -> bool:
    """Tell whether a job is around this script."""
    return current() is not None


def get_parameters(name: str, default: Any = _REQUIRED) -> Any:
    """Return the job's parameter `name`, of the type that the YAML gives it.

    Parameters
    ----------
    name
        A key of `spec.parameters`, or of the edge's own `parameters`, which win.
    default
        Returned where the job has no such parameter.

    Raises
    ------
    ContextError
        If there is no such parameter and no default. It is also a `LookupError`.
    """
    document = current()
    parameters = document.parameters if document is not None else {}
    if name in parameters:
        return parameters[name]
    if default is not _REQUIRED:
        return default
    if document is None:
        raise ContextError(
            f"parameter {name!r} is asked for, but the script runs alone; start it with `solar-corona run JOB.yaml`, "
            f"or give a default: get_parameters({name!r}, default=…)"
        )
    near = get_close_matches(name, parameters, n=1)
    raise ContextError(
        f"the job has no parameter {name!r}; "
        + (f"did you mean {near[0]!r}? It has" if near else "it has")
        + (f": {', '.join(sorted(parameters))}. " if parameters else " none. ")
        + "Add it under spec.parameters, or give a default"
    )


def get_model_path() -> str:
    """Return the path or URL of the model that the job starts from.

    Raises
    ------
    ContextError
        If the job names no model, or there is no job.
    """
    document = current()
    if document is None:
        raise ContextError(
            "the model's path is asked for, but the script runs alone; start it with `solar-corona run JOB.yaml`, or "
            "give load_model a path"
        )
    if document.model is None:
        raise ContextError("the job names no model to start from; add spec.model: path/to/model.keras")
    return document.model.path


def get_job_name() -> str | None:
    """Return the job's name, or None in a script that runs alone."""
    document = current()
    return document.job if document is not None else None


def get_edge_name() -> str | None:
    """Return the name of the edge that this script runs on, or None in a script that runs alone."""
    document = current()
    return document.worker if document is not None else None
