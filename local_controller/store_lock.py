# SPDX-License-Identifier: Apache-2.0
"""One LocalController for each state folder: a lock that the kernel lets go of, however the process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import PlatformError

__all__ = ["locked"]

_NAME = "controller.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the state folder for this process; it is made if it is not there, for this user alone.

    Raises
    ------
    PlatformError
        If another process holds it, or it cannot be written.
    """
    path = folder / _NAME
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PlatformError(
            f"{folder}: cannot be written ({error.strerror}); choose a folder that this user may write with --state"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise PlatformError(
                f"{folder}: another LocalController (process {holder}) works on this state folder, and two would send "
                f"samples twice; stop that one, or give this one a folder of its own with --state"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
