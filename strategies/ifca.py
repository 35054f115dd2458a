# SPDX-License-Identifier: Apache-2.0
"""The iterative federated clustering algorithm (Ghosh et al. 2020): each edge trains the model that fits it best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ..lib import exchange
from ..lib.exchange import ModelOrder, WorkOrder
from .fedavg import view
from .grouped import OWN, GroupedStrategy, expect, told
from .tracks import TrainPart

__all__ = ["Ifca", "perturbed"]


class Ifca(GroupedStrategy):
    """Keeps k models; each edge trains the one with the lowest loss on its own samples (Ghosh et al. 2020).

    In each round every edge gets all k models: k times the traffic down. It trains ĵ = argmin_j F_i(θ_j) and says
    which; the replies of each model are averaged. The paper runs it from several random starts (`seed`) and keeps the
    best.

    Parameters
    ----------
    groups
        How many models, k in the paper. It has to be known.
    spread
        How far the models begin apart, from above 0 to 1: 1 draws each array anew with its own mean and standard
        deviation; less keeps that much of the first model, as is fit for one that was trained before.
    seed
        Of the first models, and of which edges are asked.
    fraction_train
        Share of the edges that train in a round.
    base, base_options, finetune
        See `GroupedStrategy`.
    """

    def __init__(
        self,
        groups: int = 4,
        spread: float = 1.0,
        seed: int = 0,
        base: str = "fedavg",
        base_options: Mapping[str, Any] | None = None,
        fraction_train: float = 1.0,
        finetune: int = 0,
    ) -> None:
        super().__init__(base, base_options, finetune=finetune)
        expect(groups >= 1, "groups", groups, "a whole number from 1")
        expect(0 < spread <= 1, "spread", spread, "a number above 0, up to 1")
        expect(0 < fraction_train <= 1, "fraction_train", fraction_train, "a number above 0, up to 1")
        self._names = [f"group-{i + 1}" for i in range(groups)]
        self._spread, self._seed, self._fraction = spread, seed, fraction_train
        self._moved: list[str] = []

    def place(self, edge: str, arrays: ArrayRecord) -> str | None:
        """Return the model that an edge chose last."""
        self._begin(arrays)
        return self.group_of.get(edge)

    def _begin(self, arrays: ArrayRecord) -> None:
        for i, name in enumerate(self._names):
            if name not in self.track.groups:
                rng = np.random.default_rng([self._seed, i])
                self.track.ensure(name, arrays if i == 0 else perturbed(arrays, self._spread, rng))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send all models to the edges that are asked."""
        del config  # each base strategy makes its own
        self._begin(arrays)
        nodes = self._chosen(server_round, self.names.here(grid))
        asked = self.track.configure(server_round, dict.fromkeys(self._names, nodes), self.names.of)
        self._events += told(self.track, server_round, asked)
        self.asked = {
            self.names.of(node): {f"arrays/{part.group}": part for part in parts} for node, parts in asked.items()
        }
        shared: dict[tuple[int, ...], RecordDict] = {}
        found = []
        for node, parts in asked.items():
            like = tuple(id(value) for part in parts for value in (part.arrays, part.config))
            if like not in shared:
                shared[like] = self._choice({f"arrays/{part.group}": part.arrays for part in parts})
                shared[like]["config"] = parts[0].config
            found.append(Message(shared[like], dst_node_id=node, message_type="train"))
        return found

    def _chosen(self, server_round: int, here: Mapping[int, str]) -> list[int]:
        if self._fraction >= 1:
            return list(here)
        nodes = sorted(here, key=lambda node: here[node])
        rng = np.random.default_rng([self._seed, server_round])
        count = max(1, round(self._fraction * len(nodes))) if nodes else 0
        return [nodes[i] for i in sorted(rng.choice(len(nodes), count, replace=False))]

    def _choice(self, models: Mapping[str, ArrayRecord], finetune: int = 0) -> RecordDict:
        order = WorkOrder(models=tuple(ModelOrder(key=key) for key in models), choose=True, finetune=finetune)
        return exchange.ordered(RecordDict(dict(models)), order)

    def see(self, edge: str, part: TrainPart, returned: ArrayRecord, samples: float) -> None:
        """Note which model an edge has chosen."""
        del returned, samples
        if part.track == OWN and self.group_of.get(edge) != part.group:
            self.group_of[edge] = part.group
            self._moved.append(edge)

    def regroup(self, server_round: int) -> str | None:
        """Say how many edges chose another model than before."""
        del server_round
        moved, self._moved = sorted(self._moved), []
        return f"{', '.join(moved) if len(moved) < 4 else f'{len(moved)} edges'} chose another model" if moved else None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have each edge evaluate the model that fits its training samples best."""
        del server_round, config
        self._begin(arrays)
        content = self._choice({f"arrays/{name}": self.track.groups[name].arrays for name in self._names})
        return [Message(content, dst_node_id=node, message_type="evaluate") for node in self.names.here(grid)]

    def content_for(self, edge: str) -> RecordDict:
        """Return the model that an edge chose last; one that never trained gets all, and chooses."""
        if edge in self.group_of:
            return super().content_for(edge)
        return self._choice({f"arrays/{name}": self.track.groups[name].arrays for name in self._names}, self.finetune)


def perturbed(arrays: ArrayRecord, spread: float, rng: np.random.Generator) -> ArrayRecord:
    """Return a model with other weights of the same mean and standard deviation in each array.

    w' = m + √(1 − spread²)(w − m) + spread·s·N(0, 1). Noise that is small beside a random start would be undone by
    training: the hidden units keep their places, and all models become one. Arrays whose values are all the same
    (biases, scales) or whole numbers stay as they are.
    """
    found = {}
    for name, array in arrays.items():
        value = view(array)
        if value.dtype.kind != "f" or not value.size:
            found[name] = array
            continue
        mean, deviation = value.mean(dtype=np.float64), value.std(dtype=np.float64)
        noise = spread * deviation * rng.standard_normal(value.shape)
        found[name] = Array((mean + np.sqrt(1 - spread**2) * (value - mean) + noise).astype(value.dtype))
    return ArrayRecord(found)
