# SPDX-License-Identifier: Apache-2.0
"""The page on which people label, and what it asks.

What the model says is shown after a person answered, or as a hint on request: who sees a model's answer first tends to
agree with it (anchoring), and these labels are what models are judged by.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import case, exists, func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from ...core.errors import DatasetError, RefusedRequestError
from ..hub.accounts import Account
from ..hub.hub import Hub
from ..hub.labels import GivenLabel, LabelBook
from ..hub.requests import Labeller, TheHub, accounts_of, read_message
from ..tables import LabelEntry, Sample
from .desk import Desk, DeskThread, offer_of
from .showing import shown

__all__ = ["Labelling"]

SOURCE = "page"

_AHEAD = 4
_LEASE = 120.0
_MOST_LEFT_OUT = 60
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sample: str = Field(pattern=r"^[0-9a-f]{64}$")
    value: Any = None
    skipped: bool = False


class _Undo(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Labelling:
    """The labelling page, the callback of sources, and the thread of the desk; an extension of the hub.

    Parameters
    ----------
    hub
        What it works on.
    desk
        Who carries samples to the job's labelling source.
    every
        Seconds between two of its steps, where nothing calls for one.
    """

    def __init__(self, hub: Hub, desk: Desk, *, every: float = 5.0) -> None:
        self._desk, self._thread = desk, DeskThread(desk, every=every)
        self._leases = _Leases(hub)
        self.routers: Sequence[APIRouter] = (self._routes(),)

    def start(self) -> None:
        """Start the desk's thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._thread.stop()

    def _routes(self) -> APIRouter:
        router = APIRouter()
        self._add_what_is_read(router)
        self._add_what_is_said(router)

        @router.get("/label/{name}")
        def static(name: str) -> Response:
            if name not in _FILES:
                raise RefusedRequestError(404, "there is no such file")
            return Response(_file(name), media_type=_FILES[name], headers={"cache-control": "max-age=31536000"})

        return router

    def _add_what_is_read(self, router: APIRouter) -> None:
        leases = self._leases

        @router.get("/label")
        def page(request: Request, hub: TheHub) -> Response:
            return _page(request, hub)

        @router.get("/label/next")
        def upcoming(account: Labeller, hub: TheHub, left: Annotated[str, Query(max_length=5_000)] = "") -> Any:
            # Ids that were put off; a page that was open for long sends the latest of them.
            out = [each for each in left.split(",") if len(each) == 64][-_MOST_LEFT_OUT:]
            samples = hub.database.read(lambda session: leases.next_for(session, account.name, out))
            return {"samples": samples, "progress": _progress(hub, account)}

        @router.get("/label/samples/{name}")
        def content(name: str, account: Labeller, hub: TheHub) -> Response:
            del account
            row = _row(hub, name)
            try:
                view = shown(hub.samples.get(row.id), row.media_type)
            except DatasetError as error:
                raise RefusedRequestError(422, str(error)) from error
            # Opened by itself it is a file and no page: nothing in it runs in a browser.
            headers = {"x-shown-as": view.kind, "content-disposition": "attachment"}
            return Response(view.body, media_type=view.media_type, headers=headers)

        @router.get("/label/samples/{name}/hint")
        def hint(name: str, account: Labeller, hub: TheHub) -> dict[str, Any]:
            del account
            return _guess(hub, _row(hub, name))

    def _add_what_is_said(self, router: APIRouter) -> None:
        leases, thread, desk = self._leases, self._thread, self._desk

        @router.post("/label/labels")
        async def label(request: Request, account: Labeller, hub: TheHub) -> dict[str, Any]:
            answer = await read_message(request, _Answer)
            told = await run_in_threadpool(_label, hub, account, answer)
            leases.free(answer.sample)
            thread.wake()
            return told

        @router.post("/label/undo")
        async def undo(request: Request, account: Labeller, hub: TheHub) -> dict[str, Any]:
            await read_message(request, _Undo)
            sample = await run_in_threadpool(LabelBook(hub).undo, source=SOURCE, by=account.name)
            return {"sample": sample, "progress": await run_in_threadpool(_progress, hub, account)}

        @router.post("/v1/labelling/callback", status_code=204)
        def called(request: Request) -> None:
            secret = accounts_of(request).webhook_secret(desk.name)
            if not hmac.compare_digest(request.headers.get("x-webhook-secret", "").encode(), secret.encode()):
                raise RefusedRequestError(401, "this call has not the secret that the labelling source was given")
            # What it says is not looked at: the labels are fetched from where they are.
            thread.wake()


