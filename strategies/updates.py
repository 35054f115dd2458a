# SPDX-License-Identifier: Apache-2.0
"""Edges' updates as vectors: how far an edge moved the model that it was sent, and how two edges' moves compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from .fedavg import view

__all__ = ["Floats", "cosines", "moved", "update_of", "weighted_mean"]

Floats = NDArray[np.float32]


def update_of(sent: ArrayRecord, returned: ArrayRecord) -> Floats:
    """Return Δθ = θ_returned − θ_sent of all arrays with a fractional part, as one vector."""
    parts = [
        np.subtract(view(returned[name]), view(array), dtype=np.float32).reshape(-1)
        for name, array in sent.items()
        if view(array).dtype.kind == "f"
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def moved(sent: ArrayRecord, update: Floats, like: ArrayRecord) -> ArrayRecord:
    """Return `sent` moved by `update`; arrays of whole numbers are taken from `like`."""
    found, start = dict[str, Array](), 0
    for name, array in sent.items():
        value = view(array)
        if value.dtype.kind != "f":
            found[name] = like[name]
            continue
        step = update[start : start + value.size].reshape(value.shape)
        found[name] = Array((value + step).astype(value.dtype))
        start += value.size
    return ArrayRecord(found)


def weighted_mean(vectors: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Return Σ wᵢ·vᵢ / Σ wᵢ; without any weight the plain mean."""
    total = float(sum(weights))
    shares = [w / total for w in weights] if total > 0 else [1 / len(vectors)] * len(vectors)
    mean = np.zeros_like(vectors[0])
    for share, vector in zip(shares, vectors, strict=True):
        mean += np.float32(share) * vector
    return mean


def cosines(updates: Mapping[str, Floats]) -> NDArray[np.float64]:
    """Return the cosine of each two updates, n x n; one that did not move is like none."""
    rows = np.stack(list(updates.values()))
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    products = (rows @ rows.T).astype(np.float64)
    scale = np.outer(lengths, lengths)
    found = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    np.fill_diagonal(found, 1.0)
    return np.clip(found, -1.0, 1.0)
