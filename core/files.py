# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, their fingerprints, and copies of files that live elsewhere."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from .errors import PlatformError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["atomic_write", "local_copy", "local_path", "sha256_of", "shown", "write_bytes_atomic"]

# Each retry is told there; a script that configures no logging would have it on its terminal.
logging.getLogger("stamina").addHandler(logging.NullHandler())

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|[A-Za-z][A-Za-z0-9+.-]+::")
# A server that answers nothing for this long is taken for gone; a long download that flows is not.
_CONNECT_SECONDS, _SILENCE_SECONDS = 20.0, 60.0
_ATTEMPTS = 4


def _is_full(error: BaseException) -> bool:
    # Engines that write in C++ wrap the operating system's error and keep only its words.
    return (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error)


def _platform_error(path: Path, error: OSError) -> PlatformError:
    return PlatformError(
        f"{path}: cannot be written ({error.strerror or error}); choose a folder that this user may write"
    )


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; they promise nothing either way.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _sync_all(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _sync_all(child)
    _sync(path)


def _put_in_place(temporary: Path, path: Path) -> None:
    if not temporary.is_dir() and not path.is_dir():
        temporary.replace(path)
        return
    # A folder cannot replace a full one in a single step: the old one steps aside, and comes back if need be.
    aside = temporary.with_name(f"{temporary.name}.old")
    with suppress(FileNotFoundError):
        path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        with suppress(FileNotFoundError):
            aside.rename(path)
        raise
    _remove(aside)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`, and put what is written there in place of `path` at the end.

    Whoever reads `path` sees the old content or the new, never a part, also after a power cut. A folder may
    be written too; where it replaces another there is an instant with neither. Missing parent folders are
    made.

    Parameters
    ----------
    path
        The file or folder to write.

    Yields
    ------
    Path
        A path that does not exist yet, in the same folder and with the same ending.

    Raises
    ------
    PlatformError
        If the disk is full or the folder cannot be written. Then, and after any other error in the block, the
        temporary file is gone and `path` is as it was.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_write(folder / "state.json") as temporary:
    ...     _ = temporary.write_text("{}")
    >>> [file.name for file in folder.iterdir()]
    ['state.json']
    """
    path = Path(path).absolute()
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Tried before the block, which may take long.
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise _full_disk(path) if _is_full(error) else _platform_error(path, error) from error
    try:
        yield temporary
        try:
            _sync_all(temporary)
            _put_in_place(temporary, path)
            _sync(path.parent)
        except PermissionError as error:
            raise _platform_error(path, error) from error
    except Exception as error:
        if _is_full(error):
            raise _full_disk(path) from error
        raise
    finally:
        _remove(temporary)


def _full_disk(path: Path) -> PlatformError:
    return PlatformError(
        f"{path}: the disk is full, or a quota is reached; free some space in {path.parent}, or choose "
        f"another folder; what was there before is untouched",
    )


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to the file `path`, whole or not at all; raises as `atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, or of a folder, in hexadecimal.

    A folder's is that of its list of files as `sha256sum -z` prints it: SHA-256, two spaces, the path within
    the folder with `/`, a zero byte; sorted by path.
    """
    path = Path(path)
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    lines = (f"{sha256_of(files[name])}  {name}\0" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def shown(path: str | os.PathLike[str]) -> str:
    """Return `path` as messages may show it: a URL without its password and query, which may be secret.

    >>> shown("https://me:secret@host:8443/a.npz?signature=abc")
    'https://host:8443/a.npz'
    """
    text = os.fspath(path)
    if not _URL.match(text):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return text.partition("?")[0].rpartition("@")[2]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def local_path(path: str | os.PathLike[str]) -> Path | None:
    """Return where `path` is on this machine, a plain path or `file://`; None for any other URL."""
    text = os.fspath(path)
    if not _URL.match(text):
        return Path(text)
    if not text.startswith(("file://", "local://")):
        return None
    from fsspec.core import strip_protocol

    return Path(strip_protocol(text))


def _may_pass(error: Exception) -> bool:
    """Tell whether the same request may succeed in a moment."""
    from aiohttp import ClientError, ClientResponseError

    if isinstance(error, ClientResponseError):
        return error.status >= 500 or error.status in (408, 429)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) or _is_full(error):
        return False
    return isinstance(error, ClientError | TimeoutError | ConnectionError)


def _download(url: str, folder: Path, whole_folder: bool) -> Path:
    import fsspec
    from aiohttp import ClientTimeout

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
        options["client_kwargs"] = {"timeout": timeout}
    filesystem, root = fsspec.core.url_to_fs(url, **options)
    # Listings are remembered for the life of the process; the data may have been written since.
    filesystem.invalidate_cache()
    name = PurePosixPath(urlsplit(root).path if "://" in root else root).name or "copy"
    target = folder / name
    if not whole_folder:
        filesystem.get_file(root, str(target))
        return target
    found = sorted(filesystem.find(root))
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    base = PurePosixPath(root)
    inner = [PurePosixPath(file).relative_to(base) for file in found]
    if any(".." in part.parts for part in inner):
        raise PermissionError(errno.EPERM, "a name in it has '..', which leads out of the folder", url)
    places = [target.joinpath(part) for part in inner]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    filesystem.get(found, [str(place) for place in places])
    return target


@contextmanager
def local_copy(path: str | os.PathLike[str], *, folder: bool = False) -> Iterator[Path]:
    """Give a path on this machine to what `path` names; a copy, removed at the end, if it is elsewhere.

    Parameters
    ----------
    path
        A path, or a URL that fsspec opens: `file://`, `memory://`, `https://`, `s3://`.
    folder
        Whether `path` is a folder; all that is in it is copied.

    Raises
    ------
    FileNotFoundError
        If there is no such file, the server said 404, or nobody knows the kind of URL.
    PermissionError
        If the server refuses; it said 401 or 403.
    ModuleNotFoundError
        If a package for the kind of URL is missing.
    TemporaryError
        If the server cannot be reached or does not serve, also after some retries.
    PlatformError
        If the disk is too small for the copy.
    """
    here = local_path(path)
    if here is not None:
        if not here.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(here))
        yield here
        return
    with tempfile.TemporaryDirectory(prefix="solar-corona-") as temporary:
        yield _fetch(os.fspath(path), lambda url: _download(url, Path(temporary), folder), Path(temporary))


def _fetch(url: str, download: Callable[[str], Path], folder: Path) -> Path:
    import stamina
    from aiohttp import ClientResponseError

    try:
        for attempt in stamina.retry_context(on=_may_pass, attempts=_ATTEMPTS, wait_initial=0.2, wait_max=5.0):
            with attempt:
                return download(url)
    except ClientResponseError as error:
        if error.status in (401, 403):
            raise PermissionError(errno.EACCES, f"the server refuses: {error.status} {error.message}", url) from error
        if _may_pass(error):
            raise _out_of_reach(url, f"{error.status} {error.message}") from error
        raise FileNotFoundError(errno.ENOENT, f"the server says {error.status} {error.message}", url) from error
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except ValueError as error:
        # No such protocol, or no address that its library understands.
        raise FileNotFoundError(errno.ENOENT, str(error), url) from error
    except Exception as error:
        if _is_full(error):
            raise _full_disk(folder / "copy") from error
        # Each store's library has errors of its own, and none is to reach a script that only reads data.
        raise _out_of_reach(url, f"{type(error).__name__}: {error}") from error
    raise AssertionError("unreachable: the loop returns or raises")


def _out_of_reach(url: str, why: str) -> TemporaryError:
    return TemporaryError(
        f"{shown(url)}: cannot be fetched ({why.replace(url, shown(url))}); check the address, the network "
        f"and the credentials, then start again"
    )
