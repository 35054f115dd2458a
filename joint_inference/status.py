# SPDX-License-Identifier: Apache-2.0
"""How a joint inference service stands, from its run's folder alone."""

from __future__ import annotations

from rich.console import Console

from ..core.inference_spec import JointInferenceService
from ..core.job_file import read_job_file
from ..core.run_folder import RunFolder
from ..core.run_status import ProcessStatus, print_end, print_head, print_workers, process_status
from .statistics import EdgeStatistics
from .view import InferenceView

__all__ = ["InferenceStatus", "describe", "status_of"]


class InferenceStatus(ProcessStatus):
    """A service as `status --json` prints it."""

    endpoint: str | None
    edges: dict[str, EdgeStatistics]


def status_of(folder: RunFolder) -> InferenceStatus:
    """Read a service's status."""
    state, basic = folder.read_state(), process_status(folder)
    spec = read_job_file(folder.job_file, [], JointInferenceService).job.spec
    view = InferenceView([edge.name for edge in spec.edges])
    view.read(folder.path)
    here = state.address if state is not None and basic.phase == "running" and spec.cloud_worker else None
    return InferenceStatus(
        **dict(basic), endpoint=spec.endpoint.url if spec.endpoint is not None else here, edges=view.statistics
    )


def describe(status: InferenceStatus, console: Console) -> None:
    """Print a status for a person."""
    print_head(status, console)
    if status.endpoint:
        console.print(f"deep model: {status.endpoint}", markup=False, soft_wrap=True)
    console.print(InferenceView(list(status.edges), dict(status.edges)).table())
    print_workers(status, console)
    print_end(status, console)
