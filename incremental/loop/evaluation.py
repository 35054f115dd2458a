# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is asked and what it answers: two models on the same samples, as files between processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...core.errors import ModelError, PlatformError
from ...core.files import atomic_write
from ..gate_rule import Costs, Paired

__all__ = ["Evaluation", "EvaluationRequest", "read_evaluation", "read_request", "write_evaluation", "write_request"]

_SETS = ("new", "old")
_MOST_BYTES = 8 << 30


class EvaluationRequest(BaseModel):
    """What is evaluated. Paths can be opened as they stand."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    serving: str = Field(description="The model in use.")
    candidate: str = Field(description="The model that may take its place.")
    new: str = Field(description="Random samples that no training has seen: an .npz with x and y, y the classes.")
    old: str | None = Field(default=None, description="The same of the distribution before; None where there are none.")
    pre_fun: str | None = Field(default=None, description="`module:function`, called with each sample before a model.")
    output: str = Field(description="Where the answers go, an .npz.")


@dataclass(frozen=True)
class Evaluation:
    """What both models said, and what they cost.

    Parameters
    ----------
    new, old
        Answers of both to the same samples; `old` is empty where there are none.
    costs
        The candidate's beside the serving model's.
    milliseconds
        Median of one sample: the serving model's, the candidate's.
    trouble
        What the candidate raised first; empty where it raised nothing.
    """

    new: Paired
    old: Paired
    costs: Costs
    milliseconds: tuple[float, float] = (0.0, 0.0)
    trouble: str = ""


def write_request(path: Path, request: EvaluationRequest) -> None:
    """Write what an evaluation is asked."""
    with atomic_write(path) as temporary:
        temporary.write_text(request.model_dump_json(indent=1), encoding="utf-8")


def read_request(path: Path) -> EvaluationRequest:
    """Read what an evaluation is asked.

    Raises
    ------
    PlatformError
        If it cannot be read, or is no request.
    """
    try:
        return EvaluationRequest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise PlatformError(
            f"{path}: is no request for an evaluation ({error}); it was written by another version"
        ) from error


def write_evaluation(path: Path, found: Evaluation) -> None:
    """Write what an evaluation found, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {
        "costs": np.array([found.costs.latency or np.nan, found.costs.size or np.nan]),
        "milliseconds": np.array(found.milliseconds),
        "trouble": np.array(found.trouble),
    }
    for name in _SETS:
        pairs: Paired = getattr(found, name)
        for part in ("truth", "serving", "candidate", "serving_probabilities", "candidate_probabilities"):
            value = getattr(pairs, part)
            if value is not None:
                arrays[f"{name}_{part}"] = value
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def read_evaluation(path: Path) -> Evaluation:
    """Read what an evaluation found.

    Raises
    ------
    ModelError
        If the file is not what an evaluation writes.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        latency, size = (float(value) if np.isfinite(value) else None for value in found["costs"])
        first, second = (float(value) for value in found["milliseconds"])
        return Evaluation(
            new=_pairs(found, "new"),
            old=_pairs(found, "old"),
            costs=Costs(latency, size),
            milliseconds=(first, second),
            trouble=str(found["trouble"]),
        )
    except (OSError, EOFError, KeyError, ValueError, TypeError, BadZipFile) as error:
        raise ModelError(f"{path}: is no evaluation's result ({error}); evaluate the candidate again") from error


def _pairs(found: dict[str, NDArray[Any]], name: str) -> Paired:
    return Paired(
        found[f"{name}_truth"],
        found[f"{name}_serving"],
        found[f"{name}_candidate"],
        found.get(f"{name}_serving_probabilities"),
        found.get(f"{name}_candidate_probabilities"),
    )
