# SPDX-License-Identifier: Apache-2.0
"""What a job's own model has beside its file: versions that come while the script runs, and a canary's comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from . import context
from .hard_samples.opening import open_sender
from .live_model import LiveModel
from .runners.runner import Runner
from .scores import Scores
from .serving import Serving
from .shadow_model import Numbers, ShadowModel

__all__ = ["live_model", "shadowed"]

_NUMBERS = "observations.seq"


def live_model(opened: Callable[[Path, str | None], Runner]) -> LiveModel:
    """Return what follows the versions that the job makes.

    Parameters
    ----------
    opened
        Opens a version: called with its path and fingerprint.
    """
    document = context.current()
    assert document is not None
    assert document.live_model is not None
    return LiveModel(Path(document.live_model), opened, reporters=open_sender().reporters)


def shadowed(
    serving: Serving, read: Callable[[Mapping[str, NDArray[Any]], int], Sequence[Scores | None]]
) -> ShadowModel:
    """Return what compares a canary's answers with those of the version before, and tells the LocalController."""
    document = context.current()
    assert document is not None
    assert document.live_model is not None
    folder = document.state_folder or Path(document.live_model).parent
    return ShadowModel(serving, read=read, send=open_sender().observe, numbers=Numbers(Path(folder, _NUMBERS)))
