# SPDX-License-Identifier: Apache-2.0
"""A model's file on its way from the hub: fetched with resume, checked before anything else, unpacked safely."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path, PurePosixPath

from ..core.errors import ModelError, RefusedRequestError, TemporaryError
from ..core.files import sha256_of
from ..core.hub_messages import ModelOffer
from ..core.security import is_signed
from .hub_client import HubClient

__all__ = ["MOST_MODEL_BYTES", "check_offer", "fetch", "unpack"]

MOST_MODEL_BYTES = 16 << 30
"""Bytes of the largest model, packed or not."""

_MOST_FILES = 10_000
# Weights hardly shrink; what grows this much is an attack on the disk.
_MOST_GROWTH, _FREE_GROWTH = 100, 1 << 20
_COPY = 1 << 20


def check_offer(offer: ModelOffer, *, job: str, public_key: Path | None) -> None:
    """Check what a hub says of a version before a byte of it is fetched.

    Raises
    ------
    ModelError
        If it is not signed with the job's key, is too large, or has a name that is none.
    PlatformError
        If the public key cannot be used.
    """
    whose = f"version {offer.version}"
    if public_key is None:
        raise ModelError(
            f"{whose}: cannot be checked, as this LocalController has no key; give the hub's with --public-key"
        )
    if not is_signed(public_key, offer.signed_text(job), offer.signature):
        raise ModelError(
            f"{whose}: its signature is not that of job {job!r} and key {public_key}; expected the hub's own, so "
            f"it is not used"
        )
    if offer.file.startswith("."):
        raise ModelError(f"{whose}: the file's name is {offer.file!r}, expected one that does not begin with a dot")
    if offer.size > MOST_MODEL_BYTES:
        raise ModelError(f"{whose}: has {offer.size} bytes, expected at most {MOST_MODEL_BYTES}")


def fetch(offer: ModelOffer, *, hub: HubClient, part: Path, go_on: Callable[[], bool]) -> None:
    """Fetch a version's file to `part`, from where an earlier attempt ended, and check it.

    Parameters
    ----------
    offer
        What `check_offer` let pass.
    hub
        Where it is.
    part
        Where it goes; what is there is the beginning of it.
    go_on
        Is asked at each piece; with False the download ends, and what came stays for the next attempt.

    Raises
    ------
    ModelError
        If it is not what was offered; then nothing of it is left.
    TemporaryError
        If the hub is away, the connection ends, or `go_on` says so.
    """
    have = part.stat().st_size if part.exists() else 0
    if have > offer.size:
        part.unlink()
        have = 0
    if have < offer.size:
        _check_space(part.parent, offer.size - have)
        try:
            _download(offer, hub, part, have, go_on)
        except RefusedRequestError as error:
            if error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
                raise TemporaryError(f"version {offer.version}: the hub has less than {have} bytes of it") from error
            raise
    found = sha256_of(part)
    if found != offer.sha256:
        part.unlink()
        raise ModelError(
            f"version {offer.version}: what was fetched has the SHA-256 {found}, expected {offer.sha256}; it was "
            f"damaged or changed, and is not used"
        )


def _check_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ModelError(f"{folder}: the disk has {free} bytes left, and a model needs {wanted} more; free some space")


def _download(offer: ModelOffer, hub: HubClient, part: Path, have: int, go_on: Callable[[], bool]) -> None:
    with hub.model_file(offer.version, begin=have) as download, part.open("r+b" if have else "wb") as file:
        file.truncate(download.begin)
        file.seek(download.begin)
        total = download.begin
        for chunk in download.chunks:
            total += len(chunk)
            if total > offer.size:
                break
            file.write(chunk)
            if not go_on():
                raise TemporaryError(f"version {offer.version}: the download was interrupted at byte {total}")
    if total > offer.size:
        part.unlink()
        raise ModelError(f"version {offer.version}: the hub sends more than the {offer.size} bytes that it said")
    if total < offer.size:
        raise TemporaryError(f"version {offer.version}: the connection ended at byte {total} of {offer.size}")


def unpack(archive: Path, target: Path, *, whose: str) -> None:
    """Write a model's folder that came as a .zip; it may come from a stranger.

    Parameters
    ----------
    archive
        The .zip, with the folder's content at its root.
    target
        The folder, which there is not yet; nothing is written outside it.
    whose
        What messages call the model.

    Raises
    ------
    ModelError
        If it is no such folder, or would grow beyond bounds.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            _check_entries(entries, archive.stat().st_size, target.parent, whose)
            target.mkdir(parents=True)
            for entry in entries:
                place = target.joinpath(*PurePosixPath(entry.filename).parts)
                if entry.is_dir():
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                # It gives no more bytes than the entry says, and checks their CRC.
                with opened.open(entry) as source, place.open("xb") as file:
                    shutil.copyfileobj(source, file, _COPY)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{whose}: is no .zip of a model's folder ({error}); it is not used") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ModelError(f"{whose}: a name stands twice in its .zip ({error.filename}); it is not used") from error


def _check_entries(entries: list[zipfile.ZipInfo], packed: int, folder: Path, whose: str) -> None:
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
            raise ModelError(f"{whose}: its .zip has the name {name[:200]!r}, which leads out of the folder")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ModelError(f"{whose}: its .zip holds {name[:200]!r}, which is no plain file")
    total = sum(entry.file_size for entry in entries)
    most = min(MOST_MODEL_BYTES, _MOST_GROWTH * packed + _FREE_GROWTH)
    if len(entries) > _MOST_FILES or total > most:
        raise ModelError(
            f"{whose}: its .zip would become {len(entries)} files of {total} bytes, expected at most {_MOST_FILES} of "
            f"{most}"
        )
    if not any(not entry.is_dir() for entry in entries):
        raise ModelError(f"{whose}: its .zip holds no file")
    _check_space(folder.parent, total)
