# SPDX-License-Identifier: Apache-2.0
"""HTTP to a deep model's service: one kept-alive connection pool, a deadline that holds, answers of bounded size."""

from __future__ import annotations

import asyncio
import json
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ModelError, TemporaryError
from .background_loop import run_in_background

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpAnswer", "HttpClient", "HttpOptions"]

_AT_ONCE = 16
_LARGEST_ANSWER = 64 * 2**20
_SHOWN = 300
_LATER = {408, 425, 429}
_CODINGS = "gzip, deflate"
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


@dataclass(frozen=True)
class HttpOptions:
    """How a service is reached.

    Parameters
    ----------
    token
        Bearer token.
    ca
        File of the CA that signed the service's certificate; by default the system's CAs.
    certificate, key
        This client's own certificate and key, where the service asks for one.
    http2
        Speak HTTP/2 where the service does, over TLS.
    at_once
        Requests under way at the same time at most; more wait within their deadline.
    largest_answer
        Bytes of an answer's body at most.
    """

    token: str | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    http2: bool = False
    at_once: int = _AT_ONCE
    largest_answer: int = _LARGEST_ANSWER


@dataclass(frozen=True)
class HttpAnswer:
    """A 200's headers, by their lower-case names, and body."""

    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON.

        Raises
        ------
        TemporaryError
            If it is none.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise TemporaryError(f"it answered {_excerpt(self.body)!r}, which is no JSON") from error


