# SPDX-License-Identifier: Apache-2.0
"""What the environment says: the only module that reads `os.environ`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONTEXT_VARIABLE", "RUNS_VARIABLE", "Settings", "python_first", "quiet_engines", "worker_environment"]

CONTEXT_VARIABLE = "SOLAR_CORONA_CONTEXT"
DEBUG_VARIABLE = "SOLAR_CORONA_DEBUG"
RUNS_VARIABLE = "SOLAR_CORONA_RUNS"

# Set for every process that we start, unless the user's environment says otherwise.
_ENGINE_DEFAULTS = {
    "FLWR_TELEMETRY_ENABLED": "0",  # nothing is reported to anybody
    "TF_CPP_MIN_LOG_LEVEL": "2",  # TensorFlow's start-up chatter would hide the script's own output
    "TF_ENABLE_ONEDNN_OPTS": "0",  # the same sums on every machine
    "PYTHONUNBUFFERED": "1",  # logs are read while the process runs
}


@dataclass(frozen=True)
class Settings:
    """The environment variables of Solar Corona, parsed.

    Parameters
    ----------
    context
        Path of the JSON document that tells a worker about its job; None in a script that runs alone.
    runs
        Folder for run folders; None means `.solar-corona` beside the job file.
    debug
        Whether errors show their traceback.
    """

    context: Path | None
    runs: Path | None
    debug: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Parse `environment`, by default the process's own."""
        env = os.environ if environment is None else environment
        context, runs = env.get(CONTEXT_VARIABLE), env.get(RUNS_VARIABLE)
        return cls(
            context=Path(context) if context else None,
            runs=Path(runs) if runs else None,
            debug=env.get(DEBUG_VARIABLE, "") not in ("", "0"),
        )


def worker_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker process: this one's, the engines' defaults, then `extra`."""
    return {**_ENGINE_DEFAULTS, **os.environ, **extra}


def python_first(environment: Mapping[str, str]) -> dict[str, str]:
    """Put this Python's own commands, such as flower-superlink, first on the path."""
    own = str(Path(sys.executable).parent)
    return {**environment, "PATH": f"{own}{os.pathsep}{environment.get('PATH', '')}"}


def quiet_engines() -> None:
    """Apply the engines' defaults to this process; call it before an engine is imported."""
    for name, value in _ENGINE_DEFAULTS.items():
        os.environ.setdefault(name, value)
