# SPDX-License-Identifier: Apache-2.0
"""The user's script as a Flower ClientApp, so that a stock `flower-supernode` can serve a job of ours.

A stock SuperNode starts a process for each message. Each time the script runs as far as `fit()`, which answers the one
message; only after the last message does the script run on to its end.

Start it with `--node-config 'job="/path/job.yaml" edge="edge-0"'`.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ..core.errors import SpecError
from ..core.run_folder import RunFolder, runs_of
from ..core.settings import Settings, quiet_engines
from ..lib import context as job_context
from ..lib.links import using_link
from .hand_started import edge_worker

__all__ = ["app"]


class _Answered(BaseException):
    """Ends the script once its one message is answered; no `except Exception` of the user's catches it."""


class _OneMessage:
    """A link that carries a single message."""

    warm = False

    def __init__(self, message: Message) -> None:
        self._message: Message | None = message
        self.answer: Message | None = None

    def connect(self) -> None:
        """Do nothing: Flower has connected."""

    def receive(self) -> Message | None:
        """Return the message, once; the next time the script ends."""
        message, self._message = self._message, None
        if message is None:
            raise _Answered
        return message

    def reply(self, message: Message) -> None:
        """Keep the answer for Flower to send."""
        self.answer = message

    def wait(self, seconds: float) -> None:
        """Do nothing: nothing more will come."""

    def close(self) -> None:
        """Do nothing: Flower disconnects."""


def _answer(message: Message, context: Context) -> Message:
    quiet_engines()
    job, edge = context.node_config.get("job"), context.node_config.get("edge")
    if not isinstance(job, str) or not isinstance(edge, str):
        raise SpecError('start the SuperNode with --node-config \'job="/path/job.yaml" edge="NAME"\'')
    runs = runs_of(Path(job), f"{Path(job).stem}-{edge}", Settings.from_environment().runs)
    folder = RunFolder(runs / f"run-{context.run_id}")
    folder.path.mkdir(parents=True, exist_ok=True)
    worker = edge_worker(Path(job), (), edge, folder, None)
    assert worker.context is not None
    script = worker.command[-1]
    link = _OneMessage(message)
    os.chdir(Path(job).resolve().parent)
    sys.argv = [script]
    sys.path.insert(0, str(Path(script).parent))
    with job_context.using(worker.context), using_link(link):
        try:
            runpy.run_path(script, run_name="__main__")
        except _Answered:
            pass
        except BaseException:
            # A script that raised inside fit() has said so in its reply, with its traceback.
            if link.answer is None:
                raise
    if link.answer is None:
        raise RuntimeError(f"{script} ended without calling solar_corona.collaborative_training.fit()")
    return link.answer


app = ClientApp()
app.train()(_answer)
app.evaluate()(_answer)
app.query()(_answer)
