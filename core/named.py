# SPDX-License-Identifier: Apache-2.0
"""What a user names in a job file or a script: one of ours, or a class or function of their own as `module:name`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from .errors import SolarCoronaError

__all__ = ["imported", "known_or_imported"]


def imported(
    name: str,
    subject: str,
    *,
    error: type[SolarCoronaError],
    kind: str = "Class",
    beside: str = "the script",
    trouble: str = "cannot be loaded",
) -> Any:
    """Return what `module:name` names, whatever it is.

    Parameters
    ----------
    name
        What the user wrote.
    subject
        How messages begin, such as `the offload algorithm 'a:B'`.
    error
        What is raised.
    kind
        What is expected behind the colon.
    beside
        What the module has to stand beside.
    trouble
        How messages say that it cannot be imported.

    Raises
    ------
    SolarCoronaError
        Of the kind `error`: if it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as raised:
        # Whatever the user's module raises while it is imported.
        raise error(
            f"{subject} {trouble} ({type(raised).__name__}: {raised}); expected module:{kind}, with the module "
            f"beside {beside} or installed"
        ) from raised


def known_or_imported(
    name: str,
    known: Mapping[str, Callable[..., Any] | str],
    what: str,
    *,
    error: type[SolarCoronaError],
    beside: str = "the script",
) -> Callable[..., Any]:
    """Return what has a name among ours, or is `module:Class`.

    Parameters
    ----------
    name
        What the user wrote.
    known
        Ours by name; a text is a `module:Class` itself.
    what
        What it is called in messages, such as `offload algorithm`.
    error, beside
        See `imported`.

    Raises
    ------
    SolarCoronaError
        Of the kind `error`: if there is none of that name, or it cannot be imported or called.
    """
    found = known.get(name, name)
    if not isinstance(found, str):
        return found
    if ":" not in found:
        near = get_close_matches(name, known, n=1)
        raise error(
            f"there is no {what} {name!r}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + f"Known: {', '.join(known)}, or module:Class"
        )
    subject = f"the {what} {name!r}"
    made = imported(found, subject, error=error, beside=beside)
    if not callable(made):
        raise error(f"{subject} is no class")
    return made  # type: ignore[no-any-return]
