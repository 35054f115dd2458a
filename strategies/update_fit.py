# SPDX-License-Identifier: Apache-2.0
"""Whether an edge's updates go where its group's go: an edge in a wrong group, by mistake or on purpose, is found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from .fedavg import view

__all__ = ["Misfit", "UpdateFit"]

_SKETCH = 4096
_FEWEST = 4
_ROUNDS = 3


@dataclass(frozen=True)
class Misfit:
    """An edge whose updates do not fit its group, what to say of it, and the group that they fit better, if any."""

    edge: str
    text: str
    better: str | None


@dataclass
class UpdateFit:
    """Compares each edge's update with the mean of the others in its group, by a few thousand of its entries.

    An edge is reported when the cosine is below zero, or below a third of its group's median by more than four of the
    group's usual deviations, in three of its rounds in a row.
    """

    _places: NDArray[np.int64] | None = None
    _round: dict[str, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    _strikes: dict[str, int] = field(default_factory=dict)

    def add(self, edge: str, group: str, sent: ArrayRecord, returned: ArrayRecord) -> None:
        """Note one edge's update in this round."""
        if self._places is None:
            total = sum(int(np.prod(a.shape)) for a in sent.values() if a.dtype.startswith("float"))
            rng = np.random.default_rng(0)
            self._places = np.sort(rng.choice(total, min(total, _SKETCH), replace=False)) if total else np.zeros(0, int)
        sketch, start = np.zeros(len(self._places), np.float32), 0
        for name, array in returned.items():
            if not array.dtype.startswith("float"):
                continue
            size = int(np.prod(array.shape))
            first, last = np.searchsorted(self._places, [start, start + size])
            here = self._places[first:last] - start
            before, after = view(sent[name]).reshape(-1), view(array).reshape(-1)
            sketch[first:last] = after[here] - before[here]
            start += size
        self._round.setdefault(group, {})[edge] = sketch

    def forget(self, edge: str) -> None:
        """Start anew with an edge that has moved."""
        self._strikes.pop(edge, None)

    def close(self) -> list[Misfit]:
        """End the round; return the edges to be reported, and what is wrong."""
        found: list[Misfit] = []
        for group, sketches in self._round.items():
            if len(sketches) < _FEWEST:
                continue
            cosines = _cosines(sketches)
            middle = float(np.median(list(cosines.values())))
            usual = 1.4826 * float(np.median([abs(c - middle) for c in cosines.values()]))
            for edge, cosine in cosines.items():
                bad = middle > 0.1 and cosine < min(middle / 3, middle - 4 * usual)
                self._strikes[edge] = self._strikes.get(edge, 0) + 1 if bad else 0
                if self._strikes[edge] == _ROUNDS:
                    better, words = self._better(sketches[edge], group)
                    text = (
                        f"{edge}'s updates do not fit its {group} (cosine {cosine:.2f}, where the others have about "
                        f"{middle:.2f}){words}"
                    )
                    found.append(Misfit(edge, text, better))
        self._round = {}
        return found

    def _better(self, sketch: NDArray[np.float32], own: str) -> tuple[str | None, str]:
        means = {g: np.mean(list(s.values()), axis=0) for g, s in self._round.items() if g != own and s}
        close = {group: _cosine(sketch, mean) for group, mean in means.items()}
        best = max(close, key=lambda group: close[group], default=None)
        if best is None or close[best] <= 0.1:
            return None, ""
        return best, f" and fit {best} better ({close[best]:.2f})"


def _cosines(sketches: dict[str, NDArray[np.float32]]) -> dict[str, float]:
    total = np.sum(list(sketches.values()), axis=0)
    return {edge: _cosine(sketch, total - sketch) for edge, sketch in sketches.items()}


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else 0.0
