# SPDX-License-Identifier: Apache-2.0
"""Judges a candidate: has both models answer the same samples in a process of its own, and asks the gate's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from ...core.context_document import ContextDocument
from ...core.files import atomic_write, write_bytes_atomic
from ...core.incremental_spec import IncrementalLearningJob
from ...core.job_file import JobFile
from ...core.sources import dataset_source
from ...core.workers import Worker
from ...lib.datasets import load_dataset
from ..e_process import CanaryReference
from ..gate_rule import Check, Costs, GateVerdict, Needs, Paired, judge
from ..hub.dataset_versions import split_of
from ..hub.hub import Hub
from ..tables import LabelEntry, Sample
from .evaluate import EvaluationTask, SampleEntry, Set, load_result
from .registry import Registry
from .trainings import Workplace

__all__ = ["Evaluations", "GateSample", "Outcome", "gate_samples", "lacks", "not_judged"]

_REFERENCE, _FEWEST_REFERENCE = 1_000, 200
_OLD_FACTOR, _NEW_FACTOR = 2, 4


@dataclass(frozen=True)
class GateSample:
    """A labelled random sample that no training sees."""

    id: str
    media_type: str
    label: int
    size: int


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to.

    Parameters
    ----------
    verdict
        The gate's.
    reference
        What the canaries' observations are compared with; None where the candidate did not answer.
    metrics
        Accuracies and costs, for the version's row.
    """

    verdict: GateVerdict
    reference: CanaryReference | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def gate_samples(session: Session, gate_share: float, *, most: int) -> list[GateSample]:
    """Return the newest samples for the gate, newest first: random, labelled by a person, no training's."""
    by_person = (
        select(LabelEntry.sample)
        .where(LabelEntry.sample == Sample.id, LabelEntry.confidence.is_(None), LabelEntry.skipped.is_(False))
        .exists()
    )
    query = (
        select(Sample.id, Sample.media_type, Sample.label, Sample.size)
        .where(Sample.state == "labelled", Sample.reason == "random", by_person)
        .order_by(Sample.received_at.desc(), Sample.id)
        .execution_options(yield_per=500)
    )
    found = []
    for sample, media_type, label, size in session.execute(query):
        if isinstance(label, int) and split_of(sample, "random", gate_share) == "gate":
            found.append(GateSample(sample, media_type, label, size))
        if len(found) >= most:
            break
    return found


def lacks(new: int, old: int, file: JobFile[IncrementalLearningJob]) -> Needs | None:
    """Return the labels without which the gate does not judge; None where there are enough."""

    def blank(count: int) -> Paired:
        zeros = np.zeros(count, np.int64)
        return Paired(zeros, zeros, zeros)

    return judge(blank(new), blank(old), file.job.spec.gate).needs


