# SPDX-License-Identifier: Apache-2.0
"""Records in a file, with their SHA-256 behind them: read back whole, or not at all."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from ..core.errors import WireError
from ..core.files import write_bytes_atomic
from . import wire
from .records import configs_in

__all__ = ["load_sealed", "read_sealed", "write_sealed"]

log = logging.getLogger(__name__)
_DIGEST = hashlib.sha256().digest_size


def write_sealed(path: Path, record: RecordDict) -> None:
    """Write `record` into a file, in place of what was there; raise `PlatformError` if that cannot be."""
    parts = [part["data"] for part in configs_in(wire.pack(record)).values()]
    payload = b"".join(part for part in parts if isinstance(part, bytes))
    write_bytes_atomic(path, payload + hashlib.sha256(payload).digest())


def read_sealed(path: Path) -> RecordDict:
    """Return what `write_sealed` wrote.

    Raises
    ------
    OSError
        If the file cannot be read.
    WireError
        If it is damaged.
    """
    data = path.read_bytes()
    payload, seal = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(payload).digest() != seal:
        raise WireError("its SHA-256 is another")
    return wire.unpack(RecordDict({"solar-corona-0": ConfigRecord({"part": 0, "parts": 1, "data": payload})}))


def load_sealed(path: Path | None, what: str) -> RecordDict | None:
    """Return what a process before this one kept in a file; None if there is nothing, or nothing whole.

    `what` is what then begins anew, for the log.
    """
    if path is None:
        return None
    try:
        return read_sealed(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read (%s); %s begins anew", path, error.strerror, what)
    except WireError as error:
        log.warning("%s is damaged (%s); %s begins anew", path, error, what)
    return None
