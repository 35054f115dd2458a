# SPDX-License-Identifier: Apache-2.0
"""Hierarchical clustering by distances, cut at a threshold or where the groups stand out most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

__all__ = ["LINKAGES", "cluster"]

LINKAGES = ("single", "complete", "average", "ward")
_MOST_GROUPS = 64


def cluster(
    distances: NDArray[np.float64], *, method: str, threshold: float | None = None, stand_out: float = 0.15
) -> list[int]:
    """Return the group of each of n items, from 0, by the order in which groups first occur.

    Parameters
    ----------
    distances
        n x n, symmetric, from 0.
    method
        The linkage: `single`, `complete`, `average` or `ward`.
    threshold
        Groups farther apart stay apart. Without it the number of groups is that with the largest mean silhouette
        (Rousseeuw 1987).
    stand_out
        Without a threshold: how large the silhouette has to be, or all is one group. Noise alone reaches about 0.1.
    """
    count = len(distances)
    if count < 2:
        return [0] * count
    tree = linkage(squareform(distances, checks=False), method)
    if threshold is not None:
        return _in_order(fcluster(tree, threshold, "distance"))
    best, found = stand_out, np.zeros(count, np.int32)
    for groups in range(2, min(count - 1, _MOST_GROUPS) + 1):
        labels = fcluster(tree, groups, "maxclust")
        score = _silhouette(distances, labels)
        if score > best + 1e-9:
            best, found = score, labels
    return _in_order(found)


def _silhouette(distances: NDArray[np.float64], labels: NDArray[np.int32]) -> float:
    """Return the mean over items of (b − a)/max(a, b); 0 for an item that is a group by itself."""
    names, places, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return -1.0
    sums = distances @ np.eye(len(names))[places]
    rows, own = np.arange(len(labels)), sizes[places]
    within = sums[rows, places] / np.maximum(own - 1, 1)
    means = sums / sizes
    means[rows, places] = np.inf
    nearest = means.min(axis=1)
    largest = np.maximum(within, nearest)
    scores = np.divide(nearest - within, largest, out=np.zeros(len(labels)), where=(largest > 0) & (own > 1))
    return float(scores.mean())


def _in_order(labels: NDArray[np.int32]) -> list[int]:
    names: dict[int, int] = {}
    return [names.setdefault(int(label), len(names)) for label in labels]
