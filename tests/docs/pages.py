# SPDX-License-Identifier: Apache-2.0
"""Reads the documentation's pages as what a reader would do with them.

The fence of a code block says what happens to it in the tests:

* ```` ```console ````: each line that begins with `$ ` is run by bash, in order, in a folder that holds `examples/`.
  The lines below are what it printed: each must come, in this order; `…` stands for anything left out, and one number
  is as good as another.
* ```` ```LANGUAGE file=NAME ````: the block is written to that file. A `diff` is applied to it: each hunk's old lines
  must stand in the file, once.
* All other blocks are read only: Python must compile, a job file must parse, a shell script must have valid syntax.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "AGENTS.md", "CHANGELOG.md")),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*/README.md"),
    ]
)
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^\$ ", re.MULTILINE)
_NUMBER = re.compile(r"\d[\d,]*(\.\d+)?")
_STYLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Block:
    """One fenced code block."""

    page: Path
    line: int
    language: str
    file: str | None
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """The commands of a console block, each with the lines that it is said to print."""
        found = []
        for part in _COMMAND.split(self.text)[1:]:
            lines = part.splitlines()
            command = [lines.pop(0)]
            while command[-1].endswith("\\") or (lines and lines[0].startswith("> ")):
                command.append(lines.pop(0).removeprefix("> "))
            found.append(("\n".join(command), lines))
        return found


def blocks(page: Path) -> Iterator[Block]:
    """Yield the page's code blocks."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        language, _, rest = match["info"].strip().partition(" ")
        name = rest.strip().removeprefix("file=") or None
        indent = len(match["indent"])
        body = "".join(line[indent:] for line in match["text"].splitlines(keepends=True))
        yield Block(page, text.count("\n", 0, match.start()) + 1, language, name, body)


def prose(page: Path) -> str:
    """Return the page without its code blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def is_executable(page: Path) -> bool:
    """Tell whether the page has something to run."""
    return any(block.language == "console" for block in blocks(page))


def copy_examples(folder: Path) -> None:
    """Copy the examples without what earlier runs left."""
    leave = shutil.ignore_patterns(".solar-corona", "out", "data", "__pycache__", "*.lock")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=leave)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a reader who has activated `.venv`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "COLUMNS": "120", "HOME": str(folder)}


def shell(script: str, folder: Path, *, timeout: float = 150) -> str:
    """Run a script with bash and return what it printed; it must succeed."""
    # A session of its own, so that nothing that a page starts outlives it.
    started = subprocess.Popen(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = started.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0, f"{script}\nended with exit status {started.returncode}:\n{printed[-4000:]}"
    return _STYLE.sub("", printed)


def execute(page: Path, folder: Path) -> None:
    """Do everything that a page tells its reader to do."""
    for block in blocks(page):
        if block.file is not None:
            target = folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            text = _patched(target.read_text(), block) if block.language == "diff" else block.text
            target.write_text(text, encoding="utf-8")
        elif block.language == "console":
            _play(block, folder)


def _play(block: Block, folder: Path) -> None:
    marker = "@@next-command@@"
    commands = block.commands
    assert commands, f"{block.where}: a console block without a line that begins with '$ '"
    script = "\n".join(f"echo {marker}\n{command}" for command, _ in commands)
    outputs = shell(script, folder, timeout=250).split(f"{marker}\n")[1:]
    for (command, shown), printed in zip(commands, outputs, strict=True):
        missing = _first_missing(shown, printed)
        assert missing is None, f"{block.where}: `{command}` printed no line like:\n{missing}\nbut:\n{printed}"


def _first_missing(shown: list[str], printed: str) -> str | None:
    """Return the first shown line that was not printed after the one before it."""
    lines = iter([_plain(line) for line in printed.splitlines()])
    for wanted in shown:
        if wanted.strip() in ("", "…"):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in _plain(wanted).split("…")))
        if not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return None


def _plain(line: str) -> str:
    return " ".join(_NUMBER.sub("#", line).split())


def _patched(text: str, block: Block) -> str:
    for hunk in re.split(r"^@@.*\n", block.text, flags=re.MULTILINE):
        lines = [line for line in hunk.splitlines() if not line.startswith(("---", "+++"))]
        if not lines:
            continue
        old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        assert text.count(old) == 1, f"{block.where}: {block.file} does not have, once:\n{old}"
        text = text.replace(old, new)
    return text
