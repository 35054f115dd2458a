# SPDX-License-Identifier: Apache-2.0
"""How this process keeps its memory."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Keep freed memory for the next message instead of giving it back; tell whether that was possible.

    A server receives models of the same size again and again. Giving the pages of each back to the system and asking
    for them anew takes about as long as averaging them. Only glibc can be told so; elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
