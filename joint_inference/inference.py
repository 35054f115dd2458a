# SPDX-License-Identifier: Apache-2.0
"""The full story of one answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .statistics import Source

if TYPE_CHECKING:
    from ..lib.hard_samples.kept_sample import KeptSample

__all__ = ["Inference"]


@dataclass(frozen=True, slots=True)
class Inference:
    """What `EdgeModel.infer` returns for a sample.

    Parameters
    ----------
    result
        What `predict` returns.
    source
        Whose answer it is: the shallow model's (`edge`) or the deep model's (`cloud`).
    confidence
        How sure the shallow model was, 0 to 1; None where nothing measures it.
    reason
        Why it was uploaded or not, or what failed.
    degraded
        Whether the deep model was wanted and the shallow one had to answer.
    edge_seconds
        Time of the shallow model with `pre_fun` and `post_fun`, for the whole batch.
    cloud_seconds
        Time of the deep model's answer with the way there and back; None where it was not asked.
    model, deep_model
        Name and version of the models, where known.
    kept_sample
        The sample, where it was kept to be labelled.
    """

    result: Any
    source: Source
    confidence: float | None
    reason: str
    degraded: bool
    edge_seconds: float
    cloud_seconds: float | None
    model: str
    deep_model: str
    kept_sample: KeptSample | None = field(default=None, repr=False, compare=False)

    @property
    def kept(self) -> bool:
        """Whether the sample was kept to be labelled, or would be if the script did not run alone."""
        return self.kept_sample is not None

    @property
    def sample_id(self) -> str | None:
        """The id of a sample that was kept, for `solar_corona.incremental.report_label`; None of any other.

        It is the SHA-256 of the sample as it is written, which is done for it if it was not before.
        """
        return self.kept_sample.id if self.kept_sample is not None else None
