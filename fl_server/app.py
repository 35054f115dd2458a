# SPDX-License-Identifier: Apache-2.0
"""The job's server as a Flower ServerApp, for a SuperLink that starts ServerApps itself."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..core.errors import ContextError
from ..core.settings import CONTEXT_VARIABLE
from ..lib import context as job_context
from .job import ServerJob

__all__ = ["app"]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the environment names over the grid that Flower gives."""
    del context
    document = job_context.current()
    if document is None:
        raise ContextError(f"set {CONTEXT_VARIABLE} to the server's context document before the SuperLink is started")
    ServerJob(document).run(lambda: (grid, {}))
