# SPDX-License-Identifier: Apache-2.0
"""Has two models answer the same samples: `python -m solar_corona.incremental.loop.evaluate TASK.json`.

A process of its own, for what is loaded here comes from a user's script. Nothing is unpickled.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ...core.errors import ExitCode, ModelError, SolarCoronaError, WireError
from ...core.files import atomic_write, write_bytes_atomic
from ...core.named import imported
from ...core.run_folder import RunFolder
from ...core.script_failure import failure_of
from ...core.settings import quiet_engines
from ...core.spec_parts import DatasetSource
from ...lib import context
from ...lib.datasets import load_dataset
from ...lib.runners.opening import open_runner
from ...lib.runners.runner import Runner
from ...lib.sample_coding import decode_sample
from ...lib.scores import class_scores
from ...lib.tensors import TensorSpec

__all__ = ["EvaluationResult", "EvaluationTask", "SampleEntry", "compare", "load_result", "main"]

_log = logging.getLogger(__name__)
_BATCH = 64
_TIMED, _WARM, _TIMED_SECONDS = 100, 5, 20.0
Set = Literal["new", "old", "reference"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleEntry(_Record):
    """A sample to answer: where its content is, and what it is."""

    set: Set
    sample: str = Field(description="Its id.")
    begin: int = Field(description="Where its content begins in the file of contents.")
    size: int
    media_type: str
    label: int | None = Field(description="The class; None of samples that are only compared.")


class EvaluationTask(_Record):
    """What is evaluated, and where the answers go."""

    serving: str = Field(description="Path of the model in use.")
    candidate: str = Field(description="Path of the candidate.")
    pre_fun: str | None = Field(description="`module:function`, as scripts give load_model.")
    base: str = Field(description="Folder that the module is looked for in first.")
    samples: list[SampleEntry]
    contents: str = Field(description="Path of their contents, one after another.")
    old_data: DatasetSource | None = Field(description="Held-out samples of the old distribution.")
    most_old: int = Field(description="How many of these are taken at most.")
    result: str = Field(description="Path of the result, a folder.")


class EvaluationResult(_Record):
    """What was found beside the answers, which are in `answers.npz`."""

    candidate_error: str = Field(default="", description="Why the candidate cannot be used at all.")
    unreadable: int = Field(default=0, description="Samples that could not be read.")
    latency: float | None = Field(default=None, description="Candidate's time of one inference over serving's.")
    milliseconds: tuple[float, float] | None = Field(default=None, description="Of serving and candidate.")
    failed: int = Field(default=0, description="Samples that the candidate raised at, or gave no numbers for.")


def main(arguments: Sequence[str]) -> int:
    """Carry out the task that the first argument names."""
    quiet_engines()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        task = EvaluationTask.model_validate_json(Path(arguments[0]).read_bytes())
        _evaluate(task)
    except Exception as error:  # noqa: BLE001 - whatever a model or function of the user raises is reported
        failure = failure_of(error)
        sys.stderr.write(failure.traceback or f"{failure.error}\n")
        document = context.current()
        if document is not None:
            RunFolder(Path(document.run_folder)).write_failure(document.worker, failure)
        return failure.exit_code
    return ExitCode.OK


def _evaluate(task: EvaluationTask) -> None:
    folder = Path(task.result)
    pre_fun = _function(task.pre_fun, task.base)
    samples, unreadable = _samples(task)
    with_labels = {name: np.array([label for _, label in pairs], np.int64) for name, pairs in samples.items()}
    serving = _Answering(task.serving, pre_fun)
    try:
        candidate = _Answering(task.candidate, pre_fun)
    except SolarCoronaError as error:
        _write(folder, {}, EvaluationResult(candidate_error=str(error), unreadable=unreadable))
        return
    arrays: dict[str, NDArray[Any]] = {}
    failed = 0
    for name, pairs in samples.items():
        values = [sample for sample, _ in pairs]
        before, _ = serving.answer(values, blame=True)
        after, errors = candidate.answer(values, blame=False)
        failed += errors
        arrays |= {f"{name}_truth": with_labels[name], f"{name}_serving": before, f"{name}_candidate": after}
    every = [sample for pairs in samples.values() for sample, _ in pairs]
    times = compare(serving.once, candidate.once, every[:_TIMED]) if every and failed < len(every) else None
    result = EvaluationResult(
        unreadable=unreadable,
        latency=times[1] / times[0] if times is not None else None,
        milliseconds=(1e3 * times[0], 1e3 * times[1]) if times is not None else None,
        failed=failed,
    )
    _write(folder, arrays, result)


def compare(
    first: Callable[[Any], object], second: Callable[[Any], object], samples: Sequence[Any]
) -> tuple[float, float]:
    """Return the median times of two models on single samples, in turns, in seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + _TIMED_SECONDS
    for place in range(_WARM + _TIMED):
        for found, model in zip(times, (first, second), strict=True):
            begin = time.perf_counter()
            try:
                model(samples[place % len(samples)])
            except Exception:  # noqa: BLE001 - a model that raises at some sample is told elsewhere
                _log.debug("a sample was not timed", exc_info=True)
            if place >= _WARM or place == 0:
                found.append(time.perf_counter() - begin)
        if time.perf_counter() > end:
            break
    # The first call, which may compile, counts only where there is no other.
    return tuple(float(np.median(found[1:] or found)) for found in times)  # type: ignore[return-value]


