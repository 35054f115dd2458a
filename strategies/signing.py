# SPDX-License-Identifier: Apache-2.0
"""How edges are to sign their samples: on a scale that they share, or by the last hidden layer of one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from pydantic import ValidationError

from ..core.errors import StrategySpecError, WireError
from ..lib.compression import digest
from ..lib.exchange import to_weights
from ..lib.questions import Response
from ..lib.signatures import InputMoments, SignatureSpec
from ..lib.survey import SurveyAnswer, SurveyQuestion
from ..lib.task_mixture import TaskModel

__all__ = ["EMBEDDINGS", "Signing"]

EMBEDDINGS = ("random", "model")


class Signing:
    """The spec of a job's signatures, which is complete once the first edges were asked.

    Parameters
    ----------
    embedding
        One of `EMBEDDINGS`.
    **options
        Of `SignatureSpec`.

    Raises
    ------
    StrategySpecError
        If an option does not fit.
    """

    def __init__(self, embedding: str, **options: Any) -> None:
        try:
            self.spec = SignatureSpec(**options)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise StrategySpecError(
                f"{wrong['loc'][0]} is {wrong['input']!r}: {wrong['msg'].lower()}; set it under aggregation.options"
            ) from error
        self._embeds, self._scale = embedding == "model", True
        self._reference: ArrayRecord | None = None

    @property
    def plain_spec(self) -> SignatureSpec:
        """The spec for features of samples themselves, where signatures are of what a model makes of them."""
        plain = {"embedding": "", "centre": (), "spread": ()}
        return self.spec.model_copy(update=plain) if self.spec.embedding else self.spec

    def question(self, arrays: ArrayRecord, found: TaskModel | None) -> RecordDict:
        """Return what is asked; the model that the job has the first time embeds for all edges and all times.

        Parameters
        ----------
        arrays
            The job's model.
        found
            What tells apart the tasks that edges mix, where that was found.
        """
        if self._embeds and self._reference is None:
            self._reference = arrays
            self.spec = self.spec.model_copy(update={"embedding": digest(to_weights(arrays))})
        model = None if self._reference is None else to_weights(self._reference)
        return SurveyQuestion(spec=self.spec, scale=self._scale).to_question(found, model).to_content()

    def agree(self, replies: Sequence[Message], *, begun: bool) -> tuple[list[Message], list[Message]]:
        """Return the replies that are signatures, and those whose edges have to be asked anew for one.

        Where most edges sent moments first, those become the scale of all, and all have to sign anew. A few with
        inputs unlike the others' do not choose the scale, and those that come later take the one there is.

        Parameters
        ----------
        begun
            Whether there are signatures already.
        """
        if not self._scale or self.spec.centre:
            return list(replies), []
        moments = {i: found for i, reply in enumerate(replies) if (found := _moments_in(reply)) is not None}
        if not moments:
            return list(replies), []
        if begun or 2 * len(moments) < len(replies):
            self._scale = False
            others = [reply for i, reply in enumerate(replies) if i not in moments]
            return others, [replies[i] for i in moments]
        usual = Counter(len(found.means) for found in moments.values()).most_common(1)[0][0]
        self.spec = self.spec.standardised([found for found in moments.values() if len(found.means) == usual])
        return [], list(replies)

    def state(self) -> dict[str, Any]:
        """Return what was agreed on."""
        reference = {} if self._reference is None else {"reference": self._reference}
        return {"spec": self.spec.model_dump(mode="json"), "scale": self._scale, **reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.spec, self._scale = SignatureSpec.model_validate(state["spec"]), bool(state["scale"])
        self._reference = state.get("reference")


def _moments_in(reply: Message) -> InputMoments | None:
    try:
        response = Response.from_content(reply.content)
        if response.refused or not SurveyAnswer.of(response).moments:
            return None
        return InputMoments.from_bytes(response.parts[0])
    except WireError:  # said where its signature is looked for
        return None
