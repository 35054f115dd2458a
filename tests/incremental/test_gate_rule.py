# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import DatasetError
from solar_corona.core.incremental_spec import Gate
from solar_corona.incremental.gate_rule import Costs, Gain, GateVerdict, Paired, judge


def pairs(n: int, gain: float, *, seed: int = 0, disagreement: float = 0.06, classes: int = 10) -> Paired:
    """Return answers where exactly these shares of the samples are gained and lost, and 10 % are wrong in both."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n) % classes)
    wrong = (truth + 1) % classes
    gained, lost = round(n * (disagreement + gain) / 2), round(n * (disagreement - gain) / 2)
    serving, candidate = truth.copy(), truth.copy()
    rows = rng.permutation(n)
    serving[rows[:gained]] = wrong[rows[:gained]]
    candidate[rows[gained : gained + lost]] = wrong[rows[gained : gained + lost]]
    both = rows[gained + lost : gained + lost + n // 10]
    serving[both] = candidate[both] = wrong[both]
    return Paired(truth, serving, candidate)


def soft(answers: np.ndarray, confidence: float, classes: int = 10) -> np.ndarray:
    found = np.full((len(answers), classes), (1 - confidence) / (classes - 1))
    found[np.arange(len(answers)), answers] = confidence
    return found


def failed(verdict: GateVerdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


@pytest.mark.parametrize(("gain", "passes"), [(-0.02, False), (-0.01, False), (0.02, True), (0.2, True)])
def test_a_candidate_passes_by_its_gain(gain: float, passes: bool) -> None:
    verdict = judge(pairs(500, gain, disagreement=max(0.06, gain)), pairs(500, 0.0, seed=1), Gate())
    if gain < 0:
        verdict = judge(pairs(500, gain), pairs(500, gain, seed=1), Gate())
    assert verdict.passed is passes, verdict.reasons


def test_chance_passes_bad_candidates_and_fails_good_ones_as_rarely_as_is_said() -> None:
    rng = np.random.default_rng(0)

    def drawn(gain: float) -> Paired:
        u, truth = rng.random(500), rng.integers(0, 10, 500)
        gained, lost = u < (0.06 + gain) / 2, u > 1 - (0.06 - gain) / 2
        return Paired(truth, np.where(gained, -1, truth), np.where(lost, -1, truth))

    share = {g: np.mean([judge(drawn(g), drawn(g), Gate()).passed for _ in range(600)]) for g in (-0.02, 0.02)}
    # 600 draws of .5 % are over 9 in one of 1,000 runs.
    assert share[-0.02] <= 9 / 600
    assert share[0.02] >= 1 - 15 / 600


def test_too_few_labels_are_not_judged_and_the_verdict_says_how_many_are_missing() -> None:
    verdict = judge(pairs(300, 0.1, disagreement=0.2), pairs(600, 0.0), Gate())
    assert not verdict.passed
    assert verdict.needs is not None
    assert (verdict.needs.labels, verdict.needs.new) == (200, 200)
    assert "label 200 more random samples" in verdict.reasons[0]
    without_old = judge(pairs(600, 0.1, disagreement=0.2), Paired.none(), Gate())
    assert without_old.needs is not None
    assert without_old.needs.labels == 400


def test_labels_that_leave_a_gain_open_are_counted() -> None:
    verdict = judge(pairs(500, 0.008, disagreement=0.16), pairs(500, 0.0, disagreement=0.16), Gate())
    assert failed(verdict) == ["overall"]
    assert verdict.would_settle is not None
    more = verdict.would_settle // 2 + 50  # whole samples are gained and lost
    assert judge(pairs(more, 0.008, disagreement=0.16), pairs(more, 0.0, disagreement=0.16), Gate()).passed


def test_a_gain_on_new_samples_does_not_pay_for_forgetting() -> None:
    verdict = judge(pairs(500, 0.15, disagreement=0.2), pairs(500, -0.05), Gate())
    assert failed(verdict) == ["old"]
    assert "old samples it gains -5.2 points" in verdict.reasons[0]


def test_a_destroyed_class_is_found_and_called_by_its_name() -> None:
    new = pairs(1000, 0.06, disagreement=0.06)
    rows = new.truth == 3
    candidate = new.candidate.copy()
    candidate[np.flatnonzero(rows)[:40]] = 4
    verdict = judge(
        Paired(new.truth, new.serving, candidate), Paired.none(), Gate(), class_names=["a", "b", "c", "cat"]
    )
    assert failed(verdict) == ["classes"]
    assert "cat by" in verdict.reasons[0]
    assert judge(Paired(new.truth, new.serving, candidate), Paired.none(), Gate(per_class="none")).passed


def test_classes_with_few_labels_count_as_unknown() -> None:
    verdict = judge(pairs(1000, 0.02, classes=50), Paired.none(), Gate())
    assert len(verdict.unknown_classes) == 50
    assert "of 0 classes" in next(check.why for check in verdict.checks if check.name == "classes")


def test_new_classes_neither_hide_a_loss_nor_count_as_disagreement() -> None:
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.integers(0, 8, 600), rng.integers(8, 10, 400)])
    serving = np.where(truth < 8, truth, truth - 8)
    learned = judge(Paired(truth, serving, truth), pairs(500, 0.0, classes=8), Gate())
    assert learned.passed, learned.reasons
    assert learned.unknown_classes == []
    lossy = truth.copy()
    lossy[:60] = (truth[:60] + 1) % 8
    verdict = judge(Paired(truth, serving, lossy), pairs(500, 0.0, classes=8), Gate())
    assert "known" in failed(verdict)


def test_an_overconfident_candidate_is_refused_though_its_answers_are_good() -> None:
    old = pairs(500, 0.0, seed=1)
    new = pairs(500, 0.03)

    def with_confidence(data: Paired, candidate: float) -> Paired:
        return Paired(
            data.truth, data.serving, data.candidate, soft(data.serving, 0.85), soft(data.candidate, candidate)
        )

    assert judge(with_confidence(new, 0.86), with_confidence(old, 0.86), Gate()).passed
    names = failed(judge(with_confidence(new, 0.99999), with_confidence(old, 0.99999), Gate()))
    assert "nll-new" in names
    assert "confidence-new" not in failed(judge(with_confidence(new, 0.9), with_confidence(old, 0.9), Gate()))
    assert "confidence-new" in failed(judge(with_confidence(new, 0.6), with_confidence(old, 0.6), Gate()))


def test_a_total_repair_passes_though_most_answers_change() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 1000)
    serving = np.where(rng.random(1000) < 0.3, truth, (truth + 1) % 10)
    candidate = np.where(rng.random(1000) < 0.65, truth, (truth + 2) % 10)
    verdict = judge(Paired(truth, serving, candidate), pairs(500, 0.0), Gate(per_class="none"))
    assert verdict.passed, verdict.reasons


def test_answers_shuffled_for_no_good_are_refused() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 500)
    wrong = Paired(truth, (truth + 1) % 10, (truth + 2) % 10)
    assert "disagreement-old" in failed(judge(pairs(500, 0.02), wrong, Gate()))


@pytest.mark.parametrize(("costs", "name"), [(Costs(latency=1.6), "latency"), (Costs(size=5.0), "size")])
def test_a_slower_or_larger_candidate_is_refused(costs: Costs, name: str) -> None:
    verdict = judge(pairs(500, 0.03), pairs(500, 0.0), Gate(), costs=costs)
    assert failed(verdict) == [name]
    assert "times" in verdict.reasons[0]


def test_a_candidate_that_answers_with_no_numbers_is_wrong_there() -> None:
    data = pairs(500, 0.0)
    broken = Paired(data.truth, data.serving, np.full(500, -1), soft(data.serving, 0.9), np.full((500, 10), np.nan))
    assert {"overall", "new", "nll-new"} <= set(failed(judge(broken, pairs(500, 0.0), Gate())))


def test_answers_to_other_samples_are_refused_with_what_was_expected() -> None:
    zeros = np.zeros(3, np.int64)
    with pytest.raises(DatasetError, match="3 of truth, 2 of serving, 3 of candidate; expected answers of both"):
        Paired(zeros, zeros[:2], zeros)
    with pytest.raises(DatasetError, match=r"shape \(3, 1\), expected one class for each sample"):
        Paired(zeros[:, None], zeros, zeros)


@given(
    st.lists(st.tuples(*[st.integers(-1, 5)] * 3), min_size=50, max_size=120),
    st.lists(st.tuples(*[st.integers(-1, 5)] * 3), max_size=60),
)
def test_any_answers_give_a_verdict_in_words_and_json(new: list[tuple[int, ...]], old: list[tuple[int, ...]]) -> None:
    def paired(rows: list[tuple[int, ...]]) -> Paired:
        columns = np.array(rows, np.int64).reshape(-1, 3).T
        return Paired(*columns)

    verdict = judge(paired(new), paired(old), Gate(min_labels=50))
    assert verdict.reasons
    assert verdict.passed == all(check.passed for check in verdict.checks)
    json.dumps(verdict.as_json(), allow_nan=False)
    if Gain.on(paired(new)).value < -0.05:
        assert not verdict.passed
