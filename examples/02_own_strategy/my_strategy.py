# SPDX-License-Identifier: Apache-2.0
"""A strategy of the user's own: federated averaging in which no edge can move the model by more than a given length."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from solar_corona.strategies import FedAvg


class ClippedFedAvg(FedAvg):
    """Federated averaging of clipped updates.

    The update of an edge is its model minus the model that the round began with. Where its Euclidean norm is larger
    than `max_norm`, it is scaled down to it.

    Parameters
    ----------
    max_norm
        Largest norm of an update, over all arrays of the model together.
    options
        Arguments of `FedAvg`.
    """

    def __init__(self, *, max_norm: float = 1.0, **options: Any) -> None:
        if not 0 < max_norm < float("inf"):
            raise ValueError(f"max_norm is {max_norm}, expected a number above 0")
        super().__init__(**options)
        self.max_norm = max_norm
        self._global: dict[str, np.ndarray] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._global = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        clipped = 0

        # A generator: each reply is clipped and added when it arrives, and then forgotten.
        def clipping() -> Iterator[Message]:
            nonlocal clipped
            for reply in replies:
                clipped += self._clip(reply)
                yield reply

        model, metrics = super().aggregate_train(server_round, clipping())
        if metrics is not None:
            metrics["clipped"] = clipped
        return model, metrics

    def _clip(self, reply: Message) -> bool:
        """Replace the model in `reply` by a clipped one if it went too far, and say whether it did."""
        key, arrays = next(iter(reply.content.array_records.items()))
        updates = {name: array.numpy() - self._global[name] for name, array in arrays.items()}
        norm = float(np.sqrt(sum(np.square(update, dtype=np.float64).sum() for update in updates.values())))
        if norm <= self.max_norm:
            return False
        scale = self.max_norm / norm
        moved = {
            name: Array((self._global[name] + scale * update).astype(update.dtype)) for name, update in updates.items()
        }
        reply.content = RecordDict({**reply.content, key: ArrayRecord(moved)})
        return True
