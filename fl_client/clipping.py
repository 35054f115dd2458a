# SPDX-License-Identifier: Apache-2.0
"""Bounds how far an edge's training may move the model, where the job's strategy asks edges to do so themselves.

Flower's strategies for differential privacy with clipping on the client send `clipping_norm`, add noise for updates of
at most that length, and rely on the client to keep to it; the adaptive one also counts who was within it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..lib.exchange import Weights
from ..lib.trainable import Scalar

__all__ = ["clipped", "clipping_norm"]

# The names are Flower's (flwr.supercore.differential_privacy).
_ASKED = "clipping_norm"


def clipping_norm(config: Mapping[str, Scalar]) -> float | None:
    """Return the longest update that the strategy allows, or None where it sets no bound."""
    norm = config.get(_ASKED)
    return float(norm) if isinstance(norm, int | float) else None


def clipped(before: Weights, after: Weights, norm: float) -> tuple[Weights, dict[str, float]]:
    """Return the weights with their change cut to the L2 length `norm`, and whether it was within it as a metric.

    w ← w₀ + (w − w₀) · min(1, C / ‖w − w₀‖₂), over all arrays together (McMahan et al. 2018).

    Parameters
    ----------
    before
        The weights that training began with.
    after
        Those that it ended with.
    norm
        C, the longest change that is allowed.
    """
    first = {name: before[name].astype(np.float64) for name in after}
    changes = {name: value.astype(np.float64) - first[name] for name, value in after.items()}
    length = math.sqrt(sum(float(np.square(change).sum()) for change in changes.values()))
    scale = 1.0 if length <= norm else norm / length
    weights = {name: (first[name] + changes[name] * scale).astype(value.dtype) for name, value in after.items()}
    return weights, {"norm_bit": float(length <= norm)}
