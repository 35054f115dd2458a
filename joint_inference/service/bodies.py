# SPDX-License-Identifier: Apache-2.0
"""Reads a request's body, and no more of it than is allowed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ...core.errors import RefusedRequestError

if TYPE_CHECKING:
    from starlette.types import Receive

__all__ = ["BodyBudget", "BodyShare", "ClientGoneError", "compressed", "decompressed", "read_body", "stated_length"]

_CONTENT_TYPES = ("", "application/json", "application/octet-stream", "application/x-www-form-urlencoded")
_SHORTEST_COMPRESSED = 1024
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_GZIP = 16 + zlib.MAX_WBITS


class BodyBudget:
    """How many bytes of requests are in memory, and how many may be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class BodyShare:
    """What one request holds of the budget."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget, self._size = budget, 0

    def grow_to(self, size: int) -> None:
        """Hold at least so many bytes.

        Raises
        ------
        RefusedRequestError
            With status 503, if there is no room for them now.
        """
        budget, more = self._budget, size - self._size
        if more <= 0:
            return
        if budget.used + more > budget.limit:
            raise RefusedRequestError(
                503, f"requests already hold {budget.used} of {budget.limit} bytes; try again later", retry_after=1
            )
        budget.used += more
        self._size = size

    def release(self) -> None:
        """Give everything back."""
        self._budget.used -= self._size
        self._size = 0


class ClientGoneError(Exception):
    """The client has closed its connection; nobody waits for an answer."""


def stated_length(headers: Mapping[bytes, bytes], limit: int) -> int | None:
    """Return the body's length as the headers say it, None if they do not; nothing of it is read yet.

    Raises
    ------
    RefusedRequestError
        With status 413 if it is above `limit`, 415 if the body is of a kind that is not read.
    """
    length = headers.get(b"content-length")
    if length is not None and int(length) > limit:  # the HTTP parser lets only digits through
        raise too_large(limit, f"content-length is {int(length)}")
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if kind not in _CONTENT_TYPES:
        raise RefusedRequestError(
            415, f"content-type is {kind[:80]!r}, expected application/json or application/octet-stream"
        )
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding not in (b"identity", b"gzip", b"deflate"):
        raise RefusedRequestError(
            415, f"content-encoding is {coding.decode('latin-1')[:40]!r}, expected gzip, deflate or none"
        )
    return None if length is None else int(length)


def too_large(limit: int, what: str) -> RefusedRequestError:
    """Return the refusal of a body above the limit."""
    return RefusedRequestError(413, f"the body is too large: {what}, expected at most {limit} bytes")


async def read_body(receive: Receive, *, limit: int, share: BodyShare) -> bytes:
    """Return a body, which is cut off at the limit; the connection sees to it that it comes in time.

    Parameters
    ----------
    receive
        The ASGI callable, of which nothing is read yet.
    limit
        Bytes of the body.
    share
        Grows with what comes.

    Raises
    ------
    RefusedRequestError
        With status 413 if it is above the limit, 503 if there is no room for it.
    ClientGoneError
        If the client goes before the end.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit, f"it has more than {limit} bytes")
        share.grow_to(size)
        if not message.get("more_body", False):
            return b"".join([*parts, part]) if parts else part
        parts.append(part)


def decompressed(body: bytes, limit: int) -> bytes:
    """Return what a gzip or deflate body holds.

    Raises
    ------
    RefusedRequestError
        With status 413 if that is above the limit, 400 if it is damaged.
    """
    worker = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        plain = worker.decompress(body, limit + 1)
    except zlib.error as error:
        raise RefusedRequestError(400, f"the body cannot be decompressed ({error}); expected gzip or zlib") from error
    if len(plain) > limit:
        raise too_large(limit, f"decompressed it has more than {limit} bytes")
    if not worker.eof or worker.unused_data:
        raise RefusedRequestError(
            400, "the compressed body is cut off, or has more behind it; expected one gzip stream"
        )
    return plain


def compressed(body: bytes, accept: bytes) -> tuple[bytes, bytes]:
    """Return a body as a client that accepts such codings gets it, and the coding; empty for none.

    Examples
    --------
    >>> [compressed(bytes(4096), accept)[1] for accept in (b"gzip, deflate", b"gzip;q=0, deflate", b"br")]
    [b'gzip', b'deflate', b'']
    """
    if len(body) < _SHORTEST_COMPRESSED:
        return body, b""
    accepted = dict(_codings(accept))
    for coding, form in ((b"gzip", _GZIP), (b"deflate", zlib.MAX_WBITS)):
        if accepted.get(coding, 0.0) > 0:
            worker = zlib.compressobj(1, wbits=form)
            return worker.compress(body) + worker.flush(), coding
    return body, b""


def _codings(accept: bytes) -> Iterator[tuple[bytes, float]]:
    for part in accept.lower().split(b","):
        coding, _, weight = part.partition(b";")
        try:
            yield coding.strip(), float(weight.strip().removeprefix(b"q=") or 1)
        except ValueError:
            continue
