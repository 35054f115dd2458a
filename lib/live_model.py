# SPDX-License-Identifier: Apache-2.0
"""Which version of a model answers: watches what the node's LocalController says, and loads it in the background.

A version that cannot be used changes nothing: the one before goes on, and the next report says why.
"""

from __future__ import annotations

import contextvars
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import ModelError, WireError
from .hard_samples.worker_counts import LoadTrouble, WorkerCounts
from .runners.runner import Runner

__all__ = ["LiveModel", "ModelUser", "Serving", "Wanted", "read_wanted"]

_log = logging.getLogger(__name__)
_EVERY = 0.5
_LARGEST = 1 << 16
_LONGEST_ERROR = 4_000


@dataclass(frozen=True, eq=False)
class Serving:
    """A version that is loaded.

    Parameters
    ----------
    runner
        Runs it.
    version
        Its number, from 1; 0 where none is known.
    """

    runner: Runner
    version: int = 0


@dataclass(frozen=True)
class Wanted:
    """What `active.json` says.

    Parameters
    ----------
    version, path, sha256
        The version to answer with, where it is, and its fingerprint.
    shadow
        On a canary: the version before and where it is, to compare with.
    """

    version: int
    path: Path
    sha256: str
    shadow: tuple[int, Path] | None = None


def read_wanted(file: Path) -> Wanted | None:
    """Return what the file says; None where there is none yet. A path in it may be relative to the file.

    Raises
    ------
    WireError
        If it cannot be read or says something else.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
        said: Any = json.loads(content) if len(content) <= _LARGEST else None
        version, path, sha256 = said["version"], said["path"], said["sha256"]
        shadow = said.get("shadow")
        if not (_whole(version) and isinstance(path, str) and isinstance(sha256, str) and len(sha256) == 64):
            raise ValueError("expected a version, a path and a sha256")
        before = None
        if shadow is not None:
            if not (_whole(shadow["version"]) and isinstance(shadow["path"], str)):
                raise ValueError("expected the shadow's version and path")
            before = (shadow["version"], file.parent / shadow["path"])
        return Wanted(version, file.parent / path, sha256, before)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(
            f"{file}: does not say which version answers ({type(error).__name__}: {error}); the LocalController "
            f"writes it anew with its next order"
        ) from error


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class ModelUser(Protocol):
    """Who answers with the model; `LiveModel` hands versions over."""

    @property
    def serving(self) -> Serving:
        """The version that answers now."""

    def rehearse(self, runner: Runner) -> None:
        """Answer a sample with a version that is to come, so that it is warm.

        Raises
        ------
        ModelError
            If it does not take what the script gives, or answers with no numbers.
        """

    def serve(self, serving: Serving) -> None:
        """Answer with this version from now on, and close the one before when no call uses it."""

    def shadow(self, serving: Serving | None) -> None:
        """Compare with this version in the background from now on, or with none; close the one before."""


class LiveModel:
    """Follows `active.json` for as long as the script runs.

    Parameters
    ----------
    file
        What the LocalController writes.
    opened
        Opens a version: called with its path and its fingerprint, where one is told.
    reporters
        Where to put what writes into the worker's report, while the model is followed.
    """

    def __init__(
        self,
        file: Path,
        opened: Callable[[Path, str | None], Runner],
        *,
        reporters: list[Callable[[WorkerCounts], None]] | None = None,
    ) -> None:
        self._file, self._open = file, opened
        self._reporters = reporters if reporters is not None else []
        self._user: ModelUser | None = None
        self._trouble: LoadTrouble | None = None
        self._sha256: str | None = None
        self._mark: tuple[int, int, int] | None = None
        self._shadow: tuple[int, Path] | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._said = ""

    @property
    def trouble(self) -> LoadTrouble | None:
        """The version that was wanted last and cannot be used, and why."""
        return self._trouble

    def first(self) -> Serving | None:
        """Return the version to begin with; None where no file says one, or it cannot be loaded."""
        try:
            wanted = read_wanted(self._file)
            if wanted is None:
                return None
            runner = self._open(wanted.path, wanted.sha256)
            self._sha256 = wanted.sha256
            return Serving(runner, wanted.version)
        except WireError as error:
            self._tell(str(error))
        except Exception as error:  # noqa: BLE001 -- engines have errors of their own
            self._failed(wanted.version if wanted is not None else 0, error)
        return None

    def follow(self, user: ModelUser) -> None:
        """Begin to watch, and hand new versions over to who answers with them."""
        self._user = user
        self._reporters.append(self._report)
        # What a script sets around it, such as its job, holds in the thread too.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._watch,), name="live-model", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop watching. A version that is being loaded is not waited for."""
        self._closing.set()
        if self._report in self._reporters:
            self._reporters.remove(self._report)

    def _report(self, counts: WorkerCounts) -> None:
        """Write into the worker's report which version answers, and which one cannot."""
        if self._user is not None:
            counts.version = self._user.serving.version
        counts.load_error = self._trouble

    def _watch(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 -- the version that answers goes on, whatever this was
                self._tell(f"{type(error).__name__}: {error}")
            if self._closing.wait(_EVERY):
                return

    def look(self) -> None:
        """Do what the file says, if it changed since the last look."""
        mark = self._marked()
        if mark is None or mark == self._mark:
            return
        try:
            wanted = read_wanted(self._file)
        except WireError as error:
            self._mark = mark
            self._tell(str(error))
            return
        self._mark = mark
        if wanted is not None and not self._closing.is_set():
            self._turn_to(wanted)

    def _marked(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _turn_to(self, wanted: Wanted) -> None:
        user = self._user
        assert user is not None
        # A hub that was set up anew may count from 1 again.
        another = self._sha256 is not None and wanted.sha256 != self._sha256
        if wanted.version != user.serving.version or another:
            runner = None
            try:
                runner = self._open(wanted.path, wanted.sha256)
                user.rehearse(runner)
            except Exception as error:  # noqa: BLE001 -- engines have errors of their own
                if runner is not None:
                    runner.close()
                self._failed(wanted.version, error)
                return
            if self._closing.is_set():
                runner.close()
                return
            user.serve(Serving(runner, wanted.version))
            self._sha256 = wanted.sha256
            _log.info("version %d of the model answers now", wanted.version)
        self._trouble = None
        self._compare_with(wanted.shadow)

    def _compare_with(self, shadow: tuple[int, Path] | None) -> None:
        assert self._user is not None
        if shadow == self._shadow:
            return
        self._shadow = shadow
        if shadow is None:
            self._user.shadow(None)
            return
        try:
            self._user.shadow(Serving(self._open(shadow[1], None), shadow[0]))
        except Exception as error:  # noqa: BLE001 -- engines have errors of their own
            self._user.shadow(None)
            self._tell(f"version {shadow[0]} cannot be compared with: {type(error).__name__}: {error}")

    def _failed(self, version: int, error: Exception) -> None:
        said = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        self._trouble = LoadTrouble(version, said[:_LONGEST_ERROR])
        self._tell(f"version {version} cannot be used, and the one before goes on: {said}")

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _log.warning("live model: %s", text[:500])
