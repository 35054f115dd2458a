# SPDX-License-Identifier: Apache-2.0
"""Which of a script's models is the one that its job is about."""

from __future__ import annotations

import os

from . import context

__all__ = ["has_versions", "is_jobs_own"]


def is_jobs_own(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is that of the job's model; scripts may load others beside it."""
    document = context.current()
    return document is not None and document.model is not None and document.model.path == os.fspath(path)


def has_versions(path: str | os.PathLike[str]) -> bool:
    """Tell whether the job makes versions of this model anew while the script runs."""
    document = context.current()
    return document is not None and document.live_model is not None and is_jobs_own(path)
