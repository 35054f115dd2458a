# SPDX-License-Identifier: Apache-2.0
"""Which version of the model is in use."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..tables import ModelVersion

__all__ = ["serving_version"]


def serving_version(session: Session) -> ModelVersion | None:
    """Return the version that edges answer with unless a rollout says otherwise."""
    query = (
        select(ModelVersion)
        .where(ModelVersion.state == "promoted")
        .order_by(ModelVersion.promoted_at.desc(), ModelVersion.version.desc())
        .limit(1)
    )
    return session.scalars(query).first()
