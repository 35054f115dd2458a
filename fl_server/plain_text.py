# SPDX-License-Identifier: Apache-2.0
"""Text that other machines wrote, as a page or a terminal may show it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["few", "one_line", "plain"]

_MOST_TEXT = 4_000
_MOST_NAME = 120

_ESCAPE_CODE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# Breaks of lines, what turns the direction of text, and what stands for nothing.
_NOT_IN_A_NAME = ("Cc", "Cf", "Cs", "Zl", "Zp")


def plain(text: str) -> str:
    """Return `text` as a page may show it: bounded, without terminal codes or control characters."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _ESCAPE_CODE.sub("", text.replace("\r\n", "\n")))
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"


def one_line(text: str, most: int = _MOST_NAME) -> str:
    r"""Return a name as one line of at most `most` characters, without anything that is not seen.

    >>> one_line("edge-1\nerror: \x1b[31mnone")
    'edge-1�error: none'
    """
    text = _ESCAPE_CODE.sub("", text[: 10 * most])
    text = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _NOT_IN_A_NAME else c for c in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def few(names: Sequence[str], most: int) -> str:
    """Name at most `most`, and say how many more there are.

    >>> few(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most:,} more"
