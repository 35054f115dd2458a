# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solar_corona.core.errors import SpecError, WireError
from solar_corona.incremental.drift import DETECTORS, Adwin, Both, Cusum, Ranks, create
from solar_corona.incremental.drift_checks import check_drift_detector


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_keeps_the_contract(name: str) -> None:
    check_drift_detector(lambda: create(name))


class _Broken(Ranks):
    def __init__(self, broken: str) -> None:
        super().__init__()
        self._broken = broken
        if broken == "reads":
            self.reads = ("colour",)  # type: ignore[assignment]

    def update(self, value: float, kind: object = "confidence") -> bool:
        if self._broken == "value":
            return 0  # type: ignore[return-value]
        found = super().update(value)
        if self._broken == "why":
            self.why = ""
        return found and self._broken != "blind"

    def state_dict(self) -> dict[str, object]:
        state = super().state_dict()
        return {
            "json": {"x": {1}},
            "forgetful": state | {"reference": [], "spread": 0.0},
            "large": state | {"x": "x" * (1 << 21)},
        }.get(self._broken, state)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("reads", "expected 'confidence', 'error' or both"),
        ("value", "expected True or False"),
        ("blind", "it finds no drift"),
        ("why", "why is empty after a drift"),
        ("json", "gives no JSON"),
        ("forgetful", "after restarts it finds"),
        ("large", "expected at most 1048576"),
    ],
)
def test_the_contract_names_the_promise_that_is_broken(broken: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        check_drift_detector(lambda: _Broken(broken))


def test_a_name_that_there_is_not_is_answered_with_the_ones_there_are() -> None:
    with pytest.raises(SpecError, match="did you mean 'cusum'"):
        create("cusun")
    with pytest.raises(SpecError, match="cannot be loaded"):
        create("nowhere_at_all:Detector")
    with pytest.raises(SpecError, match="is no class"):
        create("math:pi")
    with pytest.raises(SpecError, match="is no drift detector"):
        create("builtins:list")
    with pytest.raises(SpecError, match="does not take these options"):
        create("ranks", {"colour": 1})


def test_a_users_own_is_made_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_detector")
    module.Own = type("Own", (Cusum,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_detector", module)
    assert type(create("own_detector:Own", {"limit": 5.0})).__name__ == "Own"


@pytest.mark.parametrize(
    ("make", "options"),
    [(Ranks, {"reference": 10}), (Cusum, {"limit": 0}), (Both, {"together": 3}), (Adwin, {"delta": 2})],
)
def test_options_that_cannot_be_are_refused(make: type, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make(**options)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_value_out_of_range_is_refused(name: str, value: float) -> None:
    detector = create(name)
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        detector.update(value, next(iter(detector.reads)))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_torn_state_is_refused(name: str) -> None:
    with pytest.raises(WireError, match="begin it anew"):
        create(name).load_state_dict({"recent": [5.0], "labels": 3})


def test_a_state_of_other_options_begins_a_new_reference() -> None:
    long, short = Ranks(), Ranks(reference=500)
    for i in range(1000):
        long.update(i / 1000)
    short.load_state_dict(long.state_dict())
    assert short.state_dict()["reference"] == []


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.integers(0, 1500))
def test_both_goes_on_from_its_state_as_if_nothing_had_been(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    options = {"ranks": {"reference": 500}, "cusum": {"reference": 30}}
    whole, resumed = Both(**options), Both(**options)
    for i in range(1500):
        if i == cut:
            other = Both(**options)
            other.load_state_dict(json.loads(json.dumps(resumed.state_dict(), allow_nan=False)))
            resumed = other
        kind = "error" if i % 10 == 0 else "confidence"
        value = (
            float(rng.random() < 0.3 + 0.5 * (i > 1000)) if kind == "error" else float(rng.random() ** (1 + i // 1000))
        )
        assert whole.update(value, kind) == resumed.update(value, kind)
    assert whole.state_dict() == resumed.state_dict()


def confidences(rng: np.random.Generator, n: int, *, run: int = 1, lower: float = 0.0) -> np.ndarray:
    """Return confidences of ten classes, of which the model is sure in different degrees, in runs of one class."""
    hard = np.linspace(0.5, 4, 10)
    classes = np.repeat(rng.integers(0, 10, n // run + 1), run)[:n]
    return rng.beta(8, hard[classes] + 4 * lower)


@pytest.mark.parametrize("run", [1, 30])
def test_runs_of_one_class_raise_hardly_more_false_alarms_than_independent_samples(run: int) -> None:
    rng = np.random.default_rng(run)
    alarms = 0
    for _ in range(12):
        detector = Ranks()
        alarms += sum(detector.update(value) for value in confidences(rng, 10_000, run=run))
    assert alarms <= 12  # 1 in 10,000 at most, in this small sample


def test_lower_confidence_is_found_within_1000_samples() -> None:
    rng = np.random.default_rng(5)
    for _ in range(5):
        detector = Ranks()
        assert not any(detector.update(value) for value in confidences(rng, 4_000))
        assert any(detector.update(value) for value in confidences(rng, 1_000, lower=0.15))
        assert "confidence is lower" in detector.why


def test_errors_are_found_where_confidence_tells_nothing() -> None:
    rng = np.random.default_rng(6)
    both = Both()
    found = []
    for i in range(12_000):
        drifted = i >= 8_000
        told = both.update(float(rng.beta(8, 1)), "confidence")
        if i % 10 == 0:
            told |= both.update(float(rng.random() < (0.4 if drifted else 0.1)), "error")
        if told:
            found.append(i)
    assert found
    assert 8_000 <= found[0] <= 9_500
    assert "errors" in both.why


def test_near_duplicates_tell_adwin_nothing() -> None:
    rng = np.random.default_rng(7)
    once, repeated = Adwin(), Adwin()
    values = confidences(rng, 2_000)
    assert [once.update(v) for v in values] == [sum(repeated.update(v) for _ in range(5)) > 0 for v in values]


def test_what_adwin_cut_off_does_not_come_back_by_a_restart() -> None:
    rng = np.random.default_rng(8)
    detector = Adwin()
    assert sum(detector.update(v) for v in [*confidences(rng, 2_000), *confidences(rng, 1_000, lower=1.0)]) == 1
    after = Adwin()
    after.load_state_dict(json.loads(json.dumps(detector.state_dict())))
    assert not any(after.update(v) for v in confidences(rng, 1_000, lower=1.0))
