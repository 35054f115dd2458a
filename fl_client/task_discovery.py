# SPDX-License-Identifier: Apache-2.0
"""An edge's part in finding the tasks that streams mix: sums over its samples, and then the task of each sample.

What is looked for, and how, is in `lib.task_directions` and `lib.task_mixture`; the server's part in
`strategies.task_search`. With chunks, whose samples are known to be of one task or nearly so, a unit is a chunk;
without, it is the edge, and tasks show where edges mix them in other shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DatasetError
from ..lib.discovery import ClassSums, Clusters, DiscoveryQuestion, Step, pulls_to, sums_to
from ..lib.questions import Question, Response
from ..lib.signature_features import SignatureSpec
from ..lib.signatures import embed_samples
from ..lib.task_directions import Floats, Indices, pull
from ..lib.task_mixture import TaskModel, clusters
from .edge_data import EdgeData

__all__ = ["Discovered", "TaskDiscovery"]

_MOST_SAMPLES = 20_000


@dataclass(frozen=True)
class Discovered:
    """Gives each sample the name of the task that it is most likely of.

    Parameters
    ----------
    model
        The tasks that the fleet found.
    chunk
        Samples in a row that belong together; None where no such number is known.
    """

    model: TaskModel
    chunk: int | None

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None) -> NDArray[np.str_]:
        """Return the task of each sample: n names."""
        features, labels = embed_samples(x, y, self.model.spec)
        return np.array(self.model.names)[self.model.divide(features, labels, self.chunk)]


class TaskDiscovery:
    """Answers the server's questions; what is made of the samples is kept from one to the next."""

    def __init__(self) -> None:
        self._made: tuple[str, SignatureSpec, Floats, Indices] | None = None

    def answer(self, question: Question, data: EdgeData) -> Response:
        """Return what is asked of this edge's training samples.

        Raises
        ------
        DatasetError
            If they cannot be embedded, or are too few for any sum to leave the edge.
        WireError
            If the question cannot be read.
        """
        asked = DiscoveryQuestion.of(question)
        features, labels = self._embedded(asked.spec, data)
        chunk, least = data.rules.chunk, asked.spec.min_count
        units = np.arange(len(features)) // (chunk or 1)
        if asked.step is Step.SUMS:
            return self._sums(features, labels, units, asked.spec, chunk).to_response()
        if asked.step is Step.PULL:
            return _pulls(asked, features, labels, units)
        if asked.step is Step.CLUSTERS:
            evidence = asked.frames[0].evidence(features, labels)
            evidence = evidence if chunk is None else evidence.by_unit(units)
            share = max(least, data.rules.min_samples) / max(len(features), 1)
            places, shares = clusters(evidence, asked.tasks, asked.spec.seed, least=share)
            return Clusters(places, shares * len(features)).to_response()
        return sums_to(asked.model.sums(features, labels, chunk, least=least))

    def _embedded(self, spec: SignatureSpec, data: EdgeData) -> tuple[Floats, Indices]:
        """Return features and class ids of the samples, or of chunks of them that are spread evenly over all."""
        samples = data.samples("train")
        digest = samples.digest()
        if self._made is not None and self._made[:2] == (digest, spec):
            return self._made[2:]
        chunks = np.arange(len(samples)) // (data.rules.chunk or 1)
        some = samples.of(np.flatnonzero(chunks % max(1, -(-len(samples) // _MOST_SAMPLES)) == 0))
        features, labels = embed_samples(some.x, some.y, spec)
        self._made = digest, spec, features, labels
        return features, labels

    @staticmethod
    def _sums(features: Floats, labels: Indices, units: Indices, spec: SignatureSpec, chunk: int | None) -> ClassSums:
        halves = _by_chance(labels, spec.seed) if chunk is None else _half_of_units(units, spec.seed)
        found = ClassSums.of(features, labels, halves, least=spec.min_count, chunk=chunk)
        if not len(found.classes):
            raise DatasetError(
                f"of its {len(features)} samples, no class has {2 * spec.min_count} or more, so that nothing of them "
                f"may be sent; this edge takes no part in finding tasks"
            )
        return found


def _pulls(asked: DiscoveryQuestion, features: Floats, labels: Indices, units: Indices) -> Response:
    least = asked.spec.min_count
    if len(asked.frames) == 1:
        return pulls_to([pull(asked.frames[0], features, labels, units, least=least, white=asked.white)])
    found, halves = [], _half_of_units(units, asked.spec.seed)
    for half, frame in enumerate(asked.frames):
        rows = np.flatnonzero(halves == half)
        own = np.unique(units[rows], return_inverse=True)[1]
        found.append(pull(frame, features[rows], labels[rows], own, least=least, white=asked.white))
    return pulls_to(found)


def _half_of_units(units: Indices, seed: int) -> Indices:
    """Return the half of each sample, the same for all of a unit: by chance, for tasks may take turns."""
    order = np.random.default_rng(seed).permutation(int(units.max(initial=-1)) + 1)
    found: Indices = (order % 2)[units] if len(order) else np.zeros(0, np.int64)
    return found


def _by_chance(labels: Indices, seed: int) -> Indices:
    """Return the half of each sample, so that both have as many of each class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    halves = np.zeros(len(labels), np.int64)
    halves[order] = (np.arange(len(labels)) - np.repeat(starts, counts)) % 2
    return halves
