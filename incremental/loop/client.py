# SPDX-License-Identifier: Apache-2.0
"""What an operator's command asks a hub that runs."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import TracebackType
from typing import Literal

import httpx
from pydantic import ValidationError

from ...core.errors import PlatformError, SpecError, TemporaryError
from .status import LoopStatus

__all__ = ["Command", "HubClient"]

Command = Literal["train", "pause", "resume", "rollback"]

_TIMEOUT = 10.0


class HubClient:
    """Asks a hub with the operator's token; closed at the end of its `with` block.

    Parameters
    ----------
    url
        The hub's, such as `https://127.0.0.1:8443`.
    token
        The operator's.
    ca
        The CA that signed its certificate.
    """

    def __init__(self, url: str, token: str, *, ca: Path | None = None) -> None:
        self._url, self._token = url, token
        verify = ssl.create_default_context(cafile=str(ca)) if ca is not None else True
        self._http = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=_TIMEOUT, verify=verify, trust_env=False
        )

    @classmethod
    def of(cls, address: str, token_file: Path, *, ca: Path | None = None) -> HubClient:
        """Return a client of the hub at HOST:PORT.

        Raises
        ------
        PlatformError
            If the token cannot be read.
        """
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise PlatformError(
                f"{token_file}: the operator's token cannot be read ({error.strerror}); `solar-corona run` makes it"
            ) from error
        return cls(f"{'https' if ca is not None else 'http'}://{address}", token, ca=ca)

    @property
    def page(self) -> str:
        """URL of the hub's pages, with what lets the operator in."""
        return f"{self._url}/login?key={self._token}"

    def status(self) -> LoopStatus | None:
        """Return where the loop stands; None while the hub does not answer."""
        try:
            answer = self._http.get("/v1/status")
            return LoopStatus.model_validate_json(answer.content) if answer.status_code == httpx.codes.OK else None
        except (httpx.HTTPError, ValidationError):
            return None

    def command(self, command: Command, why: str = "") -> str:
        """Tell the loop what to do, and return what it says.

        Raises
        ------
        SpecError
            If it cannot be done now; the message says why.
        TemporaryError
            If the hub does not answer.
        """
        try:
            answer = self._http.post(f"/v1/loop/{command}", json={"why": why})
        except httpx.HTTPError as error:
            raise TemporaryError(
                f"the hub at {self._url} does not answer ({error or type(error).__name__}); is the job running? "
                f"`solar-corona status` says"
            ) from error
        try:
            told = answer.json()
        except ValueError:
            told = {}
        if answer.is_error:
            raise SpecError(str(told.get("error") or f"the hub says {answer.status_code}"))
        return str(told.get("said", "done"))

    def __enter__(self) -> HubClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
