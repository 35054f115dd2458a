# SPDX-License-Identifier: Apache-2.0
"""What `solar-corona serve` does: options checked, models opened, the service run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...core.errors import PlatformError, SpecError

__all__ = ["run_service"]


def run_service(
    models: Sequence[str],
    *,
    host: str,
    port: int,
    announce: Callable[[str], None],
    token_file: Path | None = None,
    tls_files: tuple[Path | None, Path | None, Path | None] = (None, None, None),
    **options: Any,
) -> None:
    """Serve models until this process is asked to stop.

    Parameters
    ----------
    models
        What to serve; see `find_models`.
    host, port
        Where to listen; port 0 takes a free one.
    announce
        Gets one line when requests are taken.
    token_file
        Bearer tokens that are let in, one a line.
    tls_files
        Certificate, key, and CA of clients.
    options
        Of `ServiceOptions`.

    Raises
    ------
    SpecError
        If an option is wrong, or two models have one name.
    ModelError
        If a model cannot be served.
    PlatformError
        If the port is in use, or the service's packages are not installed.
    """
    try:
        from .logs import log_as_json
        from .options import ServiceOptions, Tls, read_tokens
        from .server import serve
    except ImportError as error:
        raise PlatformError(f"serving needs {error.name}; pip install 'solar-corona[serve]'") from error
    from ...lib.runners.opening import open_runner

    certificate, key, client_ca = tls_files
    if (certificate is None) != (key is None):
        raise SpecError("--tls-cert and --tls-key belong together; give both, or neither")
    if client_ca is not None and certificate is None:
        raise SpecError("--client-ca needs TLS; give --tls-cert and --tls-key too")
    tls = None if certificate is None or key is None else Tls(certificate, key, client_ca)
    tokens = () if token_file is None else read_tokens(token_file)
    parsed = ServiceOptions(**options, tokens=tokens)
    log_as_json()
    serve(
        models,
        host=host,
        port=port,
        options=parsed,
        opener=partial(open_runner, threads=parsed.threads),
        tls=tls,
        listening=lambda url: announce(f"listening on {url}"),
    )
