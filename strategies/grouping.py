# SPDX-License-Identifier: Apache-2.0
"""Which edges hold the same task: groups of signatures, without saying how many there are.

Signatures are merged as long as the pooled data of two sets do not prove them different (see
`lib.signature_distance`), the surest pairs first; then each one is tested again against the group it ended in.
Everything is decided by what signatures say, never by the order in which they came.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..lib.signature_distance import MIN_ETA, MIN_Z, Comparison, Sums, compare, compare_each, separation, without_labels
from ..lib.signature_format import Signature

__all__ = [
    "MIN_FOUNDING",
    "UNGROUPED",
    "Assignment",
    "Group",
    "Grouping",
    "Merge",
    "assign",
    "group",
    "rebuild",
    "regroup",
]

MIN_FOUNDING = 50
UNGROUPED = -1
MARGIN = 0.05
_PASSES = 4
# Pairs that little is known of come last: by then both have become parts of groups that more is known of.
_CAUTION = 2.0

_Labels = NDArray[np.intp]


@dataclass(frozen=True)
class Merge:
    """One step of the merge tree, as in SciPy's linkages: signature i is node i, step t makes node `count` + t.

    `kept` is False for the steps above the groups, which only show how far apart those are.
    """

    left: int
    right: int
    height: float
    kept: bool


@dataclass(frozen=True)
class Group:
    """Signatures that belong together: its id, their sum, and their places in the list that was given."""

    id: int
    signature: Signature
    members: tuple[int, ...]


@dataclass(frozen=True)
class Grouping:
    """Groups of signatures, and why.

    Parameters
    ----------
    labels
        The id of each signature's group; `UNGROUPED` where no group accepts one that is too small to found its own,
        or that has no class large enough to be compared.
    groups
        By id, ascending.
    tree
        How groups came about; signatures too small to found a group are no part of it, nor, where they are grouped
        online, any.
    own_eta
        η of each signature to the rest of its group; 0 where it is alone.
    nearest
        The id of the nearest other group; None where there is none that shares a class.
    other_eta
        η to that group, else infinite.
    compared
        `labels`, or `inputs` where some edges have no labels: then those of the others were not used either.
    next_id
        The first id that was never given.
    """

    labels: tuple[int, ...]
    groups: tuple[Group, ...]
    tree: tuple[Merge, ...]
    own_eta: tuple[float, ...]
    nearest: tuple[int | None, ...]
    other_eta: tuple[float, ...]
    compared: Literal["labels", "inputs"]
    next_id: int


@dataclass(frozen=True)
class Assignment:
    """Where a joiner belongs: the id of the nearest group that accepts it, or None, with η and Z to the nearest."""

    group: int | None
    eta: float
    z: float


@dataclass(frozen=True)
class _Limits:
    z: float
    eta: float
    founding: int


def group(
    signatures: Sequence[Signature], *, z: float = MIN_Z, eta: float = MIN_ETA, min_founding: int = MIN_FOUNDING
) -> Grouping:
    """Return the groups of up to about a thousand signatures; for more, `group_many`.

    Parameters
    ----------
    signatures
        Of one spec; with and without labels may be mixed, then only inputs are compared.
    z, eta
        Two sets are different if Z and η of their difference are both larger.
    min_founding
        A signature of fewer samples joins a group that others made; if all are smaller, all may found groups.

    Raises
    ------
    ValueError
        If signatures are of different specs.
    """
    order, given, compared = _prepare(signatures)
    if not order:
        return Grouping((), (), (), (), (), (), compared, 0)
    sums = Sums.of(given)
    between = separation(sums)
    limits = _Limits(z, eta, min_founding)
    founders = _founders(sums, min_founding)
    labels = np.full(len(given), UNGROUPED, np.intp)
    tree: list[Merge] = []
    if len(founders):
        labels[founders], steps = _agglomerate(sums[founders], between, limits)
        tree = _tree(steps, [order[i] for i in founders], len(order))
        labels = _settle(sums, labels, founders, between, limits)
    labels = _place_rest(sums, labels, founders, between, limits)
    back = np.empty(len(order), np.intp)
    back[order] = labels
    return _result(signatures_as(signatures, compared), _numbered(back), tree, compared, between=between)


def _prepare(signatures: Sequence[Signature]) -> tuple[list[int], list[Signature], Literal["labels", "inputs"]]:
    """Return the places of the signatures in an order that depends on their content only, and them in that order."""
    if len({(s.identity, s.dimension) for s in signatures}) > 1:
        raise ValueError("signatures of different specs cannot be grouped; sign all data with one spec")
    compared: Literal["labels", "inputs"] = "labels" if len({s.labelled for s in signatures}) < 2 else "inputs"
    given = signatures_as(signatures, compared)
    keys = [hashlib.sha256(s.to_bytes()).digest() for s in given]
    order = sorted(range(len(given)), key=keys.__getitem__)
    return order, [given[i] for i in order], compared


def signatures_as(signatures: Sequence[Signature], compared: Literal["labels", "inputs"]) -> list[Signature]:
    """Return the signatures in the form in which they are compared."""
    return list(signatures) if compared == "labels" else [without_labels(s) for s in signatures]


def _founders(sums: Sums, least: int) -> _Labels:
    totals = sums.n.sum(1)
    found = np.flatnonzero(totals >= max(least, 1))
    return found if len(found) else np.flatnonzero(totals)


def _key(found: Comparison, limits: _Limits) -> NDArray[np.float64]:
    """Return what to merge first: η at its worst, infinite for what belongs apart."""
    with np.errstate(invalid="ignore"):
        worst = np.maximum(found.eta, 0) + _CAUTION * found.sigma
    return np.where(found.rejects(limits.z, limits.eta), np.inf, worst)


_Step = tuple[int, int, float, bool]


def _agglomerate(sums: Sums, between: float | None, limits: _Limits) -> tuple[_Labels, list[_Step]]:
    """Merge the nearest two sets until all that are left belong apart; return labels from 0 and the steps."""
    count = len(sums)
    node = np.arange(count)
    root = np.arange(count)
    sums = sums[np.arange(count)]
    found = compare(sums, sums, between)
    key, height = _key(found, limits), found.eta
    np.fill_diagonal(key, np.inf)
    steps: list[_Step] = []
    names = np.arange(count)
    while len(names) > 1:
        best = key.argmin(1)
        least = key[np.arange(len(names)), best]
        alive = np.ones(len(names), bool)
        # Rows of what is gone stay until half of them are: to make the matrix smaller costs as much as to fill it.
        while alive.sum() * 2 > len(names) or len(names) < 16:
            i = int(least.argmin())
            if not np.isfinite(least[i]):
                break
            i, j = sorted((i, int(best[i])))
            steps.append((int(node[names[i]]), int(node[names[j]]), max(float(height[i, j]), 0.0), True))
            node[names[i]] = count + len(steps) - 1
            root[root == names[j]] = names[i]
            sums.add(i, j)
            alive[j] = False
            found = compare(sums[i : i + 1], sums, between)
            row = np.where(alive, _key(found, limits)[0], np.inf)
            row[i] = np.inf
            key[j, :] = key[:, j] = np.inf
            key[i, :] = key[:, i] = row
            height[i, :] = height[:, i] = found.eta[0]
            _update_best(key, best, least, i, j)
        if not np.isfinite(least.min()):
            break
        rows = np.flatnonzero(alive)
        sums, names, key, height = sums[rows], names[rows], key[np.ix_(rows, rows)], height[np.ix_(rows, rows)]
    return np.unique(root, return_inverse=True)[1].astype(np.intp), steps


def _update_best(key: NDArray[np.float64], best: _Labels, least: NDArray[np.float64], i: int, j: int) -> None:
    """Bring each row's smallest entry up to date after rows i and j have changed."""
    new = key[:, i]
    stale = np.flatnonzero(((best == i) | (best == j)) & (new > least))
    better = new <= least
    better[[i, j]] = False
    best[better], least[better] = i, new[better]
    rows = np.unique(np.append(stale, [i, j]))
    best[rows] = key[rows].argmin(1)
    least[rows] = key[rows, best[rows]]


