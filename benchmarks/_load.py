# SPDX-License-Identifier: Apache-2.0
"""Loads an HTTP server on this machine: connections that each ask again as soon as they are answered.

Raw sockets and one `epoll`, with the request's bytes made beforehand: a client costs about 20 µs a request, so that
the server and not the client is what is measured.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Load", "post", "run_load"]

_PATIENCE_SECONDS = 30
_END, _LENGTH, _CLOSES = b"\r\n\r\n", b"content-length:", b"connection: close"


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return the bytes of a POST request."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + _END + body


@dataclass
class Load:
    """What came back.

    Parameters
    ----------
    seconds
        From the first request to the last answer with status 200, which the connections wait for after their time.
    statuses
        Answers by HTTP status.
    latencies
        Seconds from request to answer, of answers with status 200.
    lost
        Requests that were sent and got no answer: the connection was cut.
    first
        The body of the first answer with status 200.
    """

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    lost: int = 0
    first: bytes = b""

    @property
    def rate(self) -> float:
        """Answers with status 200 a second."""
        return self.statuses[200] / self.seconds if self.seconds else 0.0


class _Connection:
    """One connection, and what its answer is so far."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.request, self.rest, self.answer = request, memoryview(b""), b""
        self.head = self.need = 0
        self.asked = 0.0

    def ask(self) -> None:
        self.answer, self.head, self.need, self.asked = b"", 0, 0, time.perf_counter()
        self.rest = memoryview(self.request)
        self.flush()

    def flush(self) -> None:
        try:
            self.rest = self.rest[self.sock.send(self.rest) :]
        except BlockingIOError:
            pass

    def take(self) -> bool:
        """Read what is there, and return whether the answer is whole.

        Raises
        ------
        ConnectionError
            If the connection is cut before.
        """
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionResetError
        self.answer += data
        if not self.need:
            end = self.answer.find(_END)
            if end < 0:
                return False
            self.head = end + len(_END)
            head = self.answer[:end].lower()
            place = head.find(_LENGTH)
            length = int(head[place + len(_LENGTH) :].partition(b"\r\n")[0]) if place >= 0 else 0
            self.need = self.head + length
        return len(self.answer) >= self.need

    @property
    def closes(self) -> bool:
        """Whether the server says that it closes the connection."""
        return _CLOSES in self.answer[: self.head].lower()


class _Loader:
    def __init__(self, address: tuple[str, int], *, seconds: float, until_cut: bool) -> None:
        self.load = Load()
        self._address, self._until_cut = address, until_cut
        self._poll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._begin_time = time.perf_counter()
        self._end = self._begin_time + seconds

    def run(self, requests: Sequence[bytes]) -> Load:
        for request in requests:
            self._begin(request)
        while self._open:
            events = self._poll.poll(_PATIENCE_SECONDS)
            if not events:
                self.load.lost += len(self._open)
                break
            for number, event in events:
                self._handle(self._open[number], event)
        self._poll.close()
        return self.load

    def _begin(self, request: bytes) -> None:
        connection = _Connection(self._address, request)
        self._open[connection.sock.fileno()] = connection
        self._poll.register(connection.sock, select.EPOLLIN)
        self._ask(connection)

    def _ask(self, connection: _Connection) -> None:
        connection.ask()
        if connection.rest:
            self._poll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)

    def _handle(self, connection: _Connection, event: int) -> None:
        try:
            if event & select.EPOLLOUT:
                connection.flush()
                if not connection.rest:
                    self._poll.modify(connection.sock, select.EPOLLIN)
            if event & ~select.EPOLLOUT and connection.take():
                self._answered(connection)
        except ConnectionError:
            self.load.lost += 1
            self._close(connection)

    def _answered(self, connection: _Connection) -> None:
        now, status = time.perf_counter(), int(connection.answer[9:12])
        self.load.statuses[status] += 1
        if status == 200:
            self.load.seconds = now - self._begin_time
            self.load.latencies.append(now - connection.asked)
            self.load.first = self.load.first or connection.answer[connection.head :]
        if now >= self._end or connection.closes:
            self._close(connection)
        else:
            self._ask(connection)

    def _close(self, connection: _Connection) -> None:
        del self._open[connection.sock.fileno()]
        self._poll.unregister(connection.sock)
        connection.sock.close()
        if time.perf_counter() < self._end and not self._until_cut:
            self._begin(connection.request)


def run_load(address: tuple[str, int], requests: Sequence[bytes], *, seconds: float, until_cut: bool = False) -> Load:
    """Ask with one connection for each of `requests`, again and again.

    Parameters
    ----------
    address
        Host and port.
    requests
        The bytes that each connection sends.
    seconds
        For how long; answers that come later are waited for, and counted too.
    until_cut
        Whether a connection that the server closes is done; otherwise it is opened again.
    """
    return _Loader(address, seconds=seconds, until_cut=until_cut).run(requests)
