# SPDX-License-Identifier: Apache-2.0
"""Runs the service as a process: its socket, its signals, and an end in which nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from ...core.errors import PlatformError
from ...core.memory import give_back_freed_memory, share_one_heap
from .application import Service
from .connection import Connection, connection_class
from .options import ServiceOptions, Tls

if TYPE_CHECKING:
    from .models import Opener

__all__ = ["serve"]

_BACKLOG = 2048
_log = logging.getLogger(__name__)


def serve(
    models: Sequence[str],
    *,
    host: str,
    port: int,
    options: ServiceOptions,
    opener: Opener,
    tls: Tls | None = None,
    listening: Callable[[str], None] = lambda url: None,  # noqa: ARG005
) -> None:
    """Serve models until SIGTERM or Ctrl-C, then answer what is in flight and return.

    Parameters
    ----------
    models
        What to serve; see `find_models`.
    host, port
        Where to listen; port 0 takes a free one.
    options
        Limits and credentials.
    opener
        Loads a model.
    tls
        The certificate; None for plain HTTP.
    listening
        Gets the URL when all models are loaded and requests are taken.

    Raises
    ------
    SpecError
        If an option or a certificate is wrong, or two models have one name.
    ModelError
        If a model cannot be loaded.
    PlatformError
        If the port is in use or the address is not this machine's.
    """
    if tls is not None:
        tls.check()
    share_one_heap()
    with _bound(host, port) as bound, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(bound, models, options, opener, tls, listening))


async def _serve(
    bound: socket.socket,
    models: Sequence[str],
    options: ServiceOptions,
    opener: Opener,
    tls: Tls | None,
    listening: Callable[[str], None],
) -> None:
    service = Service(models, options=options, version=version("solar-corona"), opener=opener)
    try:
        await service.open()
        config = uvicorn.Config(
            service,
            http=connection_class(service),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(options.drain_timeout)),
            backlog=_BACKLOG,
            **({} if tls is None else tls.for_uvicorn()),
        )
        server = _Server(config, service, options)
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        server.listening = lambda: listening(f"{'http' if tls is None else 'https'}://{shown}:{port}")
        gc.collect()
        give_back_freed_memory()
        gc.freeze()  # what is loaded now stays, and need not be looked through again and again
        await server.serve([bound])
    finally:
        await service.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which ends without losing a request."""

    def __init__(self, config: uvicorn.Config, service: Service, options: ServiceOptions) -> None:
        super().__init__(config)
        self.listening: Callable[[], None] = lambda: None
        self._service, self._options = service, options
        service.metrics.connections = lambda: len(self.server_state.connections)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.close_if_stuck(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: requests that are on their way are taken and answered, each with `Connection: close`.

        Closing idle connections at once would lose requests that their clients have just sent, and closing the socket
        those of connections that wait to be accepted.
        """
        self._service.draining = True
        _log.info("stopping: answering what is in flight")
        until = time.monotonic() + self._options.drain_wait
        while self.server_state.connections and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)
        _log.info("stopped")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT; a second one stops without waiting."""
        before = {each: signal.signal(each, self._stop) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _stop(self, *_: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Bind before models are loaded, so that a port in use is said at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PlatformError(
            f"{host!r} is no address that can be listened on ({error}); expected such as 0.0.0.0"
        ) from error
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise PlatformError(f"port {port} of {host} {reason}; choose another with --port") from error
        yield bound
