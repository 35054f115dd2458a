# SPDX-License-Identifier: Apache-2.0
"""Asks the hub, over HTTP; see `core.hub_messages` for what is said."""

from __future__ import annotations

import ipaddress
import json
import logging
import ssl
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from ..core.errors import RefusedRequestError, SpecError, TemporaryError
from ..core.hub_messages import Heartbeat, Label, Labels, Orders, Receipts
from ..lib.sample_records import FRAME_TYPE

__all__ = ["Download", "HubClient"]

_log = logging.getLogger(__name__)
_Message = TypeVar("_Message", bound=BaseModel)
_JSON = {"content-type": "application/json"}
_MOST_ANSWER = 4 << 20
_MOST_TOKEN = 4_096
_CONNECT_SECONDS, _SILENCE_SECONDS, _ANSWER_SECONDS = 10.0, 60.0, 120.0
_CHUNK = 1 << 18


class _Answer(NamedTuple):
    status: int
    headers: httpx.Headers
    body: bytes


class Download(NamedTuple):
    """A model's file that is under way, from its byte `begin` on."""

    begin: int
    chunks: Iterator[bytes]


class _TokenFile(httpx.Auth):
    """Reads the token each time, so that it can be replaced while the process runs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["authorization"] = f"Bearer {self._token()}"
        yield request

    def _token(self) -> str:
        try:
            with self._path.open("rb") as file:
                token = file.read(_MOST_TOKEN + 1).strip()
        except OSError as error:
            raise TemporaryError(
                f"{self._path}: cannot be read ({error.strerror}); expected a file with this edge's token for the hub"
            ) from error
        if not token or len(token) > _MOST_TOKEN or not token.isascii() or b"\n" in token:
            raise TemporaryError(f"{self._path}: is no token; expected one line that the hub gave this edge")
        return token.decode()


class HubClient:
    """The hub, as one edge sees it. Methods may be called from any thread.

    Parameters
    ----------
    url
        Where the hub is, `http://` or `https://`.
    token_file
        File of this edge's token.
    ca
        File of the CA that the hub's certificate is of; by default the machine's CAs.
    transport
        How requests travel; by default over the network.

    Raises
    ------
    SpecError
        If the URL or the CA cannot be used.
    """

    def __init__(
        self, url: str, *, token_file: Path, ca: Path | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SpecError(f"--hub is {url!r}, expected a URL such as https://hub.example:8443")
        if parts.scheme == "http" and not _is_here(parts.hostname):
            _log.warning("%s: is not encrypted, so that others on the way can read samples and the token", url)
        self.url = url
        self._client = httpx.Client(
            base_url=url,
            auth=_TokenFile(token_file),
            verify=_trust(ca),
            transport=transport,
            timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS),
            trust_env=False,  # a proxy of the machine's is not asked what edges see
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def send_samples(self, frame: bytes) -> Receipts:
        """Send a frame of samples."""
        answer = self._ask("POST", "/v1/samples", frame, {"content-type": FRAME_TYPE})
        return self._read(answer, Receipts)

    def send_labels(self, labels: Sequence[Label]) -> Receipts:
        """Send labels."""
        body = Labels(labels=list(labels)).model_dump_json().encode()
        return self._read(self._ask("POST", "/v1/labels", body, _JSON), Receipts)

    def send_observations(self, edge: str, observations: Sequence[bytes]) -> None:
        """Send observations, each as JSON."""
        body = b'{"edge":%s,"observations":[%s]}' % (json.dumps(edge).encode(), b",".join(observations))
        self._ask("POST", "/v1/observations", body, _JSON)

    def beat(self, heartbeat: Heartbeat) -> Orders:
        """Tell the edge's state, and learn what the hub wants."""
        answer = self._ask("POST", "/v1/heartbeat", heartbeat.model_dump_json().encode(), _JSON)
        return self._read(answer, Orders)

    def content_offset(self, id_: str) -> int:
        """Return how many bytes of a content the hub has."""
        try:
            return self._offset(self._ask("HEAD", f"/v1/contents/{id_}"))
        except RefusedRequestError as error:
            if error.status == 404:
                return 0
            raise

    def send_piece(self, id_: str, piece: bytes, *, offset: int, size: int) -> int:
        """Send part of a content of `size` bytes, and return from where the hub wants the next."""
        headers = {
            "content-type": "application/octet-stream",
            "upload-offset": str(offset),
            "upload-length": str(size),
        }
        return self._offset(self._ask("PATCH", f"/v1/contents/{id_}", piece, headers, fine=(409,)))

    @contextmanager
    def model_file(self, version: int, *, begin: int) -> Iterator[Download]:
        """Give a model's file from the byte `begin` on, or from its first one where the hub cannot do that."""
        path = f"/v1/models/{version}/file"
        headers = {"accept-encoding": "identity"}
        if begin:
            headers["range"] = f"bytes={begin}-"
        with self._errors(), self._client.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                raise self._refusal("GET", path, response.status_code, response.headers, _bounded(response))
            found = response.headers.get("content-range", "") if response.status_code == 206 else "bytes 0-"
            first = found.removeprefix("bytes ").partition("-")[0]
            if not first.isdecimal() or int(first) not in (0, begin):
                raise TemporaryError(f"{self.url}{path}: was asked from byte {begin} on and gives {found!r}")
            yield Download(int(first), response.iter_raw())  # as it comes, so that what came before a cut is kept

    def _ask(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        fine: Sequence[int] = (),
    ) -> _Answer:
        """Ask once.

        Raises
        ------
        RefusedRequestError
            If the hub answers with another status than 2xx or one of `fine`.
        TemporaryError
            If it cannot be reached or does not answer in time.
        """
        with self._errors(), self._client.stream(method, path, content=content, headers=headers) as response:
            body = _bounded(response)
            if not response.is_success and response.status_code not in fine:
                raise self._refusal(method, path, response.status_code, response.headers, body)
            return _Answer(response.status_code, response.headers, body)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise TemporaryError(f"{self.url}: did not answer in time; check the hub and the network") from error
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise TemporaryError(f"{self.url}: cannot be reached ({why}); check the hub and the network") from error

    def _refusal(self, method: str, path: str, status: int, headers: httpx.Headers, body: bytes) -> RefusedRequestError:
        hint = "check the token of this edge" if status in (401, 403) else "see the hub's log"
        if 300 <= status < 400:
            hint = f"it sends to {headers.get('location', '')[:200]!r}; give that address with --hub"
        said = body[:300].decode(errors="replace").strip()
        text = f"{self.url}: answers {method} {path} with {status}{f' ({said})' if said else ''}; {hint}"
        wait = headers.get("retry-after", "")
        return RefusedRequestError(status, text, retry_after=float(wait) if wait.isdecimal() else None)

    def _offset(self, answer: _Answer) -> int:
        value = answer.headers.get("upload-offset", "")
        if not value.isdecimal():
            raise TemporaryError(f"{self.url}: answers with Upload-Offset {value[:40]!r}, expected a whole number")
        return int(value)

    def _read(self, answer: _Answer, kind: type[_Message]) -> _Message:
        try:
            return kind.model_validate_json(answer.body)
        except ValidationError as error:
            raise TemporaryError(
                f"{self.url}: answers with what is no {kind.__name__} ({error.errors()[0]['msg']}); expected a hub of "
                f"this release"
            ) from error


def _bounded(response: httpx.Response) -> bytes:
    """Read an answer that is neither endless nor endlessly slow."""
    body, end = bytearray(), time.monotonic() + _ANSWER_SECONDS
    for chunk in response.iter_bytes(_CHUNK):
        body += chunk
        if len(body) > _MOST_ANSWER or time.monotonic() > end:
            raise TemporaryError(
                f"{response.url.host}: answers with more than {_MOST_ANSWER} bytes, or longer than "
                f"{_ANSWER_SECONDS:.0f} seconds; check that --hub is a hub's address"
            )
    return bytes(body)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trust(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as error:
        raise SpecError(f"{ca}: cannot be used as a CA ({error}); expected a PEM file") from error
