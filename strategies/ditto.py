# SPDX-License-Identifier: Apache-2.0
"""Ditto (Li et al. 2021): beside the common model, each edge trains one of its own that is pulled towards it."""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log as flower_log
from flwr.serverapp import Grid

from ..lib import exchange
from ..lib.exchange import ModelOrder, WorkOrder
from .grouped import FIRST, GroupedStrategy, expect

__all__ = ["Ditto"]


class Ditto(GroupedStrategy):
    """Trains a common model w, and on each edge a personal one: min F_i(v) + λ/2·‖v − w‖² (Li et al. 2021).

    In a round an edge trains w as the base strategy wants it, and for as many steps its own v, starting from its last
    one, with v ← v − η(∇F_i(v) + λ(v − w)), w being the model that it got in this round. Personal models stay on their
    edges; what an edge reports and ends with is v.

    Parameters
    ----------
    lam
        λ: 0 is training alone, large values keep v at w. The paper tries 0.05 to 2 and chooses on held-out samples.
    **common
        `base`, `base_options`, `fraction_train` and `finetune` of `GroupedStrategy`; all edges are one group.
    """

    def __init__(
        self,
        lam: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        expect(0 < lam < float("inf"), "lam", lam, "a number above 0")
        self._lam = float(lam)

    def summary(self) -> None:
        """Log what is inside."""
        flower_log(INFO, "\t├──> each edge has a personal model, λ = %s; the common one: %s", self._lam, self._base)

    def place(self, edge: str, arrays: ArrayRecord) -> str | None:
        """Return the one group that there is."""
        del edge, arrays
        return FIRST

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the common model, with the order to train a personal one beside it."""
        return self._personal(super().configure_train(server_round, arrays, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have each edge evaluate its personal model."""
        return self._personal(super().configure_evaluate(server_round, arrays, config, grid))

    def _personal(self, messages: Iterable[Message]) -> list[Message]:
        asked = list(messages)
        contents = {id(message.content): message.content for message in asked}
        ordered = {like: self._ordered(content) for like, content in contents.items()}
        for message in asked:
            message.content = ordered[id(message.content)]
        return asked

    def _ordered(self, content: RecordDict, finetune: int = 0) -> RecordDict:
        models = (ModelOrder(key="arrays"),)
        return exchange.ordered(content, WorkOrder(models=models, personal=self._lam, finetune=finetune))

    def content_for(self, edge: str) -> RecordDict:
        """Return the common model; the edge has its own, and compares."""
        return self._ordered(super().content_for(edge), self.finetune)