class Evaluations:
    """Prepares evaluations and judges what they found.

    Parameters
    ----------
    hub, registry
        Where samples and models are.
    file
        The job.
    place
        Where evaluations work.
    """

    def __init__(self, hub: Hub, registry: Registry, file: JobFile[IncrementalLearningJob], place: Workplace) -> None:
        self._hub, self._registry, self._file, self._place = hub, registry, file, place
        self._eval_size: int | None = None

    def name(self, candidate: int, attempt: int) -> str:
        """Return the name of an evaluation's worker."""
        return f"evaluation-{candidate}-{attempt}"

    def counts(self) -> tuple[int, int]:
        """Return how many new and old labelled samples the gate would judge on."""
        new, old = self._sets()
        spec = self._file.job.spec
        return len(new), len(old) + (self._eval_count() if spec.training.eval_data is not None else 0)

    def worker(self, candidate: int, serving: int, attempt: int, *, edges: Sequence[str] = ()) -> Worker:
        """Return what has both models answer, and write what it reads.

        Parameters
        ----------
        candidate, serving
            The versions.
        attempt
            Counted from 1.
        edges
            The edges that would be canaries: their samples are the best reference for what they will see.
        """
        name, spec, folder = self.name(candidate, attempt), self._file.job.spec, self._folder(candidate, attempt)
        task = folder / "task.json"
        if not task.exists():
            source = spec.training.eval_data
            written = EvaluationTask(
                serving=str(self._registry.path_of(serving)),
                candidate=str(self._registry.path_of(candidate)),
                pre_fun=spec.model.pre_fun,
                base=self._place.base,
                samples=self._entries(folder / "contents", edges),
                contents=str(folder / "contents"),
                old_data=None
                if source is None
                else dataset_source(self._file, source, self._place.base, "spec.training.evalData"),
                most_old=_OLD_FACTOR * spec.gate.min_labels,
                result=str(folder / "result"),
            )
            write_bytes_atomic(task, written.model_dump_json(indent=1).encode())
        context = ContextDocument(
            job=self._file.job.metadata.name,
            kind=self._file.job.kind,
            run=name,
            role="cloud",
            worker=name,
            run_folder=str(folder / "run"),
        )
        command = (self._place.python, "-m", "solar_corona.incremental.loop.evaluate", str(task))
        return Worker(name=name, role="cloud", command=command, context=context, env=spec.inference.env)

    def outcome(self, candidate: int, serving: int, attempt: int) -> Outcome:
        """Judge what an evaluation found.

        Raises
        ------
        WireError
            If its result is not whole.
        """
        result, arrays = load_result(self._folder(candidate, attempt) / "result")
        if result.candidate_error:
            return Outcome(
                GateVerdict(False, (Check("loads", False, f"it cannot be loaded: {result.candidate_error}"),))
            )
        sizes = [_size(self._registry.path_of(version)) for version in (serving, candidate)]
        spec = self._file.job.spec
        new, old = (_paired(arrays, name) for name in ("new", "old"))
        verdict = judge(
            new,
            old,
            spec.gate,
            costs=Costs(latency=result.latency, size=sizes[1] / sizes[0]),
            class_names=spec.model.classes,
        )
        metrics = _metrics(new, old)
        if result.milliseconds is not None:
            metrics["milliseconds"] = result.milliseconds[1]
            metrics["serving_milliseconds"] = result.milliseconds[0]
        return Outcome(verdict, _reference(arrays, spec.gate.max_latency), metrics)

    def _folder(self, candidate: int, attempt: int) -> Path:
        return self._place.folder / self.name(candidate, attempt)

    def _eval_count(self) -> int:
        """Return how many held-out samples of the job's own there are; the worker reads them, this only counts."""
        if self._eval_size is None:
            source = self._file.job.spec.training.eval_data
            assert source is not None
            x, _ = load_dataset(dataset_source(self._file, source, self._place.base, "spec.training.evalData"))
            self._eval_size = len(x)
        return min(self._eval_size, _OLD_FACTOR * self._file.job.spec.gate.min_labels)

    def _sets(self) -> tuple[list[GateSample], list[GateSample]]:
        """Return the newest samples for the gate, and older ones for want of held-out data of the old distribution."""
        spec = self._file.job.spec
        fewest, share = spec.gate.min_labels, self._hub.settings.gate_share
        found = self._hub.database.read(lambda session: gate_samples(session, share, most=_NEW_FACTOR * fewest))
        if spec.training.eval_data is not None:
            return found[:fewest], []
        half = max((fewest + 1) // 2, len(found) // 2)
        return found[:half], found[half:]

    def _entries(self, contents: Path, edges: Sequence[str]) -> list[SampleEntry]:
        """Write the contents of all samples into one file, and return what is where."""
        new, old = self._sets()
        share = self._hub.settings.gate_share
        unlabelled = self._hub.database.read(lambda session: _unseen(session, share, edges))
        wanted: list[tuple[Set, str, str, int | None]] = []
        groups: list[tuple[Set, list[GateSample]]] = [("new", new), ("old", old)]
        for name, samples in groups:
            wanted += [(name, each.id, each.media_type, each.label) for each in samples]
        wanted += [("reference", sample, media_type, None) for sample, media_type in unlabelled]
        entries, begin = [], 0
        with atomic_write(contents) as temporary, temporary.open("wb") as file:
            for name, sample, media_type, label in wanted:
                size = file.write(self._hub.samples.get(sample))
                entries.append(
                    SampleEntry(set=name, sample=sample, begin=begin, size=size, media_type=media_type, label=label)
                )
                begin += size
        return entries


def _unseen(session: Session, gate_share: float, edges: Sequence[str]) -> list[tuple[str, str]]:
    """Return random samples that no training learns from, the newest, of these edges where there are enough."""
    base = select(Sample.id, Sample.media_type, Sample.state).where(Sample.reason == "random")
    order = base.order_by(Sample.received_at.desc(), Sample.id).limit(4 * _REFERENCE)
    for query in (order.where(Sample.edge.in_(edges)), order) if edges else (order,):
        found = [
            (sample, media_type)
            for sample, media_type, state in session.execute(query)
            if state != "labelled" or split_of(sample, "random", gate_share) == "gate"
        ]
        if len(found) >= _FEWEST_REFERENCE:
            break
    return found[:_REFERENCE]


def _paired(arrays: dict[str, NDArray[Any]], name: str) -> Paired:
    truth = arrays[f"{name}_truth"]
    if not len(truth):
        return Paired.none()
    before, after = arrays[f"{name}_serving"], arrays[f"{name}_candidate"]
    return Paired(
        truth,
        _answers(before),
        _answers(after),
        before if before.shape[1] else None,
        np.nan_to_num(after, nan=0.0) if after.shape[1] else None,
    )


def _answers(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the classes; -1 where there is no answer."""
    if not probabilities.shape[1]:
        return np.full(len(probabilities), -1, np.int64)
    whole = np.isfinite(probabilities).all(axis=1)
    found: NDArray[np.int64] = np.where(whole, np.nan_to_num(probabilities, nan=-1.0).argmax(axis=1), -1)
    return found


def _reference(arrays: dict[str, NDArray[Any]], max_latency: float) -> CanaryReference | None:
    """Return how the candidate stands to the serving model on samples that neither was trained on."""
    names = ["reference"] if len(arrays["reference_truth"]) >= _FEWEST_REFERENCE else ["reference", "new"]
    before = [arrays[f"{name}_serving"] for name in names if len(arrays[f"{name}_truth"])]
    after = [arrays[f"{name}_candidate"] for name in names if len(arrays[f"{name}_truth"])]
    if not before or any(not part.shape[1] for part in (*before, *after)):
        return None
    answers = [np.concatenate([_answers(part) for part in parts]) for parts in (after, before)]
    confidences = [
        np.concatenate([np.nan_to_num(part, nan=0.0).max(axis=1) for part in parts]) for parts in (after, before)
    ]
    return CanaryReference.of(*answers, *confidences, max_latency=max_latency)


def _metrics(new: Paired, old: Paired) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, pairs in (("new", new), ("old", old)):
        if len(pairs):
            found[f"accuracy_{name}"] = float((pairs.candidate == pairs.truth).mean())
            found[f"serving_accuracy_{name}"] = float((pairs.serving == pairs.truth).mean())
            found[f"labels_{name}"] = len(pairs)
    return found


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def not_judged(why: str) -> dict[str, Any]:
    """Return the report on a candidate that the gate's rule never saw."""
    return {"gate": GateVerdict(False, (Check("judged", False, why),)).as_json()}
