# SPDX-License-Identifier: Apache-2.0
"""How the service behaves: limits, batching, credentials."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...core.errors import SpecError

__all__ = ["ServiceOptions", "Tls", "read_tokens"]

_MOST_TOKEN_FILE_BYTES = 1 << 16
_SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What one service allows, and how it makes batches.

    Parameters
    ----------
    max_batch
        Samples in one batch, and so in one request.
    max_queue
        Samples of a model that wait or run; more are refused with 503.
    batch_wait
        Seconds for which a batch that is not full waits for more; 0 takes what came while the last one ran.
    max_body
        Bytes of one request's body, compressed or not.
    max_memory
        Bytes of all bodies that are in the service at once; more are refused with 503.
    max_json
        Bytes of JSON in a body: reading JSON stops everything else, binary tensors do not.
    max_pixels
        Pixels of one encoded image.
    max_connections
        Open connections; more are closed at once.
    timeout
        Seconds in which a request is answered, from its first byte on; one that asks for less gets less.
    drain_wait
        Seconds for which a service that was asked to stop still takes what is on its way.
    drain_timeout
        Seconds in which it finishes what it has taken.
    threads
        Threads that compute one model's batch.
    model_control
        Whether clients may load and unload models.
    tokens
        Bearer tokens that are let in; none lets everybody in.
    """

    max_batch: int = 16
    max_queue: int = 128
    batch_wait: float = 0.0
    max_body: int = 32 << 20
    max_memory: int = 256 << 20
    max_json: int = 4 << 20
    max_pixels: int = 1 << 24
    max_connections: int = 1024
    timeout: float = 30.0
    drain_wait: float = 1.0
    drain_timeout: float = 30.0
    threads: int = 1
    model_control: bool = False
    tokens: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name in ("batch_wait", "drain_wait") else 1e-3 if "time" in each.name else 1
            if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value < float("inf"):
                raise SpecError(f"{each.name.replace('_', '-')} is {value}, expected a number from {least:g}")
        if self.max_queue < self.max_batch:
            raise SpecError(
                f"max-queue is {self.max_queue} and max-batch {self.max_batch}: a batch has to fit into the queue; "
                f"expected max-queue from {self.max_batch}"
            )
        if self.max_memory < 2 * self.max_body:
            raise SpecError(
                f"max-memory is {self.max_memory} bytes and max-body {self.max_body}; expected at least twice max-body"
            )


@dataclass(frozen=True)
class Tls:
    """The service's certificate, and the CA of the clients that are let in.

    Parameters
    ----------
    certificate, key
        PEM files.
    client_ca
        PEM file; with it, only clients that show a certificate of this CA are let in.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Raise SpecError if a file cannot be used."""
        for path in (self.certificate, self.key, self.client_ca):
            if path is not None and not path.is_file():
                raise SpecError(f"{path}: there is no such file; expected a PEM file")
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except (OSError, ValueError) as error:
            raise SpecError(
                f"{self.certificate}, {self.key}: cannot be used for TLS ({error}); "
                f"expected a certificate and its key, both PEM"
            ) from error

    def for_uvicorn(self) -> dict[str, Any]:
        """Return it as uvicorn's options."""
        return {
            "ssl_certfile": str(self.certificate),
            "ssl_keyfile": str(self.key),
            "ssl_ca_certs": None if self.client_ca is None else str(self.client_ca),
            "ssl_cert_reqs": ssl.CERT_NONE if self.client_ca is None else ssl.CERT_REQUIRED,
        }


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """Return the bearer tokens in a file, one a line, so that an old and a new one can be let in for a while.

    Raises
    ------
    SpecError
        If it cannot be read, or has no token, or one that is short enough to be guessed.
    """
    try:
        if path.stat().st_size > _MOST_TOKEN_FILE_BYTES:
            raise SpecError(f"{path}: is larger than a file of tokens; expected one token a line")
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); expected a file with one token a line") from error
    tokens = tuple(line for line in lines if line)
    if not tokens or min(map(len, tokens)) < _SHORTEST_TOKEN:
        raise SpecError(
            f"{path}: has no token, or one shorter than {_SHORTEST_TOKEN} characters; "
            f"make one with: openssl rand -hex 32"
        )
    return tokens
