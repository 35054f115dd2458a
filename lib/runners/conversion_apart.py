# SPDX-License-Identifier: Apache-2.0
"""Converts a Keras model in another process, so that the one that answers neither loads TensorFlow nor stutters."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from ...core.errors import SolarCoronaError
from ...core.files import sha256_of
from ...core.settings import worker_environment
from .conversion import conversion_path

__all__ = ["convert_apart"]

_log = logging.getLogger(__name__)
_SECONDS = 600.0
_NICE = 10


def convert_apart(path: Path, sha256: str | None = None) -> bool:
    """Leave the LiteRT form of a `.keras` file beside it, where `open_runner` finds it; return whether it is there.

    If that cannot be done, opening the model says why.

    Parameters
    ----------
    path
        The model.
    sha256
        The fingerprint that it must have.
    """
    if path.suffix != ".keras" or not path.is_file():
        return False
    if conversion_path(path, sha256_of(path)).exists():
        return True
    command = [sys.executable, "-m", __name__, str(path), *([sha256] if sha256 is not None else [])]
    try:
        done = subprocess.run(
            command, env=worker_environment({}), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.info("%s: was not converted in a process of its own (%s)", path, error)
        return False
    if done.returncode:
        _log.info("%s: was not converted in a process of its own: %s", path, done.stderr[-500:])
    return done.returncode == 0 and conversion_path(path, sha256_of(path)).exists()


def _main(path: str, sha256: str | None = None) -> int:
    from .opening import open_runner

    os.nice(_NICE)
    try:
        open_runner(path, sha256=sha256, convert=True).close()
    except SolarCoronaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
