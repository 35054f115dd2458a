# SPDX-License-Identifier: Apache-2.0
"""Which of the waiting samples to label first.

The default is `mixed`: a share drawn uniformly, which is the audit, too; a share of what seems to be of classes that
the model was never taught, once labels tell of such; and of the rest the least certain by margin, five for each label,
spread by k-means with a cluster for each label. Where the audit says that the model errs in most samples, its margin
tells nothing, and clusters of all samples stand for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DatasetError, SpecError

__all__ = ["RULES", "Choice", "Described", "Pool", "choose", "margins", "unlearned_classes"]

_RANDOM_SHARE, _LOST = 0.30, 0.50
_HARD = 5  # samples that each chosen one is the middle of
_UNLEARNED_SHARE, _FEW, _LIKELY = 0.35, 5, 0.3
_FITTED_ON, _ROUNDS, _PER_CLUSTER = 20_000, 8, 8
_NEAR = 0.05  # of the median distance of two samples of the pool
_CHUNK = 8_192

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class Described(Protocol):
    """What is asked of a waiting sample; the hub's rows and `SampleRecord` are such."""

    @property
    def reason(self) -> str:
        """`random` if it was drawn whatever it is like."""
        ...

    @property
    def hardness(self) -> float | None:
        """Larger is harder."""
        ...

    @property
    def probabilities(self) -> Sequence[float] | None:
        """Of a classifier's classes."""
        ...

    @property
    def embedding(self) -> Sequence[float] | None:
        """What diversity is measured on."""
        ...


@dataclass(frozen=True)
class Pool:
    """The samples that wait for a label.

    Parameters
    ----------
    hardness
        Larger is harder: n numbers.
    vectors
        What diversity is measured on: n x d.
    probabilities
        Of classes, n x K; None where not all are known.
    drawn
        Which samples were drawn at random where they were seen; only these are an audit. n truth values.

    Raises
    ------
    DatasetError
        If they are not of one length, or not finite.
    """

    hardness: NDArray[np.float64]
    vectors: Floats
    probabilities: Floats | None = None
    drawn: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        lengths = {"hardness": len(self.hardness), "vectors": len(self.vectors)}
        lengths |= {"probabilities": len(self.probabilities)} if self.probabilities is not None else {}
        lengths |= {"drawn": len(self.drawn)} if self.drawn is not None else {}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{n} of {name}" for name, n in lengths.items())
            raise DatasetError(f"the pool has {told}; expected one of each for each sample")
        for name, part in (("hardness", self.hardness), ("vectors", self.vectors)):
            if not bool(np.isfinite(part).all()):
                raise DatasetError(f"the pool's {name} are not all finite; leave out samples of which nothing is known")

    def __len__(self) -> int:
        return len(self.hardness)

    @classmethod
    def of(cls, samples: Sequence[Described]) -> Pool:
        """Return the pool of samples, however much is known of each.

        Hardness is 1 - margin where all have probabilities of the same classes, else what the detectors made of it,
        in the order within the pool; where nothing is known it is in the middle. Diversity is measured on embeddings,
        else on probabilities.
        """
        probabilities = _table([sample.probabilities for sample in samples])
        embeddings = _table([sample.embedding for sample in samples])
        drawn = np.array([sample.reason == "random" for sample in samples], np.bool_)
        if probabilities is not None:
            hardness = 1 - margins(probabilities)
        else:
            told = np.array([np.nan if s.hardness is None else s.hardness for s in samples], np.float64)
            hardness = np.full(len(told), 0.5)
            known = np.flatnonzero(np.isfinite(told))
            hardness[known] = (np.argsort(np.argsort(told[known], kind="stable")) + 0.5) / max(len(known), 1)
        vectors = embeddings if embeddings is not None else probabilities
        if vectors is None:
            vectors = hardness[:, None].astype(np.float32)
        return cls(hardness, vectors, probabilities, drawn)


def _table(rows: Sequence[Sequence[float] | None]) -> Floats | None:
    """Return vectors as a table; None where one is missing, of another length, or not finite."""
    if not rows or any(row is None or not len(row) for row in rows) or len({len(row) for row in rows if row}) != 1:
        return None
    table = np.asarray(rows, np.float32)
    return table if np.isfinite(table).all() else None


@dataclass(frozen=True)
class Choice:
    """What to label, in this order.

    Parameters
    ----------
    rows
        Rows of the pool.
    audit
        Which of them were drawn uniformly: only their errors tell how often the model errs.
    """

    rows: Rows
    audit: NDArray[np.bool_]


Rule = Callable[[Pool, int, np.random.Generator], Iterator[int]]
"""Yields rows of a pool, the best first, more than are asked for, so that near-duplicates can be passed over."""


