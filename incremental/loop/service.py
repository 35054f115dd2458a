# SPDX-License-Identifier: Apache-2.0
"""The loop beside the hub: the thread that carries it on, and the routes that tell of it and steer it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from ...core.errors import SolarCoronaError
from ..hub.hub import Hub
from ..hub.requests import Admin, Labeller, TheHub, read_message
from .machine import Loop
from .report import report_page, status_page
from .status import LoopStatus, read_status

__all__ = ["LoopService"]

_log = logging.getLogger(__name__)
_EVERY, _AFTER_TROUBLE = 0.5, 5.0
_ENDS_WITHIN = 30.0
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid")
    why: str = Field(default="", max_length=1_000)


class LoopService:
    """An extension of the hub's application; see `hub.app.Extension`.

    Parameters
    ----------
    hub
        What it works on.
    loop
        What is carried on.
    labelling
        Returns what is wrong with the labelling source; empty if all is well.
    labels_come
        Whether labels come without a script on any edge.
    """

    def __init__(self, hub: Hub, loop: Loop, *, labelling: Callable[[], str], labels_come: bool) -> None:
        self._hub, self._loop, self._labelling, self._labels_come = hub, loop, labelling, labels_come
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="solar-corona-loop", daemon=True)
        self.routers: Sequence[APIRouter] = (self._routes(),)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and what trains or evaluates; the next start begins that anew."""
        self._end.set()
        self._thread.join(timeout=_ENDS_WITHIN)
        try:
            self._loop.leave()
        except SolarCoronaError as error:
            _log.warning("what is under way could not be ended: %s", error)

    def status(self) -> LoopStatus:
        """Return where the loop stands."""
        return read_status(self._hub, self._loop.progress(), labelling=self._labelling(), labels_come=self._labels_come)

    def _run(self) -> None:
        said, phase = "", ""
        while not self._end.is_set():
            pause = _EVERY
            try:
                before, phase = phase, self._loop.step()
                # From one phase to the next there is nothing to wait for.
                pause = 0.0 if phase != before else _EVERY
                said = ""
            except SolarCoronaError as error:
                if str(error) != said:
                    said = str(error)
                    _log.warning("the loop has to wait: %s", said)
                pause = _AFTER_TROUBLE
            except Exception:  # noqa: BLE001 - a user's detector may raise anything; the hub goes on taking samples in
                _log.exception("the loop has to wait")
                pause = _AFTER_TROUBLE
            self._end.wait(pause)

    def _routes(self) -> APIRouter:
        router = APIRouter()

        @router.get("/v1/status")
        def status(admin: Admin) -> LoopStatus:
            del admin
            return self.status()

        @router.post("/v1/loop/{command}")
        async def steer(command: str, request: Request, admin: Admin) -> dict[str, str]:
            del admin
            message = await read_message(request, _Command)
            said = await run_in_threadpool(self._loop.commands.carry_out, command, message.why)
            return {"said": said}

        @router.get("/report/{version}")
        def report(version: int, account: Labeller, hub: TheHub) -> HTMLResponse:
            del account
            return HTMLResponse(report_page(hub, version), headers={"content-security-policy": _POLICY})

        @router.get("/hub")
        def page(admin: Admin) -> HTMLResponse:
            del admin
            return HTMLResponse(status_page(self.status()), headers={"content-security-policy": _POLICY})

        return router
