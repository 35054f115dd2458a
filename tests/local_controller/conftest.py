# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess

import pytest

from .hubs import TOKEN, MiniHub


@pytest.fixture
def hub():
    return MiniHub()


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "hub.token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 6 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a disk of its own needs the right to mount one ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
