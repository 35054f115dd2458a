# SPDX-License-Identifier: Apache-2.0
"""The round loop over edges that are slow, wrong, gone and back."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import FedAdam
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solar_corona.core.errors import JobFailedError, SolarCoronaError, StrategyError
from solar_corona.core.events import (
    EdgeFinished,
    EdgeJoined,
    EdgeLeftOut,
    RoundEvaluated,
    RoundFinished,
    RoundStarted,
    Warned,
)
from solar_corona.fl_server.round_loop import Progress
from solar_corona.lib import exchange
from solar_corona.lib.exchange import Verb
from solar_corona.strategies import FedAvg


def left_out(ran, edge):
    return [(e.round, e.reason) for e in ran.of(EdgeLeftOut) if e.edge == edge]


def ok(ran):
    if ran.error is not None:
        raise ran.error
    return ran


# --- the plain way


def test_edges_are_told_how_long_the_slowest_takes_but_not_by_one_round_that_was_slow(run_job, edge):
    fast, slow = edge("a"), edge("b", took={1: 9.0, 2: 2.0, 3: 2.5, 4: 8.0, 5: 8.0})
    ok(run_job(fast, slow, rounds=6, min_edges=2))
    assert fast.told == slow.told == {1: 0.0, 2: 0.0, 3: 2.0, 4: 2.0, 5: 2.5, 6: 8.0}


def test_all_rounds_run_and_every_edge_gets_the_final_model(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b"), rounds=3, min_edges=2))
    assert ran.rounds == [1, 2, 3]
    assert ran.model == 3.0
    assert (ran.exported.data, ran.exported.suffix, ran.exported.versions) == (b"3.0", ".keras", {"keras": "3"})
    assert sorted(e.edge for e in ran.of(EdgeFinished)) == ["a", "b"]
    assert {e.model for e in ran.grid.nodes.values()} == {3.0}
    assert [(e.round, e.asked, e.replied) for e in ran.of(RoundFinished)] == [(1, 2, 2), (2, 2, 2), (3, 2, 2)]


def test_a_round_costs_one_exchange_with_each_edge_evaluation_and_all(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b"), rounds=4, min_edges=2))
    for name in "ab":
        found = Counter(verb for who, verb, _ in ran.grid.sent if who == name)
        assert found[Verb.TRAIN] == 4
        assert found[Verb.EVALUATE] == 0
        assert (found[Verb.HELLO], found[Verb.FINISH]) == (1, 1)
    assert len(ran.sent(Verb.INITIAL)) == len(ran.sent(Verb.EXPORT)) == 1


def test_each_rounds_model_is_evaluated_once_the_first_one_too(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b"), rounds=3, min_edges=2))
    found = {e.round: e.metrics["loss"] for e in ran.of(RoundEvaluated)}
    assert found == {0: 10.0, 1: 9.0, 2: 8.0, 3: 7.0}
    assert all(set(e.edges) == {"a", "b"} for e in ran.of(RoundEvaluated))


def test_rounds_go_on_from_where_a_killed_server_was(run_job, edge):
    progress = Progress(round=2, arrays=edge("x").arrays(5.0))
    ran = ok(run_job(edge("a"), rounds=3, progress=progress))
    assert ran.rounds == [3]
    assert ran.model == 6.0
    assert ran.sent(Verb.INITIAL) == []


def test_all_rounds_done_before_the_kill_only_the_end_is_left(run_job, edge):
    ran = ok(run_job(edge("a"), rounds=2, progress=Progress(round=2, arrays=edge("x").arrays(5.0))))
    assert ran.rounds == []
    assert ran.exported.data == b"5.0"


# --- edges that do not do their part


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "its model has NaN or infinite values (in w)"),
        ("inf", "its model has NaN or infinite values (in w)"),
        ("shape", "its model has w float32[9] where the job's has w float32[3]"),
        ("label", "its array w cannot be read"),
        ("no-model", "its reply has no model or no metrics"),
        ("no-metrics", "its reply has no model or no metrics"),
        ("no-samples", "its reply says that it trained on 0 samples"),
        ("error", "the node had an error"),
        ("garbage", "not in our wire format"),
    ],
)
def test_a_reply_that_is_no_good_is_left_out_and_the_edge_is_asked_again(run_job, edge, fault, reason):
    ran = ok(run_job(edge("a"), edge("b"), edge("c", {1: fault}), rounds=2, min_edges=2))
    ((number, told),) = left_out(ran, "c")
    assert (number, reason in told) == (1, True), told
    assert [(e.asked, e.replied) for e in ran.of(RoundFinished)] == [(3, 2), (3, 3)]
    assert ran.model == 2.0


def test_an_edge_with_other_metrics_counts_with_its_model(run_job, edge):
    for _ in range(3):  # in whatever order the edges are asked
        ran = ok(run_job(edge("a"), edge("b"), edge("c", {1: "other-metrics"}), rounds=1, min_edges=3))
        assert [e.replied for e in ran.of(RoundFinished)] == [3]
        assert any("its model counts, its other metrics do not" in e.message for e in ran.of(Warned))


def test_an_evaluation_unlike_most_is_left_out(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b"), edge("c", {1: "other-evaluation"}), rounds=1, min_edges=3))
    assert left_out(ran, "c") == [(0, "its evaluation reports mae, num-examples, where most report loss, num-examples")]
    assert set(ran.of(RoundEvaluated)[0].edges) == {"a", "b"}


def test_a_bad_evaluation_costs_the_edge_its_evaluation_alone(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b", {1: "bad-evaluation"}), rounds=2, min_edges=2))
    assert left_out(ran, "b") == [(0, "its reply says that it evaluated on None samples")]
    assert [e.replied for e in ran.of(RoundFinished)] == [2, 2]
    assert set(ran.of(RoundEvaluated)[0].edges) == {"a"}


def test_a_slow_edge_is_left_out_then_its_late_reply_and_then_it_is_back(run_job, edge):
    slow = edge("c", {1: "late"})
    ran = ok(
        run_job(
            edge("a"),
            edge("b"),
            slow,
            rounds=60,
            min_edges=2,
            deadline=0.1,
            after_round=lambda number: time.sleep(0.02),  # the rounds last longer than the edge is late
        )
    )
    reasons = left_out(ran, "c")
    assert reasons[0][0] == 1
    assert "no reply within 0 s; its work goes on" in reasons[0][1]
    assert reasons[1] == (1, "its reply came after the round's end")
    asked = [e.asked for e in ran.of(RoundFinished)]
    assert asked[0] == 3
    assert asked[1] == 2
    assert asked[-1] == 3
    assert [verb for verb, _ in slow.seen].count(Verb.FINISH) == 1


def test_an_edge_that_is_late_at_the_end_gets_the_final_model_all_the_same(run_job, edge):
    slow = edge("b", {2: "late"})
    ran = ok(run_job(edge("a"), slow, rounds=2, min_edges=1, deadline=0.5, start=3.0))
    assert [e.replied for e in ran.of(RoundFinished)] == [2, 1]
    assert sorted(e.edge for e in ran.of(EdgeFinished)) == ["a", "b"]
    assert slow.model == ran.model


def test_an_edge_that_never_answers_does_not_keep_the_job(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b", {1: "silent"}), rounds=3, min_edges=1))
    assert [e.replied for e in ran.of(RoundFinished)] == [1, 1, 1]
    assert [e.edge for e in ran.of(EdgeFinished)] == ["a"]


def test_an_edge_that_vanishes_in_a_round_is_told_and_the_round_goes_on(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b"), edge("c", {2: "die"}), rounds=3, min_edges=2, deadline=5.0))
    assert left_out(ran, "c") == [(2, "its process ended")]
    assert [(e.asked, e.replied) for e in ran.of(RoundFinished)] == [(3, 3), (3, 2), (2, 2)]


def test_an_edge_that_is_back_under_a_new_node_gets_its_message_again(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b", {2: "back"}), rounds=3, min_edges=2, deadline=2.0))
    assert [e.replied for e in ran.of(RoundFinished)] == [2, 2, 2]
    assert ran.sent(Verb.TRAIN, 2) == ["a", "b", "b"]
    assert sorted((e.edge, e.back) for e in ran.of(EdgeJoined)) == [("a", False), ("b", False), ("b", True)]
    assert ran.model == 3.0


def test_the_last_edge_that_is_needed_is_waited_for_beyond_the_rounds_deadline(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b", {1: "late"}), rounds=1, min_edges=2, deadline=0.05, start=3.0))
    assert ran.of(RoundFinished)[0].replied == 2


def test_a_script_that_raises_fails_the_job_with_its_own_words(run_job, edge):
    ran = run_job(edge("a"), edge("b", {2: "raise"}), rounds=3, min_edges=1)
    assert isinstance(ran.error, JobFailedError)
    assert str(ran.error) == "b's script failed: ValueError: no such column"
    assert ran.rounds == [1]


def test_too_few_good_replies_fail_the_job_at_once_and_name_who_is_missing(run_job, edge):
    ran = run_job(edge("a"), edge("b", {1: "nan"}), edge("c", {1: "shape"}), min_edges=2, deadline=60.0, start=60.0)
    assert isinstance(ran.error, JobFailedError)
    assert "round 1: 1 of 3 edges replied" in str(ran.error)
    assert "minEdges is 2; no good reply came from " in str(ran.error)
    assert "b" in str(ran.error).partition("came from ")[2].partition(";")[0]
    assert "c" in str(ran.error).partition("came from ")[2].partition(";")[0]


def test_too_few_edges_ever_fail_the_job_within_the_start_deadline_and_are_named(run_job, edge):
    ran = run_job(edge("a"), edge("b"), listed=["a", "b", "c", "d"], min_edges=3, start=0.3)
    assert isinstance(ran.error, JobFailedError)
    assert "only 2 of the 3 edges" in str(ran.error)
    assert "not here: c, d" in str(ran.error)


def test_an_edge_whose_model_is_another_is_left_out_from_the_start(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b"), edge("c", size=9), rounds=1, min_edges=2))
    ((_, reason),) = left_out(ran, "c")
    assert "its model has w float32[9] where the job's has w float32[3]" in reason
    assert ran.sent(Verb.TRAIN) == ["a", "b"]


def test_an_edge_without_samples_evaluates_and_gets_the_model_but_trains_nothing(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b", samples=0), rounds=2, min_edges=1))
    assert ran.sent(Verb.TRAIN) == ["a", "a"]
    assert ran.sent(Verb.EVALUATE) == ["b"]
    assert sorted(e.edge for e in ran.of(EdgeFinished)) == ["a", "b"]
    assert any("b has no samples to train on" in e.message for e in ran.of(Warned))


def test_edges_without_evaluation_data_hold_up_nothing(run_job, edge):
    strategy = FlowerFedAvg(min_train_nodes=2, min_available_nodes=2, min_evaluate_nodes=2)
    ran = ok(run_job(edge("a", eval_samples=0), edge("b", eval_samples=0), strategy=strategy, min_edges=2))
    assert [e.replied for e in ran.of(RoundFinished)] == [2, 2]
    assert ran.of(RoundEvaluated) == ran.of(Warned) == []


def test_a_strategy_that_waits_for_more_edges_to_evaluate_is_waited_for_no_longer_than_is_good(run_job, edge):
    strategy = FlowerFedAvg(min_train_nodes=2, min_available_nodes=2, min_evaluate_nodes=2)
    ran = ok(run_job(edge("a"), edge("b", eval_samples=0), strategy=strategy, rounds=1, min_edges=2))
    assert any(
        "round 1 is not evaluated: the strategy waits for more edges than the 1" in e.message for e in ran.of(Warned)
    )


def test_a_strategy_that_waits_for_more_edges_to_train_fails_the_job_in_time(run_job, edge):
    ran = run_job(edge("a"), strategy=FlowerFedAvg(min_available_nodes=5), start=0.2)
    assert isinstance(ran.error, StrategyError)
    assert "waits for more edges than the 1 that are ready; lower its options min_available_nodes" in str(ran.error)


# --- who is who


def test_a_node_that_claims_anothers_name_is_left_out_where_keys_tell(run_job, edge):
    liar = edge("b", says="a")
    ran = ok(run_job(edge("a"), liar, owners={"a": "a", "b": "b"}, min_edges=1))
    assert any("a node that calls itself 'a' is left out: its key is b's" in e.message for e in ran.of(Warned))
    assert ran.sent(Verb.TRAIN) == ["a", "a"]


def test_a_node_whose_key_nobody_has_is_left_out_where_keys_tell(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b"), owners={"a": "a"}, min_edges=1))
    assert any("its key is nobody's" in e.message for e in ran.of(Warned))
    assert ran.sent(Verb.TRAIN) == ["a", "a"]


def test_a_node_that_the_job_does_not_list_is_left_out(run_job, edge):
    ran = ok(run_job(edge("a"), edge("z"), listed=["a"], min_edges=1))
    assert any("'z' is left out: the job does not list it" in e.message for e in ran.of(Warned))
    assert ran.sent(Verb.TRAIN) == ["a", "a"]


# --- the first and the last model


def test_a_first_model_that_is_no_good_is_another_edges(run_job, edge):
    ran = ok(run_job(edge("a", initial="none"), edge("b", initial="nan"), edge("c"), rounds=1, min_edges=3))
    assert [e.message.partition(":")[0] for e in ran.of(Warned)] == [
        "the first model cannot be a's",
        "the first model cannot be b's",
    ]
    assert ran.model == 1.0


def test_a_job_without_any_first_model_fails_and_does_not_ask_for_ever(run_job, edge):
    ran = run_job(edge("a", initial="none"), edge("b", initial="none"), min_edges=2)
    assert isinstance(ran.error, JobFailedError)
    assert "none of the edges that were asked has a first model (a, b)" in str(ran.error)


def test_one_edge_is_enough_to_save_the_final_model(run_job, edge):
    dying = edge("b")
    ran = ok(run_job(edge("a"), dying, rounds=1, min_edges=2, after_round=lambda number: None))
    assert ran.exported.edge == "a"
    gone = run_job(
        edge("a"), rounds=1, min_edges=2, listed=["a", "b"], progress=Progress(round=1, arrays=edge("x").arrays(1.0))
    )
    assert isinstance(gone.error, JobFailedError)  # to begin with, all that are needed must be there


def test_an_edge_that_takes_the_final_model_without_a_word_does_not_keep_the_job(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b", final="silent"), rounds=1, min_edges=2))
    assert [e.edge for e in ran.of(EdgeFinished)] == ["a"]


def test_an_edge_that_confirms_the_final_model_and_leaves_at_once_is_heard(run_job, edge):
    ran = ok(run_job(edge("a"), edge("b", final="leaves"), rounds=1, min_edges=2, deadline=10.0))
    assert sorted(e.edge for e in ran.of(EdgeFinished)) == ["a", "b"]
    assert sorted(ran.of(RoundEvaluated)[-1].edges) == ["a", "b"]


def test_what_edges_measure_of_other_models_does_not_add_to_the_score_before_the_first_round(run_job, edge):
    ran = ok(run_job(*(edge(name, {1: "more-evaluations"}) for name in "ab"), rounds=1, min_edges=2))
    first = ran.of(RoundEvaluated)[0]
    assert first.round == 0
    assert first.metrics["loss"] == first.edges["a"]["loss"] == 10.0


# --- strategies


@pytest.mark.parametrize("method", ["configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate"])
def test_a_strategy_that_raises_is_named_with_the_step(run_job, edge, method):
    def fail(self, *args):
        raise KeyError("it")

    broken = type("Broken", (FedAvg,), {method: fail})
    ran = run_job(edge("a"), strategy=broken(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1))
    assert isinstance(ran.error, StrategyError)
    assert str(ran.error) == f"strategy Broken raised in {method}: KeyError: 'it'"
    assert isinstance(ran.error.__cause__, KeyError)


class Small(FedAvg):
    def __init__(self, **options):
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1, **options)


def changing(change):
    class Changes(Small):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return change(arrays), metrics

    return Changes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: ArrayRecord({"w": a["w"]}), r"its arrays are not those of the replies .*: n\)"),
        (lambda a: ArrayRecord({**a, "more": a["w"]}), r"its arrays are not those of the replies .*: more\)"),
        (lambda a: ArrayRecord({**a, "w": Array(np.zeros(9, np.float32))}), r"its model has w float32\[9\]"),
        (lambda a: ArrayRecord({**a, "w": Array(np.full(3, np.nan))}), "NaN or infinite"),
    ],
)
def test_a_model_that_no_edge_can_take_is_the_strategys_fault(run_job, edge, change, told):
    ran = run_job(edge("a"), strategy=changing(change))
    assert isinstance(ran.error, StrategyError)
    assert ran.error.args[0].startswith("strategy Changes made a model that no edge can take: ")
    with pytest.raises(StrategyError, match=told):
        raise ran.error


def test_a_model_of_other_types_or_order_is_put_into_the_jobs_form(run_job, edge):
    wide = changing(lambda a: ArrayRecord({k: Array(np.asarray(a[k].numpy() + 0.4)) for k in reversed(list(a))}))
    ran = ok(run_job(edge("a"), strategy=wide, rounds=1))
    assert [(k, v.dtype) for k, v in ran.progress.arrays.items()] == [("w", "float32"), ("n", "int64")]
    assert ran.progress.arrays["n"].numpy() == 7


@pytest.mark.parametrize("make", [FedAdam, FlowerFedAvg])
def test_flowers_own_strategies_run_unchanged(run_job, edge, make):
    strategy = make(min_train_nodes=2, min_evaluate_nodes=2, min_available_nodes=2)
    ran = ok(run_job(edge("a"), edge("b"), strategy=strategy, rounds=3, min_edges=2))
    assert len(ran.of(RoundFinished)) == 3
    assert [a.dtype for a in ran.progress.arrays.values()] == ["float32", "int64"]


def test_a_strategy_that_makes_no_model_leaves_the_last_one(run_job, edge):
    ran = ok(run_job(edge("a"), strategy=changing(lambda a: None), rounds=2))
    assert ran.model == 0.0
    assert any("made no model of round 1's replies; the last one stays" in e.message for e in ran.of(Warned))


def test_a_strategy_that_asks_nobody_is_told(run_job, edge):
    class Nobody(Small):
        def configure_train(self, *args):
            return []

    ran = run_job(edge("a"), strategy=Nobody())
    assert isinstance(ran.error, StrategyError)
    assert "asked no edge to train in round 1" in str(ran.error)


def test_a_strategy_that_stops_reading_early_ends_its_round_all_the_same(run_job, edge):
    class First(Small):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, [next(iter(replies))])

    ran = ok(run_job(edge("a"), edge("b"), edge("c"), strategy=First(), min_edges=2))
    assert [e.replied for e in ran.of(RoundFinished)] == [3, 3]


def test_a_fraction_of_the_edges_is_asked(run_job, edge):
    strategy = Small(fraction_train=0.5, fraction_evaluate=0.0)
    ran = ok(run_job(*(edge(name) for name in "abcd"), strategy=strategy, rounds=4, min_edges=2))
    assert [e.asked for e in ran.of(RoundFinished)] == [2, 2, 2, 2]
    assert len(ran.sent(Verb.TRAIN)) == 8
    assert [e.round for e in ran.of(RoundEvaluated)] == [0, 4]


def test_a_strategy_may_evaluate_other_edges_than_it_trains(run_job, edge):
    class Splits(Small):
        def _to(self, grid, wanted, arrays, kind):
            content = RecordDict({"arrays": arrays})
            nodes = list(grid.get_node_ids())
            return [Message(content, dst_node_id=n, message_type=kind) for n in wanted(nodes)]

        def configure_train(self, server_round, arrays, config, grid):
            return self._to(grid, lambda nodes: nodes[:1], arrays, MessageType.TRAIN)

        def configure_evaluate(self, server_round, arrays, config, grid):
            return self._to(grid, lambda nodes: nodes[1:], arrays, MessageType.EVALUATE)

    ran = ok(run_job(edge("a"), edge("b"), edge("c"), strategy=Splits(), rounds=3, min_edges=1))
    assert ran.sent(Verb.TRAIN) == ["a", "a", "a"]
    assert Counter(ran.sent(Verb.EVALUATE)) == {"b": 2, "c": 2}
    found = {e.round: set(e.edges) for e in ran.of(RoundEvaluated)}
    assert found == {0: {"a"}, 1: {"b", "c"}, 2: {"b", "c"}, 3: {"a", "b", "c"}}


def test_a_server_that_was_lost_at_the_end_lets_go_those_that_still_wait(run_job, edge):
    done = Progress(round=2, arrays=exchange.to_arrays({"w": np.full(3, 2.0, np.float32), "n": np.asarray(7)}))
    ran = ok(run_job(edge("b"), listed=["a", "b"], min_edges=2, progress=done, saved=True))
    assert [e.edge for e in ran.of(EdgeFinished)] == ["b"]
    assert next(iter(ran.grid.nodes.values())).model == 2.0
    assert (ran.rounds, ran.exported) == ([], None)
    assert {verb for _, verb, _ in ran.grid.sent} == {Verb.HELLO, Verb.FINISH}
    ran = ok(run_job(listed=["a", "b"], min_edges=2, progress=done, saved=True))
    assert ran.of(EdgeFinished) == []


@pytest.mark.parametrize("side", ["Client", "Server"])
def test_a_strategy_of_flowers_that_looks_at_its_replies_twice_gets_them_twice(run_job, edge, side):
    wrapper = getattr(flower_strategies, f"DifferentialPrivacy{side}SideAdaptiveClipping")
    inner = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    strategy = wrapper(inner, noise_multiplier=0.0, num_sampled_clients=2, initial_clipping_norm=100.0)
    ran = ok(run_job(edge("a", bit=1), edge("b", bit=1), strategy=strategy, rounds=2, min_edges=2))
    assert [e.replied for e in ran.of(RoundFinished)] == [2, 2]
    assert ran.model == pytest.approx(2.0)
    assert strategy.clipping_norm != 100.0, "it adapts by how many were within it"


def test_the_strategy_sees_ordinary_replies_and_none_of_our_own_records(run_job, edge):
    seen = []

    class Looks(Small):
        def aggregate_train(self, server_round, replies):
            kept = list(replies)
            seen.extend(kept)
            return super().aggregate_train(server_round, kept)

    ok(run_job(edge("a"), strategy=Looks(), rounds=1))
    (reply,) = seen
    assert sorted(reply.content) == ["arrays", "metrics"]
    assert not reply.has_error()


# --- all of it at once

ACTIONS = ["good"] * 4 + ["nan", "shape", "no-metrics", "error", "garbage", "silent", "die", "back", "late", "raise"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    scripts=st.lists(st.dictionaries(st.integers(1, 3), st.sampled_from(ACTIONS), max_size=3), min_size=1, max_size=4),
    samples=st.lists(st.sampled_from([0, 10]), min_size=4, max_size=4),
    evals=st.lists(st.sampled_from([0, 5]), min_size=4, max_size=4),
    min_edges=st.integers(1, 3),
    fraction=st.sampled_from([1.0, 0.5]),
)
def test_whatever_edges_do_the_job_ends_and_each_round_has_enough_replies(
    run_job, edge, scripts, samples, evals, min_edges, fraction
):
    edges = [edge(f"e{i}", dict(script), samples=samples[i], eval_samples=evals[i]) for i, script in enumerate(scripts)]
    strategy = FedAvg(min_train_nodes=min_edges, min_evaluate_nodes=1, min_available_nodes=1, fraction_train=fraction)
    ran = run_job(*edges, strategy=strategy, rounds=3, min_edges=min_edges, deadline=0.05, start=0.15)
    assert ran.error is None or isinstance(ran.error, SolarCoronaError), ran.error
    finished = ran.of(RoundFinished)
    assert all(e.replied >= min_edges for e in finished)
    assert [e.round for e in finished] == ran.rounds == list(range(1, len(ran.rounds) + 1))
    assert [e.round for e in ran.of(RoundStarted)][: len(finished)] == ran.rounds
    if ran.error is None:
        assert len(ran.rounds) == 3
        assert ran.model == 3.0
