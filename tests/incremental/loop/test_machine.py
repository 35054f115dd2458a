# SPDX-License-Identifier: Apache-2.0
"""The loop from samples to all edges, and back."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from solar_corona.core.errors import RefusedRequestError
from solar_corona.core.hub_messages import ModelOffer
from solar_corona.core.security import is_signed
from solar_corona.incremental.hub.model_versions import serving_version
from solar_corona.incremental.loop.report import report_page
from solar_corona.incremental.loop.status import read_status
from solar_corona.incremental.tables import ConsumedLabel, Edge, TrainingRun


def wants(world):
    rows = world.hub.database.read(lambda s: list(s.scalars(select(Edge).order_by(Edge.name))))
    return {row.name: (row.wanted_version, row.shadow_version) for row in rows}


def watched(world, **values):
    """Let a canary's whole watch pass."""
    world.observe(30, **values)
    for _ in range(4):
        world.clock.now += 5
        world.loop.step()


def test_labels_become_a_version_that_goes_to_a_canary_and_then_to_all(world):
    world.follow()
    world.add(160)
    assert world.until("canary").candidate == 2
    world.loop.step()
    assert wants(world) == {"e1": (2, 1), "e2": (None, None)}
    world.follow()
    watched(world)
    assert world.phase == "promoting"
    assert wants(world) == {"e1": (None, None), "e2": (None, None)}
    world.follow()
    world.until("collecting")
    assert world.version(2).state == "promoted"
    whats = [what for what, _ in world.decisions()]
    assert whats == ["train", "candidate", "passed", "canary", "promoted", "settled"]
    assert world.version(2).metrics["accuracy_new"] == 1.0
    assert world.version(2).metrics["serving_accuracy_new"] == pytest.approx(0.5, abs=0.1)


def test_a_version_knows_where_it_comes_from_and_is_signed(canary):
    world = canary()
    row = world.version(2)
    assert (row.parent, row.training, row.dataset) == (1, 1, 1)
    assert len(row.code) == 64
    offer = ModelOffer(version=2, file=row.file, size=row.size, sha256=row.sha256, signature=row.signature)
    assert row.file == "digits-2.onnx"
    assert is_signed(world.folder / "keys" / "hub.sign.pub", offer.signed_text("j"), row.signature)


def test_each_label_starts_one_training(world):
    world.tasks.by_itself = False
    world.add(40, reason="hard")
    world.until("training")
    assert world.hub.database.read(lambda s: s.scalar(select(func.count()).select_from(ConsumedLabel))) == 40
    world.loop.step()
    world.tasks.end("training-1-1", error="ValueError: no")
    world.until("collecting")
    assert world.hub.database.read(lambda s: s.scalar(select(func.count()).select_from(ConsumedLabel))) == 0
    world.loop.step()
    assert world.phase == "collecting", "the cool-down has not passed"
    world.clock.now += 121
    world.until("training")
    assert world.row.training == 2


def test_a_bad_candidate_is_refused_with_the_reason(world):
    world.tasks.candidate = -9 * world_eye()
    world.follow()
    world.add(160)
    world.until("evaluating")
    world.until("collecting")
    assert world.version(2).state == "refused"
    what, why = world.decisions()[-1]
    assert what == "refused"
    assert "loses" in why
    assert world.version(2).report["gate"]["passed"] is False


def world_eye():
    import numpy as np

    return np.eye(4)


def test_with_too_few_labels_the_candidate_waits_and_the_page_says_for_how_many(world):
    world.follow()
    world.add(40, reason="hard")
    world.until("evaluating")
    for _ in range(3):
        world.loop.step()
    assert world.phase == "evaluating"
    waits = [why for what, why in world.decisions() if what == "waits-for-labels"]
    assert len(waits) == 1
    assert "label 50 more random samples" in waits[0]
    status = read_status(world.hub, world.loop.progress(), labels_come=False)
    assert status.waits_for == waits[0]
    assert not status.goes_on
    world.clock.now += 10
    world.add(200)
    # The cool-down keeps a newer training from starting first.
    world.until("canary")


def test_a_newer_training_replaces_a_candidate_that_waits_for_labels(world):
    world.follow()
    world.add(40, reason="hard")
    world.until("evaluating")
    world.loop.step()
    world.clock.now += 61
    world.add(40, reason="hard")
    world.until("training")
    assert world.version(2).state == "refused"
    assert "newer training" in world.decisions()[-2][1]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ({"error": "ValueError: bad data"}, "ValueError: bad data"),
        ({"error": "ended by signal SIGKILL", "killed": True}, "SIGKILL"),
    ],
)
def test_a_training_that_fails_is_told_and_the_loop_goes_on(make_world, end, told):
    world = make_world(training={"script": "train.py", "retries": 1})
    world.tasks.by_itself = False
    world.add(40)
    world.until("training")
    for attempt in (1, 2):
        world.loop.step()
        if f"training-1-{attempt}" in world.tasks.workers:
            world.tasks.end(f"training-1-{attempt}", **end)
        world.loop.step()
    world.until("collecting")
    assert world.decisions()[-1][0] == "training-failed"
    assert told in world.decisions()[-1][1]
    # What was killed is tried again, what raised is not.
    assert len(world.tasks.started) == (2 if end.get("killed") else 1)


