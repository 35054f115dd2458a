# SPDX-License-Identifier: Apache-2.0
"""Shows a run as it goes: a live table on a terminal, JSON lines for programs, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from ..core.run_folder import RunFolder
from .progress import RunView, accuracy_name, format_bytes

__all__ = ["display"]

Show = Callable[[RunView], None]
_REFRESH = 0.12


@contextmanager
def display(folder: RunFolder, console: Console, *, as_json: bool) -> Iterator[Show]:
    """Give a function that shows a run's view; call it as often as you like."""
    if as_json:
        yield _json_lines(folder)
    elif console.is_terminal:
        with Live(RunView().table(), console=console, auto_refresh=False, transient=False) as live:
            shown = 0.0
            last: list[RunView] = []

            def show(view: RunView) -> None:
                nonlocal shown
                last[:] = [view]
                if time.monotonic() - shown > _REFRESH:
                    shown = time.monotonic()
                    live.update(view.table(), refresh=True)

            try:
                yield show
            finally:
                if last:
                    live.update(last[0].table(), refresh=True)
    else:
        yield _plain_lines(console)


def _json_lines(folder: RunFolder) -> Show:
    offset = 0

    def show(_: RunView) -> None:
        nonlocal offset
        events, offset = folder.events_from(offset)
        for event in events:
            sys.stdout.write(event.model_dump_json() + "\n")
        if events:
            sys.stdout.flush()

    return show


def _plain_lines(console: Console) -> Show:
    said: set[str] = set()

    def say(key: str, line: str) -> None:
        if key not in said:
            said.add(key)
            console.print(line, markup=False, soft_wrap=True)

    def show(view: RunView) -> None:
        for edge in view.joined.values():
            say(f"joined {edge.edge}", f"{edge.edge} is here with {edge.samples} samples")
        for i, note in enumerate(view.notes):
            say(f"note {i}", note)
        for row in view.rows.values():
            if row.replied is not None:
                size = format_bytes(row.bytes)
                say(
                    f"round {row.number}",
                    f"round {row.number}: {row.replied}/{row.asked} edges, {size}, {row.seconds:.1f} s",
                )
            name = accuracy_name(n for n in row.evaluation if n != "num-examples")
            if row.evaluation:
                scores = [f"loss {row.evaluation['loss']:.4f}"] if "loss" in row.evaluation else []
                scores += [f"{name} {row.evaluation[name]:.4f}"] if name else []
                say(f"evaluation {row.number}", f"after round {row.number}: {', '.join(scores)}")

    return show
