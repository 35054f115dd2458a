# SPDX-License-Identifier: Apache-2.0
"""Labelling sources by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...core.errors import SolarCoronaError, SpecError
from ...core.named import known_or_imported
from .api import Api
from .label_studio import LabelStudio
from .page import Page
from .source import LabellingSource, Setting
from .teacher import Teacher

__all__ = ["SOURCES", "create"]

SOURCES: Mapping[str, Callable[..., LabellingSource]] = {
    "api": Api,
    "label-studio": LabelStudio,
    "page": Page,
    "teacher": Teacher,
}


def create(name: str, options: Mapping[str, Any], setting: Setting) -> LabellingSource:
    """Return the labelling source of a name, or of `module:Class`, which is called with the setting and the options.

    Raises
    ------
    SpecError
        If there is none, or it does not take the options.
    """
    make = known_or_imported(name, SOURCES, "labelling source", error=SpecError, beside="the job file")
    try:
        made = make(setting, **options)
    except SolarCoronaError:
        raise
    except Exception as error:
        # Whatever a user's own class raises.
        raise SpecError(
            f"labelling source {name!r} does not take these options ({type(error).__name__}: {error}); see "
            f"labelling.options in the job file"
        ) from error
    if not isinstance(made, LabellingSource):
        raise SpecError(f"{name} has not all of room, offer, withdraw, poll, status and close of a labelling source")
    return made
