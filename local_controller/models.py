# SPDX-License-Identifier: Apache-2.0
"""The versions of a model on a node: which are here, which one answers, and the way back."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..core.errors import InterruptedJobError, ModelError, SolarCoronaError
from ..core.files import atomic_write, local_copy, sha256_of, write_bytes_atomic
from ..core.hub_messages import LoadError, ModelOffer, NodeModels, Orders
from .clock import Clock, SystemClock
from .hub_client import HubClient
from .model_files import check_offer, fetch, unpack
from .patience import patiently

__all__ = ["ActiveModel", "ModelStore", "ShadowModel"]

_log = logging.getLogger(__name__)
_MOST_WAIT = 60.0
# What is wrong with a model is seldom right a minute later.
_AGAIN_SECONDS = 600.0
_MOST_ERROR = 4_000


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


_DocumentT = TypeVar("_DocumentT", bound=_Document)


class ShadowModel(_Document):
    """The version that answers in the background, to compare with."""

    version: int
    path: str


class ActiveModel(_Document):
    """What `active.json` says: the version to answer with. `sha256` is `core.files.sha256_of` of the path."""

    version: int
    path: str
    sha256: str
    canary: bool = False
    shadow: ShadowModel | None = None


class _Installed(_Document):
    """A version that is here, whole and checked."""

    version: int
    file: str
    offered_sha256: str
    sha256: str
    of_job: bool = False

    @property
    def folder(self) -> str:
        return f"{self.version}-{self.offered_sha256[:16]}"

    def is_offered_by(self, offer: ModelOffer) -> bool:
        """Tell whether it is what a hub offers. A folder that came with the job has no fingerprint of its .zip."""
        if offer.version != self.version:
            return False
        return offer.sha256 == self.offered_sha256 or (self.of_job and offer.file.endswith(".zip"))


class _State(_Document):
    """What a node has to remember beside `active.json`."""

    previous: str | None = None
    bad: dict[str, str] = {}


class ModelStore:
    """One model's versions in a folder.

    Parameters
    ----------
    folder
        Where they are; `active.json` in it names the one that answers, and is replaced as a whole.
    job
        The job, which signatures are for.
    public_key
        What they are checked with; without it no version of a hub is taken.
    hub
        Where versions are fetched from.
    changed
        Called when what `state` gives has changed, so that the hub learns of it soon.
    clock
        Waits.
    """

    def __init__(
        self,
        folder: Path,
        *,
        job: str,
        public_key: Path | None,
        hub: HubClient,
        changed: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self._folder, self._job, self._public_key, self._hub = folder, job, public_key, hub
        self.changed = changed
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._orders = Orders()
        self._error: LoadError | None = None
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self.run, name="models", daemon=True)
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".tmp-*"):  # of a process that was killed
            _remove(leftover)
        self._here = self._found()
        self._state = self._read("state.json", _State) or _State()
        self.active = self._read("active.json", ActiveModel)

    def _read(self, name: str, kind: type[_DocumentT]) -> _DocumentT | None:
        try:
            return kind.model_validate_json((self._folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as error:
            _log.warning("%s: cannot be read and is written anew: %s", self._folder / name, error)
            return None

    def _write(self, name: str, document: BaseModel) -> None:
        write_bytes_atomic(self._folder / name, document.model_dump_json(indent=1).encode())

    def _found(self) -> dict[str, _Installed]:
        found = {}
        for path in self._folder.glob("*/version.json"):
            version = self._read(str(path.relative_to(self._folder)), _Installed)
            if version is not None and self._path(version).exists():
                found[version.folder] = version
        return found

    def _path(self, version: _Installed) -> Path:
        return (self._folder / version.folder / "model" / version.file).absolute()

    # --- version 1

    def begin_with(self, path: str, *, sha256: str | None = None) -> None:
        """Take the job's own model as version 1, so that an edge answers before it reaches the hub.

        A node that has a version already keeps it.

        Parameters
        ----------
        path
            A file, a folder, or a URL of a file.
        sha256
            Fingerprint that it must have.

        Raises
        ------
        ModelError
            If there is no such model, or its fingerprint is another.
        TemporaryError
            If a server cannot be reached.
        PlatformError
            If the disk is full.
        """
        with self._lock:
            if self.active is not None and Path(self.active.path).exists():
                return
            if self._here:  # active.json was lost, the versions were not
                good = [each for each in self._here.values() if each.folder not in self._state.bad]
                self._activate(max(good or self._here.values(), key=lambda each: each.version))
                return
            try:
                with local_copy(path) as copy:
                    self._activate(self._install_of_job(copy, sha256))
            except (FileNotFoundError, PermissionError) as error:
                raise ModelError(f"{path}: cannot be read as a model ({error.strerror}); check --model") from error

    def _install_of_job(self, copy: Path, sha256: str | None) -> _Installed:
        found = sha256_of(copy)
        if sha256 is not None and found != sha256:
            raise ModelError(f"{copy}: has the SHA-256 {found}, expected {sha256}; it is another file, or damaged")
        version = _Installed(version=1, file=copy.name, offered_sha256=found, sha256=found, of_job=True)

        def fill(target: Path) -> None:
            if copy.is_dir():
                shutil.copytree(copy, target)
            else:
                shutil.copyfile(copy, target)

        self._put(version, fill)
        return version

    def _put(self, version: _Installed, fill: Callable[[Path], None]) -> None:
        """Make a version's folder, whole or not at all."""
        with atomic_write(self._folder / version.folder) as temporary:
            (temporary / "model").mkdir(parents=True)
            fill(temporary / "model" / version.file)
            (temporary / "version.json").write_text(version.model_dump_json())
        with self._lock:
            self._here[version.folder] = version

    # --- what the hub wants

    def want(self, orders: Orders) -> None:
        """Take note of what the hub wants; it is carried out in the background."""
        with self._lock:
            if (orders.model, orders.shadow) == (self._orders.model, self._orders.shadow):
                return
            self._orders = orders
        self._wake.set()

    def start(self) -> None:
        """Carry orders out in a thread of its own."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End, at the next piece of a download."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def run(self) -> None:
        """Carry orders out until `stop` is called."""
        while not self._stopping.is_set():
            wait = 86_400.0
            self._wake.clear()
            try:
                patiently(
                    self.carry_out,
                    clock=self._clock,
                    wake=self._wake,
                    stopping=self._stopping,
                    most_wait=_MOST_WAIT,
                    trouble=self._tell,
                )
            except InterruptedJobError:
                continue
            except (SolarCoronaError, OSError) as error:
                self._fail(self._orders.model, str(error))
                wait = _AGAIN_SECONDS
            except Exception as error:  # noqa: BLE001 - whatever it is, the version that answers has to go on
                _log.exception("a model could not be taken")
                self._fail(self._orders.model, f"{type(error).__name__}: {error}")
                wait = _AGAIN_SECONDS
            self._clock.wait(self._wake, wait)

    def _tell(self, trouble: str) -> None:
        if trouble:
            _log.warning("a model cannot be fetched now: %s", trouble)

    def _fail(self, offer: ModelOffer | None, error: str) -> None:
        if offer is None:
            _log.warning("%s", error)
            return
        _log.warning("version %d is not used: %s", offer.version, error)
        with self._lock:
            self._error = LoadError(version=offer.version, error=error[:_MOST_ERROR])
        self.changed()

    def carry_out(self) -> None:
        """Do what the hub wants: fetch what is not here, check it, and let it answer.

        Raises
        ------
        ModelError
            If a version is not what was signed, or cannot be unpacked. What answers, answers on.
        TemporaryError, RefusedRequestError
            If the hub is away.
        PlatformError
            If the disk is full.
        """
        orders = self._orders
        if orders.model is None:
            return
        with self._lock:
            known = self._is_here(orders.model)
            if known is not None and known.folder in self._state.bad:
                self._error = LoadError(version=known.version, error=self._state.bad[known.folder])
                return

        def go_on() -> bool:
            return orders is self._orders and not self._stopping.is_set()

        shadow = None if orders.shadow is None else self._fetched(orders.shadow, go_on)
        version = self._fetched(orders.model, go_on)
        with self._lock:
            if orders is not self._orders:
                return  # the hub wants something else by now, which is next
            self._error = None
            self._activate(version, shadow)
        self.changed()

    def _is_here(self, offer: ModelOffer) -> _Installed | None:
        with self._lock:
            return next((each for each in self._here.values() if each.is_offered_by(offer)), None)

    def _fetched(self, offer: ModelOffer, go_on: Callable[[], bool]) -> _Installed:
        if (here := self._is_here(offer)) is not None:
            return here
        check_offer(offer, job=self._job, public_key=self._public_key)
        part = self._folder / f".part-{offer.sha256}"
        fetch(offer, hub=self._hub, part=part, go_on=go_on)
        return self._install(offer, part)

    def _install(self, offer: ModelOffer, part: Path) -> _Installed:
        packed = offer.file.endswith(".zip")
        file = offer.file.removesuffix(".zip") if packed else offer.file
        whose = f"version {offer.version}"
        if packed:
            unpacked = self._folder / f".tmp-{offer.sha256}"
            _remove(unpacked)
            try:
                unpack(part, unpacked, whose=whose)
                version = _Installed(
                    version=offer.version, file=file, offered_sha256=offer.sha256, sha256=sha256_of(unpacked)
                )
                self._put(version, lambda target: _move(unpacked, target))
            finally:
                _remove(unpacked)
                part.unlink(missing_ok=True)
            return version
        version = _Installed(version=offer.version, file=file, offered_sha256=offer.sha256, sha256=offer.sha256)
        self._put(version, lambda target: _move(part, target))
        return version

    # --- what answers

    def _activate(self, version: _Installed, shadow: _Installed | None = None) -> None:
        wanted = ActiveModel(
            version=version.version,
            path=str(self._path(version)),
            sha256=version.sha256,
            canary=shadow is not None,
            shadow=None if shadow is None else ShadowModel(version=shadow.version, path=str(self._path(shadow))),
        )
        if wanted == self.active:
            return
        before = self._active_version()
        if before is not None and before.folder != version.folder:
            self._remember(previous=before.folder, bad={k: v for k, v in self._state.bad.items() if k == before.folder})
        self._write("active.json", wanted)
        self.active = wanted
        _log.info("version %d answers now%s", wanted.version, ", as a canary" if wanted.canary else "")
        self._prune(shadow)

    def _active_version(self) -> _Installed | None:
        if self.active is None:
            return None
        path = Path(self.active.path)
        return next((each for each in self._here.values() if self._path(each) == path), None)

    def _remember(self, *, previous: str | None, bad: dict[str, str]) -> None:
        self._state = _State(previous=previous, bad=bad)
        self._write("state.json", self._state)

    def _prune(self, shadow: _Installed | None) -> None:
        """Remove what is neither active, nor the one before, nor the shadow."""
        active = self._active_version()
        kept = {each.folder for each in (active, shadow) if each is not None} | {self._state.previous}
        for folder in [each for each in self._here if each not in kept]:
            del self._here[folder]
            _remove(self._folder / folder)
        for part in self._folder.glob(".part-*"):
            part.unlink(missing_ok=True)

    def failed_to_load(self, failure: LoadError) -> None:
        """Go back to the version before, as a worker could not use the active one.

        What a worker says of another version than the active one changes nothing.
        """
        with self._lock:
            active = self._active_version()
            if active is None or active.version != failure.version or active.folder in self._state.bad:
                return
            self._error = LoadError(version=failure.version, error=failure.error[:_MOST_ERROR])
            bad = {**self._state.bad, active.folder: self._error.error}
            others = [each for each in self._here.values() if each.folder not in bad]
            others.sort(key=lambda each: (each.folder == self._state.previous, each.version))
            self._remember(previous=self._state.previous, bad=bad)
            if others:
                _log.warning("version %d does not load: %s", failure.version, failure.error)
                self._activate(others[-1])
                self._remember(previous=active.folder, bad=bad)
            else:
                _log.error("version %d does not load, and there is no other: %s", failure.version, failure.error)
        self.changed()

    def state(self) -> NodeModels:
        """Return what the heartbeat says."""
        with self._lock:
            previous = self._here.get(self._state.previous or "")
            return NodeModels(
                active=0 if self.active is None else self.active.version,
                previous=None if previous is None else previous.version,
                here=sorted(each.version for each in self._here.values()),
                error=self._error,
            )


def _move(source: Path, target: Path) -> None:
    source.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
