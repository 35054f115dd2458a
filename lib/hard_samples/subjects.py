# SPDX-License-Identifier: Apache-2.0
"""Whom the samples are of that a script handles now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ...core.errors import DatasetError

__all__ = ["current_subject", "subject"]

_LONGEST = 200
_subject: ContextVar[str | None] = ContextVar("solar_corona_subject", default=None)


@contextmanager
def subject(name: str) -> Iterator[None]:
    """Say whom the samples are of that `predict` gets inside; samples of a subject can be deleted together.

    Parameters
    ----------
    name
        A pseudonym, 1 to 200 characters; it goes up with each kept sample.

    Raises
    ------
    DatasetError
        If it is none.

    Examples
    --------
    >>> with subject("patient-7"):
    ...     current_subject()
    'patient-7'
    """
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST:
        raise DatasetError(f"subject is {str(name)[:40]!r}, expected a text of 1 to {_LONGEST} characters")
    token = _subject.set(name)
    try:
        yield
    finally:
        _subject.reset(token)


def current_subject() -> str | None:
    """Return whom the samples are of that this thread handles, where the script says so."""
    return _subject.get()
