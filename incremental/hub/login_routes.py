# SPDX-License-Identifier: Apache-2.0
"""A person comes in by a link, as to Jupyter: its key becomes a cookie, and leaves the address."""

from __future__ import annotations

import html
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ...core.errors import RefusedRequestError
from .requests import COOKIE, Labeller, TheHub, accounts_of

__all__ = ["router"]

router = APIRouter()

_PLACES = {"label": "/label", "hub": "/hub"}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Not logged in</title>
<main><h1>Not logged in</h1><p>{text}</p></main></html>"""


@router.get("/login", name="login")
def login(
    request: Request,
    hub: TheHub,
    key: Annotated[str, Query(max_length=1_000)] = "",
    name: Annotated[str, Query(max_length=100)] = "",
    to: Annotated[str, Query(max_length=20)] = "label",
) -> Response:
    """Open a session for whoever has a link's key, and go on without the key."""
    try:
        cookie = accounts_of(request).open_session(key, name=name, now=hub.clock())
    except RefusedRequestError as error:
        return HTMLResponse(_PAGE.format(text=html.escape(str(error))), error.status)
    answer = RedirectResponse(_PLACES.get(to, "/label"), 303)
    answer.set_cookie(
        COOKIE, cookie, max_age=30 * 86_400, httponly=True, samesite="lax", secure=request.url.scheme == "https"
    )
    return answer


@router.post("/logout")
def logout(account: Labeller) -> Response:
    """Forget the session."""
    del account
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE)
    return answer
