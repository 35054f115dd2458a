# SPDX-License-Identifier: Apache-2.0
"""The way from a script to its node's LocalController: HTTP on a unix socket, or on a port of this machine.

Python's own `http.client`, for a small edge has no other; it is imported with the first request, by a thread that
nobody waits for.
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...core.errors import ModelError, TemporaryError, WireError

if TYPE_CHECKING:
    from http.client import HTTPConnection

__all__ = ["ControllerClient"]

_SECONDS = 10.0
_LARGEST_ANSWER = 4 << 20
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LATER = (408, 425, 429)


class ControllerClient:
    """Asks one LocalController; one thread at a time.

    Parameters
    ----------
    address
        A unix socket's path, or `http://127.0.0.1:PORT`.
    timeout
        Seconds that an answer is waited for.

    Raises
    ------
    ModelError
        If the address is that of another machine: samples leave the node through its controller alone.
    """

    def __init__(self, address: str, *, timeout: float = _SECONDS) -> None:
        self._address, self._timeout = address, timeout
        self._connection: HTTPConnection | None = None
        if address.startswith("http://"):
            parts = urlsplit(address)
            if parts.hostname not in _LOOPBACK or parts.port is None:
                raise ModelError(f"controller is {address!r}; expected a socket's path or http://127.0.0.1:PORT")

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> Any:
        """Return what the controller answers, as JSON; None for an empty answer.

        Raises
        ------
        TemporaryError
            If it cannot be reached, does not answer, or has no room; the same request may succeed later.
        WireError
            If it refuses the request, or its answer is no JSON.
        """
        status, answer = self._exchange("POST", path, body, content_type)
        if status >= 500 or status in _LATER:
            raise TemporaryError(f"{self._address}: the LocalController says {status} {answer[:200]!r}; tried again")
        if status >= 300:
            raise WireError(f"{self._address}: the LocalController refuses {path}: {status} {answer[:200]!r}")
        try:
            return json.loads(answer) if answer else None
        except (ValueError, RecursionError) as error:
            raise WireError(f"{self._address}: the answer to {path} is no JSON") from error

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _exchange(self, method: str, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
        from http.client import HTTPException

        used_before = self._connection is not None
        try:
            connection = self._connected()
            connection.request(method, path, body, {"Content-Type": content_type})
            response = connection.getresponse()
            answer = response.read(_LARGEST_ANSWER + 1)
        except (OSError, HTTPException) as error:
            self.close()
            if used_before and isinstance(error, ConnectionError):
                # The controller closed it while nobody asked, or was started anew; all requests may be repeated.
                return self._exchange(method, path, body, content_type)
            raise TemporaryError(
                f"{self._address}: the LocalController does not answer ({type(error).__name__}: {error}); tried again"
            ) from error
        if len(answer) > _LARGEST_ANSWER or response.will_close:
            self.close()
        if len(answer) > _LARGEST_ANSWER:
            raise WireError(f"{self._address}: the answer to {path} has more than {_LARGEST_ANSWER} bytes")
        return response.status, answer

    def _connected(self) -> HTTPConnection:
        if self._connection is None:
            from http.client import HTTPConnection

            if self._address.startswith("http://"):
                parts = urlsplit(self._address)
                self._connection = HTTPConnection(str(parts.hostname), parts.port, timeout=self._timeout)
            else:
                connection = HTTPConnection("localhost", timeout=self._timeout)
                connection.sock = self._unix_socket()
                self._connection = connection
        return self._connection

    def _unix_socket(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            found.settimeout(self._timeout)
            found.connect(self._address)
        except BaseException:
            found.close()
            raise
        return found
