# SPDX-License-Identifier: Apache-2.0
"""Decides which workers a job needs: spec in, workers out, nothing else touched.

Launchers place and keep the workers; none of them decides anything about a feature.
"""

from __future__ import annotations

from .documents import Job
from .federated_plan import plan_federated
from .incremental_plan import plan_incremental
from .incremental_spec import IncrementalLearningJob
from .inference_plan import plan_inference
from .inference_spec import JointInferenceService
from .job_file import JobFile
from .workers import Placement, Plan

__all__ = ["plan"]


def plan(file: JobFile[Job], place: Placement) -> Plan:
    """Return the workers of a job of any kind.

    Raises
    ------
    SpecError
        If the job refers to a Dataset or Model that the file does not hold.
    """
    job = file.job
    if isinstance(job, JointInferenceService):
        return plan_inference(JobFile(file.path, job, file.datasets, file.models), place)
    if isinstance(job, IncrementalLearningJob):
        return plan_incremental(JobFile(file.path, job, file.datasets, file.models), place)
    return plan_federated(JobFile(file.path, job, file.datasets, file.models), place)
