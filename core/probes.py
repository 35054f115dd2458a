# SPDX-License-Identifier: Apache-2.0
"""Whether a service is ready, as an orchestrator asks it."""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path

__all__ = ["answers"]

_PATIENCE = 1.0


def answers(address: str, path: str, *, ca: Path | None = None) -> bool:
    """Tell whether `GET path` at HOST:PORT is answered with 200 within a second.

    Parameters
    ----------
    ca
        CA file, for https; None asks in plain text.
    """
    host, _, port = address.rpartition(":")
    connection = (
        http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_PATIENCE)
        if ca is None
        else http.client.HTTPSConnection(
            host.strip("[]"), int(port), timeout=_PATIENCE, context=ssl.create_default_context(cafile=str(ca))
        )
    )
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
