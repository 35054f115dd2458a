# SPDX-License-Identifier: Apache-2.0
"""The model on the edge: it answers, or has the deep model answer what is hard, and never waits for the cloud."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError, NotAskedError, TemporaryError
from ..lib.hard_samples.collector import Collector
from ..lib.hard_samples.detector import Seen
from ..lib.hard_samples.embedding import Embedding, embedding_of
from ..lib.hard_samples.kept_sample import KeptSample
from ..lib.live_model import LiveModel, Serving
from ..lib.runners.runner import Runner
from ..lib.scores import ConfidenceFunction, Scores, is_boxes, scores_of
from ..lib.shadow_model import Compared, ShadowModel
from .deep_model import DeepAnswer, DeepModel
from .inference import Inference
from .offload import Decision, OffloadAlgorithm
from .samples import Function, Given
from .shallow_model import Ran, ShallowModel
from .statistics import EdgeStatistics, Recorder

__all__ = ["EdgeModel"]

_log = logging.getLogger(__name__)
_AT_ONCE = 4
_MOST_SAID = 100
_NOBODY_DECIDES: Sequence[Decision | None] = ()
_NOBODY_SCORES: Sequence[Scores | None] = ()
_Outputs = Mapping[str, NDArray[Any]]
Shadowing = Callable[[Serving, Callable[[_Outputs, int], Sequence[Scores | None]]], ShadowModel]
"""Makes what compares with a version: called with it, and with what reads its outputs."""


@dataclass(frozen=True)
class _Shallow:
    """What the shallow model made of a call: its outputs, what `post_fun` made of them, and what is hard."""

    ran: Ran
    result: Any
    scores: Sequence[Scores | None]
    decisions: Sequence[Decision | None]
    hard: Sequence[int]
    seconds: float

    @property
    def given(self) -> Given:
        """The call's samples."""
        return self.ran.given

    @property
    def outputs(self) -> _Outputs:
        """What the model gave."""
        return self.ran.outputs


@dataclass(frozen=True)
class _Answer:
    """What goes back to the script."""

    result: Any
    stories: list[Inference]


