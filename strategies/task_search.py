# SPDX-License-Identifier: Apache-2.0
"""The server's part in finding the tasks that edges mix: it asks all edges, adds up what they say, and asks again.

1. Sums of each class give the common centre and spread, and without chunks already the directions in which edges
   differ.
2. With chunks, the directions in which chunks differ are found by what pulls at axes that are anything at first.
3. Directions that both halves of the samples agree on are kept: as many, and one, are the tasks.
4. Each edge says where its samples gather along them; places of all edges are gathered in as many tasks.
5. The tasks' places, and how pure chunks are, are fitted to all samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ..core.errors import WireError
from ..lib.discovery import ClassSums, Clusters, DiscoveryQuestion, Step, pulls_of, sums_of
from ..lib.questions import Response
from ..lib.signature_features import SignatureSpec
from ..lib.task_directions import (
    Axes,
    Floats,
    Indices,
    Pull,
    agreement,
    better_axes,
    fit_between,
    fit_together,
    whitening,
)
from ..lib.task_mixture import PURE_CHUNK, TaskModel, TaskSums, gather

__all__ = ["TaskSearch"]

# More features than a signature has: it is single samples that are told apart.
_DIMENSION, _SCALE = 128, 1.0
# They are looked for in the features that vary most, in so many numbers over all classes: in fewer, chance agrees with
# itself; in more, little data do not. Of directions of chance two halves then agree on up to .5; of tasks', on .8.
_NUMBERS, _LEAST_FEATURES = 320, 32
_AGREED = 0.6
_FIRST_RANK, _MOST_RANK = 4, 32
_LEAST_PULLS, _MOST_PULLS, _PULLS_TOGETHER, _MOST_FITS = 6, 12, 2, 8
# What has moved by less is at its end.
_STILL = 0.01
_MOST_CLASSES = 100
_STRAYS = 0.8
# A task that has less of all samples is what is left over.
_SHARE = 0.02
# No edge counts for more than so many usual ones, whatever it claims.
_HEAVIEST = 10.0
# Tasks nearer than the spread within a class are one: with many samples, two halves agree even on what makes none.
_APART = 1.0

_T = TypeVar("_T")
_S = TypeVar("_S", Pull, TaskSums)


class TaskSearch:
    """Goes through the steps; ask all edges `question()`, `take()` their answers, until `done`.

    Edges whose answer cannot be used, or did not come, take no further part.

    Parameters
    ----------
    spec
        Of the job's signatures.
    first
        Number of the first task, which is part of its name.
    """

    def __init__(self, spec: SignatureSpec, *, first: int = 1) -> None:
        self.spec = spec.model_copy(update={"dimension": max(_DIMENSION, spec.dimension), "scale": _SCALE})
        self.found: TaskModel | None = None
        self.done = False
        self.edges: set[str] | None = None
        self.refused: dict[str, str] = {}
        self._first = first
        self._step = Step.SUMS
        self._classes: Indices = np.zeros(0, np.int64)
        self._centre: Floats = np.zeros((0, 0))
        self._white: Floats = np.zeros((0, 0))
        self._counts: Floats = np.zeros(0)
        self._width, self._first_rank = 0, _FIRST_RANK
        self._chunked = False
        self._axes: tuple[Axes, ...] = ()
        self._places: Floats | None = None
        self._purity = 1.0
        self._asked = 0
        self._cosines: Floats = np.zeros(0)
        self._steps: dict[Step, Callable[[Mapping[str, Response]], None]] = {
            Step.SUMS: self._take_sums,
            Step.PULL: self._take_pulls,
            Step.CLUSTERS: self._take_clusters,
            Step.FIT: self._take_fits,
        }

    def question(self) -> DiscoveryQuestion:
        """Return what to ask next."""
        return DiscoveryQuestion(
            self._step,
            self.spec,
            tuple(axes.frame(self._classes, self._centre, self._white) for axes in self._axes),
            tasks=0 if not self._axes else len(self._axes[0]) + 1,
            places=self._places,
            purity=self._purity,
            white=self._white[:, : self._width] if self._step is Step.PULL and len(self._axes) > 1 else None,
        )

    def take(self, answers: Mapping[str, Response]) -> None:
        """Take the answers that came, by edge, and go on to the next question."""
        self._steps[self._step]({edge: answers[edge] for edge in sorted(answers)})

    def _usable(self, answers: Mapping[str, Response], read: Callable[[Response], _T]) -> dict[str, _T]:
        """Return what edges said, without those that said what cannot be used; they are left out from now on."""
        found = {}
        for edge, response in answers.items():
            try:
                if response.refused:
                    raise WireError(response.refused)
                found[edge] = read(response)
            except WireError as error:
                self.refused[edge] = str(error)
        self.edges = set(found)
        self.done = not found
        return found

    def _take_sums(self, answers: Mapping[str, Response]) -> None:
        said = self._usable(answers, lambda response: ClassSums.of_response(response, self.spec.dimension))
        if not said:
            return
        if len({sums.labelled for sums in said.values()}) > 1:
            # Labels that some edges do not have can link nothing: all are asked again, for their inputs alone.
            self.spec = self.spec.model_copy(update={"use_labels": False})
            return
        chunk = Counter(sums.chunk for sums in said.values()).most_common(1)[0][0]
        said = {edge: sums for edge, sums in said.items() if sums.chunk == chunk}
        self.edges, self._chunked = set(said), chunk is not None
        edges = list(said.values())
        self._classes = _common_classes(edges, 1 if self._chunked else 2)
        if not len(self._classes):
            self.done = True
            return
        counts, means = _aligned(edges, self._classes, self.spec.dimension)
        factors = _factors([float(sums.counts.sum()) for sums in edges])
        counts *= factors[:, None, None]
        self._counts = counts.sum((0, 1))
        self._centre = np.einsum("ekc,ekcd->cd", counts, means) / self._counts[:, None]
        free = np.array([float(sums.counts.sum()) - len(sums.classes) for sums in edges])
        self._white = whitening(np.average([sums.scatter for sums in edges], axis=0, weights=factors * free))
        self._width = min(self.spec.dimension, max(_LEAST_FEATURES, -(-_NUMBERS // len(self._classes))))
        self._first_rank = _FIRST_RANK if self._width * len(self._classes) >= _NUMBERS else _FIRST_RANK // 2
        if self._chunked:
            self._begin_pulls(self._first_rank)
        else:
            self._differ_between(counts, means)

    def _differ_between(self, counts: Floats, means: Floats) -> None:
        """Find the directions in which edges differ; without any, they are all of the same tasks."""
        halves = []
        for half in (0, 1):
            number = counts[:, half]
            halves.append((number[..., None] * (means[:, half] - self._centre) @ self._white, number))
        narrow = [(sums[..., : self._width], number) for sums, number in halves]
        rank = self._first_rank
        while True:
            most = min(rank, len(counts) - 1)
            if most < 1:
                self.done = True
                return
            one, other = fit_between(narrow, most, self.spec.seed)
            cosines, common = agreement(one, other, self._counts)
            kept = int((cosines > _AGREED).sum())
            if kept < rank or rank >= _MOST_RANK:
                break
            rank *= 2
        if not kept:
            self.done = True
            return
        whole = halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
        self._axes = (fit_together(whole, self._widened(common, kept)),)
        self._step = Step.CLUSTERS

    def _widened(self, axes: Axes, kept: int) -> Axes:
        """Return the first of the axes, as such of all features."""
        return Axes(axes.along[:kept], axes.shift).padded(self.spec.dimension)

    def _begin_pulls(self, rank: int) -> None:
        self._axes = tuple(Axes.start(rank, len(self._classes), self._width, self.spec.seed + half) for half in (0, 1))
        self._step, self._asked, self._cosines = Step.PULL, 0, np.zeros(rank)

    def _take_pulls(self, answers: Mapping[str, Response]) -> None:
        frames, size = self.question().frames, self._axes[0].along.shape[2]
        said = self._usable(answers, lambda response: pulls_of(response, frames, size))
        if not said:
            return
        edges = list(said.values())
        pulled = [_sum([each[place] for each in edges], lambda one: one.samples) for place in range(len(frames))]
        self._asked += 1
        if len(frames) == 1:
            self._axes = (better_axes(pulled[0].times(self._white), self._axes[0]),)
            if self._asked >= _PULLS_TOGETHER:
                self._step, self._asked = Step.CLUSTERS, 0
            return
        self._axes = tuple(better_axes(each, axes) for each, axes in zip(pulled, self._axes, strict=True))
        cosines, common = agreement(self._axes[0], self._axes[1], self._counts)
        moved, self._cosines = float(np.abs(cosines - self._cosines)[cosines > _AGREED].max(initial=0)), cosines
        if self._asked < _LEAST_PULLS or (self._asked < _MOST_PULLS and moved > _STILL):
            return
        kept = int((cosines > _AGREED).sum())
        if not kept:
            self.done = True
        elif kept == len(cosines) < _MOST_RANK:
            self._begin_pulls(2 * kept)
        else:
            self._axes, self._asked = (self._widened(common, kept),), 0

    def _take_clusters(self, answers: Mapping[str, Response]) -> None:
        rank = len(self._axes[0])
        said = self._usable(answers, lambda response: Clusters.of_response(response, rank))
        if not said:
            return
        factors = _factors([float(each.samples.sum()) for each in said.values()])
        points = np.concatenate([each.places for each in said.values()])
        samples = np.concatenate([f * each.samples for f, each in zip(factors, said.values(), strict=True)])
        places = _without_strangers(points, samples, rank + 1, self.spec.seed)
        if places is None:
            self.done = True
            return
        self._places = places
        self._purity = _STRAYS if self._chunked else 1.0
        self._step, self._asked = Step.FIT, 0

    def _take_fits(self, answers: Mapping[str, Response]) -> None:
        assert self._places is not None
        tasks, rank = self._places.shape
        said = self._usable(answers, lambda response: sums_of(response, tasks, rank))
        if not said:
            return
        total = _sum(list(said.values()), lambda one: one.counted)
        self._asked += 1
        kept = total.samples >= _SHARE * total.samples.sum()
        before, self._places = self._places[kept], total.places()[kept]
        still = np.abs(self._places - before).max() < _STILL * np.abs(self._places).max()
        if self._chunked:
            self._purity = total.purity
        if self._asked >= _MOST_FITS or (still and kept.all()):
            self._finish(self._places, total.samples[kept], total.square.sum(0) / total.samples.sum())

    def _finish(self, places: Floats, samples: Floats, gram: Floats) -> None:
        """End with the tasks at `places`; `gram` is a sample's mean evidence, by which distances are measured."""
        self.done = True
        while len(places) > 1:
            gaps = places[:, None] - places
            apart = np.einsum("tsi,ij,tsj->ts", gaps, gram, gaps)
            apart[np.diag_indices(len(places))] = np.inf
            one, other = np.unravel_index(int(apart.argmin()), apart.shape)
            if apart[one, other] >= _APART:
                break
            places[one] = np.average(places[[one, other]], axis=0, weights=samples[[one, other]])
            samples[one] += samples[other]
            places, samples = np.delete(places, other, axis=0), np.delete(samples, other)
        if len(places) < 2:
            return
        names = tuple(f"task-{self._first + place}" for place in range(len(places)))
        frame = self._axes[0].frame(self._classes, self._centre, self._white)
        purity = 1.0 if self._purity >= PURE_CHUNK else self._purity
        self.found = TaskModel(self.spec, frame, places, purity, names)


