# SPDX-License-Identifier: Apache-2.0
"""What data a node has: how many samples of which class in which split, and whether they are still what they were."""

from __future__ import annotations

import hashlib
import logging
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..core.errors import DatasetError, SolarCoronaError
from ..core.files import sha256_of, write_bytes_atomic
from ..core.spec_parts import DatasetSource
from ..lib.datasets import load_dataset
from .clock import Clock, SystemClock

__all__ = ["DatasetIndex", "Split"]

_log = logging.getLogger(__name__)
_AGAIN_SECONDS = 600.0
_SPLITS = ("train", "eval", "val", "validation", "test")
_NPZ_SPLITS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
_TABLES = {".csv", ".parquet", ".pq"}
_IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# A table is read as a whole to be counted; a node's memory is for its models.
_MOST_TABLE_BYTES = 512 << 20
_MOST_CLASSES = 1_000
_MOST_ERROR = 500


class Split(BaseModel):
    """One part of a dataset.

    Parameters
    ----------
    count
        Samples; None where they cannot be counted, and `error` says why.
    classes
        Samples of each class, for up to 1,000 classes.
    bytes, sha256
        Of its file or folder; see `core.files.sha256_of`. Splits within one file share them.
    since
        When this fingerprint was seen first, in seconds since 1970; a split that changes has a new one.
    error
        What is wrong with it; empty if nothing is.
    """

    model_config = ConfigDict(frozen=True)

    count: int | None = None
    classes: dict[str, int] = {}
    bytes: int = 0
    sha256: str = ""
    since: float = 0.0
    error: str = ""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)

    stamp: str
    splits: dict[str, Split]


_ENTRIES = TypeAdapter(dict[str, _Entry])


class DatasetIndex:
    """The datasets of a node, looked at again when their files change.

    Parameters
    ----------
    datasets
        Paths by name: a file or folder of any form that `load_dataset` reads; or a folder with parts called `train`,
        `eval`, `val`, `validation` or `test`, each of such a form; or an .npz with `x_train`, `y_train`, `x_test` and
        `y_test`.
    file
        Where the index is kept, so that large data is not read again at each start.
    clock
        Waits, and tells the time.
    """

    def __init__(self, datasets: Mapping[str, Path], file: Path, *, clock: Clock | None = None) -> None:
        self._datasets, self._file, self._clock = dict(datasets), file, clock or SystemClock()
        self._entries = {name: entry for name, entry in self._kept().items() if name in self._datasets}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="datasets", daemon=True)

    def _kept(self) -> dict[str, _Entry]:
        try:
            return _ENTRIES.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            _log.warning("%s: cannot be read, and the datasets are looked at anew: %s", self._file, error)
            return {}

    def start(self) -> None:
        """Look at the datasets in a thread of its own, now and from time to time."""
        if self._datasets:
            self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """End; what is being read is not waited for longer than `timeout` seconds."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.refresh()
            except (SolarCoronaError, OSError) as error:
                _log.warning("the index of datasets could not be kept: %s", error)
            self._clock.wait(self._stopping, _AGAIN_SECONDS)

    def summary(self) -> dict[str, Any]:
        """Return what the heartbeat says of each dataset, by its splits."""
        return {
            name: {split: found.model_dump() for split, found in entry.splits.items()}
            for name, entry in self._entries.items()
        }

    def refresh(self) -> None:
        """Look at each dataset whose files have changed."""
        entries = dict(self._entries)
        for name, path in self._datasets.items():
            stamp = _stamp(path)
            before = entries.get(name)
            if before is None or before.stamp != stamp:
                entries[name] = _Entry(stamp=stamp, splits=self._looked_at(path, before))
        if entries != self._entries:
            self._entries = entries
            write_bytes_atomic(self._file, _ENTRIES.dump_json(entries, indent=1))

    def _looked_at(self, path: Path, before: _Entry | None) -> dict[str, Split]:
        found, now = {}, self._clock.now()
        for name, part, count in _parts(path):
            split = _split(part, count)
            old = None if before is None else before.splits.get(name)
            since = old.since if old is not None and old.sha256 == split.sha256 else now
            found[name] = split.model_copy(update={"since": since})
        return found


_Counted = tuple[int, dict[str, int]]


def _parts(path: Path) -> Iterator[tuple[str, Path, Callable[[], _Counted]]]:
    """Give each split's name, its path, and what counts it."""
    inner = sorted(path.iterdir()) if path.is_dir() else []
    named = {name: each for each in inner if (name := each.name.partition(".")[0]) in _SPLITS}
    if named:
        for name, part in named.items():
            yield name, part, lambda part=part: _count(part)  # type: ignore[misc]
        return
    names = _npz_names(path)
    for name, (x, y) in _NPZ_SPLITS.items():
        if {x, y} <= names and "x" not in names:
            yield name, path, lambda x=x, y=y: _count_npz(path, x, y)  # type: ignore[misc]
            names = names | {name}
    if not names & set(_NPZ_SPLITS):
        yield "all", path, lambda: _count(path)


