# SPDX-License-Identifier: Apache-2.0
"""Which extra of this distribution brings a package, for whoever has installed less."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

__all__ = ["extra_of"]

_REQUIREMENT = re.compile(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]")
_NAMES = {"PIL": "pillow"}


def extra_of(module: str) -> str | None:
    """Return the extra that brings `module`, preferring `server`; None if none of them names it.

    >>> extra_of("scipy"), extra_of("PIL.Image"), extra_of("no_such_package")
    ('server', 'data', None)
    """
    top = module.partition(".")[0]
    package = _NAMES.get(top, top).lower().replace("_", "-")
    try:
        found = [match.groups() for text in requires("solar-corona") or () if (match := _REQUIREMENT.match(text))]
    except PackageNotFoundError:
        return None
    extras = [extra for name, extra in found if name.lower().replace("_", "-") == package and extra != "all"]
    return "server" if "server" in extras else next(iter(extras), None)