def _without_strangers(points: Floats, samples: Floats, tasks: int, seed: int) -> Floats | None:
    """Return places in which points gather; points far from all others, of few samples, are no task and are let go."""
    while len(points) >= 2:
        places = gather(points, samples, min(tasks, len(points)), seed)
        nearest = ((points[:, None] - places) ** 2).sum(2).argmin(1)
        load = np.bincount(nearest, samples, minlength=len(places))
        light = load < _SHARE * load.sum()
        if not light.any():
            return places
        points, samples = points[~light[nearest]], samples[~light[nearest]]
    return None


def _common_classes(edges: Sequence[ClassSums], least: int) -> Indices:
    """Return the classes of most samples, of those that so many edges have."""
    samples, having = Counter[int](), Counter[int]()
    for sums in edges:
        samples.update(dict(zip(sums.classes.tolist(), sums.counts.sum(0).tolist(), strict=True)))
        having.update(sums.classes.tolist())
    usual = [c for c, _ in samples.most_common() if having[c] >= least]
    return np.array(sorted(usual[:_MOST_CLASSES]), np.int64)


def _factors(sizes: Sequence[float]) -> Floats:
    """Return what to multiply each edge's sums by, 1 for all but the heaviest."""
    found: Floats = np.minimum(1.0, _HEAVIEST * np.median(sizes) / np.maximum(sizes, 1e-9))
    return found


def _sum(parts: Sequence[_S], size: Callable[[_S], float]) -> _S:
    factors = _factors([size(part) for part in parts])
    total = parts[0].scaled(float(factors[0]))
    for factor, part in zip(factors[1:], parts[1:], strict=True):
        total = total + part.scaled(float(factor))
    return total


def _aligned(edges: list[ClassSums], classes: Indices, size: int) -> tuple[Floats, Floats]:
    """Return numbers and means of each edge, half and class: N x 2 x C, and with D."""
    counts, means = np.zeros((len(edges), 2, len(classes))), np.zeros((len(edges), 2, len(classes), size))
    for row, sums in enumerate(edges):
        _, own, there = np.intersect1d(sums.classes, classes, return_indices=True)
        counts[row][:, there] = sums.counts[:, own]
        means[row][:, there] = sums.means[:, own]
    return counts, means