def _tree(steps: list[_Step], leaves: Sequence[int], count: int) -> list[Merge]:
    """Return steps over `leaves` as steps over all `count` signatures."""

    def name(node: int) -> int:
        return leaves[node] if node < len(leaves) else count + node - len(leaves)

    return [Merge(name(left), name(right), height, kept) for left, right, height, kept in steps]


def _settle(sums: Sums, labels: _Labels, founders: _Labels, between: float | None, limits: _Limits) -> _Labels:
    """Move each founder that its own group rejects, or another suits clearly better, until none moves."""
    labels = labels.copy()
    for _ in range(_PASSES):
        count = int(labels.max()) + 1
        totals = sums.totals(labels, count)
        found = compare(sums[founders], totals, between)
        own = _own(sums, labels, founders, totals, between)
        here = labels[founders]
        worst = _key(found, limits)
        worst[np.arange(len(founders)), here] = np.inf
        there = worst.argmin(1)
        offer = worst[np.arange(len(founders)), there]
        alone = np.bincount(here, minlength=count)[here] == 1
        rejected = own.rejects(limits.z, limits.eta)[:, 0] & ~alone
        mine = _key(own, limits)[:, 0]
        moved = ~alone & (offer < np.where(rejected, np.inf, mine - limits.eta / 2))
        expelled = rejected & ~moved
        if not (moved.any() or expelled.any()):
            break
        labels[founders[moved]] = there[moved]
        labels[founders[expelled]] = count + np.arange(int(expelled.sum()))
        labels[founders] = np.unique(labels[founders], return_inverse=True)[1]
        again, _ = _agglomerate(sums.totals(labels, int(labels.max()) + 1), between, limits)
        labels[founders] = again[labels[founders]]
    return labels