class HttpClient:
    """Asks one service; any number of threads may use it at once.

    Parameters
    ----------
    url
        Base URL, such as `https://models.example.org`.
    options
        How it is reached.

    Raises
    ------
    ModelError
        If a certificate file cannot be read, the token is no header's text, or HTTP/2 is asked for and not installed.
    """

    def __init__(self, url: str, options: HttpOptions | None = None) -> None:
        self.url, self._options = url.rstrip("/"), options or HttpOptions()
        _check(self._options)
        self._verify = _tls(self._options) if url.startswith("https") else False
        self._client: httpx.AsyncClient | None = None
        self._slots: asyncio.Semaphore | None = None

    def get(self, path: str, *, deadline: float) -> HttpAnswer:
        """Ask for a page; see `post`."""
        return self._ask("GET", path, b"", {}, deadline)

    def post(self, path: str, body: bytes, headers: Mapping[str, str], *, deadline: float) -> HttpAnswer:
        """Send a body and return the answer.

        Parameters
        ----------
        path
            From the base URL on.
        deadline
            Seconds for all of it, however slowly the service sends.

        Raises
        ------
        TemporaryError
            If there is no whole answer in time, or the service says that it is overloaded or broken.
        ModelError
            If the service refuses the request.
        """
        return self._ask("POST", path, body, headers, deadline)

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            run_in_background(client.aclose())

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str], deadline: float) -> HttpAnswer:
        if deadline <= 0:
            raise TemporaryError(f"{self.url}: not asked: its deadline of {deadline:.3g} s is over")
        return run_in_background(self._within(method, path, body, headers, deadline))

    async def _within(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> HttpAnswer:
        import httpx

        try:
            async with asyncio.timeout(deadline):
                try:
                    return await self._send(method, path, body, headers)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    # A kept-alive connection that the service had closed meanwhile; asking twice changes nothing there.
                    return await self._send(method, path, body, headers)
        except TimeoutError as error:
            raise TemporaryError(f"{self.url}: no whole answer within {deadline:.3g} s") from error
        except httpx.TransportError as error:
            raise TemporaryError(f"{self.url}: {_words(error)}") from error
        except httpx.InvalidURL as error:
            raise ModelError(f"{self.url}{path}: is no URL that can be asked ({error}); correct it") from error

    async def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> HttpAnswer:
        client, slots = self._opened()
        async with slots, client.stream(method, self.url + path, content=body or None, headers=dict(headers)) as answer:
            whole = await self._whole(answer)
            found = HttpAnswer({name.lower(): value for name, value in answer.headers.items()}, whole)
            self._refuse(answer.status_code, path, found)
            return found

    async def _whole(self, answer: httpx.Response) -> bytes:
        try:
            body = _Body(answer.headers.get("content-encoding", ""), self._options.largest_answer)
            async for part in answer.aiter_raw():
                body.add(part)
            return body.whole()
        except _BodyError as error:
            raise TemporaryError(f"{self.url}: {error}") from error

    def _opened(self) -> tuple[httpx.AsyncClient, asyncio.Semaphore]:
        """Return the connection pool; called on the loop's own thread alone."""
        import httpx

        if self._client is None or self._slots is None:
            token = self._options.token
            self._client = httpx.AsyncClient(
                http2=self._options.http2,
                verify=self._verify,
                timeout=None,  # noqa: S113 - one deadline for the whole exchange stands around it
                follow_redirects=False,
                trust_env=False,  # a proxy of the machine's is not asked what edges see
                headers={"accept-encoding": _CODINGS, **({"authorization": f"Bearer {token}"} if token else {})},
                limits=httpx.Limits(max_connections=self._options.at_once),
            )
            self._slots = asyncio.Semaphore(self._options.at_once)
        return self._client, self._slots

    def _refuse(self, status: int, path: str, answer: HttpAnswer) -> None:
        if status == 200:
            return
        said = f"{self.url}{path}: answered {status}: {_message(answer.body)}"
        if status >= 500 or status in _LATER:
            raise TemporaryError(said)
        hint = {
            401: "; give it a token that it knows",
            403: "; its token may not ask this model",
            404: "; check the model's name and version",
            413: "; send smaller samples, or raise its limit",
        }.get(status, "")
        if 300 <= status < 400:
            hint = f"; it redirects to {answer.headers.get('location', 'nowhere')[:_SHOWN]}, give that URL"
        raise ModelError(said + hint)


class _BodyError(Exception):
    """What is wrong with an answer's body, in words that follow the service's URL."""


class _Body:
    """An answer's body, of which never more than the limit is in memory, however well it was compressed."""

    def __init__(self, coding: str, limit: int) -> None:
        self._limit, self._size, self._parts = limit, 0, list[bytes]()
        known = coding.strip().lower()
        if known not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise _BodyError(f"its answer is compressed as {coding[:40]!r}, expected one of {_CODINGS}, or none")
        self._inflate = None if known in ("", "identity") else zlib.decompressobj(_GZIP_OR_ZLIB)

    def add(self, part: bytes) -> None:
        """Take what came."""
        if self._inflate is not None:
            try:
                part = self._inflate.decompress(part, self._limit + 1 - self._size)
            except zlib.error as error:
                raise _BodyError(f"its answer cannot be decompressed ({error})") from error
        self._size += len(part)
        if self._size > self._limit:
            raise _BodyError(f"it answers more than {self._limit} bytes, which no answer of a model has")
        self._parts.append(part)

    def whole(self) -> bytes:
        """Return it, once everything came."""
        if self._inflate is not None and self._size and not self._inflate.eof:
            raise _BodyError("its compressed answer is cut off")
        return b"".join(self._parts)


def _check(options: HttpOptions) -> None:
    token = options.token
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ModelError("the token for the deep model has characters that no HTTP header has; expected ASCII text")
    if options.key is not None and options.certificate is None:
        raise ModelError(f"{options.key}: is a key without its certificate; give HttpOptions(certificate=…) too")
    if options.http2 and find_spec("h2") is None:
        raise ModelError("HTTP/2 needs the package h2; pip install 'solar-corona[edge]', or leave http2 out")


def _tls(options: HttpOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(options.ca) if options.ca else None)
        if options.certificate is not None:
            context.load_cert_chain(options.certificate, options.key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(f) for f in (options.ca, options.certificate, options.key) if f is not None)
        raise ModelError(f"{files}: is no certificate that can be used ({error}); give PEM files") from error
    return context


def _words(error: BaseException) -> str:
    """Say what went wrong in the network's own words, certificates first."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {cause.verify_message}"
        cause = cause.__cause__ or cause.__context__
    return f"cannot be reached: {str(error) or type(error).__name__}"


def _message(body: bytes) -> str:
    """Return what a service says of its refusal: the protocols' `error`, else the beginning."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return _excerpt(body)
    said = document.get("error", document.get("detail")) if isinstance(document, dict) else None
    return str(said)[:_SHOWN] if said else _excerpt(body)


def _excerpt(body: bytes) -> str:
    text = " ".join(body[: 4 * _SHOWN].decode(errors="replace").split())
    return text[:_SHOWN] or "nothing"