def test_a_script_that_saves_no_model_is_told_what_to_add(world):
    world.tasks.candidate = None
    world.add(40)
    world.until("training")
    world.until("collecting")
    assert "solar_corona.save_model(model)" in world.decisions()[-1][1]


def test_a_script_that_saves_no_model_that_runs_is_told_so(world):
    world.tasks.by_itself = False
    world.add(40)
    world.until("training")
    world.loop.step()
    world.tasks.end("training-1-1")
    world.loop._trainings.output(run_of(world)).write_bytes(b"\x80\x04 a pickle")
    world.until("collecting")
    assert "pickle" in world.decisions()[-1][1]


def run_of(world):
    return world.hub.database.read(lambda s: s.get(TrainingRun, world.row.training))


def test_a_training_that_hangs_is_ended_at_its_deadline_however_the_clock_jumps(make_world):
    world = make_world(training={"script": "train.py", "deadline": 100})
    world.tasks.by_itself = False
    world.add(40)
    world.until("training")
    world.loop.step()
    world.clock.now += 86_400
    world.loop.step()
    assert world.phase == "training", "a clock that jumps ahead ends no training"
    world.clock.now -= 80_000
    for _ in range(4):
        world.loop.step()
        world.clock.now += 30
    world.until("collecting")
    assert world.tasks.stopped == ["training-1-1"]
    assert "longer than 1m40s" in world.decisions()[-1][1]


def test_a_candidate_that_cannot_be_loaded_is_refused(world, monkeypatch):
    world.follow()
    world.add(160)
    world.tasks.by_itself = False
    world.until("training")
    world.loop.step()
    world.tasks.end("training-1-1")
    world.until("evaluating")
    world.loop.step()
    broken = world.loop._registry.path_of(2)
    broken.write_bytes(broken.read_bytes()[:100])
    world.tasks.end("evaluation-2-1")
    world.until("collecting")
    assert "it cannot be loaded" in world.decisions()[-1][1]


def test_a_canary_that_sees_more_disagreement_than_the_gate_did_rolls_back(canary):
    world = canary()
    world.loop.step()
    world.observe(100, agrees=False)
    world.loop.step()
    assert world.phase == "rolling-back"
    assert wants(world)["e1"] == (None, None)
    assert world.version(2).state == "rolled-back"
    assert world.version(2).report["canary"]["alarm"]["kind"] in ("disagreement", "class-shares")
    world.follow()
    world.until("collecting")


def test_an_edge_that_cannot_load_the_candidate_takes_it_back(canary):
    world = canary()
    world.loop.step()
    world.edge("e1", active=1, error={"version": 2, "error": "ModelError: damaged"})
    world.loop.step()
    assert world.phase == "rolling-back"
    assert "edge e1 cannot load it: ModelError: damaged" in world.decisions()[-1][1]


def test_labels_that_come_late_take_a_worse_candidate_back(canary):
    world = canary()
    world.loop.step()
    ids = world.add(60, model=2, labelled=False)
    # Without labels all looks as it did at the gate; then they say that the version before was right.
    world.observe(60, sample=ids)
    world.loop.step()
    assert world.phase == "canary"
    world.label(ids[:4], [1, 0, 2, 3])
    for _ in range(3):
        world.loop.step()
        world.clock.now += 1
    assert world.phase == "canary"
    assert world.row.data["canary"]["labels"]["lost"] == 2
    world.label(ids, [1, 0, 2, 3] * 15)
    world.loop.step()
    assert world.phase == "rolling-back"
    assert world.version(2).report["canary"]["alarm"]["kind"] == "labels"
    assert world.row.candidate == 2


def test_a_canary_that_is_away_is_replaced_by_an_edge_that_is_there(canary):
    world = canary()
    for _ in range(7):
        world.loop.step()
        world.clock.now += 55
        world.edge("e2")
        assert wants(world) == {"e1": (2, 1), "e2": (None, None)}
    world.loop.step()
    assert wants(world) == {"e1": (None, None), "e2": (2, 1)}
    assert world.decisions()[-1][0] == "canary-replaced"


def test_edges_get_time_to_come_back_after_the_hub_was_away(canary):
    world = canary()
    world.loop.step()
    world.clock.now += 86_400
    world.loop = world.fresh()
    for _ in range(3):
        world.edge("e2")  # it is faster than the canary
        world.loop.step()
        world.clock.now += 30
    assert wants(world) == {"e1": (2, 1), "e2": (None, None)}


