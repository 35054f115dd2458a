# SPDX-License-Identifier: Apache-2.0
"""The job file's JSON schema, made from the pydantic models."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter

from .documents import KINDS, Document
from .errors import SpecError

__all__ = ["job_file_schema"]


def job_file_schema(kind: str | None = None) -> dict[str, Any]:
    """Return the schema of one kind, or of all of them."""
    if kind is None:
        schema = TypeAdapter(Document).json_schema(by_alias=True)
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Solar Corona job file",
            **schema,
        }
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, n=1)
        raise SpecError(
            f"there is no kind {kind!r}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(KINDS)}")
        )
    return KINDS[kind].model_json_schema(by_alias=True)
