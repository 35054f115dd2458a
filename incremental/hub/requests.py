# SPDX-License-Identifier: Apache-2.0
"""What every route does first: tell who asks, and read what they send within bounds."""

from __future__ import annotations

import asyncio
import hmac
import json
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from ...core.errors import RefusedRequestError
from .accounts import Account, Accounts
from .hub import Hub

__all__ = ["COOKIE", "Admin", "FromEdge", "Labeller", "TheHub", "accounts_of", "read_body", "read_message"]

M = TypeVar("M", bound=BaseModel)

COOKIE = "solar-corona-hub"
_SAFE = {"GET", "HEAD", "OPTIONS"}
_BODY_SECONDS = 120.0
_LARGEST_MESSAGE = 8 << 20


def _hub_of(request: Request) -> Hub:
    hub: Hub = request.app.state.hub
    return hub


def accounts_of(request: Request) -> Accounts:
    """Return the accounts of the application that is asked."""
    accounts: Accounts = request.app.state.accounts
    return accounts


def _account_of(request: Request) -> Account | None:
    accounts = accounts_of(request)
    account = accounts.of_bearer(request.headers.get("authorization"))
    if account is not None:
        return account
    account = accounts.of_cookie(request.cookies.get(COOKIE), now=_hub_of(request).clock())
    if account is not None and request.method not in _SAFE:
        _check_same_site(request, account)
    return account


def _check_same_site(request: Request, account: Account) -> None:
    """Refuse a change that another site's page made this browser send."""
    origin = request.headers.get("origin")
    elsewhere = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    sent = request.headers.get("x-csrf-token", "")
    if elsewhere or not hmac.compare_digest(sent.encode(), account.csrf.encode()):
        raise RefusedRequestError(403, "this request did not come from our own page; reload the page and try again")


def _from_edge(request: Request) -> str:
    account = _account_of(request)
    if account is None:
        raise RefusedRequestError(401, "no token came; send 'Authorization: Bearer TOKEN' with the edge's token")
    if account.role != "edge":
        raise RefusedRequestError(403, "this takes an edge's token, and another came")
    return account.name


def _admin(request: Request) -> Account:
    account = _account_of(request)
    if account is None:
        raise RefusedRequestError(
            401, "no token came; send 'Authorization: Bearer TOKEN' with the administrator's token"
        )
    if account.role != "admin":
        raise RefusedRequestError(403, "this takes the administrator's token, and another came")
    return account


def _labeller(request: Request) -> Account:
    account = _account_of(request)
    if account is None:
        raise RefusedRequestError(401, "you are not logged in, or no longer; open your link again")
    if account.role == "edge":
        raise RefusedRequestError(403, "an edge's token labels nothing here; it sends labels to /v1/labels")
    return account


TheHub = Annotated[Hub, Depends(_hub_of)]
"""The hub of the application that is asked."""

FromEdge = Annotated[str, Depends(_from_edge)]
"""The name of the edge that asks; anybody else is refused."""

Admin = Annotated[Account, Depends(_admin)]
"""The administrator, by token or on a page; anybody else is refused."""

Labeller = Annotated[Account, Depends(_labeller)]
"""Somebody who may label; anybody else is refused."""


async def read_body(request: Request, most: int) -> bytes:
    """Return a request's body.

    Raises
    ------
    RefusedRequestError
        413 if it has more than `most` bytes, 408 if it does not come in time.
    """
    told = request.headers.get("content-length", "0")
    if not told.isdigit() or int(told) > most:
        raise RefusedRequestError(413, f"the request has {told[:20]} bytes; at most {most} are taken")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise RefusedRequestError(
                        413, f"the request has more than {most} bytes, which is the most that is taken"
                    )
    except TimeoutError as error:
        raise RefusedRequestError(408, f"the request was not whole after {_BODY_SECONDS:.0f} s") from error
    return bytes(body)


async def read_message(request: Request, kind: type[M]) -> M:
    """Return a request's JSON as the message that it has to be.

    Raises
    ------
    RefusedRequestError
        422 if it is none.
    """
    body = await read_body(request, _LARGEST_MESSAGE)
    try:
        message = kind.model_validate_json(body)
        # Neither numbers that are none nor too deep: all of it can be kept and sent on.
        json.dumps(message.model_dump(), allow_nan=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the request"
        raise RefusedRequestError(422, f"{place}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise RefusedRequestError(422, "the request holds a number that is none, or is nested too deep") from error
    return message
