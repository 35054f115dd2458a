# SPDX-License-Identifier: Apache-2.0
"""FL+HC (Briggs, Fan & Andras 2020): after some rounds together, edges are clustered once by their updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from .grouped import FIRST, OWN, GroupedStrategy, expect
from .hierarchical import LINKAGES, cluster
from .state import restore, state_of
from .tracks import TrainPart
from .updates import Floats, moved, update_of, weighted_mean

__all__ = ["FlHc"]

_METRICS = {"cosine": "cosine", "euclidean": "euclidean", "manhattan": "cityblock"}


class FlHc(GroupedStrategy):
    """Trains together for some rounds, clusters the edges' updates once, and trains each group apart (Briggs 2020).

    After `warm_rounds` of the base strategy every edge trains the common model once more; agglomerative clustering of
    the updates Δw makes the groups. Each goes on from the mean of its edges. An edge that comes later trains the common
    model of that round first, and joins the group whose mean update is nearest. The server keeps one update of each
    edge during the round in which it clusters.

    Parameters
    ----------
    warm_rounds
        Rounds before clustering, n in the paper.
    threshold
        Groups whose updates are farther apart stay apart, in the metric's unit. Without it the number of groups is the
        one whose silhouette is largest.
    metric
        Distance of updates: `cosine`, `euclidean` (L2) or `manhattan` (L1).
    linkage
        `complete`, `average`, `single`, or `ward`, which is for `euclidean`.
    stand_out
        Without a threshold: the silhouette that groups must reach, or all stay one.
    **common
        `base`, `base_options`, `fraction_train` and `finetune` of `GroupedStrategy`. In the round that clusters all
        edges take part, and the base strategy has none.
    """

    def __init__(
        self,
        warm_rounds: int = 3,
        threshold: float | None = None,
        metric: str = "cosine",
        linkage: str = "complete",
        stand_out: float = 0.15,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        expect(warm_rounds >= 0, "warm_rounds", warm_rounds, "a whole number from 0")
        expect(threshold is None or threshold > 0, "threshold", threshold, "a number above 0")
        expect(metric in _METRICS, "metric", metric, f"one of {', '.join(_METRICS)}")
        expect(linkage in LINKAGES, "linkage", linkage, f"one of {', '.join(LINKAGES)}")
        expect(linkage != "ward" or metric == "euclidean", "linkage", linkage, "ward with metric euclidean only")
        self._left, self._threshold, self._stand_out = warm_rounds, threshold, stand_out
        self._metric, self._linkage = metric, linkage
        self._common: ArrayRecord | None = None
        self._means: dict[str, Floats] = {}
        self._updates: dict[str, Floats] = {}

    def place(self, edge: str, arrays: ArrayRecord) -> str | None:
        """Return an edge's group; in the round that clusters, and for who comes later, there is none."""
        if self._means:
            return self.group_of.get(edge)
        self.track.ensure(FIRST, arrays)
        self.group_of.setdefault(edge, FIRST)
        return FIRST if self._left > 0 else None

    def guest_model(self, edge: str, arrays: ArrayRecord) -> ArrayRecord:
        """Return the common model: as it was when edges were clustered."""
        del edge, arrays
        return self.track.groups[FIRST].arrays if self._common is None else self._common

    def see(self, edge: str, part: TrainPart, returned: ArrayRecord, samples: float) -> None:
        """Keep the updates that are clustered; put a guest into the group that it is nearest to."""
        del samples
        if part.track == OWN or (self._means and edge in self.group_of):
            return
        update = update_of(part.arrays, returned)
        if not self._means:
            self._updates[edge] = update
            return
        names = sorted(self._means)
        apart = self._distances(np.stack([update]), np.stack([self._means[name] for name in names]))
        self.group_of[edge] = names[int(apart[0].argmin())]

    def _distances(self, one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = cdist(one, other, _METRICS[self._metric])
        return np.nan_to_num(found, nan=1.0)  # an update of nothing has no direction

    def regroup(self, server_round: int) -> str | None:
        """Cluster the updates, once."""
        if self._left > 0:
            self._left -= 1
        elif not self._means and self._updates:
            self._cluster()
            return f"the updates of {len(self.group_of)} edges were clustered"
        return "the first round" if server_round == 1 else None

    def _cluster(self) -> None:
        edges = sorted(self._updates, key=lambda name: (len(name), name))
        rows = np.stack([self._updates[edge] for edge in edges])
        apart = self._distances(rows, rows)
        apart = (apart + apart.T) / 2
        np.fill_diagonal(apart, 0.0)
        labels = cluster(apart, method=self._linkage, threshold=self._threshold, stand_out=self._stand_out)
        old = self.track.groups[FIRST]
        self._common, base = old.arrays, state_of(old.base)
        self.track.drop(())
        for label in range(max(labels) + 1):
            name, members = f"group-{label + 1}", [e for e, own in zip(edges, labels, strict=True) if own == label]
            samples = [self.samples[edge] for edge in members]
            self._means[name] = weighted_mean([self._updates[edge] for edge in members], samples)
            group = self.track.ensure(name, moved(self._common, self._means[name], self._common))
            group.samples = float(sum(samples))
            restore(group.base, base)
        self.group_of = {edge: f"group-{label + 1}" for edge, label in zip(edges, labels, strict=True)}
        self._updates = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the groups, their models, and what later edges are compared with."""
        found = {**super().state_dict(), "left": self._left}
        if self._common is not None:
            found |= {"common": self._common, "means": dict(self._means)}
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._left, self._common = int(state["left"]), state.get("common")
        self._means = dict(state.get("means", {}))
