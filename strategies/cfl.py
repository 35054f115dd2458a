# SPDX-License-Identifier: Apache-2.0
"""Clustered federated learning (Sattler et al. 2019): a group is split in two where its edges' updates disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from .grouped import FIRST, OWN, GroupedStrategy, expect
from .state import restore, state_of
from .tracks import TrainPart
from .updates import Floats, cosines, moved, update_of, weighted_mean

__all__ = ["Cfl", "bipartition"]


@dataclass
class _Split:
    """A group that was split: its model then, and where its two parts wanted to go."""

    model: ArrayRecord
    directions: tuple[Floats, Floats]


class Cfl(GroupedStrategy):
    """Splits a group of edges in two when its model stands still and single edges still pull (Sattler et al. 2019).

    All edges begin as one group. In a group whose mean update is short, ‖Σ nᵢΔθᵢ/Σ nᵢ‖ < eps1, while the longest is
    long, max ‖Δθᵢ‖ > eps2, the edges are cut into the two parts whose largest cosine α across is the smallest, if
    √((1 − α)/2) > gamma_max; each part goes on from its own mean. The server keeps one update of each edge during a
    round.

    Parameters
    ----------
    eps1, eps2
        The two thresholds, in units of the model's weights. Without eps1 it is `stationary` times the longest mean
        update that the group has had, so that it fits any model and learning rate; without eps2 it equals eps1.
    stationary
        See `eps1`.
    gamma_max
        The gap that a split needs. 0.5 asks for α < 0.5, so that edges with like data stay together for long; 0.7 is
        α < 0.02, where updates pull apart; 0 splits whatever stands still.
    linkage
        `single` is the paper's optimal bipartition; `complete`, as in its authors' program, makes parts of like size.
    warm_rounds
        No split before so many rounds.
    min_edges_to_split
        Smaller groups are not split.
    **common
        `base`, `base_options`, `fraction_train` and `finetune` of `GroupedStrategy`.
    """

    def __init__(
        self,
        eps1: float | None = None,
        eps2: float | None = None,
        stationary: float = 0.7,
        gamma_max: float = 0.5,
        linkage: str = "single",
        warm_rounds: int = 3,
        min_edges_to_split: int = 3,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        expect(eps1 is None or eps1 > 0, "eps1", eps1, "a number above 0")
        expect(eps2 is None or eps2 >= 0, "eps2", eps2, "a number from 0")
        expect(stationary > 0, "stationary", stationary, "a number above 0")
        expect(0 <= gamma_max < 1, "gamma_max", gamma_max, "a number from 0 to below 1")
        expect(linkage in ("single", "complete"), "linkage", linkage, "single or complete")
        expect(min_edges_to_split >= 2, "min_edges_to_split", min_edges_to_split, "a whole number from 2")
        self._eps1, self._eps2, self._stationary = eps1, eps2, stationary
        self._gamma_max, self._linkage = gamma_max, linkage
        self._warm, self._fewest = warm_rounds, min_edges_to_split
        self._splits: dict[str, _Split] = {}
        self._longest: dict[str, float] = {}
        self._updates: dict[str, dict[str, Floats]] = {}
        self._sent: dict[str, ArrayRecord] = {}

    def place(self, edge: str, arrays: ArrayRecord) -> str | None:
        """Return an edge's group; one that came after a split, or missed it, first goes down the tree of splits."""
        del arrays
        group = self.group_of.setdefault(edge, FIRST)
        return None if group in self._splits else group

    def guest_model(self, edge: str, arrays: ArrayRecord) -> ArrayRecord:
        """Return the model of the split at which an edge stands."""
        split = self._splits.get(self.group_of.get(edge, FIRST))
        return arrays if split is None else split.model

    def see(self, edge: str, part: TrainPart, returned: ArrayRecord, samples: float) -> None:
        """Keep an edge's update until the round ends; a guest goes on to the part that its update is more like."""
        del samples
        update = update_of(part.arrays, returned)
        if part.track == OWN:
            self._updates.setdefault(part.group, {})[edge] = update
            self._sent[part.group] = part.arrays
        elif (group := self.group_of.get(edge, FIRST)) in self._splits:
            first, second = self._splits[group].directions
            like = cosines({"new": update, "first": first, "second": second})[0]
            self.group_of[edge] = _parts(group)[int(like[2] > like[1])]

    def regroup(self, server_round: int) -> str | None:
        """Split the groups that stand still although their edges do not."""
        reasons = [
            reason
            for group in sorted(self._updates)
            if (reason := self._consider(group, dict(sorted(self._updates[group].items())), server_round))
        ]
        self._updates, self._sent = {}, {}
        return "; ".join(reasons) or ("the first round" if server_round == 1 else None)

    def _consider(self, group: str, updates: dict[str, Floats], server_round: int) -> str | None:
        samples = [self.samples[edge] for edge in updates]
        mean = float(np.linalg.norm(weighted_mean(list(updates.values()), samples)))
        longest = max(float(np.linalg.norm(update)) for update in updates.values())
        self._longest[group] = max(self._longest.get(group, 0.0), mean)
        eps1 = self._eps1 if self._eps1 is not None else self._stationary * self._longest[group]
        eps2 = self._eps2 if self._eps2 is not None else eps1
        if not (mean < eps1 and longest > eps2) or len(updates) < self._fewest or server_round <= self._warm:
            return None
        similar = cosines(updates)
        first = bipartition(similar, self._linkage)
        across = float(similar[np.ix_(first, ~first)].max())
        if sqrt((1 - across) / 2) <= self._gamma_max:
            return None
        self._split(group, updates, first)
        return f"{group}'s mean update is {mean:.3g} long and its longest {longest:.3g}, at most {across:.2f} alike"

    def _split(self, group: str, updates: Mapping[str, Floats], first: NDArray[np.bool_]) -> None:
        sent, old = self._sent[group], self.track.groups[group]
        directions = list[Floats]()
        for name, chosen in zip(_parts(group), (first, ~first), strict=True):
            edges = [edge for edge, here in zip(updates, chosen, strict=True) if here]
            samples = [self.samples[edge] for edge in edges]
            direction = weighted_mean([updates[edge] for edge in edges], samples)
            directions.append(direction)
            part = self.track.ensure(name, moved(sent, direction, old.arrays))
            part.samples = float(sum(samples))
            restore(part.base, state_of(old.base))  # such as an adaptive optimizer's moments
            self._longest[name] = float(np.linalg.norm(direction))
            self.group_of.update(dict.fromkeys(edges, name))
        self._splits[group] = _Split(sent, (directions[0], directions[1]))
        self.track.drop(name for name in self.track.groups if name != group)

    def state_dict(self) -> dict[str, Any]:
        """Return the groups, their models, and the tree of splits."""
        found = {**super().state_dict(), "longest": self._longest}
        for name, split in self._splits.items():
            found[f"split:{name}"] = split.model
            found[f"directions:{name}"] = list(split.directions)
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._longest = dict(state["longest"])
        for key, model in state.items():
            kind, _, name = key.partition(":")
            if kind == "split":
                first, second = state[f"directions:{name}"]
                self._splits[name] = _Split(model, (first, second))


def _parts(group: str) -> tuple[str, str]:
    return f"{group}.1", f"{group}.2"


def bipartition(similar: NDArray[np.float64], method: str) -> NDArray[np.bool_]:
    """Return one of the two parts of n edges, as n truths, from their cosines (n x n).

    `single` linkage makes the largest cosine across as small as it can be (Sattler et al. 2019, algorithm 1).
    """
    apart = np.clip(1.0 - (similar + similar.T) / 2, 0.0, 2.0)
    np.fill_diagonal(apart, 0.0)
    labels: NDArray[np.int32] = fcluster(linkage(squareform(apart, checks=False), method), 2, "maxclust")
    first: NDArray[np.bool_] = labels == labels[0]
    return first
