# SPDX-License-Identifier: Apache-2.0
"""A client's connection: uvicorn's, with bounds on what it lacks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .express import ExpressCycle
from .infer_route import GONE

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from .application import Service

__all__ = ["connection_class"]

_HEAD_SECONDS, _IDLE_SECONDS = 10.0, 75.0
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

    service: Service

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
        self._idle_since = time.monotonic()
        self._most_bytes = 2 * self.service.options.max_body + (1 << 20)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or close it where there are too many."""
        super().connection_made(transport)
        self._head_since = time.monotonic()
        if len(self.connections) > self.service.options.max_connections:
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
        """Begin a request; its scope is made where it is needed."""
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        """Hand the request on."""
        self._head_since, self._message_since = None, time.monotonic()
        idle = self.cycle is None or self.cycle.response_complete
        plain = self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1"
        if plain and idle and not self.pipeline:
            express = self.service.express.cycle(self, self.url, self.headers)
            if express is not None:
                self.cycle = cast("Any", express)
                return
        self._through_asgi()

    def on_message_complete(self) -> None:
        """Say that the request is whole."""
        self._message_since, self._message_bytes = None, 0
        cycle: object = self.cycle
        if isinstance(cycle, ExpressCycle) and not cycle.response_complete:
            if cycle.start():
                return
            self._through_asgi()
            self.cycle.body += cycle.body
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, if it is there already.

        As uvicorn's, but idle connections are found by `close_if_stuck`: a timer for each answer would cost more.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        self._idle_since = time.monotonic()

    def write_answer(self, status: int, head: bytes, body: bytes) -> None:
        """Write an answer of `ExpressCycle`, and close the connection if the service stops."""
        closes = self.service.draining
        dates = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        last = b"connection: close\r\n\r\n" if closes else b"\r\n"
        self.transport.write(b"".join((STATUS_LINE[status], *dates, head, last, body)))
        if closes:
            self.transport.close()
        self.on_response_complete()

    def _through_asgi(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        cast("dict[str, Any]", self.scope)[GONE] = self.transport.is_closing
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._unread_since = time.monotonic()

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._unread_since = None

    def close_if_stuck(self, now: float) -> None:
        """Close a connection that is idle, too slow with a request's head or body, or does not read its answer."""
        if self._unread_since is not None and now - self._unread_since > self.service.options.timeout:
            self.transport.abort()
        if self._head_since is not None and now - self._head_since > min(_HEAD_SECONDS, self.service.options.timeout):
            self._end(b"")
        elif self._message_since is not None and now - self._message_since > self.service.options.timeout:
            self._end(b"" if self.cycle.response_started else _SLOW_BODY)
        elif self._head_since is None and self._message_since is None and self.idle_for(now) > _IDLE_SECONDS:
            self.transport.close()

    def idle_for(self, now: float) -> float:
        """Return for how many seconds no request was there."""
        idle = self.cycle is None or self.cycle.response_complete
        return now - self._idle_since if idle else 0.0

    def _end(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def connection_class(its_service: Service) -> type[Connection]:
    """Return the class of a service's connections, which uvicorn makes by itself."""

    class ServiceConnection(Connection):
        service = its_service

    return ServiceConnection
