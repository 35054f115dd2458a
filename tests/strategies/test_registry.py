# SPDX-License-Identifier: Apache-2.0
"""Strategies by name, with their options held against their signatures."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAdam, Krum

from solar_corona.core.errors import ExitCode, StrategySpecError
from solar_corona.strategies import FedAvg, available, create, registry, resolve


class Own(FedAvg):
    """Averages.

    In its own way.
    """

    def __init__(self, strength: float, *, mode: str = "a", **kwargs) -> None:
        super().__init__(**kwargs)
        if mode == "bad":
            raise ValueError("mode is bad")
        self.strength = strength


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_strategy", SimpleNamespace(Own=Own, number=5))
    return "own_strategy:Own"


def _entry(name, load, dist="plugin"):
    return SimpleNamespace(name=name, load=load, dist=SimpleNamespace(name=dist) if dist else None)


@pytest.fixture
def entries(monkeypatch):
    found = []
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.GROUP else [])
    return found


def test_a_name_is_ours_then_flowers_in_any_case():
    assert resolve("fedavg") is resolve("FedAvg") is FedAvg
    assert resolve("fedadam") is resolve("FedAdam") is FedAdam
    assert resolve("krum") is Krum


def test_a_class_is_found_by_its_module(own):
    assert resolve(own) is Own


def test_a_plug_in_is_found_by_its_name_and_wins(entries):
    entries += [_entry("own", lambda: Own), _entry("fedavg", lambda: Own)]
    assert resolve("own") is resolve("fedavg") is Own
    assert {i.name: i.origin for i in available()}["own"] == "plugin"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fedavgg", "there is no strategy 'fedavgg'; did you mean 'fedavg'?"),
        ("zzzzz", "there is no strategy 'zzzzz'; `solar-corona strategies` lists them"),
        ("", "there is no strategy ''"),
        ("no_such_module:X", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:Nothing", "cannot be loaded: AttributeError"),
        ("json:", "cannot be loaded"),
        (":X", "cannot be loaded"),
        ("..a:X", "cannot be loaded"),
        ("json:JSONDecoder", "is no subclass of flwr.serverapp.strategy.Strategy"),
        ("json:loads", "is no subclass"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(name, told):
    with pytest.raises(StrategySpecError) as caught:
        resolve(name)
    assert told in str(caught.value)
    assert caught.value.exit_code is ExitCode.BAD_JOB


@pytest.mark.parametrize("source", ["def broken(:", "1 / 0", "import nothing_like_this"])
def test_a_module_that_cannot_be_imported_is_told(tmp_path, monkeypatch, source):
    (tmp_path / "broken_strategy.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        StrategySpecError, match=r"'broken_strategy:X' cannot be loaded: .*is its module beside the job"
    ):
        resolve("broken_strategy:X")


def test_a_plug_in_that_cannot_be_loaded_is_listed_as_such(entries):
    def fail():
        raise RuntimeError("its licence has ended")

    entries.append(_entry("broken", fail, dist=None))
    info = {i.name: i for i in available()}["broken"]
    assert info.summary.startswith("cannot be loaded:")
    assert "its licence has ended" in info.summary
    assert len(available()) > 10


def test_all_that_have_a_name_are_listed_and_can_be_found():
    infos = available()
    assert [i.name for i in infos] == sorted(i.name for i in infos)
    assert {"fedavg", "fedadam", "fedprox", "krum"} <= {i.name for i in infos}
    assert all(resolve(i.name) for i in infos)
    assert "fraction_train" in next(i for i in infos if i.name == "fedavg").options


def test_options_reach_the_constructor_also_those_of_the_classes_above(own):
    strategy = create(own, {"strength": 2.0, "fraction_evaluate": 0.5}, min_edges=3, fraction=0.7)
    assert (strategy.strength, strategy.fraction_evaluate) == (2.0, 0.5)
    assert (strategy.min_train_nodes, strategy.fraction_train) == (3, 0.7)


def test_the_jobs_own_numbers_give_way_to_the_options():
    strategy = create("fedavg", {"min_train_nodes": 1, "fraction_train": 0.1}, min_edges=3, fraction=0.7)
    assert (strategy.min_train_nodes, strategy.fraction_train) == (1, 0.1)


def test_no_strategy_is_made_to_wait_for_edges_that_are_not_there():
    assert create("fedavg", min_edges=3).min_available_nodes == 1


def test_a_strategy_that_weighs_by_the_training_loss_finds_it_under_our_edges_name():
    assert create("qfedavg", {"client_learning_rate": 0.1}).train_loss_key == "loss"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strenght": 1}, "has no option 'strenght'; did you mean 'strength'? it takes: "),
        ({"strength": 1, "zzz": 1}, "has no option 'zzz'; it takes: "),
        ({}, "needs strength; add it under aggregation.options"),
        ({"strength": 1, "mode": "bad"}, "refuses its options {'strength': 1, 'mode': 'bad'}: mode is bad"),
    ],
)
def test_an_option_that_is_unknown_missing_or_refused_is_told(own, options, told):
    with pytest.raises(StrategySpecError) as caught:
        create(own, options)
    assert told in str(caught.value)


def test_a_strategy_in_an_option_is_made_from_its_name(own):
    outer = create(
        "differentialprivacyserversidefixedclipping",
        {"strategy": "fedadam", "noise_multiplier": 0.1, "clipping_norm": 1.0, "num_sampled_clients": 2},
        min_edges=2,
        fraction=0.5,
    )
    assert isinstance(outer.strategy, FedAdam)
    assert (outer.strategy.min_train_nodes, outer.strategy.fraction_train) == (2, 0.5)
    with pytest.raises(StrategySpecError, match="there is no strategy 'fedadm'; did you mean 'fedadam'"):
        create(
            "differentialprivacyserversidefixedclipping",
            {"strategy": "fedadm", "noise_multiplier": 0.1, "clipping_norm": 1.0, "num_sampled_clients": 2},
        )


def test_a_class_that_is_no_whole_strategy_is_told(monkeypatch):
    class Half(flower.Strategy):
        """Lacks all its methods."""

    monkeypatch.setitem(sys.modules, "half", SimpleNamespace(Half=Half))
    with pytest.raises(StrategySpecError, match=r"refuses its options {}: Can't instantiate abstract class Half"):
        create("half:Half")


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        ("fedadam", {"eta": "large"}, r"'fedadam': option eta is 'large', expected a valid number; set aggregation"),
        ("fedadam", {"eta": "0.5"}, r"option eta is '0\.5', expected a valid number"),
        ("krum", {"num_malicious_nodes": 1.5}, r"num_malicious_nodes is 1\.5, expected a valid integer"),
        ("fedavg", {"train_metrics_aggr_fn": "mean"}, r"train_metrics_aggr_fn is 'mean', expected callable"),
    ],
)
def test_a_value_of_another_type_than_the_signature_says_is_refused(algorithm, options, message):
    with pytest.raises(StrategySpecError, match=message):
        create(algorithm, options)


def test_what_a_job_file_can_say_of_the_signatures_type_is_taken(monkeypatch):
    class Shaped(FedAvg):
        def __init__(self, shape: tuple[int, int] = (1, 1), **kwargs) -> None:
            super().__init__(**kwargs)
            self.given = shape

    class Later(FedAvg):
        def __init__(self, later: Unknown = None, **kwargs) -> None:  # noqa: F821
            super().__init__(**kwargs)
            self.given = later

    monkeypatch.setitem(sys.modules, "own_strategy", SimpleNamespace(Shaped=Shaped, Later=Later))
    assert create("own_strategy:Shaped", {"shape": [2, 3]}).given == [2, 3]
    with pytest.raises(StrategySpecError, match="shape is"):
        create("own_strategy:Shaped", {"shape": ["a", 3]})
    assert create("own_strategy:Later", {"later": "x"}).given == "x"
    assert create("fedadam", {"eta": 1}).eta == 1
