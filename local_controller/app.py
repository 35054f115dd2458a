# SPDX-License-Identifier: Apache-2.0
"""What a LocalController answers to the scripts of its node, over HTTP.

======  ==================  ==========================================================================
POST    /v1/samples         a frame of samples → `Receipts`; kept when it is answered, safe to repeat
POST    /v1/labels          `Labels` → `Receipts`
POST    /v1/observations    `Observations` → 204
POST    /v1/worker          `WorkerState` → 204
GET     /v1/status          `Status`
======  ==================  ==========================================================================
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from ..core.errors import InterruptedJobError, RefusedRequestError, SolarCoronaError, TemporaryError, WireError
from ..core.hub_messages import Labels, Observations, Receipts, WorkerState
from .controller import Controller, Status

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["make_app"]

_MOST_FRAME, _MOST_JSON = 64 << 20, 8 << 20
# Bytes of all requests at once; more are asked to come again.
_MOST_IN_FLIGHT = 192 << 20
_FULL_SECONDS = "5"


def make_app(controller: Controller, *, token: str | None = None) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    controller
        What it is about.
    token
        Bearer token that callers have to show; None where only this user can reach the socket.
    """
    app = FastAPI(title="Solar Corona LocalController", version=version("solar-corona"), docs_url=None, redoc_url=None)
    bodies = _Bodies()

    @app.post("/v1/samples")
    async def samples(request: Request) -> Receipts:
        async with bodies.of(request, _MOST_FRAME) as body:
            # Hashing frames is work of milliseconds; other requests need not wait for it.
            arrivals = await run_in_threadpool(controller.arrivals, body)
            kept = await asyncio.wrap_future(controller.outbox.add(arrivals.samples)) if arrivals.samples else []
        return Receipts(receipts=arrivals.receipts(kept))

    @app.post("/v1/labels")
    async def labels(request: Request) -> Receipts:
        async with bodies.of(request, _MOST_JSON) as body:
            told = Labels.model_validate_json(body).labels
        return Receipts(receipts=await asyncio.wrap_future(controller.outbox.add_labels(told)))

    @app.post("/v1/observations", status_code=204)
    async def observations(request: Request) -> None:
        async with bodies.of(request, _MOST_JSON) as body:
            told = Observations.model_validate_json(body)
        if told.edge != controller.options.edge:
            raise RefusedRequestError(422, f"observations of edge {told.edge!r}, expected {controller.options.edge!r}")
        await asyncio.wrap_future(controller.outbox.add_observations(told.observations))

    @app.post("/v1/worker", status_code=204)
    async def worker(request: Request) -> None:
        async with bodies.of(request, _MOST_JSON) as body:
            told = WorkerState.model_validate_json(body)
        await run_in_threadpool(controller.take_worker, told)

    @app.get("/v1/status")
    async def status() -> Status:
        return await run_in_threadpool(controller.status)

    _answer_errors(app)
    if token is not None:
        app.add_middleware(_TokenCheck, token=token)
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(ValidationError)
    async def not_understood(_: Request, error: ValidationError) -> Response:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        return _answer(422, f"{where}: {first['msg']}; see core/hub_messages.py for what is expected")

    @app.exception_handler(SolarCoronaError)
    async def refused(_: Request, error: SolarCoronaError) -> Response:
        if isinstance(error, RefusedRequestError):
            return _answer(error.status, str(error), retry_after="1" if error.status == 503 else None)
        if isinstance(error, WireError):
            return _answer(400, str(error))
        if isinstance(error, InterruptedJobError):
            return _answer(503, str(error), retry_after="1")
        if isinstance(error, TemporaryError):
            return _answer(507, str(error), retry_after=_FULL_SECONDS)
        return _answer(500, str(error))


def _answer(status: int, text: str, *, retry_after: str | None = None) -> Response:
    return JSONResponse({"error": text}, status, {} if retry_after is None else {"retry-after": retry_after})


class _Bodies:
    """Reads bodies, none beyond its bound, and all of them not beyond one."""

    def __init__(self) -> None:
        self._bytes = 0

    @asynccontextmanager
    async def of(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """Give a request's body; it counts until the block ends."""
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said) > most:
            raise _too_large(most)
        taken, parts = 0, []
        try:
            async for part in request.stream():
                taken += len(part)
                self._bytes += len(part)
                if taken > most:
                    raise _too_large(most)
                if self._bytes > _MOST_IN_FLIGHT:
                    raise RefusedRequestError(503, "too much comes at once; send it again in a moment")
                parts.append(part)
            yield b"".join(parts)
        finally:
            self._bytes -= taken


def _too_large(most: int) -> RefusedRequestError:
    return RefusedRequestError(413, f"the body is too large, expected at most {most} bytes; send it in parts")


class _TokenCheck:
    """Lets in only who shows the token; looked at before a byte of the body is read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._wanted = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            shown = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(shown, self._wanted):
                refusal = _answer(401, "the token is missing or wrong; it is in controller.token in the state folder")
                refusal.headers["www-authenticate"] = "Bearer"
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
