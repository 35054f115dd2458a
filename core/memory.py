# SPDX-License-Identifier: Apache-2.0
"""How this process keeps its memory."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_back_freed_memory", "keep_freed_memory", "share_one_heap"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_NEVER, _LARGEST = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Keep freed memory for the next message instead of giving it back; tell whether that was possible.

    A server receives models of the same size again and again. Giving the pages of each back to the system and asking
    for them anew takes about as long as averaging them. Only glibc can be told so; elsewhere nothing changes.
    """
    libc = _glibc()
    if libc is None:
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))


def share_one_heap() -> bool:
    """Let all threads take memory from one heap, before they start; tell whether that was possible.

    glibc gives each thread a heap of its own, and what a thread frees stays in its heap. A process whose threads wait
    for one another anyway gains nothing from that.
    """
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(_M_ARENA_MAX, 1))


def give_back_freed_memory() -> bool:
    """Give freed memory back to the system, as after a start that needed more; tell whether there was some."""
    libc = _glibc()
    return libc is not None and bool(libc.malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt, libc.malloc_trim  # noqa: B018  # other C libraries have not both
    except (AttributeError, OSError):
        return None
    return libc
