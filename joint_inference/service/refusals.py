# SPDX-License-Identifier: Apache-2.0
"""Says no: cheaply, so that refusing never takes the time that answering needs."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive, Send

    from ...core.errors import RefusedRequestError

__all__ = ["Pacer", "linger", "send_refusal"]

_LINGER_SECONDS, _LINGER_BYTES = 1.0, 1 << 20
_LONGEST_RETRY_AFTER = 60


class Pacer:
    """Spreads refusals over time.

    A client that is refused asks again at once, and reading and refusing that costs the processor that the model
    needs. The first few refusals go out at once; beyond `rate` a second each one is held back, its connection unread,
    which slows its sender down.

    Parameters
    ----------
    rate
        Refusals a second that cost little enough.
    burst
        How many go out at once after a quiet time.
    longest
        Seconds for which one is held at most.
    """

    def __init__(self, rate: float = 30.0, burst: int = 20, longest: float = 4.0) -> None:
        self._step, self._slack, self._longest = 1 / rate, burst / rate, longest
        self._next = 0.0

    def delay(self) -> float:
        """Return for how many seconds the next refusal is held."""
        now = time.monotonic()
        self._next = min(max(self._next, now - self._slack) + self._step, now + self._longest)
        return max(0.0, self._next - now)


async def send_refusal(
    send: Send, refusal: RefusedRequestError, *, headers: list[tuple[bytes, bytes]], last: bool = True
) -> None:
    """Answer with an error in the protocol's form.

    Parameters
    ----------
    send
        The ASGI callable.
    refusal
        Status and message.
    headers
        Headers beside those of every refusal.
    last
        Whether the answer ends with this; otherwise an empty part has to follow.
    """
    body = json.dumps({"error": str(refusal)}).encode()
    found = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    if refusal.retry_after is not None:
        seconds = min(max(1, math.ceil(refusal.retry_after)), _LONGEST_RETRY_AFTER)
        found.append((b"retry-after", str(seconds).encode()))
    if refusal.status == 401:
        found.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": found})
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def linger(receive: Receive, send: Send) -> None:
    """End an answer whose request is not read: read on for a moment, since closing at once would take the answer back.

    A connection that is closed with bytes unread is reset, and the client loses what it has not read yet (RFC 9112,
    section 9.6).
    """
    size = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            more = True
            while more and size < _LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
