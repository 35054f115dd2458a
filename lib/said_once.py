# SPDX-License-Identifier: Apache-2.0
"""A log that says the same thing once, however often it happens."""

from __future__ import annotations

import logging

__all__ = ["SaidOnce"]

_MOST = 100


class SaidOnce:
    """Writes warnings, one for each kind, and at most 100 kinds.

    Parameters
    ----------
    log
        Where they go.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: set[str] = set()

    def warn(self, kind: str, text: str) -> None:
        """Write a text, unless one of its kind was written."""
        if kind not in self._said and len(self._said) < _MOST:
            self._said.add(kind)
            self._log.warning("%s", text)
