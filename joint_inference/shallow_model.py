# SPDX-License-Identifier: Apache-2.0
"""The model on the edge, whose version may change between any two calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError
from ..lib.hard_samples.embedding import EMBEDDING_OUTPUT
from ..lib.runners.runner import Runner
from ..lib.scores import ConfidenceFunction, Scores, class_scores, scores_of
from ..lib.serving import Serving
from ..lib.tensors import TensorSpec
from .answers import Outputs
from .samples import Given, given

if TYPE_CHECKING:
    from ..lib.shadow_model import ShadowModel

__all__ = ["Ran", "ShallowModel"]


@dataclass(frozen=True, slots=True)
class Ran:
    """What the model made of a call.

    Parameters
    ----------
    given
        The call's samples.
    outputs
        Of the model, batch first.
    version
        The version that answered.
    seconds
        That it took.
    failed
        The version that should have answered and could not; None where all is well.
    """

    given: Given
    outputs: Outputs
    version: int
    seconds: float
    failed: int | None = None


class ShallowModel:
    """A runner that can be changed for another while threads call it; see `ModelUser`.

    Parameters
    ----------
    serving
        The version to begin with.
    confidence
        How sure a model is, for models that are neither classifiers nor detectors.
    shadowed
        Makes what compares with a version in the background; None where nobody would hear of it.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        confidence: ConfidenceFunction | None = None,
        shadowed: Callable[[Serving], ShadowModel] | None = None,
    ) -> None:
        self._serving, self._confidence, self._shadowed = serving, confidence, shadowed
        self._lock = threading.Lock()
        self._latest: tuple[Any, Any] | None = None
        self.beside: ShadowModel | None = None
        """On a canary, what compares with the version before."""

    @property
    def serving(self) -> Serving:
        """The version that answers now."""
        return self._serving

    def run(self, sample: Any, prepared: Any) -> Ran:
        """Return what the model makes of a sample or a batch.

        Parameters
        ----------
        sample, prepared
            What the script gave, and what `pre_fun` made of it.

        Raises
        ------
        ModelError
            If the model does not take it.
        """
        self._latest = sample, prepared
        serving = self._serving
        batch = given(sample, prepared, serving.runner.inputs)
        try:
            with self._lock:
                if serving is not self._serving:
                    # It was changed a moment ago, and the one before is closed: the lock keeps this one open.
                    serving = self._serving
                    batch = given(sample, prepared, serving.runner.inputs)
                begin = time.perf_counter()
                outputs = serving.runner.run(batch.inputs)
                seconds = time.perf_counter() - begin
        except ModelError:
            beside = self.beside
            if beside is None:
                raise
            return _instead(beside, batch, serving.version)
        beside = self.beside
        if beside is not None and not _finite(outputs):
            return _instead(beside, batch, serving.version)
        return Ran(batch, outputs, serving.version, seconds)

    def scores_of(self, outputs: Outputs, place: int, result: Any) -> Scores:
        """Return what the model is sure of in one sample of a batch; raises as `lib.scores.scores_of` does."""
        own = [value[place] for name, value in outputs.items() if name != EMBEDDING_OUTPUT]
        return scores_of(own, result, self._confidence)

    def plain_scores(self, outputs: Outputs) -> Sequence[Scores] | None:
        """Return what a classifier is sure of in each sample, where its outputs alone say so; else None.

        It is what `scores_of` gives, at half the cost: no result is looked at for boxes.
        """
        if self._confidence is not None or len(outputs) != 1:
            return None
        (rows,) = outputs.values()
        return [class_scores(row) for row in rows] if rows.size else None

    def rehearse(self, runner: Runner) -> None:
        """Answer the latest sample, or zeros before there is one; see `ModelUser`."""
        latest = self._latest
        if latest is not None:
            outputs = runner.run(given(*latest, runner.inputs).inputs)
        else:
            _check_alike(self._serving.runner.inputs, runner.inputs)
            outputs = runner.run({spec.name: _zeros(spec) for spec in runner.inputs})
        if not _finite(outputs):
            raise ModelError("it answers with values that are no numbers; train it anew")
        own = [len(spec.shape) for spec in self._serving.runner.outputs]
        if [len(spec.shape) for spec in runner.outputs] != own:
            raise ModelError(
                f"it gives {len(runner.outputs)} outputs of other axes than the version that answers, which gives "
                f"{len(own)}; post_fun was written for those"
            )

    def serve(self, serving: Serving) -> None:
        """Answer with this version from now on; the one before is closed, and no call is lost."""
        with self._lock:
            before, self._serving = self._serving, serving
        # Whoever took it before looks again within the lock, and runs the new one.
        before.runner.close()

    def shadow(self, serving: Serving | None) -> None:
        """Compare with this version in the background from now on, or with none."""
        before = self.beside
        if serving is not None and self._shadowed is None:
            serving.runner.close()
            serving = None
        self.beside = self._shadowed(serving) if serving is not None and self._shadowed is not None else None
        if before is not None:
            before.close()

    def read(self, outputs: Outputs, count: int) -> Sequence[Scores | None]:
        """Return what outputs are sure of, where that needs neither `post_fun` nor a function of the script's."""
        found: list[Scores | None] = []
        for place in range(count):
            try:
                found.append(self.scores_of(outputs, place, None) if self._confidence is None else None)
            except ModelError:
                found.append(None)
        return found

    def close(self) -> None:
        """Free the model."""
        self.shadow(None)
        with self._lock:
            self._serving.runner.close()


def _instead(beside: ShadowModel, batch: Given, version: int) -> Ran:
    """Return the answer of the version before, on a canary whose own version has none."""
    begin = time.perf_counter()
    outputs = beside.answer(batch.inputs)
    return Ran(batch, outputs, beside.version, time.perf_counter() - begin, failed=version)


def _finite(outputs: Outputs) -> bool:
    return all(value.dtype.kind != "f" or bool(np.isfinite(value).all()) for value in outputs.values())


def _check_alike(own: Sequence[TensorSpec], new: Sequence[TensorSpec]) -> None:
    forms = [[(spec.datatype, spec.shape[1:]) for spec in specs] for specs in (own, new)]
    if forms[0] != forms[1]:
        raise ModelError(
            f"it takes {forms[1]}, and the version that answers takes {forms[0]}; train it with those inputs"
        )


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    shape = [1 if size < 0 else size for size in spec.shape]
    return np.full(shape, b"", object) if spec.datatype == "BYTES" else np.zeros(shape, spec.dtype)
