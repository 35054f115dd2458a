# SPDX-License-Identifier: Apache-2.0
"""Starts a command that ends with its parent, even when the parent is killed: `python tether.py PARENT COMMAND…`.

Run as a file, with nothing imported but the standard library, so that it costs a few milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Bind this process to its parent and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # The parent ended before it could be bound to.
            sys.exit(1)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the launcher's own workers
    except OSError as error:
        sys.stderr.write(f"{command[0]}: cannot be started: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
