# SPDX-License-Identifier: Apache-2.0
"""The hub as a web application, and the process that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import text
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...core.errors import DatasetError, PlatformError, RefusedRequestError, TemporaryError, WireError
from . import admin_routes, edge_routes, login_routes
from .accounts import Accounts
from .hub import Hub
from .ingest import Ingest
from .upkeep import Upkeep

__all__ = ["Extension", "create_app", "serve"]

_RETRY_AFTER = 5
_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Extension(Protocol):
    """Routes and threads beside the hub's own, such as the labelling page or the loop."""

    @property
    def routers(self) -> Sequence[APIRouter]:
        """Its routes; `hub.requests` has who asks them."""

    def start(self) -> None:
        """Start its threads."""

    def stop(self) -> None:
        """End them."""


def create_app(hub: Hub, accounts: Accounts, *, extensions: Sequence[Extension] = ()) -> FastAPI:
    """Return the hub's application.

    Parameters
    ----------
    hub
        What it works on; its caller closes it.
    accounts
        Who may ask.
    extensions
        Started and stopped with the application, in order.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        started: list[Extension] = []
        try:
            for extension in (Upkeep(hub), *extensions):
                await run_in_threadpool(extension.start)
                started.append(extension)
            yield
        finally:
            for extension in reversed(started):
                await run_in_threadpool(extension.stop)

    # The pages that FastAPI makes of itself load scripts from elsewhere.
    app = FastAPI(title="Solar Corona hub", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.hub, app.state.accounts, app.state.ingest = hub, accounts, Ingest(hub)
    app.add_middleware(_Headers)
    _add_errors(app)
    app.add_api_route("/v1/ready", _ready)
    for router in (edge_routes.router, admin_routes.router, login_routes.router):
        app.include_router(router)
    for extension in extensions:
        for router in extension.routers:
            app.include_router(router)
    return app


def serve(
    hub: Hub,
    accounts: Accounts,
    *,
    host: str,
    port: int,
    certificate: Path | None = None,
    key: Path | None = None,
    extensions: Sequence[Extension] = (),
) -> None:
    """Serve the hub until SIGTERM or SIGINT.

    Parameters
    ----------
    hub, accounts, extensions
        See `create_app`.
    host, port
        Where to listen.
    certificate, key
        Files for TLS; without them the hub speaks HTTP.
    """
    import uvicorn

    uvicorn.run(
        create_app(hub, accounts, extensions=extensions),
        host=host,
        port=port,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ws="none",
        access_log=False,  # a login link in it would be a key in it
        log_level="warning",
        server_header=False,
        limit_concurrency=1_000,
        timeout_graceful_shutdown=10,
    )


def _ready(request: Request) -> Response:
    hub: Hub = request.app.state.hub
    hub.database.read(lambda session: session.execute(text("SELECT 1")).all())
    return Response("ready\n", media_type="text/plain")


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, **headers: str) -> Callable[[Request, Exception], Response]:
        def handle(request: Request, error: Exception) -> Response:
            del request
            return JSONResponse({"error": str(error)}, status, headers=headers)

        return handle

    def refused(request: Request, error: Exception) -> Response:
        del request
        status, after = getattr(error, "status", 400), getattr(error, "retry_after", None)
        headers = {"retry-after": f"{after:.0f}"} if after is not None else {}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse({"error": str(error)}, status, headers=headers)

    def invalid(request: Request, error: Exception) -> Response:
        del request
        first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": "wrong"}
        place = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{place}: {first['msg']}"}, 422)

    app.add_exception_handler(RefusedRequestError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(WireError, answer(400))
    app.add_exception_handler(DatasetError, answer(422))
    app.add_exception_handler(TemporaryError, answer(503, **{"retry-after": str(_RETRY_AFTER)}))
    app.add_exception_handler(PlatformError, answer(507, **{"retry-after": str(_RETRY_AFTER)}))


class _Headers:
    """Adds what a browser has to be told with every answer, unless a page says its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_on if scope["type"] == "http" else send)