def test_an_operator_decides_where_the_job_says_pause(canary):
    world = canary(rollout={"canary": 1, "watch": 10, "minSamples": 20, "onFailure": "pause"})
    world.loop.step()
    world.observe(100, agrees=False)
    world.loop.step()
    assert world.phase == "paused"
    assert wants(world)["e1"] == (2, 1)
    world.loop.step()
    assert world.loop.commands.carry_out("resume") == "resumed: canary"
    for _ in range(4):
        world.clock.now += 5
        world.loop.step()
    assert world.phase == "canary", "what was accepted raises no second pause"
    world.loop.commands.carry_out("rollback", "customers complained")
    assert world.phase == "rolling-back"
    assert "customers complained" in world.decisions()[-1][1]


def test_an_operator_takes_back_the_version_in_use_and_ends_what_trains_from_it(canary):
    world = canary()
    world.loop.step()
    watched(world)
    world.follow()
    world.until("collecting")
    world.clock.now += 100
    world.tasks.by_itself = False
    world.add(40)
    world.until("training")
    world.loop.step()
    world.loop.commands.carry_out("rollback")
    assert world.tasks.stopped[-1] == "training-2-1"
    assert world.version(2).state == "rolled-back"
    world.follow()
    world.until("collecting")
    with pytest.raises(RefusedRequestError, match="no version before"):
        world.loop.commands.carry_out("rollback")
    with pytest.raises(RefusedRequestError, match="not paused"):
        world.loop.commands.carry_out("resume")
    with pytest.raises(RefusedRequestError, match="no command 'fly'"):
        world.loop.commands.carry_out("fly")


def test_a_training_that_an_operator_asks_for_needs_no_trigger_but_labels(make_world):
    world = make_world(trigger={"any": [{"labelled": 1000}], "minLabels": 10, "cooldown": 60})
    world.loop.step()
    world.loop.commands.carry_out("train")
    world.loop.step()
    assert world.phase == "collecting"
    world.add(10)
    world.until("training")
    assert "an operator asked for it" in world.decisions()[-1][1]


def test_without_canaries_a_candidate_goes_to_all_edges(make_world):
    world = make_world(rollout={"canary": 0})
    world.follow()
    world.add(160)
    world.until("promoting")
    assert world.version(2).state == "promoted"


def test_a_version_that_most_edges_cannot_load_is_taken_back_after_promotion(make_world):
    world = make_world(rollout={"canary": 0})
    world.follow()
    world.add(160)
    world.until("promoting")
    for edge in ("e1", "e2"):
        world.edge(edge, active=1, error={"version": 2, "error": "no memory"})
    world.until("collecting")
    assert world.version(2).state == "rolled-back"


def test_a_version_that_is_promoted_while_the_clock_is_set_back_is_the_one_in_use(make_world):
    world = make_world(rollout={"canary": 0})
    world.follow()
    world.add(160)
    world.until("evaluating")
    world.clock.now -= 86_400
    world.until("promoting")
    assert world.hub.database.read(serving_version).version == 2


def test_a_training_that_waits_for_labels_is_not_due_and_one_that_waits_for_its_time_is(make_world):
    world = make_world(trigger={"any": [{"manual": True}], "minLabels": 3, "cooldown": 60})
    world.loop.step()
    world.loop.commands.carry_out("train")
    rule, waits = world.loop.progress()
    assert (rule.due, waits.text) == (False, "a training needs 3 new labels, and there are 0")
    world.add(3)
    (rule,) = world.loop.progress()
    assert rule.due


def test_an_operator_who_pauses_in_the_middle_of_a_step_is_heard(world):
    world.tasks.by_itself = False
    world.add(40)
    world.until("training")
    world.loop.step()
    world.tasks.end("training-1-1")
    look = world.tasks.state

    def meanwhile(name):
        found = look(name)
        world.tasks.state = look
        world.loop.commands.carry_out("pause")
        return found

    world.tasks.state = meanwhile
    assert world.loop.step() == "paused"
    assert world.version(2) is None
    world.loop.commands.carry_out("resume")
    world.until("evaluating")
    assert world.version(2).version == 2


def test_a_candidate_that_could_not_be_judged_has_a_page_that_says_why(world):
    world.follow()
    world.add(160)
    world.tasks.by_itself = False
    world.until("training")
    world.loop.step()
    world.tasks.end("training-1-1")
    world.until("evaluating")
    world.loop.step()
    world.tasks.end("evaluation-2-1", error="ValueError: no such layer")
    world.until("collecting")
    assert "it could not be evaluated: ValueError: no such layer" in report_page(world.hub, 2)
