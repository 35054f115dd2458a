# SPDX-License-Identifier: Apache-2.0
"""A real Label Studio, in an environment of its own that is made once and kept in the user's cache."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from solar_corona.core.local_launcher import free_port

VERSION = "1.23.0"
USER, TOKEN = "ann@example.com", "0123456789abcdef0123456789abcdef01234567"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "solar-corona" / "peers"
SECONDS = 240


class LabelStudioMissingError(RuntimeError):
    """It cannot be installed here; the message says why."""


def installed() -> Path:
    """Return its command, in an environment that is made where it is not there."""
    folder = CACHE / f"label-studio-{VERSION}"
    if not (folder / "complete").exists():
        here = [sys.executable, "-m", "uv"]
        _run([*here, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
        package = f"label-studio=={VERSION}"
        _run([*here, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), package])
        (folder / "complete").touch()
    return folder / "bin" / "label-studio"


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabelStudioMissingError(done.stderr.strip()[-500:])


class Server:
    """One that runs; its empty database is made once and kept, for that takes most of a minute."""

    def __init__(self, folder: Path) -> None:
        self.command, self.folder, self.port = installed(), folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self._template = CACHE / f"label-studio-{VERSION}" / "empty-data"
        if self._template.is_dir():
            shutil.copytree(self._template, folder / "data")

    def start(self) -> None:
        data = self.folder / "data"
        environment = {
            **os.environ,
            "LABEL_STUDIO_BASE_DATA_DIR": str(data),
            "LABEL_STUDIO_USERNAME": USER,
            "LABEL_STUDIO_PASSWORD": "a password of tests",
            "LABEL_STUDIO_USER_TOKEN": TOKEN,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "COLLECT_ANALYTICS": "false",
        }
        command = [str(self.command), "start", "--no-browser", "--port", str(self.port), "--host", self.url]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    self._keep(data)
                    return
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise TimeoutError((self.folder / "log").read_text(errors="replace")[-1_000:])

    def _keep(self, data: Path) -> None:
        if not self._template.exists():
            aside = self._template.with_name(f"empty-data-{os.getpid()}")
            shutil.copytree(data, aside)
            aside.rename(self._template)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
