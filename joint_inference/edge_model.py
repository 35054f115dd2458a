# SPDX-License-Identifier: Apache-2.0
"""The model on the edge: it answers, or has the deep model answer what is hard, and never waits for the cloud."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import ModelError, NotAskedError, TemporaryError
from ..lib.runners.runner import Runner
from ..lib.said_once import SaidOnce
from ..lib.scores import ConfidenceFunction, Scores
from ..lib.serving import Serving
from .answers import Outputs, fit, in_form, of_sample
from .deep_model import DeepAnswer, DeepModel
from .inference import Inference
from .offload import Decision, OffloadAlgorithm
from .samples import Function, Given
from .shallow_model import Ran, ShallowModel
from .statistics import EdgeStatistics, Recorder

if TYPE_CHECKING:
    from ..lib.hard_samples.collector import Collector
    from ..lib.hard_samples.kept_sample import KeptSample
    from ..lib.hard_samples.worker_counts import WorkerCounts
    from ..lib.live_model import LiveModel
    from ..lib.shadow_model import ShadowModel
    from .onlooker import Onlooker

    Shadowing = Callable[[Serving, Callable[[Outputs, int], Sequence[Scores | None]]], ShadowModel]
    """Makes what compares with a version: called with it, and with what reads its outputs."""

__all__ = ["EdgeModel"]

_log = logging.getLogger(__name__)
_AT_ONCE = 4
_NOBODY_DECIDES: Sequence[Decision | None] = ()


@dataclass(frozen=True)
class _Shallow:
    """What the shallow model made of a call: its outputs, what `post_fun` made of them, and what is hard."""

    ran: Ran
    result: Any
    scores: Sequence[Scores]
    decisions: Sequence[Decision | None]
    hard: Sequence[int]
    seconds: float

    @property
    def given(self) -> Given:
        """The call's samples."""
        return self.ran.given

    @property
    def outputs(self) -> Outputs:
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
        self._said = SaidOnce(_log)
        self._onlooker: Onlooker | None = None
        if collector is not None or shadowed is not None:
            # An edge that keeps nothing starts faster without it.
            from .onlooker import Onlooker

            self._onlooker = Onlooker(self._model, collector, confidence_fun)
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

    @property
    def hard_samples(self) -> WorkerCounts | None:
        """What detection of hard samples has done so far; None without it."""
        return self._collector.counts if self._collector is not None else None

    def predict(self, sample: Any) -> Any:
        """Return the answer for one sample or a batch, in the form that the model, or `post_fun`, gives it.

        Raises
        ------
        ModelError
            If the sample is not what the shallow model takes.
        """
        shallow = self._think(sample)
        if shallow.hard:
            return self._answer(shallow).result
        # Most samples come this way, and their story is told to nobody.
        self._recorder.answered("edge", shallow.seconds, samples=len(shallow.given))
        if self._onlooker is not None:
            self._onlooker.glance(shallow.ran, shallow.result, shallow.scores, shallow.seconds)
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

        Raises
        ------
        ModelError
            If `at_once` is no number from 1, or a frame is a batch of several samples.
        Exception
            What the camera raised, once all frames before it are answered.
        """
        if isinstance(at_once, bool) or not isinstance(at_once, int) or at_once < 1:
            raise ModelError(f"at_once is {at_once!r}, expected a whole number from 1")
        waiting: deque[Future[Inference]] = deque()
        under_way = threading.Semaphore(at_once)
        gone: Exception | None = None
        camera = iter(frames)
        with ThreadPoolExecutor(at_once, thread_name_prefix="solar-corona-upload") as uploads:
            while True:
                try:
                    frame = next(camera)
                except StopIteration:
                    break
                except Exception as error:  # noqa: BLE001 - it is raised again, behind the answers that are owed
                    gone = error
                    break
                waiting.append(self._begin(frame, uploads, under_way))
                while waiting and waiting[0].done():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        if gone is not None:
            raise gone

    def close(self) -> None:
        """Leave the last statistics, close connections and free the model."""
        # Its last report still says which version answered.
        if self._collector is not None:
            self._collector.close()
        if self._live is not None:
            self._live.close()
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
        if len(shallow.given) != 1:
            raise ModelError(
                f"a frame of the stream is a batch of {len(shallow.given)}; expected one sample a frame, predict and "
                f"infer take batches"
            )
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

    def _think(self, sample: Any) -> _Shallow:
        begin = time.perf_counter()
        prepared = sample if self._pre is None else self._pre(sample)
        ran = self._model.run(sample, prepared)
        batch = ran.given
        result = in_form(ran.outputs, batch)
        if self._post is not None:
            result = self._post(result)
        scores: Sequence[Scores] = ()
        decisions = _NOBODY_DECIDES
        if self._algorithm is not None:
            plain = self._model.plain_scores(ran.outputs) if self._post is None else None
            scores = plain if plain is not None else self._scores(ran.outputs, result, batch)
            decisions = self._decide(scores)
        hard = [place for place, decision in enumerate(decisions) if decision is not None and decision.upload]
        return _Shallow(
            ran, result, scores, decisions, hard if self._deep is not None else (), time.perf_counter() - begin
        )

    def _scores(self, outputs: Outputs, result: Any, batch: Given) -> Sequence[Scores]:
        return [self._model.scores_of(outputs, place, of_sample(result, place, batch)) for place in range(len(batch))]

    def _decide(self, scores: Sequence[Scores]) -> Sequence[Decision | None]:
        assert self._algorithm is not None
        with self._lock:
            return [self._algorithm.decide(each) for each in scores]

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
        kept: Sequence[KeptSample | None] = [None] * len(shallow.given)
        if self._onlooker is not None:
            away = bool(hard) and deep is None
            kept = self._onlooker.look(shallow.ran, result, shallow.scores, hard=hard, deep=deep, away=away)
        stories = []
        for place in range(len(shallow.given)):
            decision = shallow.decisions[place] if shallow.decisions else None
            wanted = place in hard
            by_cloud = wanted and deep is not None
            degraded = wanted and not by_cloud
            reason = decision.reason if decision is not None else "no deep model is asked"
            stories.append(
                Inference(
                    result=of_sample(result, place, shallow.given),
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
            raw = in_form(deep.outputs, batch)
            return raw if post is None else post(raw)
        if self._deep_post is None and fit(shallow.outputs, deep.outputs):
            merged = {}
            for (name, own), theirs in zip(shallow.outputs.items(), deep.outputs.values(), strict=True):
                merged[name] = own.copy()
                merged[name][list(hard)] = theirs
            raw = in_form(merged, batch)
            return raw if post is None else post(raw)
        # Results of another form, such as a detector's lists: each sample has its own.
        results = [of_sample(shallow.result, place, batch) for place in range(len(batch))]
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
        self._said.warn(f"{type(error).__name__}: {str(error)[:60]}", f"{what}: {error}")
