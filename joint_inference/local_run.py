# SPDX-License-Identifier: Apache-2.0
"""Runs a joint inference service on this machine: the deep model's service, and the script of each edge."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ..core import preparation
from ..core.errors import ModelError, SpecError
from ..core.inference_plan import TOKEN_FILE
from ..core.inference_spec import JointInferenceService, Offload
from ..core.job_file import JobFile, read_job_file
from ..core.local_launcher import LocalLauncher
from ..core.plan import plan
from ..core.preparation import LOCALHOST, check_exists, check_model, check_script, local_placement, own_names
from ..core.run_folder import RunFolder
from ..core.security import make_credentials, make_token
from ..core.workers import Plan
from .registry import create
from .view import InferenceView

__all__ = ["InferenceRun", "check_inputs", "prepared"]

_READ_EVERY = 0.5


def check_inputs(file: JobFile[JointInferenceService]) -> None:
    """Check what a run on this machine needs: the script, the models and the token.

    Raises
    ------
    SpecError
        If the script or a file of the endpoint is missing, or there is no such offload algorithm or option.
    ModelError
        If a model is missing.
    """
    spec = file.job.spec
    if spec.edge_worker.command is None:
        check_script(file, "spec.edgeWorker.script", spec.edge_worker.script)
    check_model(file, "spec.edgeWorker.model", spec.edge_worker.model)
    _check_offload(file, spec.edge_worker.offload)
    if spec.cloud_worker is not None:
        check_model(file, "spec.cloudWorker.model", spec.cloud_worker.model)
    if spec.endpoint is not None:
        for field, path in (("tokenFile", spec.endpoint.token_file), ("ca", spec.endpoint.ca)):
            if path is not None:
                check_exists(file, f"spec.endpoint.{field}", path, SpecError)
        if spec.endpoint.token_secret is not None:
            raise SpecError(
                f"{file.path}: spec.endpoint.tokenSecret names a Secret of a cluster; on this machine set tokenFile"
            )


def _check_offload(file: JobFile[JointInferenceService], offload: Offload | None) -> None:
    if offload is None or ":" in offload.algorithm:
        return  # a class of the user's own is known where the script runs
    # So is a file that an option names.
    options = {name: value for name, value in offload.options.items() if name != "file"}
    try:
        create(offload.algorithm, options)
    except ModelError as error:
        raise SpecError(f"{file.path}: spec.edgeWorker.offload: {error}") from error


def prepared(
    job_file: Path, overrides: Sequence[str], *, root: Path | None
) -> AbstractContextManager[tuple[JobFile[JointInferenceService], RunFolder]]:
    """Read, check and hold a service; see `core.preparation.prepared`."""

    def read(path: Path, changes: Sequence[str]) -> JobFile[JointInferenceService]:
        return read_job_file(path, changes, JointInferenceService)

    return preparation.prepared(job_file, overrides, read=read, check=check_inputs, resume=False, root=root)


@dataclass(frozen=True)
class InferenceRun:
    """A service that is ready to run on this machine."""

    file: JobFile[JointInferenceService]
    folder: RunFolder
    plan: Plan

    @classmethod
    def of(cls, file: JobFile[JointInferenceService], folder: RunFolder) -> InferenceRun:
        """Make the keys and the plan of a run."""
        make_token(folder.secret(TOKEN_FILE))
        if file.job.spec.security.tls:
            make_credentials(folder.secret(""), hosts=own_names(LOCALHOST), edges=[])
        return cls(file, folder, plan(file, local_placement(file, folder)))

    def run(self, show: Callable[[InferenceView], None]) -> InferenceView:
        """Run the workers until all edges' scripts have ended; `show` is called as something happens.

        Raises
        ------
        SolarCoronaError
            If a script or the deep model's service failed.
        KeyboardInterrupt
            If it was stopped.
        """
        view = InferenceView([edge.name for edge in self.file.job.spec.edges])
        read = 0.0

        def tick() -> None:
            nonlocal read
            if time.monotonic() - read > _READ_EVERY:
                read = time.monotonic()
                view.read(self.folder.path)
                show(view)

        launcher = LocalLauncher(self.folder, self.plan, cwd=self.file.path.resolve().parent)
        try:
            # An edge is done when its script is: it waits for nobody's result.
            launcher.run(tick=tick, has_result=lambda _: False)
        finally:
            view.read(self.folder.path)
            show(view)
        return view
