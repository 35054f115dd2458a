# SPDX-License-Identifier: Apache-2.0
"""Who asks: an edge or an administrator by a bearer token, a person on the page by a link and then a cookie."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...core.errors import RefusedRequestError, SpecError

__all__ = ["Account", "Accounts"]

_SESSION_SECONDS = 30 * 86_400
_SHORTEST = 16
_NAME = re.compile(r"[\w .@+-]{1,100}")


@dataclass(frozen=True)
class Account:
    """Who asks.

    Parameters
    ----------
    role
        `labeller` may label and nothing else.
    name
        The edge's or the person's.
    csrf
        What a page has to send along with each change; empty where a bearer token came, which no other site can send.
    """

    role: Literal["edge", "admin", "labeller"]
    name: str
    csrf: str = ""


class Accounts:
    """Tells who a token, a link or a cookie is from.

    A token is looked up by its SHA-256, so that how long that takes says nothing about any token. Sessions are signed
    and kept nowhere: they outlast a restart, and end when the administrator's token is replaced.

    Parameters
    ----------
    admin
        The administrator's token.
    edges
        Each edge's token.

    Raises
    ------
    SpecError
        If a token is short, or two are the same.
    """

    def __init__(self, admin: str, edges: Mapping[str, str]) -> None:
        given = [("admin", admin), *((f"edge {name}", token) for name, token in edges.items())]
        for owner, token in given:
            if len(token) < _SHORTEST:
                raise SpecError(f"the token of {owner} has {len(token)} characters; expected at least {_SHORTEST}")
        self._accounts = {_digest(token): Account("edge", name) for name, token in edges.items()}
        self._accounts[_digest(admin)] = Account("admin", "admin")
        if len(self._accounts) != len(given):
            raise SpecError("two edges, or an edge and the administrator, have the same token; give each its own")
        self._key = hmac.new(admin.encode(), b"solar-corona hub sessions", hashlib.sha256).digest()

    def of_bearer(self, header: str | None) -> Account | None:
        """Return whose token an `Authorization` header holds; None if there is no such header.

        Raises
        ------
        RefusedRequestError
            401 if it holds no token that is known.
        """
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        account = self._accounts.get(_digest(token.strip())) if scheme.lower() == "bearer" else None
        if account is None:
            raise RefusedRequestError(401, "the token is not known here; see that it is the one that the hub was given")
        return account

    def labeller_key(self, name: str) -> str:
        """Return what the link of a person holds, who may label under this name and do nothing else.

        Raises
        ------
        RefusedRequestError
            422 if it is no name.
        """
        if not _NAME.fullmatch(name):
            raise RefusedRequestError(422, f"{name[:100]!r} is no name; expected 1 to 100 letters, digits or ' .@+-_'")
        return f"{_coded(name)}.{self._signed('labeller', name)}"

    def open_session(self, key: str, *, name: str = "", now: float) -> str:
        """Return the cookie for whoever holds a link's key, or the administrator's token.

        Parameters
        ----------
        key
            What the link holds.
        name
            Under which name an administrator labels.
        now
            Seconds since 1970.

        Raises
        ------
        RefusedRequestError
            403 if the key is none.
        """
        account = self._accounts.get(_digest(key))
        if account is not None and account.role == "admin":
            return self._cookie("admin", name if _NAME.fullmatch(name) else "admin", now)
        coded, _, signature = key.partition(".")
        person = _decoded(coded)
        if person is None or not hmac.compare_digest(signature.encode(), self._signed("labeller", person).encode()):
            raise RefusedRequestError(403, "this link is not valid, or no longer; ask for a new one")
        return self._cookie("labeller", person, now)

    def of_cookie(self, cookie: str | None, *, now: float) -> Account | None:
        """Return whose session a cookie is; None if it is none, or over."""
        parts = (cookie or "").split(".")
        if len(parts) != 5:
            return None
        role, coded, until, nonce, signature = parts
        text = f"{role}.{coded}.{until}.{nonce}"
        if not hmac.compare_digest(signature.encode(), self._signed("session", text).encode()):
            return None
        name = _decoded(coded)
        if name is None or int(until) < now or role not in ("admin", "labeller"):
            return None
        return Account("admin" if role == "admin" else "labeller", name, csrf=self._signed("csrf", text))

    def webhook_secret(self, source: str) -> str:
        """Return what a labelling source sends along when it calls back."""
        return self._signed("webhook", source)

    def _cookie(self, role: str, name: str, now: float) -> str:
        text = f"{role}.{_coded(name)}.{int(now) + _SESSION_SECONDS}.{secrets.token_hex(8)}"
        return f"{text}.{self._signed('session', text)}"

    def _signed(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _coded(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decoded(coded: str) -> str | None:
    try:
        return urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode()
    except ValueError:
        return None
