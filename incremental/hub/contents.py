# SPDX-License-Identifier: Apache-2.0
"""Contents of samples and files of models, each under its SHA-256, in a folder or wherever else fsspec writes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import stamina

from ...core.errors import DatasetError, PlatformError, SpecError, TemporaryError
from ...core.files import atomic_write, local_path, shown

__all__ = ["Contents", "OffsetError"]

T = TypeVar("T")

_ID = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 20
_AT_ONCE = 32
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class OffsetError(DatasetError):
    """Bytes of an upload were sent for another place than where it stands.

    Parameters
    ----------
    offset
        Where it stands.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(f"the upload stands at byte {offset}; send from there on")
        self.offset = offset


class Contents:
    """A store of whole, unchangeable contents.

    What is in it under an id has that SHA-256, or is refused when it is read. A process that is killed while it writes
    leaves nothing under an id.

    Parameters
    ----------
    place
        A folder, or a URL that fsspec opens, such as `s3://bucket/hub`. Made if it is not there.
    kind
        Name of the part of it that is used, such as `samples`.
    patience
        Seconds for which an operation on another machine is tried again.

    Raises
    ------
    SpecError
        If there is no such kind of URL.
    """

    def __init__(self, place: str, kind: str, *, patience: float = 10.0) -> None:
        self._shown, self._patience = shown(place), patience
        try:
            self._fs, root = fsspec.core.url_to_fs(place)
        except (ValueError, ImportError) as error:
            raise SpecError(f"{self._shown}: no storage of that kind can be used ({error})") from error
        here = local_path(place)
        self._folder = (here / kind).absolute() if here is not None else None
        self._root = f"{root.rstrip('/')}/{kind}" if here is None else str(self._folder)
        self._uploads: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def put(self, contents: Mapping[str, bytes | memoryview]) -> None:
        """Keep contents by their ids; one that is there already is left. Afterwards all outlast a power cut.

        Raises
        ------
        DatasetError
            If one has not the SHA-256 that its id says; then none is kept.
        PlatformError
            If the disk is full or may not be written.
        TemporaryError
            If a store elsewhere does not answer.
        """
        for name, content in contents.items():
            _check_id(name)
            if hashlib.sha256(content).hexdigest() != name:
                raise DatasetError(f"content {name}: its SHA-256 is another one; it was damaged on its way")
        missing = {name: content for name, content in contents.items() if not self.has(name)}
        if self._folder is not None:
            self._guarded(lambda: _write_all({self._local(name): missing[name] for name in missing}))
            return
        for name, content in missing.items():
            # An object store shows an object whole or not at all.
            self._guarded(lambda name=name, content=content: self._fs.pipe_file(self._path(name), bytes(content)))  # type: ignore[misc]

    def put_file(self, path: Path) -> str:
        """Keep a file, and return its id; raises as `put` does."""
        with path.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
        if not self.has(name):
            self._guarded(lambda: self._take_file(path, name))
        return name

    def has(self, name: str) -> bool:
        """Tell whether a content is there."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Return a content's bytes; None if it is not there."""
        _check_id(name)
        try:
            return int(self._guarded(lambda: self._fs.size(self._path(name))))
        except FileNotFoundError:
            return None

    def get(self, name: str) -> bytes:
        """Return a content, checked.

        Raises
        ------
        DatasetError
            If it is not there, or is not what it was.
        """
        _check_id(name)
        try:
            content: bytes = self._guarded(lambda: self._fs.cat_file(self._path(name)))
        except FileNotFoundError as error:
            raise DatasetError(f"{self._shown}: content {name} is not there; was it deleted?") from error
        if hashlib.sha256(content).hexdigest() != name:
            raise DatasetError(
                f"{self._shown}: content {name} is damaged, for its SHA-256 is another one; restore it from a copy"
            )
        return content

    def pieces(self, name: str, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a content from `begin` up to `end`, unchecked: who reads a part checks the whole."""
        _check_id(name)
        size = self.size(name)
        if size is None:
            raise DatasetError(f"{self._shown}: content {name} is not there; was it deleted?")
        end = size if end is None else min(end, size)
        for start in range(begin, end, _PIECE):
            stop = min(start + _PIECE, end)
            yield self._guarded(lambda start=start, stop=stop: self._fs.cat_file(self._path(name), start, stop))  # type: ignore[misc]

    def delete(self, name: str) -> None:
        """Delete a content, and what was sent of it so far."""
        _check_id(name)
        for path, deep in ((self._path(name), False), (self._upload(name), True)):
            with suppress(FileNotFoundError):
                self._guarded(lambda path=path, deep=deep: self._fs.rm(path, recursive=deep))  # type: ignore[misc]

    def offset(self, name: str) -> int:
        """Return how many bytes of a content have come: all of them once it is whole."""
        whole = self.size(name)
        return whole if whole is not None else sum(size for _, size in self._parts(name))

    def append(self, name: str, offset: int, data: bytes, *, length: int) -> int:
        """Keep the next bytes of a large content, and return how many have come.

        Parameters
        ----------
        name
            Its id.
        offset
            Where they belong.
        length
            Bytes of the whole content; with the last of them it is checked and kept.

        Raises
        ------
        OffsetError
            If the upload stands elsewhere, as it does when an answer was lost.
        DatasetError
            If more comes than `length`, or what came has not the SHA-256 that the id says; then all of it is dropped.
        """
        with self._upload_lock(name):
            parts = self._parts(name)
            stands = self.size(name)
            stands = sum(size for _, size in parts) if stands is None else stands
            if self.has(name) or offset != stands:
                raise OffsetError(stands)
            if offset + len(data) > length:
                raise DatasetError(f"content {name}: {offset + len(data)} bytes came, but it was to have {length}")
            if data:
                place = f"{self._upload(name)}/{offset:016d}"
                self._guarded(lambda: self._write(place, data))
            if offset + len(data) == length:
                self._finish(name)
            return offset + len(data)

    def uploads(self) -> int:
        """Return how many contents are under way."""
        try:
            return len(self._guarded(lambda: self._fs.ls(f"{self._root}/uploads", detail=False, refresh=True)))
        except FileNotFoundError:
            return 0

    def uploads_before(self, time: float) -> list[str]:
        """Return the contents of which something came, and nothing since `time` (local folders only)."""
        if self._folder is None or not (self._folder / "uploads").is_dir():
            return []
        return [
            each.name
            for each in (self._folder / "uploads").iterdir()
            if _is_id(each.name) and each.stat().st_mtime < time
        ]

    def _finish(self, name: str) -> None:
        digest = hashlib.sha256()
        pieces = [path for path, _ in self._parts(name)]
        for path in pieces:
            digest.update(self._guarded(lambda path=path: self._fs.cat_file(path)))  # type: ignore[misc]
        if digest.hexdigest() != name:
            self.delete(name)
            raise DatasetError(f"content {name}: what came has another SHA-256; it was dropped, send it anew")
        self._guarded(lambda: self._join(pieces, name))
        with suppress(FileNotFoundError):
            self._guarded(lambda: self._fs.rm(self._upload(name), recursive=True))

    def _join(self, pieces: list[str], name: str) -> None:
        if self._folder is None:
            with self._fs.open(self._path(name), "wb") as target:
                for path in pieces:
                    target.write(self._fs.cat_file(path))
            return
        with atomic_write(self._local(name)) as temporary, temporary.open("wb") as file:
            for path in pieces:
                file.write(Path(path).read_bytes())

    def _take_file(self, path: Path, name: str) -> None:
        if self._folder is None:
            self._fs.put_file(str(path), self._path(name))
            return
        with atomic_write(self._local(name)) as temporary, temporary.open("wb") as target, path.open("rb") as source:
            while piece := source.read(_PIECE):
                target.write(piece)

    def _write(self, path: str, data: bytes) -> None:
        if self._folder is None:
            self._fs.pipe_file(path, data)
            return
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)

    def _parts(self, name: str) -> list[tuple[str, int]]:
        """Return what came of an upload, in order, as far as it is without a gap."""
        try:
            found = self._guarded(lambda: self._fs.ls(self._upload(name), detail=True, refresh=True))
        except FileNotFoundError:
            return []
        parts, end = [], 0
        for entry in sorted(found, key=lambda entry: str(entry["name"])):
            place = str(entry["name"]).rpartition("/")[2]
            if place.isdigit() and int(place) == end:
                parts.append((str(entry["name"]), int(entry["size"])))
                end += int(entry["size"])
        return parts

    def _path(self, name: str) -> str:
        return f"{self._root}/{name[:2]}/{name}"

    def _local(self, name: str) -> Path:
        return Path(self._path(name))

    def _upload(self, name: str) -> str:
        _check_id(name)
        return f"{self._root}/uploads/{name}"

    def _upload_lock(self, name: str) -> threading.Lock:
        with self._lock:
            if len(self._uploads) > 10_000:
                self._uploads = {key: lock for key, lock in self._uploads.items() if lock.locked()}
            return self._uploads.setdefault(name, threading.Lock())

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do something to the store; its errors become ours, and what may pass is tried again."""
        if self._folder is not None:
            return self._translated(work)
        for attempt in stamina.retry_context(on=TemporaryError, attempts=None, timeout=self._patience, wait_max=1.0):
            with attempt:
                return self._translated(work)
        raise AssertionError("unreachable: the loop returns or raises")

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (FileNotFoundError, PlatformError):
            raise
        except PermissionError as error:
            raise PlatformError(
                f"{self._shown}: this user may not use the storage ({error}); give it the rights"
            ) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise PlatformError(
                    f"{self._shown}: the disk is full, or a quota is reached; free some space"
                ) from error
            # Each store's library has errors of its own.
            raise TemporaryError(
                f"{self._shown}: the storage does not serve ({type(error).__name__}: {error})"
            ) from error


def _check_id(name: str) -> None:
    if not _is_id(name):
        raise DatasetError(f"{name[:80]!r} is no id of a content; expected its SHA-256, 64 digits 0-9a-f")


def _is_id(name: str) -> bool:
    return _ID.fullmatch(name) is not None


def _write_all(files: Mapping[Path, Any]) -> None:
    """Write many files, each whole or not at all; one pass to the disk for each step rather than for each file."""
    made: list[tuple[Path, Path]] = []
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
            made.append((temporary, path))
            with temporary.open("xb") as file:
                file.write(data)
        _sync_all([temporary for temporary, _ in made])
        for temporary, path in made:
            temporary.replace(path)
        _sync_all(sorted({path.parent for path in files}))
    finally:
        for temporary, _ in made:
            temporary.unlink(missing_ok=True)


def _sync_all(paths: Sequence[Path]) -> None:
    """Have files on the disk; at once, for a disk that is asked for many together writes its journal once for all."""
    list(_syncing().map(_sync, paths))


@cache
def _syncing() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="solar-corona-sync")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