def margins(probabilities: Floats) -> NDArray[np.float64]:
    """Return the difference of the two largest probabilities of each row: n, 0 to 1."""
    if probabilities.shape[1] == 1:
        return np.abs(2 * probabilities[:, 0].astype(np.float64) - 1)
    top = np.partition(probabilities, -2, axis=1)
    found: NDArray[np.float64] = (top[:, -1] - top[:, -2]).astype(np.float64)
    return found


def choose(
    pool: Pool,
    quota: int,
    *,
    seed: int,
    rule: str = "mixed",
    random_share: float = _RANDOM_SHARE,
    audit_errors: float | None = None,
    unlearned: Collection[int] = (),
) -> Choice:
    """Choose samples to label.

    Parameters
    ----------
    pool
        What there is.
    quota
        How many labels can be had.
    seed
        The same seed gives the same choice.
    rule
        `mixed`, `clusters`, `margin`, `entropy` or `random`.
    random_share
        Of the quota, drawn uniformly, from those drawn at random where they were seen; 0 to 1. `random` draws all.
    audit_errors
        Share of errors in the latest audit, if known; above one half `mixed` goes over to `clusters`.
    unlearned
        Classes of which the model has most wrong, see `unlearned_classes`; `mixed` takes 35 % of the quota from
        samples that seem to be of these.

    Returns
    -------
    Choice
        Fewer than `quota` only where the pool has no more, near-duplicates aside.

    Raises
    ------
    SpecError
        If there is no such rule, or the share or quota cannot be.
    """
    if rule not in RULES:
        raise SpecError(f"there is no rule {rule!r} of choosing; expected {', '.join(RULES)}")
    if quota < 0 or not 0 <= random_share <= 1:
        raise SpecError(f"quota is {quota} and random_share {random_share}; expected 0 or more, and from 0 to 1")
    rng = np.random.default_rng(seed)
    if rule == "mixed" and audit_errors is not None and audit_errors > _LOST:
        rule = "clusters"
    share = 1.0 if rule == "random" else random_share
    taken = _Taken(pool)
    drawn = np.flatnonzero(pool.drawn) if pool.drawn is not None else np.arange(len(pool))
    audit = taken.fill(rng.permutation(drawn), round(share * quota))
    likely = _likely(pool, unlearned, rng) if rule == "mixed" else np.zeros(0, np.int64)
    best = taken.fill(likely, min(round(_UNLEARNED_SHARE * quota), quota - len(audit)))
    left = quota - len(audit) - len(best)
    best += taken.fill(RULES[rule](pool, left, rng), left)
    rest = taken.fill(rng.permutation(len(pool)), quota - len(audit) - len(best))
    rows = np.array([*audit, *best, *rest], np.int64)
    flags = np.zeros(len(rows), np.bool_)
    flags[: len(audit)] = True
    # Whoever labels only a part of it has a part of either.
    order = rng.permutation(len(rows))
    return Choice(rows[order], flags[order])


def unlearned_classes(labels: NDArray[np.integer[Any]], answers: NDArray[np.integer[Any]]) -> list[int]:
    """Return the classes of which a model had most samples wrong: those it was never taught, above all.

    Parameters
    ----------
    labels, answers
        Classes of all samples labelled so far, and what the model of its time had answered: n each.

    Returns
    -------
    list of int
        Classes with five labels or more; none if they make up most of the labels, as then all has changed.

    Examples
    --------
    >>> unlearned_classes(np.array([0] * 20 + [7] * 8), np.array([0] * 28))
    [7]
    """
    classes, counts = np.unique(labels, return_counts=True)
    wrong = np.array([(answers[labels == each] != each).mean() for each in classes])
    found = (counts >= _FEW) & (wrong > 0.5)
    if 2 * counts[found].sum() > counts.sum():
        return []
    return [int(each) for each in classes[found]]


def _likely(pool: Pool, classes: Collection[int], rng: np.random.Generator) -> Rows:
    """Return in random order the samples that seem to be of some classes."""
    p = pool.probabilities
    among = [each for each in classes if p is not None and each < p.shape[1]]
    if p is None or not among:
        return np.zeros(0, np.int64)
    found: Rows = rng.permutation(np.flatnonzero(p[:, among].sum(axis=1) >= _LIKELY))
    return found


class _Taken:
    """What was chosen so far, so that nothing is chosen twice, and no near-duplicate of it."""

    def __init__(self, pool: Pool) -> None:
        self._vectors = np.asarray(pool.vectors, np.float32)
        self._rows: set[int] = set()
        self._chosen = np.zeros((0, self._vectors.shape[1]), np.float32)
        self._near = _NEAR**2 * _typical_distance(self._vectors)

    def fill(self, candidates: Iterator[int] | Rows, count: int) -> list[int]:
        """Return the first `count` of the candidates that are new."""
        found: list[int] = []
        if count <= 0:
            return found
        room = np.empty((len(self._chosen) + count, self._vectors.shape[1]), np.float32)
        room[: len(self._chosen)] = self._chosen
        filled = len(self._chosen)
        for row in candidates:
            if len(found) == count:
                break
            vector = self._vectors[row]
            if int(row) in self._rows or (
                filled and float(((room[:filled] - vector) ** 2).sum(axis=1).min()) < self._near
            ):
                continue
            self._rows.add(int(row))
            room[filled] = vector
            filled += 1
            found.append(int(row))
        self._chosen = room[:filled]
        return found


