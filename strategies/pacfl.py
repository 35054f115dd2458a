# SPDX-License-Identifier: Apache-2.0
"""PACFL (Vahidian et al. 2022): edges are clustered before training, by the angles between their data's subspaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from ..core.errors import WireError
from ..core.events import Warned
from ..lib.questions import Response
from ..lib.subspaces import ClassSubspaces, SubspaceQuestion
from .grouped import FIRST, GroupedStrategy, expect
from .hierarchical import LINKAGES, cluster

__all__ = ["Pacfl", "angle"]

_MEASURES = ("smallest", "trace")


class Pacfl(GroupedStrategy):
    """Clusters edges before round 1 by the principal angles between their classes' subspaces (Vahidian et al. 2022).

    Each edge sends, once, the p main directions of each of its classes: 4·p·d bytes a class of samples with d numbers.
    The server clusters the matrix of angles; each group trains apart from the first round on. An edge that comes later
    joins the group that it is nearest to on average, or founds one if all are farther than `beta`.

    Parameters
    ----------
    p
        Directions of each class; 3 to 5 in the paper.
    beta
        Groups farther apart than so many degrees stay apart. Without it the number of groups is the one whose
        silhouette is largest.
    measure
        `trace` is the paper's equation 3: the angles between directions of the same place, here of the same class and
        as a mean, so that `beta` does not depend on their number. `smallest` is its equation 2 as its authors' program
        computes it: the smallest angle between any two directions, whatever their classes; it cannot see that labels
        mean other things on other edges.
    linkage
        `average`, `complete` or `single`.
    stand_out
        Without beta: the silhouette that groups must reach, or all stay one.
    **common
        `base`, `base_options`, `fraction_train` and `finetune` of `GroupedStrategy`.
    """

    def __init__(
        self,
        p: int = 3,
        beta: float | None = None,
        measure: str = "trace",
        linkage: str = "average",
        stand_out: float = 0.15,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        expect(1 <= p <= 100, "p", p, "a whole number from 1 to 100")
        expect(beta is None or beta > 0, "beta", beta, "degrees above 0")
        expect(measure in _MEASURES, "measure", measure, f"one of {', '.join(_MEASURES)}")
        expect(linkage in LINKAGES[:3], "linkage", linkage, f"one of {', '.join(LINKAGES[:3])}")
        self._p, self._beta, self._measure = p, beta, measure
        self._linkage, self._stand_out = linkage, stand_out
        self._known: dict[str, ClassSubspaces] = {}
        self._refused: dict[str, str] = {}
        self._questioned: tuple[int, set[str]] = (0, set())

    def configure_query(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> Iterable[Message]:
        """Ask the edges that are new, each once a round."""
        del arrays
        asked = self._questioned[1] if self._questioned[0] == server_round else set()
        done = asked | self._known.keys() | self._refused.keys()
        due = {node: edge for node, edge in self.names.here(grid).items() if edge not in done}
        self._questioned = server_round, asked | set(due.values())
        question = SubspaceQuestion(p=self._p).to_question().to_content()
        return [Message(question, dst_node_id=node, message_type="query") for node in due]

    def aggregate_query(self, server_round: int, replies: Sequence[Message]) -> None:
        """Cluster the edges that answered; those who come later join a group."""
        came = []
        for reply in sorted(replies, key=lambda r: self.names.of(r.metadata.src_node_id)):
            edge = self.names.of(reply.metadata.src_node_id)
            try:
                response = Response.from_content(reply.content)
                if response.refused:
                    raise WireError(response.refused)
                self._take(edge, ClassSubspaces.from_response(response))
                came.append(edge)
            except WireError as error:
                self._refused[edge] = str(error)
                text = f"{edge} gave no subspaces that can be used, and goes with the largest group: {error}"
                self._events.append(Warned(message=text))
        if came:
            self._group(came)
            self.tell(server_round, f"the subspaces of {len(came)} edges came")

    def _take(self, edge: str, found: ClassSubspaces) -> None:
        widths = {basis.shape[1] for known in [*self._known.values(), found] for basis in known.bases.values()}
        if len(widths) > 1:
            raise WireError(f"its samples are not as large as the others': {' and '.join(map(str, sorted(widths)))}")
        self._known[edge] = found
        self.samples[edge] = found.samples

    def _group(self, came: Sequence[str]) -> None:
        if len(came) < len(self._known):
            for edge in came:
                self.group_of[edge] = self._nearest(edge)
            return
        edges = sorted(self._known, key=lambda name: (len(name), name))
        apart = np.zeros((len(edges), len(edges)))
        for i, one in enumerate(edges):
            for j in range(i):
                apart[i, j] = apart[j, i] = angle(self._known[one], self._known[edges[j]], self._measure)
        labels = cluster(apart, method=self._linkage, threshold=self._beta, stand_out=self._stand_out)
        self.group_of = {edge: f"group-{label + 1}" for edge, label in zip(edges, labels, strict=True)}

    def _nearest(self, edge: str) -> str:
        means: dict[str, float] = {}
        for name in sorted(set(self.group_of.values())):
            members = [other for other, group in self.group_of.items() if group == name and other in self._known]
            own = self._known[edge]
            if members:
                means[name] = float(np.mean([angle(own, self._known[m], self._measure) for m in members]))
        best = min(means, key=lambda name: means[name], default=FIRST)
        if self._beta is not None and means.get(best, 0.0) > self._beta:
            return f"group-{1 + max(int(name.partition('-')[2]) for name in self.group_of.values())}"
        return best

    def place(self, edge: str, arrays: ArrayRecord) -> str | None:
        """Return an edge's group; one whose data are not known goes with the largest."""
        del arrays
        if edge in self.group_of:
            return self.group_of[edge]
        sizes: dict[str, int] = {}
        for other, group in self.group_of.items():
            sizes[group] = sizes.get(group, 0) + self.samples.get(other, 0)
        return max(sorted(sizes), key=lambda name: sizes[name]) if sizes else FIRST

    def state_dict(self) -> dict[str, Any]:
        """Return the groups, their models, and the subspaces that later edges are compared with."""
        found = {**super().state_dict(), "refused": self._refused, "known": {}}
        for edge, known in self._known.items():
            found["known"][edge] = known.samples
            found[f"bases:{edge}"] = {str(label): basis for label, basis in known.bases.items()}
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._refused = dict(state["refused"])
        for edge, samples in state["known"].items():
            bases = state[f"bases:{edge}"]
            self._known[edge] = ClassSubspaces({int(label): basis for label, basis in bases.items()}, int(samples))


def angle(one: ClassSubspaces, other: ClassSubspaces, measure: str) -> float:
    """Return how far two edges' subspaces are apart, in degrees: 0 to 90; 90 where they share no class (`trace`)."""
    if measure == "smallest":
        if not one.bases or not other.bases:
            return 90.0
        products = np.concatenate(list(one.bases.values())) @ np.concatenate(list(other.bases.values())).T
        return float(np.degrees(np.arccos(np.clip(np.abs(products).max(), 0.0, 1.0))))
    shared = one.bases.keys() & other.bases.keys()
    if not shared:
        return 90.0
    angles = []
    for label in sorted(shared):
        a, b = one.bases[label], other.bases[label]
        count = min(len(a), len(b))
        # The sign of a singular vector means nothing.
        angles.append(np.degrees(np.arccos(np.clip(np.abs((a[:count] * b[:count]).sum(axis=1)), 0.0, 1.0))))
    return float(np.concatenate(angles).mean())
