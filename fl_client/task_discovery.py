# SPDX-License-Identifier: Apache-2.0
"""Finds the tasks that an edge's stream mixes, where samples that belong together in time are of one task.

Chunks are compared by their samples' deviations from the class means: two chunks of one task deviate alike, two of
different tasks do not. The chunks are divided in two where they differ most; the division stands if samples that had
no part in it prove the halves different, and each half is divided further. The server groups what many edges found,
and each edge then gives its chunks to the groups: clusters of a few hundred samples become those of the whole fleet.

Sources: spectral clustering of mixtures (Vempala & Wang 2004), one-shot federated clustering (Dennis et al. 2021); the
test is `lib.signature_distance`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DatasetError
from ..lib.signature_distance import distance
from ..lib.signatures import Signature, SignatureSpec, embed_samples, sign_embedded

__all__ = ["Discovered", "discover"]

_DEPTH = 3
_FEWEST_CHUNKS = 8
_SHRINK = 0.1
_STEPS = 20
_PRIOR = 2.0

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Discovered:
    """Tasks by their signatures: gives each chunk of samples the task that it is most likely of.

    Parameters
    ----------
    spec
        How the signatures were made.
    tasks
        One signature for each task.
    chunk
        Samples in a chunk.
    """

    spec: SignatureSpec
    tasks: tuple[Signature, ...]
    chunk: int

    def __call__(self, x: NDArray[np.generic], y: NDArray[np.generic] | None) -> Indices:
        """Return the task of each sample, the same for all samples of a chunk: n places in `tasks`."""
        features, labels = embed_samples(x, y, self.spec)
        if len(self.tasks) < 2 or not len(features):
            return np.zeros(len(features), np.int64)
        classes, place = np.unique(labels, return_inverse=True)
        means = _means(self.tasks, classes)[:, place].transpose(1, 0, 2)
        known = ~np.isnan(means[..., 0])
        offsets = features[:, None] - np.nan_to_num(means)
        ids = np.arange(len(features)) // self.chunk
        chosen = _by_chunk(np.where(known, (offsets**2).sum(2), np.nan), ids)
        for _ in range(2):  # the covariance within tasks is known once the tasks are, and tells more than lengths
            own = offsets[np.arange(len(features)), chosen][known[np.arange(len(features)), chosen]]
            if len(own) < 2:
                break
            precise = np.linalg.inv(_shrunk(own))
            lengths = np.einsum("ntd,de,nte->nt", offsets, precise, offsets, optimize=True)
            chosen = _by_chunk(np.where(known, lengths, np.nan), ids)
        return chosen


def discover(
    x: NDArray[np.generic], y: NDArray[np.generic] | None, spec: SignatureSpec, *, chunk: int, least: int
) -> Discovered:
    """Return the tasks among one edge's samples.

    Parameters
    ----------
    x, y
        Samples in their order in time, and their labels.
    spec
        How to embed them.
    chunk
        Samples in a row that are of one task.
    least
        Samples that a task has at least.

    Raises
    ------
    DatasetError
        If the samples cannot be embedded.
    """
    if chunk < 2:
        raise DatasetError(
            f"tasks.chunk is {chunk}; to discover tasks, expected 2 or more samples that belong together"
        )
    features, labels = embed_samples(x, y, spec)
    ids = np.arange(len(features)) // chunk
    found = _divided(features, labels, ids, spec, np.random.default_rng(spec.seed), max(least, chunk), _DEPTH)
    signed = [sign_embedded(features[found == task], labels[found == task], spec) for task in np.unique(found)]
    return Discovered(spec, tuple(signed), chunk)


def _divided(
    features: Floats,
    labels: Indices,
    ids: Indices,
    spec: SignatureSpec,
    rng: np.random.Generator,
    least: int,
    depth: int,
) -> Indices:
    """Return the task of each sample, from 0: one task, or those of two halves that are proved different."""
    whole = np.zeros(len(features), np.int64)
    _, chunks = np.unique(ids, return_inverse=True)
    count = int(chunks.max()) + 1 if len(chunks) else 0
    if depth == 0 or count < _FEWEST_CHUNKS or len(features) < 2 * least:
        return whole
    classes, place = np.unique(labels, return_inverse=True)
    centred = features - _class_means(features, place, len(classes))[place]
    values, axes = np.linalg.eigh(_shrunk(centred))
    centred = centred @ (axes / np.sqrt(values))
    used = _half_of_each(chunks, count, rng)
    sums, counts = _sums(centred[used], place[used], chunks[used], (count, len(classes)))
    flat = sums.reshape(count, -1)
    kernel = flat @ flat.T
    np.fill_diagonal(kernel, 0)  # a chunk is like itself, which says nothing
    halves = _settled(sums, counts, (np.linalg.eigh(kernel)[1][:, -1] > 0).astype(np.int64))
    judged = [~used & (halves[chunks] == half) for half in (0, 1)]
    if min(int(part.sum()) for part in judged) < 2 or not _differ(features, labels, judged, spec):
        return whole
    halves = _settled(*_sums(centred, place, chunks, (count, len(classes))), halves)
    sizes = np.bincount(halves[chunks], minlength=2)
    if sizes.min() < least:
        return whole
    start = 0
    for half in (0, 1):
        rows = halves[chunks] == half
        whole[rows] = start + _divided(features[rows], labels[rows], ids[rows], spec, rng, least, depth - 1)
        start = int(whole[rows].max()) + 1
    return whole


def _differ(features: Floats, labels: Indices, judged: Sequence[NDArray[np.bool_]], spec: SignatureSpec) -> bool:
    """Test the halves on samples that had no part in making them; a cluster always differs on its own."""
    one, other = (sign_embedded(features[part], labels[part], spec) for part in judged)
    if not len(one.classes) or not len(other.classes):
        return False
    found = distance(one, other)
    return bool(np.isfinite(found.eta)) and found.rejects()


def _half_of_each(chunks: Indices, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return half of the samples of each chunk, by chance."""
    order = rng.permutation(len(chunks))
    order = order[np.argsort(chunks[order], kind="stable")]
    starts = np.searchsorted(chunks[order], np.arange(count))
    rank = np.arange(len(chunks)) - starts[chunks[order]]
    used = np.zeros(len(chunks), bool)
    used[order] = rank % 2 == 0
    return used


