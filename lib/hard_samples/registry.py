# SPDX-License-Identifier: Apache-2.0
"""Detectors of hard samples by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import ModelError
from ...core.named import known_or_imported
from .detector import HardSampleDetector

__all__ = ["DEFAULT", "DETECTORS", "choose", "create"]

DEFAULT = "mixed"
_ROOT = __name__.partition(".lib.")[0]
# As in an entry point: what they name lies above this room, and is imported when a job asks for it.
DETECTORS: Mapping[str, str] = {
    name: f"{_ROOT}.incremental.{place}"
    for name, place in {
        "disagreement": "disagreement:Disagreement",
        "embedding": "embedding_distance:EmbeddingDistance",
        "entropy": "entropy:Entropy",
        "margin": "margin:Margin",
        "mixed": "mixed:Mixed",
        "threshold": "threshold:Threshold",
    }.items()
}
"""Where each name's detector is, as `module:Class`."""


def choose(
    asked: HardSampleDetector | str | None, name: str = DEFAULT, options: Mapping[str, Any] | None = None
) -> HardSampleDetector:
    """Return the detector that a script asks for, else that of a name with its options.

    Parameters
    ----------
    asked
        A detector, or its name.
    name, options
        What the job says.

    Raises
    ------
    ModelError
        If it is no detector, or does not take the options.
    """
    if asked is None:
        return create(name, options or {})
    found: object = create(asked, {}) if isinstance(asked, str) else asked
    if isinstance(found, type):
        raise ModelError(f"hard_sample_detection is the class {found.__name__}; make one of it: {found.__name__}(…)")
    if not isinstance(found, HardSampleDetector):
        raise ModelError(
            f"hard_sample_detection is a {type(asked).__name__}; expected an object with judge(seen) and describe(), "
            f"such as solar_corona.incremental.Threshold(0.7), or a name: {', '.join(DETECTORS)}"
        )
    return found


def create(name: str, options: Mapping[str, Any]) -> HardSampleDetector:
    """Return the detector of a name, or of `module:Class`.

    Raises
    ------
    ModelError
        If there is none, or it does not take the options.
    """
    make = known_or_imported(name, DETECTORS, "hard-sample detector", error=ModelError)
    try:
        made = make(**options)
    except TypeError as error:
        raise ModelError(f"hard-sample detector {name!r} does not take these options: {error}") from error
    if not isinstance(made, HardSampleDetector):
        raise ModelError(f"{name} has not the methods judge(seen) and describe() of a hard-sample detector")
    return made
