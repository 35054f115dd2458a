# SPDX-License-Identifier: Apache-2.0
"""How sure a model is of a sample, as one number from 0 to 1; three ways to say it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .scores import Scores

__all__ = ["entropy_confidence", "margin_confidence", "max_confidence"]


def max_confidence(scores: Scores) -> float:
    """Return the highest class probability (Chow 1970); for a detector the lowest box's score, 1 without any."""
    # Of a few numbers, Python's own functions are faster than NumPy's.
    values = scores.values.tolist()
    if scores.boxes:
        return min(values, default=1.0)
    return max(values, default=1.0)


def margin_confidence(scores: Scores) -> float:
    """Return p₁ − p₂, how far the best class is ahead of the second; for a detector the lowest box's score.

    Source: Scheffer, Decomain & Wrobel 2001, "Active hidden Markov models for information extraction".
    """
    values = scores.values.tolist()
    if scores.boxes:
        return min(values, default=1.0)
    if len(values) < 2:
        return values[0] if values else 1.0
    first = second = 0.0
    for value in values:
        if value > first:
            first, second = value, first
        elif value > second:
            second = value
    return first - second


def entropy_confidence(scores: Scores) -> float:
    """Return 1 − H/log K, H = −Σ p log p (Shannon 1948); for a detector that of each box's score, the lowest of all."""
    values = scores.values.tolist()
    if scores.boxes:
        return min((_evenness((value, 1 - value)) for value in values), default=1.0)
    return _evenness(values)


def _evenness(probabilities: Sequence[float]) -> float:
    if len(probabilities) < 2:
        return 1.0
    entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
    return min(max(1 - entropy / math.log(len(probabilities)), 0.0), 1.0)
