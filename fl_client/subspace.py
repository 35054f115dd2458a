# SPDX-License-Identifier: Apache-2.0
"""An edge's answer to PACFL's question: the main directions of each class of its samples."""

from __future__ import annotations

from ..lib.questions import Question, Response
from ..lib.subspaces import ClassSubspaces, SubspaceQuestion
from .edge_data import EdgeData

__all__ = ["answer_subspaces"]


def answer_subspaces(question: Question, data: EdgeData) -> Response:
    """Return the subspaces of this edge's training samples."""
    asked = SubspaceQuestion.of(question)
    samples = data.samples("train")
    return ClassSubspaces.of(samples.x, samples.y, asked.p).to_response()