def _own(sums: Sums, labels: _Labels, rows: _Labels, totals: Sums, between: float | None) -> Comparison:
    """Compare each of `rows` with the rest of its group."""
    return compare_each(sums[rows], totals[labels[rows]].minus(sums[rows]), between)


def _place_rest(sums: Sums, labels: _Labels, founders: _Labels, between: float | None, limits: _Limits) -> _Labels:
    """Give each signature that may not found a group to the nearest that accepts it."""
    rest = np.setdiff1d(np.arange(len(labels)), founders)
    if not len(rest) or not len(founders):
        return labels
    labels = labels.copy()
    worst = _key(compare(sums[rest], sums.totals(labels, int(labels.max()) + 1), between), limits)
    best = worst.argmin(1)
    accepted = np.isfinite(worst[np.arange(len(rest)), best])
    labels[rest[accepted]] = best[accepted]
    return labels


def _result(
    given: Sequence[Signature],
    labels: _Labels,
    tree: Sequence[Merge],
    compared: Literal["labels", "inputs"],
    *,
    between: float | None = None,
    next_id: int = 0,
) -> Grouping:
    """Say how well each signature fits; `labels` are group ids, `UNGROUPED` for none."""
    ids = np.unique(labels[labels >= 0])
    place = np.where(labels >= 0, np.searchsorted(ids, labels), UNGROUPED).astype(np.intp)
    sums = Sums.of(given)
    totals = sums.totals(place, len(ids))
    own = np.zeros(len(given))
    grouped = np.flatnonzero(place >= 0)
    alone = np.bincount(place[grouped], minlength=len(ids))[place[grouped]] == 1
    rest = grouped[~alone]
    own[rest] = _own(sums, place, rest, totals, between).eta[:, 0]
    other = compare(sums, totals, between).eta
    other[grouped, place[grouped]] = np.inf
    nearest: list[int | None] = [None] * len(given)
    distances = np.full(len(given), np.inf)
    if len(ids):
        best = other.argmin(1)
        distances = other[np.arange(len(given)), best]
        nearest = [int(ids[b]) if np.isfinite(d) else None for b, d in zip(best, distances, strict=True)]
    pooled = totals.signatures(given[0].identity, labelled=given[0].labelled)
    members: list[list[int]] = [[] for _ in ids]
    for row in grouped.tolist():
        members[place[row]].append(row)
    return Grouping(
        labels=tuple(labels.tolist()),
        groups=tuple(Group(int(i), p, tuple(m)) for i, p, m in zip(ids, pooled, members, strict=True)),
        tree=tuple(tree),
        own_eta=tuple(own.tolist()),
        nearest=tuple(nearest),
        other_eta=tuple(distances.tolist()),
        compared=compared,
        next_id=max(next_id, int(ids.max()) + 1 if len(ids) else 0),
    )


def _numbered(labels: _Labels) -> _Labels:
    """Return labels that count groups in the order of their first members."""
    found, first = np.unique(labels[labels >= 0], return_index=True)
    rank = np.empty(len(found), np.intp)
    rank[np.argsort(first)] = np.arange(len(found))
    return np.where(labels >= 0, rank[np.searchsorted(found, labels).clip(0, max(len(found) - 1, 0))], UNGROUPED)


