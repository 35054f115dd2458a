# SPDX-License-Identifier: Apache-2.0
"""The service as one ASGI application: who may ask, request ids, and which route answers."""

from __future__ import annotations

import hmac
import itertools
import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ...core.errors import RefusedRequestError
from .bodies import BodyBudget, BodyShare, ClientGoneError, read_body, too_large
from .control_routes import control_routes
from .express import Express
from .infer_route import InferRoute, is_infer
from .metrics import Metrics
from .models import ModelRepository, Opener
from .refusals import linger, send_refusal

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from .options import ServiceOptions

__all__ = ["Service"]

_OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")
_MOST_CONTROL_BYTES = 1 << 16
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_log = logging.getLogger(__name__)


class Service:
    """The whole service; make it on the event loop that runs it.

    Parameters
    ----------
    arguments
        The models; see `find_models`.
    options
        Limits and credentials.
    version
        The server's version, for its metadata.
    opener
        Loads a model.
    """

    def __init__(self, arguments: Sequence[str], *, options: ServiceOptions, version: str, opener: Opener) -> None:
        self.draining = False
        self.metrics = Metrics()
        self.models = ModelRepository(arguments, options=options, metrics=self.metrics, opener=opener)
        self.options = options
        self._budget = BodyBudget(options.max_memory)
        self._workers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="bodies")
        self._infer = InferRoute(
            self.models,
            options=options,
            metrics=self.metrics,
            budget=self._budget,
            workers=self._workers,
            draining=lambda: self.draining,
        )
        self._control = control_routes(
            self.models,
            self.metrics,
            version=version,
            model_control=options.model_control,
            ready=lambda: not self.draining,
        )
        self._tokens = tuple(b"Bearer " + token for token in options.tokens)
        self._prefix, self._numbers = f"{secrets.token_hex(4)}-".encode(), itertools.count(1)
        self.express = Express(
            self.models,
            options=options,
            budget=self._budget,
            lets_in=self._lets_in,
            draining=lambda: self.draining,
            request_id=self._request_id,
            refused=self._infer.note,
        )
        self.metrics.body_bytes = lambda: self._budget.used

    async def open(self) -> None:
        """Load the models."""
        await self.models.load_all()

    async def close(self) -> None:
        """Answer what is in flight, and free the models."""
        await self.models.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        request_id = self._request_id(headers)
        if not self._lets_in(headers) and scope["path"] not in _OPEN_PATHS:
            self.metrics.refused[401] += 1
            refusal = RefusedRequestError(401, "no valid token; expected the header Authorization: Bearer TOKEN")
            await self._refuse(receive, send, refusal, request_id)
        elif is_infer(scope):
            await self._infer(scope, receive, send, headers=headers, request_id=request_id)
        else:
            await self._answer_control(scope, receive, send, headers, request_id)

    def _request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return self._prefix + b"%d" % next(self._numbers)

    def _lets_in(self, headers: Mapping[bytes, bytes]) -> bool:
        if not self._tokens:
            return True
        given = headers.get(b"authorization", b"")
        # All are compared, so that the time tells nothing about which one is near.
        return sum(hmac.compare_digest(given, token) for token in self._tokens) > 0

    async def _answer_control(
        self, scope: Scope, receive: Receive, send: Send, headers: Mapping[bytes, bytes], request_id: bytes
    ) -> None:
        body, share = b"", BodyShare(self._budget)
        try:
            if b"content-length" in headers or b"transfer-encoding" in headers:
                if int(headers.get(b"content-length", 0)) > _MOST_CONTROL_BYTES:
                    raise too_large(_MOST_CONTROL_BYTES, f"content-length is {int(headers[b'content-length'])}")
                body = await read_body(receive, limit=_MOST_CONTROL_BYTES, share=share)
        except RefusedRequestError as refusal:
            await self._refuse(receive, send, refusal, request_id)
            return
        except ClientGoneError:
            return
        finally:
            share.release()
        await self._control(scope, _replayed(body, receive), _with_id(send, request_id))

    async def _refuse(self, receive: Receive, send: Send, refusal: RefusedRequestError, request_id: bytes) -> None:
        _log.info("refused: %s", refusal, extra={"request_id": request_id.decode("latin-1"), "status": refusal.status})
        headers = [(b"x-request-id", request_id), (b"connection", b"close")]
        await send_refusal(send, refusal, headers=headers, last=False)
        await linger(receive, send)


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_id(send: Send, request_id: bytes) -> Send:
    async def tagged(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id)]}
        await send(message)

    return tagged
