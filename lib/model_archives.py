# SPDX-License-Identifier: Apache-2.0
"""Saved models as bytes to send, and back."""

from __future__ import annotations

import io
import tarfile
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ..core.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["packed", "unpack"]

_MOST_FILES = 10_000


def packed(path: Path) -> bytes:
    """Return a file as it is, a folder as an uncompressed tar."""
    if not path.is_dir():
        return path.read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for file in sorted(path.rglob("*")):
            entry = archive.gettarinfo(file, file.relative_to(path).as_posix())
            # The same model gives the same bytes, and nobody learns who saved it.
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            with file.open("rb") if entry.isreg() else nullcontext() as content:
                archive.addfile(entry, content)
    return buffer.getvalue()


def unpack(data: bytes, target: Path, *, path: Path) -> None:
    """Write the folder that `packed` made bytes of; they may come from a stranger.

    Parameters
    ----------
    data
        The bytes.
    target
        The folder, which there is not yet; nothing is written outside it.
    path
        Where the folder will be, for messages.

    Raises
    ------
    ModelError
        If the bytes are no such folder, or would grow.
    """
    try:
        # "r:" takes no compression: what comes out is never larger than what came in.
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = archive.getmembers()
            odd = [entry.name for entry in members if not (entry.isdir() or entry.isreg()) or entry.issparse()]
            if odd:
                raise ModelError(f"{path}: what was received holds {odd[0]!r}, no plain file; nothing was written")
            if len(members) > _MOST_FILES or sum(entry.size for entry in members) > len(data):
                raise ModelError(f"{path}: what was received says it is larger than it is; nothing was written")
            target.mkdir()
            archive.extractall(target, filter="data")
    except (tarfile.TarError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: what was received is no model folder ({error}); nothing was written") from error
    if not any(target.iterdir()):
        raise ModelError(f"{path}: what was received is an empty folder; nothing was written")