class EdgeModel:
    """A shallow model with a deep one behind it; `solar_corona.load_model` makes it.

    `predict` is a drop-in for the model's own: it takes one sample or a batch and returns what the model, or
    `post_fun`, returned before. It never raises because the cloud is away. Any number of threads may call it.

    Parameters
    ----------
    runner
        Runs the shallow model.
    pre_fun, post_fun
        What comes before and after it; None leaves data as it is.
    algorithm
        Decides which samples go to the deep model; None asks it for none.
    deep_model
        The deep model; None where there is none.
    big_model_post_fun
        What comes after the deep model; by default `post_fun`, and its outputs have to be like the shallow model's.
    confidence_fun
        Says how sure the model is, for models that are no classifiers or detectors; see `scores_of`.
    recorder
        Counts what happens.
    name
        The model's name, for status pages.
    collector
        Keeps hard samples; None keeps none.
    version
        The version that `runner` is; 0 where none is known.
    live
        Changes the version while the script runs; None never does.
    shadowed
        Makes what compares with the version before, on a canary.
    """

    def __init__(
        self,
        runner: Runner,
        pre_fun: Function | None = None,
        post_fun: Function | None = None,
        *,
        algorithm: OffloadAlgorithm | None = None,
        deep_model: DeepModel | None = None,
        big_model_post_fun: Function | None = None,
        confidence_fun: ConfidenceFunction | None = None,
        recorder: Recorder | None = None,
        name: str = "",
        collector: Collector | None = None,
        version: int = 0,
        live: LiveModel | None = None,
        shadowed: Shadowing | None = None,
    ) -> None:
        self._pre, self._post = pre_fun, post_fun
        self._collector, self._live = collector, live
        self._model = ShallowModel(
            Serving(runner, version),
            confidence=confidence_fun,
            shadowed=None if shadowed is None else lambda serving: shadowed(serving, self._model.read),
        )
        self._algorithm, self._deep, self._deep_post = algorithm, deep_model, big_model_post_fun
        self._confidence, self._name = confidence_fun, name
        self._recorder = recorder or Recorder(name)
        self._recorder.told(model=name)
        self._lock = threading.Lock()
        self._said: set[str] = set()
        if live is not None:
            live.follow(self._model)

    @property
    def version(self) -> int:
        """The version that answers now; 0 where none is known."""
        return self._model.serving.version

    @property
    def statistics(self) -> EdgeStatistics:
        """What it has done so far."""
        return self._recorder.snapshot()

    def predict(self, sample: Any) -> Any:
        """Return the answer for one sample or a batch, in the form that the model, or `post_fun`, gives it.

        Raises
        ------
        ModelError
            If the sample is not what the shallow model takes.
        """
        shallow = self._think(sample, score=False)
        if shallow.hard:
            return self._answer(shallow).result
        # Most samples come this way, and their story is told to nobody.
        self._recorder.answered("edge", shallow.seconds, samples=len(shallow.given))
        if self._model.beside is not None:
            self._look(shallow)
        elif self._collector is not None:
            self._glance(shallow, self._collector)
        return shallow.result

    def infer(self, sample: Any) -> Inference | list[Inference]:
        """Return the full story of the answer: one for a sample, a list for a batch; see `predict`."""
        shallow = self._think(sample)
        stories = self._answer(shallow).stories
        return stories[0] if shallow.given.single else stories

    async def predict_async(self, sample: Any) -> Any:
        """Return what `predict` returns, without holding up the event loop."""
        return await asyncio.to_thread(self.predict, sample)

    def stream(self, frames: Iterable[Any], *, at_once: int = _AT_ONCE) -> Iterator[Inference]:
        """Yield the story of each frame in order, and go on with the camera while the cloud answers.

        Parameters
        ----------
        frames
            Samples one by one, such as a camera's.
        at_once
            Frames that the deep model is asked about at the same time at most; while so many are under way, the
            shallow model answers.
        """
        waiting: deque[Future[Inference]] = deque()
        under_way = threading.Semaphore(at_once)
        with ThreadPoolExecutor(at_once, thread_name_prefix="solar-corona-upload") as uploads:
            for frame in frames:
                waiting.append(self._begin(frame, uploads, under_way))
                while waiting and waiting[0].done():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def close(self) -> None:
        """Leave the last statistics, close connections and free the model."""
        if self._live is not None:
            self._live.close()
        if self._collector is not None:
            self._collector.close()
        self._recorder.close()
        if self._deep is not None:
            self._deep.close()
        self._model.close()

    def __enter__(self) -> EdgeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, frame: Any, uploads: ThreadPoolExecutor, under_way: threading.Semaphore) -> Future[Inference]:
        shallow = self._think(frame)
        wanted = bool(shallow.hard)
        if wanted and under_way.acquire(blocking=False):

            def work() -> Inference:
                try:
                    return self._answer(shallow).stories[0]
                finally:
                    under_way.release()

            return uploads.submit(work)
        done: Future[Inference] = Future()
        full = "as many uploads are under way as may be" if wanted else None
        done.set_result(self._answer(shallow, instead=full).stories[0])
        return done

    def _think(self, sample: Any, *, score: bool = True) -> _Shallow:
        """Have the model answer; `score` tells whether to look at how sure it is, also where no algorithm asks."""
        begin = time.perf_counter()
        prepared = sample if self._pre is None else self._pre(sample)
        ran = self._model.run(sample, prepared)
        batch = ran.given
        result = _in_form(ran.outputs, batch)
        if self._post is not None:
            result = self._post(result)
        scores, decisions = _NOBODY_SCORES, _NOBODY_DECIDES
        if self._algorithm is not None:
            scores = self._scores(ran, result)
            decisions = self._decide(scores)
        elif score:
            scores = self._scores(ran, result)
        hard = [place for place, decision in enumerate(decisions) if decision is not None and decision.upload]
        return _Shallow(
            ran, result, scores, decisions, hard if self._deep is not None else (), time.perf_counter() - begin
        )

    def _scores(self, ran: Ran, result: Any) -> Sequence[Scores | None]:
        if self._algorithm is None and self._collector is None and self._model.beside is None:
            return _NOBODY_SCORES
        return [self._score(ran, result, place) for place in range(len(ran.given))]

    def _score(self, ran: Ran, result: Any, place: int) -> Scores | None:
        try:
            return self._model.scores_of(ran.outputs, place, _of_sample(result, place, ran.given))
        except ModelError as error:
            if self._algorithm is not None:
                raise
            # Chance alone keeps samples of such a model.
            self._warn_once("which samples are hard cannot be told", error)
            return None

    def _decide(self, scores: Sequence[Scores | None]) -> Sequence[Decision | None]:
        assert self._algorithm is not None
        with self._lock:
            return [self._algorithm.decide(each) for each in scores if each is not None]

    def _look(
        self, shallow: _Shallow, result: Any = None, *, deep: DeepAnswer | None = None, away: bool = False
    ) -> Sequence[KeptSample | None]:
        """Have each sample that was answered looked at, to be kept or compared; return what was kept of each."""
        ran, batch = shallow.ran, shallow.given
        scores = shallow.scores or self._scores(ran, shallow.result)
        kept: list[KeptSample | None] = [None] * len(batch)
        collector = self._collector
        if collector is not None:
            result = shallow.result if deep is None else result
            for place, sample in enumerate(batch.samples):
                own = _of_sample(result, place, batch)
                row = shallow.hard.index(place) if place in shallow.hard else None
                theirs = self._deep_scores(deep, row, own) if deep is not None else None
                seen = Seen(scores[place], 0.0, theirs, partial(_embedding, ran, place))
                kept[place] = collector.see(seen, sample, own, version=ran.version, degraded=away and row is not None)
        beside = self._model.beside
        if beside is not None:
            failed = ran.failed is not None
            own_scores = [None] * len(batch) if failed else scores
            version = ran.version if ran.failed is None else ran.failed
            beside.offer(Compared(batch.inputs, version, ran.seconds, own_scores, failed, kept, time.time()))
        return kept

    def _glance(self, shallow: _Shallow, collector: Collector) -> None:
        """Have samples looked at that nobody asked the story of, where there is time for it."""
        ran, batch = shallow.ran, shallow.given
        for place, sample in enumerate(batch.samples):
            if collector.passes():
                continue
            begin = time.perf_counter()
            own = _of_sample(shallow.result, place, batch)
            scores = shallow.scores[place] if shallow.scores else self._score(ran, shallow.result, place)
            seen = Seen(scores, 0.0, None, partial(_embedding, ran, place))
            collector.see(seen, sample, own, version=ran.version, came=0)
            collector.took(time.perf_counter() - begin, shallow.seconds / len(batch))

    def _deep_scores(self, deep: DeepAnswer | None, row: int | None, result: Any) -> Scores | None:
        if deep is None or row is None:
            return None
        try:
            return scores_of([value[row] for value in deep.outputs.values()], result, self._confidence)
        except (ModelError, IndexError):
            return None

    def _answer(self, shallow: _Shallow, *, instead: str | None = None) -> _Answer:
        """Return the deep model's answer where it is wanted and can be had, else the shallow one's."""
        hard = shallow.hard
        deep, trouble, result, begin = None, instead, shallow.result, time.perf_counter()
        if hard and instead is None:
            try:
                deep, result = self._ask(shallow, hard)
            except (ModelError, TemporaryError) as error:
                trouble = str(error)
                self._warn_once("the shallow model answers alone", error)
        cloud_seconds = time.perf_counter() - begin if hard and instead is None else None
        kept = self._look(shallow, result, deep=deep, away=bool(hard) and deep is None)
        stories = []
        for place in range(len(shallow.given)):
            decision = shallow.decisions[place] if shallow.decisions else None
            wanted = place in hard
            by_cloud = wanted and deep is not None
            degraded = wanted and not by_cloud
            reason = decision.reason if decision is not None else "no deep model is asked"
            stories.append(
                Inference(
                    result=_of_sample(result, place, shallow.given),
                    source="cloud" if by_cloud else "edge",
                    confidence=decision.confidence if decision is not None else None,
                    reason=f"{reason}, but {trouble}" if degraded else reason,
                    degraded=degraded,
                    edge_seconds=shallow.seconds,
                    cloud_seconds=cloud_seconds if wanted else None,
                    model=self._name,
                    deep_model=deep.model if deep is not None and by_cloud else "",
                    kept_sample=kept[place],
                )
            )
        self._count(stories, deep)
        if hard and instead is None:
            self._recorder.told(trouble=trouble or "")
        return _Answer(result, stories)

    def _ask(self, shallow: _Shallow, hard: Sequence[int]) -> tuple[DeepAnswer, Any]:
        """Return the deep model's answer about the hard samples, and the whole call's result with it."""
        assert self._deep is not None
        samples, inputs = shallow.given.of(hard)
        vectors = all(value.ndim <= 2 for value in shallow.outputs.values())
        alike = [value[0] for value in shallow.outputs.values()] if vectors and self._deep_post is None else []
        try:
            deep = self._deep.ask(samples, inputs, alike=alike)
        except NotAskedError:
            raise
        except (ModelError, TemporaryError):
            self._recorder.uploaded(len(hard))
            raise
        self._recorder.uploaded(len(hard), bytes_up=deep.bytes_up, bytes_down=deep.bytes_down)
        try:
            return deep, self._with_deep(shallow, hard, deep)
        except Exception as error:
            # The user's own function, on outputs of a model that it may not have been written for.
            raise ModelError(
                f"post_fun did not take the deep model's outputs: {type(error).__name__}: {error}"
            ) from error

    def _with_deep(self, shallow: _Shallow, hard: Sequence[int], deep: DeepAnswer) -> Any:
        post, batch = self._deep_post or self._post, shallow.given
        if len(hard) == len(batch):
            raw = _in_form(deep.outputs, batch)
            return raw if post is None else post(raw)
        if self._deep_post is None and _fit(shallow.outputs, deep.outputs):
            merged = {}
            for (name, own), theirs in zip(shallow.outputs.items(), deep.outputs.values(), strict=True):
                merged[name] = own.copy()
                merged[name][list(hard)] = theirs
            raw = _in_form(merged, batch)
            return raw if post is None else post(raw)
        # Results of another form, such as a detector's lists: each sample has its own.
        results = [_of_sample(shallow.result, place, batch) for place in range(len(batch))]
        for row, place in enumerate(hard):
            part = {name: value[row : row + 1] for name, value in deep.outputs.items()}
            raw = next(iter(part.values())) if len(part) == 1 else part
            results[place] = raw if post is None else post(raw)
        return results

    def _count(self, stories: Sequence[Inference], deep: DeepAnswer | None) -> None:
        for story in stories:
            seconds = story.edge_seconds + (story.cloud_seconds or 0.0)
            self._recorder.answered(story.source, seconds, degraded=story.degraded)
        if self._deep is not None and any(story.cloud_seconds is not None for story in stories):
            self._recorder.told(circuit=self._deep.circuit, deep_model=deep.model if deep is not None else None)

    def _warn_once(self, what: str, error: Exception) -> None:
        kind = f"{type(error).__name__}: {str(error)[:60]}"
        if kind not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(kind)
            _log.warning("%s: %s", what, error)


def _in_form(outputs: _Outputs, batch: Given) -> Any:
    """Return outputs as a model's own `predict` does: the array, or several by name; without a batch axis for one."""
    if batch.single:
        outputs = {name: value[0] for name, value in outputs.items()}
    return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)


def _of_sample(result: Any, place: int, batch: Given) -> Any:
    """Return what a call's result says of one of its samples."""
    if batch.single or (len(batch) == 1 and is_boxes(result)):
        return result
    if isinstance(result, Mapping):
        return {name: value[place] for name, value in result.items()}
    if isinstance(result, list | tuple | np.ndarray) and len(result) == len(batch):
        return result[place]
    return result


def _embedding(ran: Ran, place: int) -> Embedding:
    return embedding_of(
        {name: value[place] for name, value in ran.given.inputs.items()},
        {name: value[place] for name, value in ran.outputs.items()},
    )


def _fit(own: _Outputs, theirs: _Outputs) -> bool:
    return [value.shape[1:] for value in own.values()] == [value.shape[1:] for value in theirs.values()]
