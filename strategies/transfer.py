# SPDX-License-Identifier: Apache-2.0
"""What groups of similar tasks take from each other: early layers, weights of like groups, or nothing.

None of these is always right. Measured: sharing early layers helps small groups where only y given x differs between
groups, and hurts where their inputs differ; pulling group models towards a common one was neutral or hurt. So each is
tried beside the groups' own models for some rounds, and kept by a group whose edges' held-out samples say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from .fedavg import view

__all__ = ["LIKE_INPUTS", "Gain", "borrow", "early_arrays", "gain", "is_clear", "share_early_layers"]

LIKE_INPUTS = 0.02
"""Label-free distance under which two groups' inputs count as alike."""

_BORROW_AT = 1.0


@dataclass(frozen=True)
class Gain:
    """How much better one model is than another on held-out samples, over edges: mean and standard error."""

    mean: float
    error: float
    edges: int


def gain(one: Mapping[str, tuple[float, int]], other: Mapping[str, tuple[float, int]]) -> Gain | None:
    """Compare two models on the edges that measured both.

    Parameters
    ----------
    one, other
        For each edge its metric (more is better) and how many samples it was measured on.
    """
    edges = sorted(one.keys() & other.keys())
    if not edges:
        return None
    difference = np.array([one[e][0] - other[e][0] for e in edges])
    weight = np.array([max(one[e][1], 1) for e in edges], float)
    weight /= weight.sum()
    mean = float(weight @ difference)
    # From one edge alone, the spread between edges is unknown: then that of the samples stands for it.
    between = float(weight @ (difference - mean) ** 2) / max(len(edges) - 1, 1)
    level = min(max(float(np.mean([one[e][0] for e in edges])), 0.05), 0.95)
    within = 2 * level * (1 - level) / sum(max(one[e][1], 1) for e in edges) if len(edges) < 3 else 0.0
    return Gain(mean, math.sqrt(max(between, within)), len(edges))


def is_clear(found: Gain | None) -> bool:
    """Tell whether a gain is above one standard error."""
    return found is not None and found.mean > 0 and found.mean > found.error


def early_arrays(arrays: ArrayRecord) -> list[str]:
    """Return the names of all arrays before the last layer's: before the last one with two axes or more."""
    names = list(arrays)
    layers = [i for i, name in enumerate(names) if len(arrays[name].shape) >= 2]
    return names[: layers[-1]] if layers else []


def share_early_layers(
    models: Mapping[str, tuple[ArrayRecord, float]], alike: Sequence[Sequence[str]]
) -> dict[str, ArrayRecord]:
    """Average the early layers of groups with like inputs, weighted by samples; each keeps its own last layer.

    Parameters
    ----------
    models
        Each group's model and number of samples.
    alike
        Sets of groups with like inputs; groups in none keep their model.
    """
    shared = {group: arrays for group, (arrays, _) in models.items()}
    for together in alike:
        here = [group for group in together if group in models]
        total = sum(models[group][1] for group in here)
        if len(here) < 2 or total <= 0:
            continue
        mean = {
            name: _weighted([(models[g][0][name], models[g][1] / total) for g in here])
            for name in early_arrays(models[here[0]][0])
        }
        for group in here:
            own = models[group][0]
            shared[group] = ArrayRecord({name: mean.get(name, own[name]) for name in own})
    return shared


def borrow(
    models: Mapping[str, tuple[ArrayRecord, float]], distances: Mapping[tuple[str, str], float]
) -> dict[str, ArrayRecord]:
    """Let each group smaller than the middle one take from the others, the more the smaller and the more alike.

    A group of n samples, where the middle one has m, takes the share (m − n)/(m + n) from the others, weighted by
    their samples and exp(−distance).
    """
    middle = float(np.median([samples for _, samples in models.values()])) if models else 0.0
    found = {}
    for group, (arrays, samples) in models.items():
        share = max(0.0, (middle - samples) / (middle + samples)) if middle + samples > 0 else 0.0
        weights = {
            other: models[other][1] * math.exp(-_BORROW_AT * max(distances.get((group, other), math.inf), 0.0))
            for other in models
            if other != group
        }
        total = sum(weights.values())
        if share <= 0 or total <= 0:
            found[group] = arrays
            continue
        parts = [(group, 1 - share), *((other, share * w / total) for other, w in weights.items() if w > 0)]
        found[group] = ArrayRecord({n: _weighted([(models[g][0][n], w) for g, w in parts]) for n in arrays})
    return found


def _weighted(parts: Sequence[tuple[Array, float]]) -> Array:
    first = view(parts[0][0])
    if first.dtype.kind != "f":  # counters and the like are a group's own
        return parts[0][0]
    total: NDArray[np.float64] = np.zeros(first.shape, np.float64)
    for array, weight in parts:
        total += weight * view(array)
    return Array(total.astype(first.dtype))