class _Leases:
    """Who looks at what just now, so that two people are not shown the same where one is enough."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self._lock = hub, threading.Lock()
        self._held: dict[str, tuple[str, float]] = {}

    def next_for(self, session: Session, person: str, left_out: Sequence[str]) -> list[dict[str, Any]]:
        """Return what a person labels next: conflicts, then what somebody labelled, then the queue."""
        now = self._hub.clock()
        with self._lock:
            self._held = {name: held for name, held in self._held.items() if held[1] > now}
            alone = self._hub.settings.agreement == 1
            others = [name for name, (holder, _) in self._held.items() if holder != person and alone]
        mine = exists().where(LabelEntry.sample == Sample.id, LabelEntry.by == person)
        begun = exists().where(LabelEntry.sample == Sample.id, LabelEntry.confidence.is_(None))
        offered = (Sample.state == "out") & (Sample.source == SOURCE)
        queue = case((Sample.state == "conflict", 0), (offered & begun, 1), (offered, 2), else_=3)
        query = (
            select(Sample)
            .where(offered | Sample.state.in_(("conflict", "waiting")), ~mine, Sample.id.not_in([*others, *left_out]))
            .order_by(queue, Sample.task, Sample.hardness.desc().nulls_last(), Sample.id)
            .limit(_AHEAD)
        )
        rows = list(session.scalars(query))
        with self._lock:
            # One is looked at, and one is shown at once after it.
            self._held |= {row.id: (person, now + _LEASE) for row in rows[:2]}
        return [{"id": row.id, "edge": row.edge, "second": row.state == "conflict"} for row in rows]

    def free(self, name: str) -> None:
        """Give a sample back."""
        with self._lock:
            self._held.pop(name, None)


def _label(hub: Hub, account: Account, answer: _Answer) -> dict[str, Any]:
    given = GivenLabel(
        sample=answer.sample,
        source=SOURCE,
        by=account.name,
        value=answer.value,
        skipped=answer.skipped,
        at=hub.clock(),
    )
    row = _row(hub, answer.sample)
    (receipt,) = LabelBook(hub).put([given])
    if receipt.outcome == "refused":
        raise RefusedRequestError(422, receipt.reason)
    told = _guess(hub, row)
    return {"state": _row(hub, answer.sample).state, **told, "progress": _progress(hub, account)}


def _row(hub: Hub, name: str) -> Sample:
    row = hub.database.read(lambda session: session.get(Sample, name))
    if row is None:
        raise RefusedRequestError(404, "this sample is not here any more; go on with the next")
    return row


def _guess(hub: Hub, row: Sample) -> dict[str, Any]:
    guess = offer_of(hub, row).guess
    names = LabelBook(hub).space.names()
    said = names[guess] if isinstance(guess, int) and guess < len(names) else (None if guess is None else str(guess))
    return {"guess": said, "confidence": row.confidence}


def _progress(hub: Hub, account: Account) -> dict[str, int]:
    def work(session: Session) -> dict[str, int]:
        rows = session.execute(select(Sample.state, func.count()).group_by(Sample.state))
        counts = {row[0]: int(row[1]) for row in rows}
        mine = select(func.count()).where(LabelEntry.source == SOURCE, LabelEntry.by == account.name)
        return {
            "labelled": counts.get("labelled", 0),
            "open": counts.get("waiting", 0) + counts.get("out", 0),
            "conflict": counts.get("conflict", 0),
            "skipped": counts.get("skipped", 0),
            "mine": session.scalar(mine) or 0,
        }

    return hub.database.read(work)


def _page(request: Request, hub: Hub) -> Response:
    headers = {"content-security-policy": _POLICY}
    account = accounts_of(request).of_cookie(request.cookies.get("solar-corona-hub"), now=hub.clock())
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_file("page.html").decode())
    space = LabelBook(hub).space
    marks = {name: hashlib.sha256(_file(name)).hexdigest()[:12] for name in _FILES}
    text = template.render(
        job=hub.settings.job,
        account=account,
        kind=space.kind,
        classes=space.names(),
        agreement=hub.settings.agreement,
        marks=marks,
    )
    return HTMLResponse(text, 200 if account else 401, headers=headers)


def _file(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()
