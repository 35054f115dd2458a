# SPDX-License-Identifier: Apache-2.0
"""Which tasks of which edges are similar, kept up to date as edges come, answer and change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import WireError
from ..core.events import TaskPlace, TasksGrouped
from ..lib.signature_distance import label_free_eta, without_labels
from ..lib.signatures import Signature, SignatureSpec, merge
from ..lib.survey import SurveyAnswer, signature_digest
from .grouping import Grouping, assign, group, rebuild, regroup

__all__ = ["Task", "TaskGroups"]

_PREFIX = "group-"


@dataclass(frozen=True)
class Task:
    """One task of one edge: what it is called there, and its signature, None where the edge could not give one."""

    edge: str
    place: int
    name: str
    samples: int
    signature: Signature | None
    labelled: bool = True


class TaskGroups:
    """The groups of all known tasks.

    Groups keep their names from round to round; a task moves when its group no longer accepts its data.

    Parameters
    ----------
    spec
        How signatures are made; others are refused. It may be completed before the first one comes.
    """

    def __init__(self, spec: SignatureSpec) -> None:
        self.spec = spec
        self.by_name = False
        """Whether tasks have their names in common: all edges' tasks of one name belong together, and are compared."""
        self.tasks: dict[str, list[Task]] = {}
        self.refused: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.signature_bytes = 0
        self._groups: dict[tuple[str, int], str] = {}
        self._grouping: Grouping | None = None
        self._grouped: list[Task] = []
        self._named: tuple[list[str], Grouping] | None = None

    def take(self, edge: str, answer: SurveyAnswer, parts: tuple[bytes, ...]) -> None:
        """Take an edge's signatures in place of those it gave before.

        Raises
        ------
        WireError
            If one cannot be used: of another version, damaged, absurd.
        """
        tasks = []
        for place, (about, part) in enumerate(zip(answer.tasks, parts, strict=True)):
            signature = Signature.from_bytes(part)
            if (signature.identity, signature.dimension) != (self.spec.identity, self.spec.dimension) or (
                signature.labelled and not self.spec.use_labels
            ):
                raise WireError(
                    "its signature was made in another way than the job's; update Solar Corona on that edge"
                )
            if signature.total > about.samples:
                raise WireError(f"its signature counts {signature.total} samples, and it has {about.samples}")
            usable = signature if len(signature.counts) else None
            tasks.append(Task(edge, place, about.name, about.samples, usable, about.labelled))
        if not tasks:
            raise WireError("it named no task")
        self.signature_bytes += sum(map(len, parts))
        self.refused.pop(edge, None)
        self.tasks[edge] = tasks
        self.digests[edge] = signature_digest(parts)

    def refuse(self, edge: str, reason: str, parts: tuple[bytes, ...] = ()) -> None:
        """Note that an edge gave no signature that can be used; it goes with the largest group."""
        self.refused[edge] = reason
        self.digests[edge] = signature_digest(parts)
        self.tasks[edge] = [Task(edge, 0, "all", 0, None)]

    def regroup(self) -> dict[tuple[str, int], tuple[str | None, str]]:
        """Find the groups anew and return which tasks have moved: (edge, place) → (from, to)."""
        before = dict(self._groups)
        signed = self._compared()
        signatures = [task.signature for task in signed if task.signature is not None]
        self._groups = {}
        if signed:
            if self.by_name:
                self._grouping = self._group_names(signed, signatures)
            elif self._grouping is None:
                self._grouping = group(signatures)
            else:
                places = {(t.edge, t.place): i for i, t in enumerate(self._grouped)}
                self._grouping = regroup(self._grouping, [places.get((t.edge, t.place)) for t in signed], signatures)
            self._grouped = signed
            for task, label in zip(signed, self._grouping.labels, strict=True):
                if label >= 0:
                    self._groups[task.edge, task.place] = _name(label)
            self._place_by_inputs(before, self._grouping)
        largest = self._largest()
        for tasks in self.tasks.values():
            for task in tasks:
                # Where nothing is known of the data, what was found from updates stands.
                known = before.get((task.edge, task.place)) if task.signature is None else None
                self._groups.setdefault((task.edge, task.place), known or largest)
        return {key: (before.get(key), name) for key, name in self._groups.items() if before.get(key) != name}

    def _group_names(self, signed: list[Task], signatures: list[Signature]) -> Grouping:
        """Group the sums of all edges' tasks of one name, of which each has its share."""
        names, sums = _sums_by_name(signed, signatures)
        if self._named is None and self._grouping is None:
            found = group(sums)
        elif self._named is None:
            assert self._grouping is not None
            found = regroup(self._grouping, [None] * len(names), sums)
        else:
            places = {name: i for i, name in enumerate(self._named[0])}
            found = regroup(self._named[1], [places.get(name) for name in names], sums)
        self._named = names, found
        label_of = dict(zip(names, found.labels, strict=True))
        return rebuild([label_of[task.name] for task in signed], signatures, next_id=found.next_id)

    def _compared(self) -> list[Task]:
        """Return the tasks whose signatures make the groups: the labelled ones, unless most have no labels."""
        signed = [task for tasks in self.tasks.values() for task in tasks if task.signature is not None]
        labelled = [task for task in signed if task.signature is not None and task.signature.labelled]
        return labelled if 2 * len(labelled) >= len(signed) else signed

    def _place_by_inputs(self, before: Mapping[tuple[str, int], str], grouping: Grouping) -> None:
        """Give tasks without labels to the groups of the others by their inputs alone: to the last, if it accepts."""
        for tasks in self.tasks.values():
            for task in tasks:
                key = task.edge, task.place
                if task.signature is None or task.signature.labelled or key in self._groups:
                    continue
                last = [g for g in grouping.groups if _name(g.id) == before.get(key)]
                found = assign(task.signature, last).group if last else None
                found = assign(task.signature, grouping.groups).group if found is None else found
                if found is not None:
                    self._groups[key] = _name(found)

    def _largest(self) -> str:
        sizes: dict[str, int] = {}
        for (edge, place), name in self._groups.items():
            sizes[name] = sizes.get(name, 0) + self.tasks[edge][place].samples
        return max(sorted(sizes), key=lambda name: sizes[name]) if sizes else _name(0)

    @property
    def names(self) -> list[str]:
        """Names of all groups, in the order in which they were found."""
        return sorted(set(self._groups.values()), key=lambda name: (len(name), name))

    def of_edge(self, edge: str) -> dict[str, tuple[int, ...]]:
        """Return the groups of an edge's tasks, each with the tasks' places; an unknown edge is of the largest."""
        found: dict[str, list[int]] = {}
        for task in self.tasks.get(edge, []):
            found.setdefault(self._groups[edge, task.place], []).append(task.place)
        return {name: tuple(places) for name, places in found.items()} or {self._largest(): (0,)}

    def place(self, edge: str, place: int, name: str) -> None:
        """Put a task into a group, whatever its signature says."""
        self._groups[edge, place] = name

    def alike(self, limit: float) -> list[list[str]]:
        """Return sets of two or more groups whose inputs are alike, labels aside."""
        sums = {_name(g.id): g.signature for g in self._grouping.groups} if self._grouping is not None else {}
        left, found = [name for name in self.names if name in sums], list[list[str]]()
        while left:
            together = [left.pop(0)]
            for name in list(left):
                if all(label_free_eta(sums[name], sums[other]) < limit for other in together):
                    together.append(name)
                    left.remove(name)
            if len(together) > 1:
                found.append(together)
        return found

    def distances(self) -> dict[tuple[str, str], float]:
        """Return the label-free distance between each two groups."""
        sums = {_name(g.id): g.signature for g in self._grouping.groups} if self._grouping is not None else {}
        return {(a, b): label_free_eta(sums[a], sums[b]) for a in sums for b in sums if a != b}

    def sums(self) -> list[Signature]:
        """Return each group's signature, the sum of its tasks'."""
        return [g.signature for g in self._grouping.groups] if self._grouping is not None else []

    def samples(self) -> dict[str, int]:
        """Return how many samples each group has."""
        found = dict.fromkeys(self.names, 0)
        for (edge, place), name in self._groups.items():
            found[name] += self.tasks[edge][place].samples
        return found

    def event(self, server_round: int, reason: str, shown: Mapping[str, str]) -> TasksGrouped:
        """Return what is to be told; `shown` gives the groups' names after merging."""
        places = {(t.edge, t.place): i for i, t in enumerate(self._grouped)}
        points = _map([t.signature for t in self._grouped if t.signature is not None])
        told, nodes = list[TaskPlace](), dict[int, int]()
        for edge in sorted(self.tasks, key=_natural):
            for task in self.tasks[edge]:
                index = places.get((edge, task.place)) if task.signature is not None else None
                grouping = self._grouping
                own, other = (
                    (0.0, None)
                    if index is None or grouping is None
                    else (grouping.own_eta[index], grouping.other_eta[index])
                )
                name = self._groups[edge, task.place]
                if index is not None:
                    nodes[index] = len(told)
                told.append(
                    TaskPlace(
                        edge=edge,
                        task=task.name,
                        group=shown.get(name, name),
                        samples=task.samples,
                        own=float(own),
                        next=float(other) if other is not None and np.isfinite(other) else None,
                        map=(0.0, 0.0) if index is None else (float(points[index, 0]), float(points[index, 1])),
                        labelled=task.labelled,
                        signed=index is not None,
                    )
                )
        # The tree's leaves are named by the tasks' places here, where those without a signature stand too.
        whole = self._grouping is not None and len(nodes) == len(self._grouped)
        merges = self._grouping.tree if self._grouping is not None and whole else ()
        nodes.update({len(self._grouped) + step: len(told) + step for step in range(len(merges))})
        tree = [(nodes[m.left], nodes[m.right], m.height) for m in merges]
        return TasksGrouped(
            round=server_round, reason=reason, tasks=told, tree=tree, signature_bytes=self.signature_bytes
        )

    def state(self) -> dict[str, object]:
        """Return all that is known, as plain values and arrays."""
        known = [task for tasks in self.tasks.values() for task in tasks]
        signed = [task.signature.to_bytes() if task.signature is not None else b"" for task in known]
        return {
            "tasks": [[t.edge, t.place, t.name, t.samples, t.labelled, self._groups[t.edge, t.place]] for t in known],
            "refused": dict(self.refused),
            "digests": dict(self.digests),
            "by_name": self.by_name,
            "next_id": self._grouping.next_id if self._grouping is not None else 0,
            "signature_bytes": self.signature_bytes,
            "lengths": [len(part) for part in signed],
            "signatures": np.frombuffer(b"".join(signed), np.uint8).copy(),
        }

    def restore(self, state: Mapping[str, object]) -> None:
        """Take back what `state` gave; the groups keep their names."""
        data = np.asarray(state["signatures"], np.uint8).tobytes()
        offset = 0
        self.by_name = bool(state["by_name"])
        self.tasks, self._groups = {}, {}
        for said, length in zip(_list(state["tasks"]), _list(state["lengths"]), strict=True):
            edge, place, name, samples, labelled, group_name = said
            part = data[offset : offset + length]
            offset += length
            signature = Signature.from_bytes(part) if part else None
            self.tasks.setdefault(edge, []).append(Task(edge, place, name, samples, signature, labelled))
            self._groups[edge, place] = group_name
        refused = state["refused"]
        self.refused = dict(refused) if isinstance(refused, dict) else {}
        digests = state["digests"]
        self.digests = dict(digests) if isinstance(digests, dict) else {}
        self.signature_bytes = int(str(state["signature_bytes"]))
        self._grouped = self._compared()
        if self._grouped:
            labels = [int(self._groups[t.edge, t.place].removeprefix(_PREFIX)) - 1 for t in self._grouped]
            signatures = [t.signature for t in self._grouped if t.signature is not None]
            self._grouping = rebuild(labels, signatures, next_id=int(str(state["next_id"])))
            if self.by_name:
                names, sums = _sums_by_name(self._grouped, signatures)
                label_of = dict(zip((t.name for t in self._grouped), labels, strict=True))
                whole = rebuild([label_of[name] for name in names], sums, next_id=self._grouping.next_id)
                self._named = names, whole


