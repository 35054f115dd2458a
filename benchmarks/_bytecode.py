# SPDX-License-Identifier: Apache-2.0
"""An environment in which imports are as fast as on a machine in daily use.

Stock Flower imports Keras anew for each message. Where packages were installed without bytecode and
`PYTHONDONTWRITEBYTECODE` is set, as in many containers, each import compiles thousands of files and takes
three to five times as long. No user of a long-lived machine sees that, so no benchmark may count it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["compiled_environment"]

_USE_ONCE = """
import flwr.supercore.superexec.run_superexec
import flwr.superlink.runtime.run_serverapp
import flwr.supernode.runtime.run_clientapp
from solar_corona.benchmarks._stock_app.stock_app import task

task.fix_seed(1)
model = task.load_model("dense-4kb")
samples, _ = task.load_edge("", edge=0, model="dense-4kb")
task.train(model, samples, epochs=1, batch_size=32, seed=1)
model.evaluate(*samples, verbose=0)
"""


@contextmanager
def compiled_environment() -> Iterator[dict[str, str]]:
    """Yield environment variables for both sides of a comparison; the bytecode is gone at the end.

    Takes 20 to 30 s: it imports and uses once all that the stock app imports and uses.

    Raises
    ------
    RuntimeError
        If that fails.
    """
    with tempfile.TemporaryDirectory(prefix="bytecode-") as folder:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        done = subprocess.run(
            [sys.executable, "-c", _USE_ONCE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the stock app's imports failed; is the package installed?\n{done.stderr[-3000:]}")
        yield environment
