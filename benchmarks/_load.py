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
        For how long it was asked.
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
        return self.statuses[200] / self.seconds


class _Connection:
    __slots__ = ("asked", "buffer", "need", "request", "rest", "sock")

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.request, self.buffer, self.need, self.asked, self.rest = request, b"", 0, 0.0, memoryview(b"")

    def ask(self) -> bool:
        """Send the request; return whether a part of it is left over."""
        self.buffer, self.need, self.asked = b"", 0, time.perf_counter()
        self.rest = memoryview(self.request)
        return self.flush()

    def flush(self) -> bool:
        try:
            self.rest = self.rest[self.sock.send(self.rest) :]
        except BlockingIOError:
            pass
        return len(self.rest) > 0

    def take(self) -> bool | None:
        """Read what is there; return whether the answer is whole, None if the connection is cut."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return False
        except OSError:
            return None
        if not data:
            return None
        self.buffer += data
        if not self.need:
            end = self.buffer.find(_END)
            if end < 0:
                return False
            head = self.buffer[:end].lower()
            place = head.find(_LENGTH)
            length = int(head[place + len(_LENGTH) :].partition(b"\r\n")[0]) if place >= 0 else 0
            self.need = end + len(_END) + length
        return len(self.buffer) >= self.need


def run_load(address: tuple[str, int], requests: Sequence[bytes], *, seconds: float, until_cut: bool = False) -> Load:
    """Ask with one connection for each of `requests`, again and again.

    Parameters
    ----------
    address
        Host and port.
    requests
        The bytes that each connection sends.
    seconds
        For how long; answers that come later are waited for, and counted only as lost or not.
    until_cut
        Whether a connection that the server closes after an answer is done; else it is opened again.
    """
    load, poll = Load(), select.epoll()
    connections = {each.sock.fileno(): each for each in (_Connection(address, request) for request in requests)}
    for number in connections:
        poll.register(number, select.EPOLLIN)
    begin = time.perf_counter()
    end = begin + seconds
    for number, each in connections.items():
        if each.ask():
            poll.modify(number, select.EPOLLIN | select.EPOLLOUT)
    while connections:
        events = poll.poll(30)
        if not events:
            load.lost += len(connections)
            break
        for number, event in events:
            each = connections[number]
            if event & select.EPOLLOUT and not each.flush():
                poll.modify(number, select.EPOLLIN)
            if not event & ~select.EPOLLOUT:
                continue
            whole = each.take()
            if whole is False:
                continue
            now = time.perf_counter()
            closes = whole is None
            if whole is None:
                load.lost += 1
            else:
                status = int(each.buffer[9:12])
                closes = _CLOSES in each.buffer[: each.buffer.find(_END)].lower()
                if now < end:
                    load.statuses[status] += 1
                if status == 200:
                    load.latencies.append(now - each.asked)
                    load.first = load.first or each.buffer[each.buffer.find(_END) + len(_END) :]
            if closes or now >= end:
                poll.unregister(number)
                each.sock.close()
                del connections[number]
                if now >= end or until_cut:
                    continue
                each = _Connection(address, each.request)
                number = each.sock.fileno()
                connections[number] = each
                poll.register(number, select.EPOLLIN)
            if each.ask():
                poll.modify(number, select.EPOLLIN | select.EPOLLOUT)
    load.seconds = seconds
    poll.close()
    return load
