# SPDX-License-Identifier: Apache-2.0
"""A view on a terminal that is drawn anew as it changes, not too often."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live

__all__ = ["drawn_live"]

_REFRESH = 0.12


@contextmanager
def drawn_live(console: Console, first: RenderableType) -> Iterator[Callable[[Callable[[], RenderableType]], None]]:
    """Give a function that draws what another makes; what came last stays on the screen."""
    with Live(first, console=console, auto_refresh=False, transient=False) as live:
        drawn = 0.0
        last: list[Callable[[], RenderableType]] = []

        def draw(make: Callable[[], RenderableType]) -> None:
            nonlocal drawn
            last[:] = [make]
            if time.monotonic() - drawn > _REFRESH:
                drawn = time.monotonic()
                live.update(make(), refresh=True)

        try:
            yield draw
        finally:
            if last:
                live.update(last[0](), refresh=True)
