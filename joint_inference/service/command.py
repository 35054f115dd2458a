# SPDX-License-Identifier: Apache-2.0
"""What `solar-corona serve` does: options checked, models opened, the service run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import PlatformError, SpecError

if TYPE_CHECKING:
    from ...lib.runners.runner import Runner

__all__ = ["run_service"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def run_service(
    models: Sequence[str],
    *,
    host: str,
    port: int,
    announce: Callable[[str], None],
    fingerprints: Sequence[str] = (),
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
    fingerprints
        `NAME=SHA256` of models that must have that fingerprint; models in folders of versions have cards for that.
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
        opener=_opener(models, fingerprints, parsed.threads),
        tls=tls,
        listening=lambda url: announce(f"listening on {url}"),
    )


def _opener(models: Sequence[str], fingerprints: Sequence[str], threads: int) -> Callable[[Path], Runner]:
    from ...lib.runners.opening import open_runner
    from .model_folder import find_models

    places = {place.name: place.path for place in find_models(models)} if fingerprints else {}
    wanted: dict[Path, str] = {}
    for text in fingerprints:
        name, _, sha256 = text.partition("=")
        if name not in places or not _SHA256.fullmatch(sha256):
            raise SpecError(
                f"--sha256 {text[:100]}: expected NAME=SHA256, with the name of a model that is served "
                f"({', '.join(places)}) and 64 digits of 0-9 and a-f"
            )
        wanted[places[name]] = sha256

    def open_model(path: Path) -> Runner:
        return open_runner(path, sha256=wanted.get(path), threads=threads)

    return open_model