def load_result(folder: Path) -> tuple[EvaluationResult, dict[str, NDArray[Any]]]:
    """Return what an evaluation left.

    Raises
    ------
    WireError
        If it is not whole.
    """
    try:
        result = EvaluationResult.model_validate_json((folder / "result.json").read_bytes())
        with np.load(folder / "answers.npz", allow_pickle=False) as file:
            return result, {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise WireError(f"{folder}: the evaluation's result is not whole ({error})") from error


def _write(folder: Path, arrays: Mapping[str, NDArray[Any]], result: EvaluationResult) -> None:
    with atomic_write(folder / "answers.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]
    write_bytes_atomic(folder / "result.json", result.model_dump_json(indent=1).encode())


def _function(name: str | None, base: str) -> Callable[[Any], Any]:
    if name is None:
        return lambda sample: sample
    sys.path.insert(0, base)
    subject = f"spec.model.preFun names {name}, which"
    found = imported(name, subject, error=ModelError, kind="function", beside="the job file", trouble="is not there")
    if not callable(found):
        raise ModelError(f"{subject} is no function")
    return found  # type: ignore[no-any-return]


def _samples(task: EvaluationTask) -> tuple[dict[Set, list[tuple[Any, int]]], int]:
    """Return the samples of each set with their labels, -1 where there is none, and how many cannot be read."""
    found: dict[Set, list[tuple[Any, int]]] = {"new": [], "old": [], "reference": []}
    unreadable = 0
    contents = Path(task.contents).read_bytes() if task.samples else b""
    for entry in task.samples:
        try:
            sample = decode_sample(contents[entry.begin : entry.begin + entry.size], entry.media_type)
        except WireError as error:
            _log.warning("sample %s is left out: %s", entry.sample, error)
            unreadable += 1
            continue
        value = np.asarray(sample) if entry.media_type.startswith("application/json") else sample
        found[entry.set].append((value, -1 if entry.label is None else entry.label))
    if task.old_data is not None:
        x, y = load_dataset(task.old_data)
        if y is None:
            raise ModelError("spec.training.evalData has no labels; expected x and y")
        rows = np.random.default_rng(0).permutation(len(x))[: task.most_old]
        found["old"] += [(x[row], int(y[row])) for row in rows]
    return found, unreadable


class _Answering:
    """A model that gives probabilities of classes."""

    def __init__(self, path: str, pre_fun: Callable[[Any], Any]) -> None:
        self._runner: Runner = open_runner(path, convert=True)
        self._pre = pre_fun

    def answer(self, samples: Sequence[Any], *, blame: bool) -> tuple[NDArray[np.float64], int]:
        """Return probabilities, n x K, and how many samples it could not answer; those rows are NaN.

        With `blame` the first sample that it cannot answer is an error.
        """
        rows: list[NDArray[np.float64] | None] = []
        for begin in range(0, len(samples), _BATCH):
            part = samples[begin : begin + _BATCH]
            try:
                rows += self._batch(part)
            except Exception:  # noqa: BLE001 - one by one it shows which sample it is
                rows += [self._one(sample, blame=blame) for sample in part]
        width = max((len(row) for row in rows if row is not None), default=0)
        table = np.full((len(rows), width), np.nan)
        for place, row in enumerate(rows):
            if row is not None:
                table[place, : len(row)] = row
        return table, int((~np.isfinite(table).all(axis=1)).sum()) if width else len(rows)

    def once(self, sample: Any) -> None:
        """Answer one sample."""
        self._runner.run(_inputs([self._pre(sample)], self._runner.inputs))

    def _batch(self, samples: Sequence[Any]) -> list[NDArray[np.float64] | None]:
        outputs = self._runner.run(_inputs([self._pre(sample) for sample in samples], self._runner.inputs))
        if len(outputs) != 1:
            raise ModelError(
                f"the gate compares classes, and this model has {len(outputs)} outputs; it can judge classifiers only"
            )
        (values,) = outputs.values()
        return [class_scores(row).values if np.isfinite(row).all() else None for row in values]

    def _one(self, sample: Any, *, blame: bool) -> NDArray[np.float64] | None:
        try:
            return self._batch([sample])[0]
        except Exception as error:
            if blame:
                raise ModelError(
                    f"the model in use does not take a sample as edges keep it ({type(error).__name__}: {error}); if "
                    f"scripts give load_model a pre_fun, name it in spec.model.preFun: module:function"
                ) from error
            return None


def _inputs(prepared: Sequence[Any], specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """Return samples, as `pre_fun` left them, as one batch: an array each, several in order, or a mapping by name."""
    each = [_by_name(value, specs) for value in prepared]
    batch = {}
    for spec in specs:
        arrays = [found[spec.name] for found in each]
        # A pre_fun may have made a batch of its one sample.
        own = [array[0] if array.ndim == len(spec.shape) and len(array) == 1 else array for array in arrays]
        stacked = np.stack(own)
        harmless = spec.dtype.kind == "f" and stacked.dtype.kind in "biuf"
        batch[spec.name] = stacked.astype(spec.dtype) if harmless else stacked
    return batch


def _by_name(value: Any, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    if isinstance(value, Mapping):
        return {str(name): np.asarray(part) for name, part in value.items()}
    if len(specs) > 1 and isinstance(value, list | tuple):
        return {spec.name: np.asarray(part) for spec, part in zip(specs, value, strict=True)}
    return {specs[0].name: np.asarray(value)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
