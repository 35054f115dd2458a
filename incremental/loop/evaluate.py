# SPDX-License-Identifier: Apache-2.0
"""The worker that evaluates: `python -m solar_corona.incremental.loop.evaluate REQUEST.json`.

It is a process of its own, since it loads an engine and a model that nobody has run yet.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DatasetError, ExitCode, ModelError, SolarCoronaError
from ...core.files import local_path
from ...lib.datasets import load_dataset
from ...lib.runners.opening import open_runner
from ...lib.runners.runner import Runner
from ...lib.scores import class_scores
from ..gate_rule import Costs, Paired
from .evaluation import Evaluation, EvaluationRequest, read_request, write_evaluation

__all__ = ["evaluate", "main"]

_AT_ONCE = 64
_TIMED = 40
_NO_CLASS = -1

Function = Callable[[Any], Any]


class _Answers:
    """A model's classes and probabilities, sample by sample."""

    def __init__(self, runner: Runner, pre_fun: Function | None) -> None:
        self._runner, self._pre = runner, pre_fun
        self.trouble = ""

    def of(self, x: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return n classes, -1 where there is no answer, and n x K probabilities."""
        rows: list[NDArray[np.float64] | None] = []
        for begin in range(0, len(x), _AT_ONCE):
            part = x[begin : begin + _AT_ONCE]
            try:
                rows += self._batch(part)
            except (ModelError, ArithmeticError, ValueError, RuntimeError) as error:
                # Whatever an engine raises: the candidate is judged by it.
                self.trouble = self.trouble or f"{type(error).__name__}: {error}"
                rows += [None] * len(part)
        width = max((len(row) for row in rows if row is not None), default=1)
        found = np.zeros((len(rows), width))
        classes = np.full(len(rows), _NO_CLASS, np.int64)
        for place, row in enumerate(rows):
            if row is not None:
                found[place, : len(row)] = row
                classes[place] = int(row.argmax())
        return classes, found

    def milliseconds(self, x: NDArray[Any]) -> float:
        """Return how long one sample takes; infinite where it gives no answer."""
        begin = time.perf_counter()
        try:
            self._run(x[:1])
        except (ModelError, ArithmeticError, ValueError, RuntimeError):
            return float("inf")
        return 1e3 * (time.perf_counter() - begin)

    def _batch(self, part: NDArray[Any]) -> list[NDArray[np.float64] | None]:
        outputs = self._run(part)
        if len(outputs) != 1:
            raise ModelError(
                f"the model has {len(outputs)} outputs; the gate compares classifiers, which have one: the classes'"
            )
        (output,) = outputs.values()
        return [class_scores(row).values if np.isfinite(row).all() else None for row in output]

    def _run(self, part: NDArray[Any]) -> dict[str, NDArray[Any]]:
        spec = self._runner.inputs[0]
        given = part if self._pre is None else np.stack([np.asarray(self._pre(sample)) for sample in part])
        return self._runner.run({spec.name: given.astype(spec.dtype, copy=False)})


def evaluate(request: EvaluationRequest) -> Evaluation:
    """Return what both models say of the samples.

    Raises
    ------
    ModelError
        If a model cannot be loaded.
    DatasetError
        If there are no samples, or they have no labels.
    """
    pre_fun = _function(request.pre_fun) if request.pre_fun is not None else None
    sets = {"new": _samples(request.new), "old": _samples(request.old) if request.old is not None else None}
    with closing(open_runner(request.serving)) as ours, closing(open_runner(request.candidate)) as theirs:
        return _compared(request, sets, _Answers(ours, pre_fun), _Answers(theirs, pre_fun))


def _compared(
    request: EvaluationRequest,
    sets: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]] | None],
    serving: _Answers,
    candidate: _Answers,
) -> Evaluation:
    pairs = {}
    for name, data in sets.items():
        if data is None:
            pairs[name] = Paired.none()
            continue
        x, truth = data
        (classes, probabilities), (others, other_probabilities) = serving.of(x), candidate.of(x)
        pairs[name] = Paired(truth, classes, others, probabilities, other_probabilities)
    assert sets["new"] is not None
    x = sets["new"][0]
    # They take turns, so that what else the machine does falls on both.
    times = [(serving.milliseconds(x[i % len(x) :]), candidate.milliseconds(x[i % len(x) :])) for i in range(_TIMED)]
    ours, theirs = (float(np.median([each[side] for each in times])) for side in (0, 1))
    costs = Costs(
        theirs / ours if 0 < ours < float("inf") else None, _bytes(request.candidate) / _bytes(request.serving)
    )
    return Evaluation(pairs["new"], pairs["old"], costs, (ours, theirs), candidate.trouble)


def _samples(path: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    x, y = load_dataset(path)
    if y is None or not len(x):
        raise DatasetError(f"{path}: has no labelled samples; the gate judges on labels")
    return x, np.asarray(y).reshape(len(y)).astype(np.int64)


def _function(name: str) -> Function:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        # Whatever the user's module raises while it is imported.
        raise ModelError(
            f"{name} cannot be loaded ({type(error).__name__}: {error}); expected module:function, beside the job file"
        ) from error
    return found  # type: ignore[no-any-return]


def _bytes(path: str) -> int:
    here = local_path(path)
    if here is None or not here.is_dir():
        return max(1, here.stat().st_size if here is not None else 1)
    return max(1, sum(file.stat().st_size for file in here.rglob("*") if file.is_file()))


def main() -> int:
    """Evaluate what the request says; print one error and return a documented exit code where it cannot be done."""
    request = read_request(Path(sys.argv[1]))
    sys.path.insert(0, str(Path.cwd()))
    try:
        write_evaluation(Path(request.output), evaluate(request))
    except SolarCoronaError as error:
        sys.stderr.write(f"error: {error}\n")
        return int(error.exit_code)
    return int(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
