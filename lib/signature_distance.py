# SPDX-License-Identifier: Apache-2.0
"""How far apart signatures are: the size of the difference (η) and how sure it is (Z), for many pairs at once.

Over the classes c that two signatures a and b share, with w_c = n_a·n_b/(n_a+n_b):

    δ_c = ‖μ_a − μ_b‖² − s_c/w_c    squared distance of the means, without bias (Bai & Saranadasa 1996)
    η   = Σ w_c·δ_c / Σ w_c·u_c     in units of u, so that one threshold serves all data
    Z   = Σ w_c·‖μ_a − μ_b‖², brought to N(0, 1) where nothing differs

s_c is the class's variance tr Σ, pooled over both: a dozen samples that happen to be alike would say of themselves
that they vary little, and so that whatever is unlike them is of another task. Of 1,200 fleets of like edges, most of
them with 20 to 100 samples each, 36 were divided with a variance for each side, and 15 with the pooled one.

u is the classes' own variance s, or twice the squared distance B between different classes where that is less. On
Fashion-MNIST B ≈ s; on photographs classes lie close together (B ≈ s/15), so even a whole permutation of the labels
moves the means by a small part of s. A change that matters is as large as what tells classes apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .signature_format import UNLABELLED, Signature

__all__ = [
    "MIN_ETA",
    "MIN_Z",
    "Comparison",
    "Distance",
    "Statistics",
    "Sums",
    "compare",
    "compare_each",
    "distance",
    "drifted",
    "label_free_eta",
    "separation",
    "without_labels",
]

MIN_Z, MIN_ETA = 4.0, 0.1
# Classes that look alike give no yardstick: u is not less than this part of s.
_LEAST_UNIT = 0.1
_TINY = 1e-9

_Array = NDArray[np.float64]


class Distance(NamedTuple):
    """The difference of two signatures: its size and how many standard deviations it is from nothing."""

    eta: float
    z: float

    def rejects(self, *, z: float = MIN_Z, eta: float = MIN_ETA) -> bool:
        """Tell whether the two belong apart; True also where they share no class (both are infinite)."""
        return self.z > z and self.eta > eta


@dataclass
class Sums:
    """Additive sums of k signatures over one list of C classes: those of a union are the sum of the parts'.

    Parameters
    ----------
    classes
        Class ids, ascending: C.
    n
        Samples: k x C.
    first
        Σ φ: k x C x D.
    second
        Σ |φ|²: k x C.
    root
        n·√tr Σ²: k x C; of a union the members' mean, as if they were alike.
    noise
        n² times the variance of privacy noise: k x C.
    """

    classes: NDArray[np.int64]
    n: _Array
    first: _Array
    second: _Array
    root: _Array
    noise: _Array

    @classmethod
    def of(cls, signatures: Sequence[Signature], classes: NDArray[np.int64] | None = None) -> Sums:
        """Return the sums of each signature, over `classes` or all that occur."""
        ids = np.concatenate([s.classes for s in signatures])
        if classes is None:
            classes = np.unique(ids)
        owner = np.repeat(np.arange(len(signatures)), [len(s.classes) for s in signatures])
        place = np.minimum(np.searchsorted(classes, ids), max(len(classes) - 1, 0))
        known = classes[place] == ids if len(classes) else np.zeros(0, bool)
        every = bool(known.all())
        where = owner * len(classes) + place if every else (owner * len(classes) + place)[known]

        def flat(name: str) -> NDArray[Any]:
            values: NDArray[Any] = np.concatenate([getattr(s, name) for s in signatures])
            return values if every else values[known]

        sums = cls.empty(classes, len(signatures), signatures[0].dimension)
        n, means = flat("counts").astype(np.float64), flat("means")
        sums.n.reshape(-1)[where] = n
        sums.first.reshape(sums.n.size, sums.first.shape[2])[where] = n[:, None] * means
        norms = np.einsum("cd,cd->c", means, means, dtype=np.float64)
        sums.second.reshape(-1)[where] = (n - 1) * flat("traces") + n * norms
        sums.root.reshape(-1)[where] = n * np.sqrt(flat("squares"), dtype=np.float64)
        sums.noise.reshape(-1)[where] = n**2 * flat("noise")
        return sums

    @classmethod
    def empty(cls, classes: NDArray[np.int64], count: int, dimension: int) -> Sums:
        """Return sums of nothing."""
        shape = (count, len(classes))
        return cls(classes, np.zeros(shape), np.zeros((*shape, dimension)), *(np.zeros(shape) for _ in range(3)))

    def __len__(self) -> int:
        return len(self.n)

    def __getitem__(self, rows: Any) -> Sums:
        return Sums(self.classes, *(part[rows] for part in self.parts()))

    def parts(self) -> tuple[_Array, ...]:
        """Return the sums themselves."""
        return self.n, self.first, self.second, self.root, self.noise

    def totals(self, labels: NDArray[np.intp], count: int) -> Sums:
        """Return the sums of `count` groups, of which row i belongs to `labels[i]`; a negative label to none."""
        out = Sums.empty(self.classes, count, self.first.shape[2])
        order = np.argsort(labels, kind="stable")
        order = order[labels[order] >= 0]
        found, first = np.unique(labels[order], return_index=True)
        for total, part in zip(out.parts(), self.parts(), strict=True):
            if len(found):
                total[found] = np.add.reduceat(part[order], first, axis=0)
        return out

    def minus(self, other: Sums) -> Sums:
        """Return these sums without `other`, row by row."""
        return Sums(
            self.classes,
            *(np.maximum(a - b, 0) if a.ndim == 2 else a - b for a, b in zip(self.parts(), other.parts(), strict=True)),
        )

    def add(self, row: int, other: int) -> None:
        """Add row `other` to row `row`."""
        for part in self.parts():
            part[row] += part[other]

    def add_all(self, other: Sums) -> None:
        """Add `other`, row by row."""
        for total, part in zip(self.parts(), other.parts(), strict=True):
            np.add(total, part, out=total)

    def joined(self, other: Sums) -> Sums:
        """Return these rows and then those of `other`."""
        return Sums(self.classes, *(np.concatenate(pair) for pair in zip(self.parts(), other.parts(), strict=True)))

    def statistics(self) -> Statistics:
        """Return what `compare` needs of each row."""
        n, least = self.n, np.maximum(self.n, 1)
        mean = self.first / least[..., None]
        norm = (mean**2).sum(2)
        trace = np.maximum(self.second - n * norm, 0) / np.maximum(n - 1, 1)
        return Statistics(
            n=n,
            mean=mean,
            norm=norm,
            trace=trace,
            root=self.root / least,
            noise=self.noise / least**2,
        )

    def signatures(self, identity: int, *, labelled: bool) -> list[Signature]:
        """Return each row as a signature."""
        s, least = self.statistics(), np.maximum(self.n, 1)
        out = []
        for row in range(len(self)):
            has = self.n[row] > 0
            out.append(
                Signature(
                    identity=identity,
                    labelled=labelled,
                    classes=self.classes[has],
                    counts=np.rint(self.n[row, has]).astype(np.int64),
                    means=s.mean[row, has].astype(np.float32),
                    traces=s.trace[row, has].astype(np.float32),
                    squares=((self.root[row, has] / least[row, has]) ** 2).astype(np.float32),
                    noise=(self.noise[row, has] / least[row, has] ** 2).astype(np.float32),
                )
            )
        return out


@dataclass(frozen=True)
class Statistics:
    """What `compare` needs of each row of `Sums`: n, μ, |μ|², tr Σ, √tr Σ², and the variance of noise on μ."""

    n: _Array
    mean: _Array
    norm: _Array
    trace: _Array
    root: _Array
    noise: _Array

    def parts(self) -> tuple[_Array, ...]:
        """Return the arrays themselves."""
        return self.n, self.mean, self.norm, self.trace, self.root, self.noise

    def __getitem__(self, rows: Any) -> Statistics:
        return Statistics(*(part[rows] for part in self.parts()))

    def put(self, row: int, other: Statistics) -> None:
        """Set `row` to the only row of `other`."""
        for part, new in zip(self.parts(), other.parts(), strict=True):
            part[row] = new[0]


@dataclass(frozen=True)
class Comparison:
    """Distances of each row to each column.

    Parameters
    ----------
    eta, z
        As in `Distance`; infinite where no class is shared.
    sigma
        Standard deviation of η where nothing differs.
    """

    eta: _Array
    z: _Array
    sigma: _Array

    def rejects(self, z: float, eta: float) -> NDArray[np.bool_]:
        """Tell which pairs belong apart."""
        return (self.z > z) & (self.eta > eta)


def separation(sums: Sums) -> float | None:
    """Return B, the mean squared distance between two classes of the same row, over all rows.

    None if no row has two classes.
    """
    s = sums.statistics()
    total = s.n.sum(1, keepdims=True)
    share = s.n / np.maximum(total, 1)
    centre = np.einsum("kc,kcd->kd", share, s.mean)
    error = s.trace / np.maximum(s.n, 1) + sums.first.shape[2] * s.noise
    spread = (share * s.norm).sum(1) - (centre**2).sum(1) - (share * (1 - share) * error).sum(1)
    pairs = (1 - (share**2).sum(1)) / 2
    usable = (s.n > 0).sum(1) > 1
    # No row counts for more than ten usual ones: one that claims a million samples must not set everyone's yardstick.
    weight = np.minimum(total[:, 0], 10 * np.median(total[usable])) if usable.any() else total[:, 0]
    below = float((weight * pairs)[usable].sum())
    return max(float((weight * spread)[usable].sum()) / below, 0.0) if below > _TINY else None


def compare(rows: Sums, columns: Sums, between: float | None) -> Comparison:
    """Return the distances of all pairs of a row of `rows` and a row of `columns`, which list the same classes.

    Parameters
    ----------
    rows, columns
        k and m signatures.
    between
        B from `separation`; None takes the classes' own variance for u.
    """
    a, b = rows.statistics(), columns.statistics()
    shape, dimension = (len(rows), len(columns)), rows.first.shape[2]
    above, chance, variance, own, weights = (np.zeros(shape) for _ in range(5))
    noisy = bool(rows.noise.any() or columns.noise.any())
    for c in range(len(rows.classes)):
        i, j = np.flatnonzero(a.n[:, c]), np.flatnonzero(b.n[:, c])
        if not len(i) or not len(j):
            continue
        full = len(i) == shape[0] and len(j) == shape[1]
        where = (slice(None), slice(None)) if full else np.ix_(i, j)
        here, there = (slice(None), slice(None)) if full else (i, j)
        na, nb = a.n[here, c][:, None], b.n[there, c][None, :]
        w = na * nb / (na + nb)
        gap = a.mean[here, c] @ b.mean[there, c].T
        gap *= -2
        gap += a.norm[here, c][:, None]
        gap += b.norm[there, c][None, :]
        gap *= w
        above[where] += gap
        trace, other = a.trace[here, c][:, None], b.trace[there, c][None, :]
        own[where] += w * (trace + other)
        weights[where] += w
        share = (na - 1) / np.maximum(na + nb - 2, 1)
        error = share * (trace - other) + other
        root, other = a.root[here, c][:, None], b.root[there, c][None, :]
        spread = share * (root - other) + other
        if noisy:
            w *= a.noise[here, c][:, None] + b.noise[there, c][None, :]
            error += dimension * w
            spread += np.sqrt(dimension) * w
        chance[where] += error
        spread *= spread
        variance[where] += 2 * spread
    return _finish(above, chance, variance, own / 2, weights, between)


def compare_each(a: Statistics, b: Statistics, between: float | None) -> Comparison:
    """Return the distance of each row of `a` to the same row of `b`, or of one row to each, as k x 1."""
    shared, dimension = (a.n > 0) & (b.n > 0), a.mean.shape[2]
    w = a.n * b.n / np.maximum(a.n + b.n, 1)
    gap = a.norm + b.norm - 2 * np.einsum("kcd,kcd->kc", *np.broadcast_arrays(a.mean, b.mean))
    of_a, of_b = (shared * (x.n - 1) / np.maximum(a.n + b.n - 2, 1) for x in (a, b))
    noise = w * (a.noise + b.noise)
    error = of_a * a.trace + of_b * b.trace + dimension * noise
    root = of_a * a.root + of_b * b.root + np.sqrt(dimension) * noise
    columns = (w * gap, error, 2 * root**2, w * (a.trace + b.trace) / 2, w)
    above, chance, variance, own, weights = (column.sum(1, keepdims=True) for column in columns)
    return _finish(above, chance, variance, own, weights, between)


def _finish(
    above: _Array, chance: _Array, variance: _Array, own: _Array, weights: _Array, between: float | None
) -> Comparison:
    """Return the distances from Σ w·‖μ_a − μ_b‖², what it is and how it varies by chance, Σ w·s and Σ w."""
    unit = own if between is None else np.clip(2 * between * weights, _LEAST_UNIT * own, own)
    unit = np.maximum(unit, _TINY * weights)
    shared = weights > 0
    unit = np.where(shared, unit, 1)
    least = np.where(shared, _TINY * weights, 1)
    difference = above - chance
    chance = np.maximum(chance, least)
    variance = np.maximum(variance, least**2)
    # A sum of squares, so its cube root is normal (Wilson & Hilferty 1931): where few directions vary, chance alone
    # gives four standard deviations in one pair of a hundred.
    flat = 2 / 9 * variance / (2 * chance**2)
    z = (np.cbrt(np.maximum(above, 0) / chance) - 1 + flat) / np.sqrt(flat)
    return Comparison(
        eta=np.where(shared, difference / unit, np.inf),
        z=np.where(shared, z, np.inf),
        sigma=np.where(shared, np.sqrt(variance) / unit, np.inf),
    )


def distance(a: Signature, b: Signature) -> Distance:
    """Return how far apart two signatures are.

    Where only one has labels, their inputs are compared. Both numbers are infinite where no class is shared.

    Raises
    ------
    ValueError
        If they were made after different specs.
    """
    if a.identity != b.identity or a.dimension != b.dimension:
        raise ValueError("signatures of different specs cannot be compared; sign the data anew with one spec")
    if a.labelled != b.labelled:
        a, b = without_labels(a), without_labels(b)
    sums = Sums.of([a, b])
    found = compare(sums[:1], sums[1:], separation(sums))
    return Distance(float(found.eta[0, 0]), float(found.z[0, 0]))


def drifted(old: Signature, new: Signature, *, z: float = MIN_Z, eta: float = MIN_ETA) -> bool:
    """Tell whether an edge's data are no longer what they were: certainly (Z) and by more than a little (η).

    Samples in both signatures make them more alike than chance would: sign what is new. False where nothing can be
    compared because they share no class; that the classes are others is for their counts to say.
    """
    found = distance(old, new)
    return bool(np.isfinite(found.z)) and found.rejects(z=z, eta=eta)


def label_free_eta(a: Signature, b: Signature) -> float:
    """Return η of the inputs alone: near 0 where two edges see the same inputs and only label them differently."""
    return distance(without_labels(a), without_labels(b)).eta


def without_labels(signature: Signature) -> Signature:
    """Return the signature of the inputs alone, as if all classes were one.

    Its tr Σ is exact; its tr Σ² an upper bound, from the classes' own and the scatter of their means.
    """
    if not signature.labelled or not len(signature.classes):
        return signature
    sums = Sums.of([signature])
    s = sums.statistics()
    total = float(sums.n.sum())
    share = sums.n[0] / total
    centred = s.mean[0] - share @ s.mean[0]
    scatter = (centred * share[:, None]).T @ centred if len(share) > 1 else np.zeros((1, 1))
    root = float((share * sums.root[0] / np.maximum(sums.n[0], 1)).sum() + np.sqrt((scatter**2).sum()))
    pooled = Sums(
        np.array([UNLABELLED]),
        np.array([[total]]),
        sums.first.sum(1, keepdims=True),
        sums.second.sum(1, keepdims=True),
        np.array([[total * root]]),
        sums.noise.sum(1, keepdims=True),
    )
    return pooled.signatures(signature.identity, labelled=False)[0]
