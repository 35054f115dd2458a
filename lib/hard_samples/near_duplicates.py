# SPDX-License-Identifier: Apache-2.0
"""Whether a sample was kept a moment ago already, or one that no labeller could tell from it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .embedding import MOST_NUMBERS, Embedding

__all__ = ["NearDuplicates"]

_LAST = 256


class NearDuplicates:
    """Remembers the embeddings of the latest 256 samples that were kept.

    Two are the same where their distance is below the embedding's `near`, beside the length of the one that varies
    more, each without its mean, and their means are as close: a scene that gets much brighter is another.
    """

    def __init__(self) -> None:
        self._kept: NDArray[np.float32] = np.zeros((_LAST, MOST_NUMBERS), np.float32)
        self._lengths, self._means = np.zeros(_LAST, np.float32), np.zeros(_LAST, np.float32)
        self._count = self._place = 0

    def knows(self, embedding: Embedding) -> bool:
        """Tell whether the sample, or one just like it, was kept; else remember it."""
        values = np.zeros(MOST_NUMBERS, np.float32)
        mean = float(embedding.values.mean()) if embedding.values.size else 0.0
        values[: embedding.values.size] = embedding.values - mean
        length = float(np.linalg.norm(values))
        if embedding.near >= 0 and self._count:
            rows = slice(0, self._count)
            scale = np.maximum(self._lengths[rows], length)
            apart = np.linalg.norm(self._kept[rows] - values, axis=1)
            means = np.abs(self._means[rows] - mean)
            # The means of two flat pictures are all there is to compare.
            level = np.maximum(np.abs(self._means[rows]), abs(mean))
            if bool(((apart <= embedding.near * scale) & (means <= embedding.near * (level + scale))).any()):
                return True
        self._kept[self._place], self._lengths[self._place], self._means[self._place] = values, length, mean
        self._place = (self._place + 1) % _LAST
        self._count = min(self._count + 1, _LAST)
        return False