def assign(signature: Signature, groups: Sequence[Group], *, z: float = MIN_Z, eta: float = MIN_ETA) -> Assignment:
    """Return the nearest of `groups` for a joiner, if it accepts it.

    Parameters
    ----------
    signature
        The joiner's, of the groups' spec. Where only one side has labels, inputs are compared.
    groups
        As in `Grouping.groups`.
    z, eta
        As in `group`.

    Raises
    ------
    ValueError
        If the signatures are of different specs.
    """
    pooled = [g.signature for g in groups]
    if any((p.identity, p.dimension) != (signature.identity, signature.dimension) for p in pooled):
        raise ValueError(
            "signatures of different specs cannot be compared; sign the joiner's data with the groups' spec"
        )
    if not pooled or not len(signature.classes):
        return Assignment(None, float("inf"), float("inf"))
    if any(p.labelled != signature.labelled for p in pooled):
        signature, pooled = without_labels(signature), [without_labels(p) for p in pooled]
    totals = Sums.of(pooled)
    found = compare(Sums.of([signature], totals.classes), totals, separation(totals))
    worst = _key(found, _Limits(z, eta, 0))[0]
    if np.isfinite(worst).any():
        best = int(worst.argmin())
        return Assignment(groups[best].id, float(found.eta[0, best]), float(found.z[0, best]))
    best = int(found.eta[0].argmin())
    return Assignment(None, float(found.eta[0, best]), float(found.z[0, best]))


def regroup(
    previous: Grouping,
    places: Sequence[int | None],
    signatures: Sequence[Signature],
    *,
    margin: float = MARGIN,
    z: float = MIN_Z,
    eta: float = MIN_ETA,
    min_founding: int = MIN_FOUNDING,
) -> Grouping:
    """Return the groups of today's signatures under the ids of the groups of before.

    A new group keeps the id of the old one with which it shares most signatures. A signature leaves an old group
    that goes on only if that group rejects it and its new group is nearer by `margin`: what is on the border stays.

    Parameters
    ----------
    previous
        The groups so far.
    places
        For each signature its place in `previous.labels`; None for a newcomer.
    signatures
        In the same order.
    margin
        In units of η.
    z, eta, min_founding
        As in `group`.

    Raises
    ------
    ValueError
        If the lengths differ or signatures are of different specs.
    """
    if len(places) != len(signatures):
        raise ValueError(f"there are {len(places)} places for {len(signatures)} signatures; expected one for each")
    fresh = group(signatures, z=z, eta=eta, min_founding=min_founding)
    old = np.array([UNGROUPED if place is None else previous.labels[place] for place in places], np.intp)
    next_id = previous.next_id
    new = _matched(old, np.array(fresh.labels, np.intp), next_id)
    next_id = max(next_id, int(new.max(initial=-1)) + 1)
    given = signatures_as(signatures, fresh.compared)
    moving = np.flatnonzero((old >= 0) & (new != old) & np.isin(old, new))
    between = None
    if len(moving):
        sums = Sums.of(given)
        between = separation(sums)
        ids = np.unique(np.concatenate([old[old >= 0], new[new >= 0]]))
        places = np.searchsorted(ids, new), np.searchsorted(ids, old)
        stay = np.where(new == old, places[0], UNGROUPED)
        found = compare(sums[moving], sums.totals(stay.astype(np.intp), len(ids)), between)
        here, there = places[1][moving], places[0][moving].clip(0, len(ids) - 1)
        row = np.arange(len(moving))
        leaves = found.rejects(z, eta)[row, here] & ~(found.eta[row, there] + margin >= found.eta[row, here])
        new[moving[~leaves]] = old[moving[~leaves]]
    return _result(given, new, fresh.tree, fresh.compared, between=between, next_id=next_id)


def rebuild(labels: Sequence[int], signatures: Sequence[Signature], *, next_id: int = 0) -> Grouping:
    """Return the grouping that `labels` stand for, such as those of a checkpoint; its merge tree is empty.

    Parameters
    ----------
    labels
        The id of each signature's group, or `UNGROUPED`.
    signatures
        In the same order.
    next_id
        `Grouping.next_id`, so that the ids of groups that are gone are not given again.
    """
    if len(labels) != len(signatures):
        raise ValueError(f"there are {len(labels)} labels for {len(signatures)} signatures; expected one for each")
    _, given, compared = _prepare(signatures)
    if not given:
        return Grouping((), (), (), (), (), (), compared, next_id)
    between = separation(Sums.of(given))
    given = signatures_as(signatures, compared)
    return _result(given, np.array(labels, np.intp), (), compared, between=between, next_id=next_id)


def _matched(old: _Labels, new: _Labels, next_id: int) -> _Labels:
    """Return `new` labels under the ids of the `old` groups that they overlap most, each old id used once."""
    pairs = Counter((int(n), int(o)) for n, o in zip(new, old, strict=True) if n >= 0 and o >= 0)
    ids: dict[int, int] = {}
    for (fresh, before), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        if fresh not in ids and before not in ids.values():
            ids[fresh] = before
    for fresh in np.unique(new[new >= 0]).tolist():
        if fresh not in ids:
            ids[fresh], next_id = next_id, next_id + 1
    return np.array([ids.get(int(n), UNGROUPED) for n in new], np.intp)
