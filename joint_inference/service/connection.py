# SPDX-License-Identifier: Apache-2.0
"""A client's connection: uvicorn's, with bounds on what it lacks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .infer_route import GONE

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from .options import ServiceOptions

__all__ = ["connection_class"]

_HEAD_SECONDS = 10.0
_MOST_HEAD_BYTES = 1 << 16


def _closing(status: bytes, message: bytes) -> bytes:
    body = b'{"error":"%b"}' % message
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


_FULL = _closing(b"503 Service Unavailable\r\nretry-after: 5", b"there are too many connections; try again later")
_SLOW_BODY = _closing(b"408 Request Timeout", b"the body did not come in time; send it faster, or less of it")
_LARGE_HEAD = _closing(b"431 Request Header Fields Too Large", b"the head is too large; expected up to 64 KiB")


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection whose headers, trailers and silences are bounded, and that tells when its client has gone.

    uvicorn bounds neither a request's head nor the time it takes: a client could fill the memory with headers, or hold
    a connection for ever with one byte a second.
    """

    options: ServiceOptions

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_since: float | None = None
        self._message_since: float | None = None
        self._message_bytes = 0
        self._unread_since: float | None = None
        self._most_bytes = 2 * self.options.max_body + (1 << 20)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or close it where there are too many."""
        super().connection_made(transport)
        self._head_since = time.monotonic()
        if len(self.connections) > self.options.max_connections:
            transport.write(_FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        if self._head_since is None and self._message_since is None:
            self._head_since = time.monotonic()
        self._message_bytes += len(data)
        super().data_received(data)
        if self._head_since is not None and self._message_bytes > _MOST_HEAD_BYTES:
            self._end(_LARGE_HEAD)
        elif self._message_bytes > self._most_bytes:
            self._end(b"")

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[GONE] = self.transport.is_closing

    def on_headers_complete(self) -> None:
        """Hand the request on."""
        self._head_since, self._message_since = None, time.monotonic()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Say that the request is whole."""
        self._message_since, self._message_bytes = None, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._unread_since = time.monotonic()

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._unread_since = None

    def close_if_stuck(self, now: float) -> None:
        """Close a connection that is too slow with a request's head or body, or does not read its answer."""
        if self._unread_since is not None and now - self._unread_since > self.options.timeout:
            self.transport.abort()
        if self._head_since is not None and now - self._head_since > min(_HEAD_SECONDS, self.options.timeout):
            self._end(b"")
        elif self._message_since is not None and now - self._message_since > self.options.timeout:
            self._end(b"" if self.cycle.response_started else _SLOW_BODY)

    def _end(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def connection_class(service_options: ServiceOptions) -> type[Connection]:
    """Return the class of a service's connections, which uvicorn makes by itself."""

    class ServiceConnection(Connection):
        options = service_options

    return ServiceConnection
