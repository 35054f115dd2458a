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

from ..lib.signature_distance import MIN_ETA, MIN_Z, Sums, compare, separation, without_labels
from ..lib.signature_format import Signature
from .agglomeration import NO_GROUP, Limits, Step, compare_with_rest, merge_key
from .exact_grouping import exact_labels
from .online_grouping import online_labels, pooled_sums

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
UNGROUPED = NO_GROUP
MAX_EXACT = 1000
MARGIN = 0.05
_SAMPLE = 2000
_BATCH = 512

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


def group(
    signatures: Sequence[Signature], *, z: float = MIN_Z, eta: float = MIN_ETA, min_founding: int = MIN_FOUNDING
) -> Grouping:
    """Return the groups that signatures fall into.

    Up to `MAX_EXACT` signatures the nearest two sets of all are merged first; of more, each joins the nearest of the
    groups so far, and is looked at once more when all groups are known.

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
    limits = Limits(z, eta, min_founding)
    between = _separation(given)
    tree: list[Merge] = []
    if len(order) <= MAX_EXACT:
        labels, founders, steps = exact_labels(Sums.of(given), between, limits)
        tree = _tree(steps, [order[i] for i in founders], len(order))
    else:
        labels = online_labels(given, between, limits)
    back = np.empty(len(order), np.intp)
    back[order] = labels
    given = _as_compared(signatures, compared)
    return _result(given, _numbered(back), tree, compared, between=between)


def _prepare(signatures: Sequence[Signature]) -> tuple[list[int], list[Signature], Literal["labels", "inputs"]]:
    """Return the places of the signatures in an order that depends on their content only, and them in that order."""
    if len({(s.identity, s.dimension) for s in signatures}) > 1:
        raise ValueError("signatures of different specs cannot be grouped; sign all data with one spec")
    compared: Literal["labels", "inputs"] = "labels" if len({s.labelled for s in signatures}) < 2 else "inputs"
    given = _as_compared(signatures, compared)
    keys = [_digest(s) for s in given]
    order = sorted(range(len(given)), key=keys.__getitem__)
    return order, [given[i] for i in order], compared


def _digest(signature: Signature) -> bytes:
    parts = (signature.classes, signature.counts, signature.means, signature.traces)
    return hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=16).digest()


def _separation(given: Sequence[Signature]) -> float | None:
    """Return B of as many signatures as it takes to know it well."""
    return separation(Sums.of(given[:_SAMPLE]))


def _as_compared(signatures: Sequence[Signature], compared: Literal["labels", "inputs"]) -> list[Signature]:
    """Return the signatures in the form in which they are compared."""
    return list(signatures) if compared == "labels" else [without_labels(s) for s in signatures]


def _tree(steps: list[Step], leaves: Sequence[int], count: int) -> list[Merge]:
    """Return steps over `leaves` as steps over all `count` signatures."""

    def name(node: int) -> int:
        return leaves[node] if node < len(leaves) else count + node - len(leaves)

    return [Merge(name(left), name(right), height, kept) for left, right, height, kept in steps]


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
    totals = pooled_sums(given, place, len(ids))
    size = np.bincount(place[place >= 0], minlength=len(ids))
    own, distances = np.zeros(len(given)), np.full(len(given), np.inf)
    nearest: list[int | None] = [None] * len(given)
    for begin in range(0, len(given) if len(ids) else 0, _BATCH):
        here = place[begin : begin + _BATCH]
        sums = Sums.of(given[begin : begin + _BATCH], totals.classes)
        other = compare(sums, totals, between).eta
        grouped = np.flatnonzero(here >= 0)
        other[grouped, here[grouped]] = np.inf
        rest = grouped[size[here[grouped]] > 1]
        own[begin + rest] = compare_with_rest(sums, here, rest, totals, between).eta[:, 0]
        best = other.argmin(1)
        found = other[np.arange(len(here)), best]
        distances[begin : begin + _BATCH] = found
        for row in np.flatnonzero(np.isfinite(found)).tolist():
            nearest[begin + row] = int(ids[best[row]])
    pooled = totals.signatures(given[0].identity, labelled=given[0].labelled)
    members: list[list[int]] = [[] for _ in ids]
    for row in np.flatnonzero(place >= 0).tolist():
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
    grouped = labels >= 0
    _, first, place = np.unique(labels[grouped], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.intp)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered = np.full(len(labels), UNGROUPED, np.intp)
    numbered[grouped] = rank[place]
    return numbered


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
    worst = merge_key(found, Limits(z, eta, 0))[0]
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

    A new group keeps the id of the old one whose data it has, else of the one with which it shares most signatures.
    A signature leaves an old group that goes on only if that group rejects it and its new group is nearer by
    `margin`: what is on the border stays.

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
    new = _matched(old, np.array(fresh.labels, np.intp), next_id, _kin(fresh, previous, Limits(z, eta, min_founding)))
    next_id = max(next_id, int(new.max(initial=-1)) + 1)
    given = _as_compared(signatures, fresh.compared)
    moving = np.flatnonzero((old >= 0) & (new != old) & np.isin(old, new))
    between = None
    if len(moving):
        between = _separation(given)
        ids = np.unique(np.concatenate([old[old >= 0], new[new >= 0]]))
        after, before = np.searchsorted(ids, new), np.searchsorted(ids, old)
        stay = np.where(new == old, after, UNGROUPED)
        totals = pooled_sums(given, stay.astype(np.intp), len(ids))
        found = compare(Sums.of([given[i] for i in moving], totals.classes), totals, between)
        here, there = before[moving], after[moving].clip(0, len(ids) - 1)
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
    between = _separation(given)
    given = _as_compared(signatures, compared)
    return _result(given, np.array(labels, np.intp), (), compared, between=between, next_id=next_id)


def _matched(old: _Labels, new: _Labels, next_id: int, kin: Sequence[tuple[int, int]] = ()) -> _Labels:
    """Return `new` labels under the ids of old groups, each used once: of the same data, else of the most members.

    `kin` are pairs of a new and an old group with data alike, the surest first.
    """
    pairs = Counter((int(n), int(o)) for n, o in zip(new, old, strict=True) if n >= 0 and o >= 0)
    by_members = [pair for pair, _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]
    ids: dict[int, int] = {}
    for fresh, before in (*kin, *by_members):
        if fresh not in ids and before not in ids.values():
            ids[fresh] = before
    for fresh in np.unique(new[new >= 0]).tolist():
        if fresh not in ids:
            ids[fresh], next_id = next_id, next_id + 1
    return np.array([ids.get(int(n), UNGROUPED) for n in new], np.intp)


def _kin(fresh: Grouping, previous: Grouping, limits: Limits) -> list[tuple[int, int]]:
    """Return pairs of a new and an old group that hold the same task, as far as their data tell: the nearest first.

    A model belongs to a task, so that a group's id goes with its data, even where most of its edges have moved on.
    """
    if not fresh.groups or not previous.groups or fresh.compared != previous.compared:
        return []
    old = Sums.of([g.signature for g in previous.groups])
    new = Sums.of([g.signature for g in fresh.groups], old.classes)
    key = merge_key(compare(new, old, separation(old)), limits)
    order = np.argsort(key, axis=None, kind="stable")
    places = [divmod(int(i), key.shape[1]) for i in order if np.isfinite(key.flat[i])]
    return [(fresh.groups[i].id, previous.groups[j].id) for i, j in places]