def _sums_by_name(tasks: list[Task], signatures: list[Signature]) -> tuple[list[str], list[Signature]]:
    """Return the names of tasks, and for each the signature of all samples that are of it."""
    if len({signature.labelled for signature in signatures}) > 1:
        signatures = [without_labels(signature) for signature in signatures]
    found: dict[str, list[Signature]] = {}
    for task, signature in zip(tasks, signatures, strict=True):
        found.setdefault(task.name, []).append(signature)
    names = sorted(found, key=_natural)
    return names, [merge(found[name]) for name in names]


def _list(value: object) -> list:  # type: ignore[type-arg]
    assert isinstance(value, list)
    return value


def _name(group_id: int) -> str:
    return f"{_PREFIX}{group_id + 1}"


def _natural(name: str) -> tuple[str, int, str]:
    head = name.rstrip("0123456789")
    tail = name[len(head) :]
    return head, int(tail) if tail else -1, name


def _map(signatures: list[Signature]) -> NDArray[np.float64]:
    """Return a place in the plane for each signature: near where their data are alike (principal components)."""
    if len(signatures) < 2:
        return np.zeros((len(signatures), 2))
    classes = sorted({int(c) for s in signatures for c in s.classes})
    where = {c: i for i, c in enumerate(classes)}
    dimension = signatures[0].dimension
    means = np.full((len(signatures), len(classes), dimension), np.nan)
    for row, signature in enumerate(signatures):
        for c, mean in zip(signature.classes, signature.means, strict=True):
            means[row, where[int(c)]] = mean
    centre = np.nanmean(means, axis=0)
    flat = np.where(np.isnan(means), centre, means) - centre
    flat = flat.reshape(len(signatures), -1)
    left, values, _ = np.linalg.svd(flat, full_matrices=False)
    points: NDArray[np.float64] = np.zeros((len(signatures), 2))
    points[:, : min(2, len(values))] = left[:, :2] * values[:2]
    return points / max(float(np.abs(points).max()), 1e-9)
