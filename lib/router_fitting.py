# SPDX-License-Identifier: Apache-2.0
"""Learns which task a sample is of from samples whose task is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .routers import GaussianRouter

__all__ = ["fit_router"]

_DIMENSIONS = 32
_SHRINK = 0.1
_FEWEST = 5


def fit_router(x: NDArray[Any], y: NDArray[Any] | None, tasks: ArrayLike, names: Sequence[str]) -> GaussianRouter:
    """Return a router for tasks that show in the inputs.

    Each class of each task is a Gaussian with a diagonal covariance, after a linear projection to the directions in
    which the inputs vary most (principal components, at most 32).

    Parameters
    ----------
    x
        Samples: n x ….
    y
        Classes of the samples: n whole numbers; None, or anything else, takes each task as one Gaussian.
    tasks
        Index of each sample's task: n.
    names
        Names of the tasks.
    """
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    flat = np.where(np.isfinite(flat), flat, 0.0)
    task = np.asarray(tasks, np.int64)
    centre, spread = flat.mean(0), float(flat.std()) or 1.0
    _, _, directions = np.linalg.svd((flat - centre) / spread, full_matrices=False)
    projection = directions[:_DIMENSIONS].T / spread
    z = (flat - centre) @ projection
    classes = np.asarray(y) if y is not None and np.ndim(y) == 1 and np.asarray(y).dtype.kind in "iu" else None
    labels = np.zeros(len(z), np.int64) if classes is None else np.unique(classes, return_inverse=True)[1]
    count = int(labels.max()) + 1 if len(labels) else 1
    shape = len(names), count, z.shape[1]
    means, log_variances = np.zeros(shape), np.zeros(shape)
    weights = np.full(shape[:2], -np.inf)
    whole = z.var(0) + 1e-6
    for t in range(len(names)):
        total = max(int((task == t).sum()), 1)
        for c in range(count):
            rows = z[(task == t) & (labels == c)]
            if len(rows) < _FEWEST:
                continue
            means[t, c] = rows.mean(0)
            log_variances[t, c] = np.log((1 - _SHRINK) * rows.var(0) + _SHRINK * whole)
            weights[t, c] = np.log(len(rows) / total)
        if not np.isfinite(weights[t]).any():  # too few of each class: the task is one Gaussian
            rows = z[task == t] if (task == t).any() else z
            means[t, 0], weights[t, 0] = rows.mean(0), 0.0
            log_variances[t, 0] = np.log((1 - _SHRINK) * rows.var(0) + _SHRINK * whole)
    return GaussianRouter(
        projection=projection.astype(np.float32),
        offset=(-centre @ projection).astype(np.float32),
        means=means.astype(np.float32),
        log_variances=log_variances.astype(np.float32),
        log_weights=weights.astype(np.float32),
        task_names=tuple(names),
    )
