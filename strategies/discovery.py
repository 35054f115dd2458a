# SPDX-License-Identifier: Apache-2.0
"""When a strategy looks for the tasks that edges mix, with whom, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict

from ..core.errors import WireError
from ..lib.questions import Question, Response
from ..lib.signature_features import SignatureSpec
from ..lib.task_mixture import TaskModel
from .task_search import TaskSearch

__all__ = ["Discovery"]


class Discovery:
    """Looks for tasks at first, and again once twice as many edges are there as the last time.

    Parameters
    ----------
    enabled
        Whether to look at all.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self.model: TaskModel | None = None
        self.search: TaskSearch | None = None
        self.fresh = False
        """Whether the last search found tasks."""
        self._edges, self._first = 0, 1
        self._refused: dict[str, str] = {}

    def begin(self, spec: SignatureSpec, edges: int) -> bool:
        """Begin a search if one is due with so many edges; return whether it was begun."""
        if not self._enabled or self.search is not None or edges < max(1, 2 * self._edges):
            return False
        self._edges, self.fresh = edges, False
        self.search = TaskSearch(spec, first=self._first)
        return True

    def question(self) -> Question | None:
        """Return what to ask now; None while nothing is looked for."""
        return None if self.search is None else self.search.question().to_question()

    def asked(self, here: Mapping[int, str]) -> list[int]:
        """Return whom of the edges that are here to ask: all at first, then those that have answered so far."""
        assert self.search is not None
        members = self.search.edges
        return [node for node, edge in here.items() if members is None or edge in members]

    def give_up(self) -> None:
        """End the search with what was found before."""
        self.search = None

    def take(self, contents: Mapping[str, RecordDict]) -> int:
        """Take what edges answered and return its bytes."""
        assert self.search is not None
        answers: dict[str, Response] = {}
        for edge, content in contents.items():
            try:
                answers[edge] = Response.from_content(content)
            except WireError as error:
                self.search.refused[edge] = str(error)
        self.search.take(answers)
        if self.search.done:
            self._refused = dict(self.search.refused)
            found, self.search = self.search.found, None
            if found is not None:
                self.model, self.fresh = found, True
                self._first += len(found.names)
        return sum(response.size for response in answers.values())

    def warnings(self) -> list[str]:
        """Return what to tell of the last search."""
        return [f"{edge} took no part in finding tasks: {why}" for edge, why in sorted(self._refused.items())]

    def state(self) -> dict[str, Any]:
        """Return what was found, as plain values and arrays."""
        model = self.model
        about = None
        if model is not None:
            about = {"spec": model.spec.model_dump(mode="json"), "purity": model.purity, "names": list(model.names)}
        return {
            "discovery": {"edges": self._edges, "first": self._first, "model": about},
            "discovered": {} if model is None else model.to_arrays(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        said = state["discovery"]
        self._edges, self._first = int(said["edges"]), int(said["first"])
        about = said["model"]
        if about is not None:
            spec = SignatureSpec.model_validate(about["spec"])
            self.model = TaskModel.of_arrays(
                state["discovered"], spec=spec, purity=float(about["purity"]), names=tuple(about["names"])
            )
