# SPDX-License-Identifier: Apache-2.0
"""All kinds of documents that a job file may hold."""

from __future__ import annotations

from .incremental_spec import IncrementalLearningJob
from .inference_spec import JointInferenceService
from .spec import FederatedLearningJob
from .spec_parts import Dataset, Model

__all__ = ["JOB_KINDS", "KINDS", "Document", "Job"]

Job = FederatedLearningJob | JointInferenceService | IncrementalLearningJob
"""What can be run."""

Document = Job | Dataset | Model

JOB_KINDS: dict[str, type[Job]] = {
    "FederatedLearningJob": FederatedLearningJob,
    "JointInferenceService": JointInferenceService,
    "IncrementalLearningJob": IncrementalLearningJob,
}

KINDS: dict[str, type[Document]] = {**JOB_KINDS, "Dataset": Dataset, "Model": Model}