def _split(path: Path, count: Callable[[], _Counted]) -> Split:
    size, fingerprint = 0, ""
    try:
        size = sum(file.stat().st_size for file in _files(path))
        fingerprint = sha256_of(path)
        samples, classes = count()
    except (SolarCoronaError, OSError) as error:
        return Split(bytes=size, sha256=fingerprint, error=str(error)[:_MOST_ERROR])
    return Split(count=samples, classes=classes, bytes=size, sha256=fingerprint)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _stamp(path: Path) -> str:
    """Return what changes when a file of a dataset does, without reading any."""
    digest = hashlib.sha256()
    try:
        for file in _files(path):
            found = file.stat()
            digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="surrogateescape"))
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"
    return digest.hexdigest()


def _npz_names(path: Path) -> set[str]:
    if path.suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return set()
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return set()


def _count(path: Path) -> _Counted:
    if path.is_dir():
        return _count_images(path)
    ending = path.suffix.lower()
    if ending == ".npz":
        names = _npz_names(path)
        pairs = [pair for pair in (("x", "y"), *_NPZ_SPLITS.values()) if set(pair) <= names]
        return _count_npz(path, *(pairs[0] if pairs else ("x", "y")))
    if ending == ".npy":
        return _count_npy(path)
    if ending in _TABLES and path.stat().st_size > _MOST_TABLE_BYTES:
        raise DatasetError(
            f"{path}: has more than {_MOST_TABLE_BYTES} bytes and is not counted; divide it into smaller files"
        )
    samples = load_dataset(path)
    return len(samples.x), _classes(samples.y, samples.class_names)


def _count_images(path: Path) -> _Counted:
    counts = {
        folder.name: sum(file.suffix.lower() in _IMAGES and not file.name.startswith(".") for file in folder.iterdir())
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    if not counts:
        raise DatasetError(f"{path}: has no sub-folder; expected one of images for each class, or train, eval, test")
    return sum(counts.values()), _bounded(counts)


def _count_npz(path: Path, x: str, y: str) -> _Counted:
    """Count without reading the features, which may be larger than the memory."""
    labels = load_dataset(DatasetSource(path=str(path), x=y, y=y))
    try:
        with zipfile.ZipFile(path) as archive:
            count = _rows(archive, f"{x}.npy")
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: its array {x!r} is missing or damaged ({error}); write it anew") from error
    if count != len(labels.x):
        raise DatasetError(f"{path}: {x} has {count} samples and {y} {len(labels.x)} labels; expected one for each")
    return count, _classes(labels.y, labels.class_names)


def _rows(archive: zipfile.ZipFile, name: str) -> int:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape = read(file)[0]
        return int(shape[0]) if shape else 0


def _count_npy(path: Path) -> _Counted:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path}: is no .npy file, or is damaged ({error}); write it anew") from error
    return (len(array) if array.ndim else 0), {}


def _classes(y: npt.NDArray[Any] | None, names: tuple[str, ...]) -> dict[str, int]:
    if y is None or y.dtype.kind not in "iub" or y.ndim != 1:
        return {}
    values, counts = np.unique(y, return_counts=True)
    if len(values) > _MOST_CLASSES:
        return {}
    return {
        names[value] if 0 <= value < len(names) else str(value): count
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
    }


def _bounded(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(counts).most_common(_MOST_CLASSES))
