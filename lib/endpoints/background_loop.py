# SPDX-License-Identifier: Apache-2.0
"""An event loop in a thread of its own, so that code without one can have deadlines that hold to the millisecond."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, TypeVar

__all__ = ["run_in_background"]

_T = TypeVar("_T")


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="solar-corona-network", daemon=True).start()
    return loop


def run_in_background(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on the process's own loop and return what it returns; any thread may call this."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        # Ctrl-C while waiting: the request is not left running.
        future.cancel()
        raise
