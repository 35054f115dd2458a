# SPDX-License-Identifier: Apache-2.0
"""Runs a task's command once, and leaves word of how it ended: `python task_guard.py FOLDER COMMAND…`.

It outlives whoever started it. Run as a file, with nothing imported but the standard library and one neighbour.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

_TETHER = Path(__file__).with_name("tether.py")


def main() -> None:
    """Hold the folder's lock, run the command, and write `ended.json`; a task that ever ran is left as it is."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "began.json").exists() or (folder / "ended.json").exists():
            return  # another one was faster, or the task was over long ago
        _write(folder / "began.json", {"pid": os.getpid(), "process_start": _process_start()})
        signal.signal(signal.SIGTERM, lambda *_: None)  # the group is told; this one stays to say how it ended
        try:
            code = subprocess.call([sys.executable, "-S", str(_TETHER), str(os.getpid()), *command])
        except OSError as error:
            sys.stderr.write(f"{command[0]}: cannot be started: {error.strerror}\n")
            code = 127
        _write(folder / "ended.json", {"code": code})
    # What the task started and left behind ends with it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(os.getpid(), signal.SIGKILL)


def _process_start() -> str:
    """Return when this process started, in the kernel's ticks, as `core.run_folder` reads it."""
    try:
        return Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _write(path: Path, value: object) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    main()