def _sums(centred: Floats, place: Indices, chunks: Indices, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Return the sum and number of each chunk's samples of each class: k x C x D and k x C."""
    sums, counts = np.zeros((*shape, centred.shape[1])), np.zeros(shape)
    np.add.at(sums, (chunks, place), centred)
    np.add.at(counts, (chunks, place), 1)
    return sums, counts


def _settled(sums: Floats, counts: Floats, halves: Indices) -> Indices:
    """Move chunks between two clusters until none fits the other better (k-means with a mean for each class)."""
    for _ in range(_STEPS):
        total = np.stack([sums[halves == half].sum(0) for half in (0, 1)])
        number = np.stack([counts[halves == half].sum(0) for half in (0, 1)])
        means = total / (number[..., None] + _PRIOR)
        fit = np.einsum("kcd,tcd->kt", sums, means) - 0.5 * counts @ (means**2).sum(2).T
        new = fit.argmax(1)
        if (new == halves).all():
            break
        halves = new
    return halves


def _class_means(features: Floats, place: Indices, classes: int) -> Floats:
    means = np.zeros((classes, features.shape[1]))
    np.add.at(means, place, features)
    return means / np.maximum(np.bincount(place, minlength=classes), 1)[:, None]


def _means(tasks: Sequence[Signature], classes: Indices) -> Floats:
    """Return each task's mean of each class, NaN where it has none: T x C x D."""
    means = np.full((len(tasks), len(classes), tasks[0].dimension), np.nan)
    for row, task in enumerate(tasks):
        _, own, there = np.intersect1d(task.classes, classes, return_indices=True)
        means[row, there] = task.means[own]
    return means


def _by_chunk(lengths: Floats, ids: Indices) -> Indices:
    """Return each sample's task by the sum over its chunk; a class that a task does not have speaks against it."""
    worst = np.nanmax(np.where(np.isnan(lengths), -np.inf, lengths), axis=1)
    filled = np.where(np.isnan(lengths), np.where(np.isfinite(worst), worst, 0.0)[:, None], lengths)
    total = np.zeros((int(ids.max()) + 1, lengths.shape[1]))
    np.add.at(total, ids, filled)
    chosen: Indices = total.argmin(1)[ids]
    return chosen


def _shrunk(rows: Floats) -> Floats:
    covariance = rows.T @ rows / max(len(rows), 1)
    scale = max(float(np.trace(covariance)) / len(covariance), 1e-9)
    return (1 - _SHRINK) * covariance + _SHRINK * scale * np.eye(len(covariance))
