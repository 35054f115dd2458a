# SPDX-License-Identifier: Apache-2.0
"""The forms that a sample's content may have, and whether a content has the form that it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from ...core.errors import DatasetError

__all__ = ["MEDIA_TYPES", "check_content"]


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


MEDIA_TYPES: Mapping[str, Callable[[bytes], bool]] = {
    "image/png": lambda content: content.startswith(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": lambda content: content.startswith(b"\xff\xd8\xff"),
    "image/webp": lambda content: content[:4] == b"RIFF" and content[8:12] == b"WEBP",
    "audio/wav": lambda content: content[:4] == b"RIFF" and content[8:12] == b"WAVE",
    "application/x-npy": lambda content: content.startswith(b"\x93NUMPY"),
    "text/plain": _is_text,
    "application/json": _is_json,
}
"""What is taken in: how each begins. No other type is, so that a labeller's browser never gets a page or a script."""


def check_content(media_type: str, content: bytes) -> None:
    """Refuse a content that is not what it says it is.

    Raises
    ------
    DatasetError
        If the type is none that is taken, or the content begins otherwise.
    """
    fits = MEDIA_TYPES.get(media_type.partition(";")[0].strip())
    if fits is None:
        raise DatasetError(f"media type {media_type!r} is not taken; expected one of {', '.join(MEDIA_TYPES)}")
    if not fits(content):
        raise DatasetError(f"the content is no {media_type}, as its record says")