def _typical_distance(vectors: Floats) -> float:
    """Return the median squared distance of two samples of the pool."""
    n = len(vectors)
    if n < 2:
        return 0.0
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, n, 2_000), rng.integers(0, n, 2_000)
    distances = ((vectors[one] - vectors[other]) ** 2).sum(axis=1)[one != other]
    return float(np.median(distances)) if len(distances) else 0.0


def _mixed(pool: Pool, quota: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield the middles of clusters of the hardest: five for each label, at most half of all."""
    ties = rng.random(len(pool))
    most = max(min(_HARD * quota, (len(pool) + 1) // 2), min(quota, len(pool)))
    hard = np.lexsort((ties, -pool.hardness))[:most]
    return _clusters_of(pool.vectors, hard, quota, rng)


def _clusters(pool: Pool, quota: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield the middles of clusters of all."""
    return _clusters_of(pool.vectors, np.arange(len(pool)), quota, rng)


def _clusters_of(vectors: Floats, rows: Rows, count: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield the sample nearest to each of `count` centroids, then the second nearest to each, and so on."""
    if count <= 0 or not len(rows):
        return
    x = np.ascontiguousarray(vectors[rows], np.float32)
    part = x if len(x) <= _FITTED_ON else x[rng.permutation(len(x))[:_FITTED_ON]]
    centres = _k_means(part, min(count, len(part)), rng)
    label, distance = _nearest(x, centres)
    # By cluster, and within one by distance.
    order = np.lexsort((distance, label))
    begins = np.searchsorted(label[order], np.arange(len(centres)))
    ends = np.append(begins[1:], len(order))
    for depth in range(_PER_CLUSTER):
        for i in rng.permutation(len(centres)):
            if begins[i] + depth < ends[i]:
                yield int(rows[order[begins[i] + depth]])


def _nearest(x: Floats, centres: Floats) -> tuple[Rows, NDArray[np.float32]]:
    """Return the nearest centre of each sample, and how far it is, squared."""
    label = np.empty(len(x), np.int64)
    distance = np.empty(len(x), np.float32)
    norms = (centres**2).sum(axis=1)
    for i in range(0, len(x), _CHUNK):
        scores = norms - 2 * (x[i : i + _CHUNK] @ centres.T)
        label[i : i + _CHUNK] = scores.argmin(axis=1)
        distance[i : i + _CHUNK] = scores.min(axis=1) + (x[i : i + _CHUNK] ** 2).sum(axis=1)
    return label, distance


def _k_means(x: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Return k centroids: k-means++ (Arthur & Vassilvitskii 2007), then rounds of Lloyd's."""
    centres = np.empty((k, x.shape[1]), np.float32)
    centres[0] = x[rng.integers(len(x))]
    nearest = ((x - centres[0]) ** 2).sum(axis=1)
    squares = (x**2).sum(axis=1)
    for i in range(1, k):
        sums = np.cumsum(nearest, dtype=np.float64)
        if sums[-1] > 0:
            at = min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), len(x) - 1)
        else:
            at = int(rng.integers(len(x)))  # all that are left are where a centre is
        centres[i] = x[at]
        np.minimum(nearest, np.maximum(squares - 2 * (x @ centres[i]) + squares[at], 0), out=nearest)
    for _ in range(_ROUNDS):
        label, _ = _nearest(x, centres)
        counts = np.bincount(label, minlength=k)
        order = np.argsort(label, kind="stable")
        full = np.flatnonzero(counts)
        sums_of = np.add.reduceat(x[order], np.cumsum(counts)[full] - counts[full], axis=0)
        centres[full] = sums_of / counts[full, None]
    return centres


def _margin(pool: Pool, quota: int, rng: np.random.Generator) -> Iterator[int]:  # noqa: ARG001
    """Yield the hardest first."""
    return iter(np.lexsort((rng.random(len(pool)), -pool.hardness)).tolist())


def _entropy(pool: Pool, quota: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield those of the highest entropy first."""
    if pool.probabilities is None:
        return _margin(pool, quota, rng)
    p = np.clip(pool.probabilities.astype(np.float64), 1e-12, 1)
    return iter(np.lexsort((rng.random(len(pool)), (p * np.log(p)).sum(axis=1))).tolist())


def _random(pool: Pool, quota: int, rng: np.random.Generator) -> Iterator[int]:  # noqa: ARG001
    return iter(rng.permutation(len(pool)).tolist())


RULES: Mapping[str, Rule] = {
    "mixed": _mixed,
    "clusters": _clusters,
    "margin": _margin,
    "entropy": _entropy,
    "random": _random,
}
"""The rules by name."""
