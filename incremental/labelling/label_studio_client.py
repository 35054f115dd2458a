# SPDX-License-Identifier: Apache-2.0
"""Label Studio's REST interface: a token of either kind, bounded retries, errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import stamina

from ...core.errors import DatasetError, SpecError, TemporaryError

__all__ = ["Client", "UserError"]

_SECONDS = 30.0
_ATTEMPTS = 3
_LARGEST_ANSWER = 256 << 20


class UserError(TemporaryError):
    """Label Studio refuses this user; it is tried again, for somebody may give the rights back."""


class Client:
    """Asks one Label Studio.

    Parameters
    ----------
    url
        Its address.
    token_file
        File with the token, read anew when it is refused: it may have been replaced.
    """

    def __init__(self, url: str, token_file: Path) -> None:
        self.url, self._file = url.rstrip("/"), token_file
        self._header = ""
        self._http = httpx.Client(base_url=self.url, timeout=_SECONDS, follow_redirects=False)
        _read_token(token_file)

    def get(self, path: str, query: Mapping[str, Any], *, missing: Any = None) -> Any:
        """Return what a path answers; `missing` where it is not there and that is given."""
        return self._asked("GET", path, params=query, missing=missing)

    def post(self, path: str, value: Any) -> Any:
        """Send a value, and return the answer."""
        return self._asked("POST", path, value=value)

    def delete(self, path: str) -> None:
        """Delete what is at a path; nothing happens if it is not there."""
        self._asked("DELETE", path, missing={})

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _asked(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, value: Any = None, missing: Any = None
    ) -> Any:
        for attempt in stamina.retry_context(on=_may_pass, attempts=_ATTEMPTS, wait_initial=0.2, wait_max=2.0):
            with attempt:
                answer = self._sent(method, path, params, value)
                if answer.status_code == 401:
                    self._header = ""  # the token was replaced, or its session is over
                    answer = self._sent(method, path, params, value)
                return self._checked(answer, missing)
        raise AssertionError("unreachable: the loop returns or raises")

    def _sent(self, method: str, path: str, params: Mapping[str, Any] | None, value: Any) -> httpx.Response:
        headers = {"authorization": self._header or self._authorized()}
        try:
            return self._http.request(method, path, params=params, json=value, headers=headers)
        except httpx.HTTPError as error:
            raise TemporaryError(
                f"Label Studio at {self.url} cannot be reached ({type(error).__name__}: {error}); see that it runs"
            ) from error

    def _authorized(self) -> str:
        token = _read_token(self._file)
        if token.count(".") == 2:
            # A personal access token is exchanged for one that is good for minutes.
            try:
                answer = self._http.post("/api/token/refresh", json={"refresh": token})
                token = str(answer.json()["access"]) if answer.status_code == 200 else ""
            except (httpx.HTTPError, ValueError, KeyError) as error:
                raise TemporaryError(
                    f"Label Studio at {self.url} cannot be reached ({error}); see that it runs"
                ) from error
            self._header = f"Bearer {token}"
        else:
            self._header = f"Token {token}"
        return self._header

    def _checked(self, answer: httpx.Response, missing: Any) -> Any:
        status = answer.status_code
        if status in (401, 403):
            self._header = ""
            raise UserError(
                f"Label Studio at {self.url} refuses the token in {self._file} ({status}); make a new one in its "
                f"account settings and put it there: nothing is lost until then"
            )
        if status == 404 and missing is not None:
            return missing
        if status >= 500 or status in (408, 425, 429):
            raise TemporaryError(f"Label Studio at {self.url} answered {status}; it is tried again")
        if status >= 300:
            raise DatasetError(
                f"Label Studio at {self.url} refused {answer.request.url.path}: {status} {answer.text[:300]}"
            )
        if not answer.content:
            return {}
        if len(answer.content) > _LARGEST_ANSWER:
            raise TemporaryError(
                f"Label Studio at {self.url} answered with {len(answer.content)} bytes, which is too much"
            )
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError) as error:
            raise TemporaryError(
                f"what answers at {self.url} is no Label Studio; check labelling.options.url"
            ) from error


def _may_pass(error: Exception) -> bool:
    return isinstance(error, TemporaryError) and not isinstance(error, UserError)


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: Label Studio's token cannot be read ({error}); put it there") from error
    if not token or any(c.isspace() for c in token):
        raise SpecError(f"{path}: holds no token; expected one line of text")
    return token
