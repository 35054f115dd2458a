# SPDX-License-Identifier: Apache-2.0
"""The contract that every offload algorithm keeps, ours and yours: `check_offload_algorithm(MyAlgorithm)`."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator

import numpy as np

from ..core.errors import ModelError
from ..lib.contract import Contract
from ..lib.scores import Scores
from .credit import BoundedCredit
from .offload import Decision, OffloadAlgorithm

__all__ = ["check_offload_algorithm"]

_STREAM = 3000
_contract = Contract("offload algorithm", ModelError)
_require = _contract.require


def check_offload_algorithm(make: Callable[[], OffloadAlgorithm]) -> None:
    """Check that an algorithm keeps what `OffloadAlgorithm` promises.

    Parameters
    ----------
    make
        Makes a new one, such as the class itself or `lambda: MyAlgorithm(upload_ratio=0.1)`.

    Raises
    ------
    ModelError
        If it does not: the message says which promise is broken.
    """
    algorithm = make()
    kind = type(algorithm).__name__
    _require(isinstance(algorithm, OffloadAlgorithm), f"{kind} has not decide(scores) and describe()")
    _contract.require_description(algorithm)
    decisions = [_decided(algorithm, scores) for scores in _streams()]
    other = make()
    _require(
        [other.decide(scores) for scores in _streams()] == decisions,
        "two new ones decide differently on one stream; let no chance, clock or shared state decide",
    )
    _contract.require_description(algorithm)
    told = algorithm.describe()
    if told.get("upload_ratio") is not None:
        _holds_its_ratio(make(), float(told["upload_ratio"]), str(told.get("hold", "default")))


def _decided(algorithm: OffloadAlgorithm, scores: Scores) -> Decision:
    before = scores.values.copy()
    decision = algorithm.decide(scores)
    _require(isinstance(decision, Decision), f"decide() returned a {type(decision).__name__}, expected a Decision")
    _require(type(decision.upload) is bool, f"upload is {decision.upload!r}, expected True or False")
    sure = isinstance(decision.confidence, numbers.Real) and 0 <= decision.confidence <= 1
    _require(sure, f"confidence is {decision.confidence!r}, expected a number from 0 to 1")
    _require(isinstance(decision.reason, str) and bool(decision.reason), "reason is empty; say in a phrase why")
    _require(np.array_equal(before, scores.values), "decide() changed the scores that it was given")
    return decision


def _streams() -> Iterator[Scores]:
    """Yield what models give: classes of 2 to 10, sure, torn and undecided; images with no, few and many boxes."""
    rng = np.random.default_rng(0)
    yield Scores(np.array([1.0, 0.0]))
    yield Scores(np.array([0.5, 0.5]))
    yield Scores(np.full(10, 0.1))
    yield Scores(np.zeros(0), boxes=True)
    yield Scores(np.array([0.0, 1.0, 0.7]), boxes=True)
    for _ in range(300):
        yield Scores(rng.dirichlet(np.full(int(rng.integers(2, 11)), 0.5)))
        yield Scores(rng.random(int(rng.integers(0, 20))), boxes=True)


def _holds_its_ratio(algorithm: OffloadAlgorithm, ratio: float, hold: str) -> None:
    bound = BoundedCredit(ratio, hold=hold if hold in ("strict", "relaxed") else "default").bound  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    uploads = []
    for i in range(_STREAM):
        hard = (i // 500) % 2  # for long all are easy, then all are hard
        uploads.append(algorithm.decide(Scores(rng.dirichlet(np.full(5, 5.0 if hard else 0.1)))).upload)
    sums = np.concatenate([[0.0], np.cumsum(np.array(uploads, float) - ratio)])
    error = float(sums.max() - sums.min())
    _require(
        error <= 2 * bound + 1e-6,
        f"it says upload_ratio {ratio} and is {error:.0f} uploads off in a window, expected at most {2 * bound:.0f}; "
        f"let BoundedCredit decide",
    )
