# SPDX-License-Identifier: Apache-2.0
"""What `solar-corona local-controller` does: options checked, the socket opened, all run until it is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import PlatformError, SpecError

if TYPE_CHECKING:
    import uvicorn

    from .controller import ControllerOptions

__all__ = ["SOCKET", "TOKEN", "parse_options", "run_controller"]

SOCKET, TOKEN = "controller.sock", "controller.token"
"""Names in the state folder: the socket that scripts reach it by, and the token that they need for a port."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEAST_BYTES = 1 << 20
_LEAST_RATE = 1_000
_KEEP_ALIVE_SECONDS = 75
_DRAIN_SECONDS = 5
_log = logging.getLogger(__name__)


def parse_options(
    *,
    model: str | None = None,
    sha256: str | None = None,
    datasets: Sequence[str] = (),
    quiet_hours: str | None = None,
    **options: Any,
) -> ControllerOptions:
    """Return the options that a command line gives.

    Parameters
    ----------
    model
        `NAME=PATH`, or `NAME` where version 1 comes from the hub.
    sha256
        `NAME=SHA256` that version 1 must have.
    datasets
        `NAME=PATH` of each.
    quiet_hours
        Such as `08:00-18:00`.
    options
        The others of `ControllerOptions`.

    Raises
    ------
    SpecError
        If one is wrong.
    """
    from .controller import ControllerOptions
    from .quiet_hours import QuietHours

    for name in ("edge", "job"):
        _check_name(f"--{name}", options[name])
    if options["max_bytes"] < _LEAST_BYTES:
        raise SpecError(f"--max-bytes is {options['max_bytes']}, expected at least {_LEAST_BYTES}")
    if options["max_rate"] is not None and options["max_rate"] < _LEAST_RATE:
        raise SpecError(f"--max-rate is {options['max_rate']}, expected at least {_LEAST_RATE} bytes a second")
    if model is not None:
        name, _, path = model.partition("=")
        _check_name("--model", name)
        options |= {"model": name, "model_path": path or None}
    if sha256 is not None:
        name, _, fingerprint = sha256.partition("=")
        if model is None or name != options["model"] or not _SHA256.fullmatch(fingerprint):
            raise SpecError(
                f"--sha256 is {sha256[:120]!r}, expected NAME=SHA256 with the name given with --model and 64 digits of "
                f"0-9 and a-f"
            )
        options |= {"model_sha256": fingerprint}
    return ControllerOptions(
        datasets=dict(_named_path(text) for text in datasets),
        quiet=None if quiet_hours is None else QuietHours.parse(quiet_hours),
        **options,
    )


def _check_name(option: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise SpecError(f"{option} has the name {name[:80]!r}, expected lower-case letters, digits and '-', at most 63")


def _named_path(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    _check_name("--dataset", name)
    if not path or "://" in path:
        raise SpecError(f"--dataset is {text[:200]!r}, expected NAME=PATH with a file or folder of this node")
    return name, Path(path).absolute()


def run_controller(
    options: ControllerOptions,
    *,
    announce: Callable[[str], None],
    socket_path: Path | None = None,
    port: int | None = None,
) -> None:
    """Run a LocalController until SIGTERM or Ctrl-C.

    Parameters
    ----------
    options
        What it is for.
    announce
        Gets one line when scripts are answered.
    socket_path
        Where its unix socket is, by default in the state folder.
    port
        Listen on this port of the loopback address instead; 0 takes a free one. Then a token is needed, which is in
        the state folder.

    Raises
    ------
    PlatformError
        If another one uses the state folder, the socket cannot be opened, or the packages are not installed.
    ModelError
        If version 1 cannot be used.
    SpecError
        If the hub's address or CA cannot be used.
    """
    try:
        import uvicorn

        from .app import make_app
        from .controller import running
    except ImportError as error:
        raise PlatformError(f"a LocalController needs {error.name}; pip install 'solar-corona[controller]'") from error
    _log_readably()
    with running(options) as controller:
        token = None if port is None else _token(options.state / TOKEN)
        opened = _unix_socket(socket_path or options.state / SOCKET) if port is None else _loopback(port)
        with opened as (listener, address):
            config = uvicorn.Config(
                make_app(controller, token=token),
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
            asyncio.run(_serve(config, listener, lambda: announce(f"listening on {address}")))
    _log.info("stopped")


async def _serve(config: uvicorn.Config, listener: socket.socket, listening: Callable[[], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            listening()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Stop at SIGTERM and SIGINT, and not once more when all is done."""
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)

    await Server(config).serve([listener])


def _token(path: Path) -> str:
    from ..core.security import make_token

    if not path.exists():
        make_token(path)
    return path.read_text(encoding="ascii").strip()


@contextlib.contextmanager
def _unix_socket(path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Listen on a unix socket that only this user can use."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        mask = os.umask(0o177)
        try:
            _make_way(path)
            listener.bind(str(path))
        except OSError as error:
            if isinstance(error, PlatformError):
                raise
            raise PlatformError(
                f"{path}: cannot be a socket ({error}); choose a shorter path in a folder that this user may write "
                f"with --socket, or a port with --port"
            ) from error
        finally:
            os.umask(mask)
        try:
            yield listener, f"unix:{path}"
        finally:
            path.unlink(missing_ok=True)


def _make_way(path: Path) -> None:
    """Remove the socket of a process that was killed, and nothing else."""
    if not path.parent.is_dir():
        os.umask(0o077)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.umask(0o177)
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking, contextlib.suppress(ConnectionRefusedError):
        asking.connect(str(path))
        raise PlatformError(f"{path}: another process listens on this socket; give each LocalController its own")
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _loopback(port: int) -> Iterator[tuple[socket.socket, str]]:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise PlatformError(f"port {port} of 127.0.0.1 {why}; choose another with --port") from error
        yield listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


def _log_readably() -> None:
    """Send this process's log to standard error as plain lines, from INFO up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
