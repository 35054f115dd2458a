# SPDX-License-Identifier: Apache-2.0
"""When a training starts, whatever the clock and restarts do."""

from __future__ import annotations

import json

import pytest

from solar_corona.core.errors import SpecError
from solar_corona.core.incremental_spec import Trigger
from solar_corona.incremental import drift
from solar_corona.incremental.loop.triggers import Triggers
from solar_corona.incremental.tables import ConsumedLabel, Edge

DAY = 86_400.0
MIDNIGHT = 1_700_006_400.0  # 2023-11-15 00:00 UTC


class Looker:
    """Looks at triggers as a hub does that is started anew each time: all that is kept is JSON."""

    def __init__(self, world, **spec):
        self.world, self.state = world, {}
        self.spec = Trigger.model_validate({"cooldown": 0, "minLabels": 1, **spec})

    def __call__(self, *, serving=1):
        triggers = Triggers(self.spec, drift.create)
        look = self.world.hub.database.read(
            lambda s: triggers.look(s, json.loads(json.dumps(self.state)), serving=serving, now=self.world.clock.now)
        )
        self.state = look.state
        return look

    def start(self):
        self.state = Triggers(self.spec, drift.create).after_start(self.state, self.world.clock.now)

    def end(self, *, failed):
        self.state = Triggers(self.spec, drift.create).after_end(self.state, failed=failed)


def test_labels_are_counted_until_a_training_has_used_them(world):
    look = Looker(world, any=[{"labelled": 4}])
    ids = world.add(3, reason="hard")
    world.add(5, reason="hard", labelled=False)
    found = look()
    assert found.fired is None
    assert found.progress[0].text == "3 of 4 new labels"
    assert found.progress[0].share == 0.75
    world.add(1)
    assert look().fired == "4 of 4 new labels"
    world.hub.database.write(lambda s: s.add(ConsumedLabel(sample=ids[0], training=1)))
    assert look().fired is None


def test_a_schedule_runs_once_for_all_the_times_that_were_missed(world):
    world.clock.now = MIDNIGHT
    look = Looker(world, any=[{"schedule": "0 3 * * *"}])
    world.add(2)
    assert look().fired is None
    assert look().progress[0].text.startswith("next at 2023-11-15 03:00 UTC")
    world.clock.now = MIDNIGHT + 4 * DAY + 3.5 * 3600
    assert look().fired == "it is past 2023-11-15 03:00 UTC (0 3 * * *)"
    look.start()
    assert look().fired is None
    world.clock.now += 12 * 3600
    assert look().fired is None
    world.clock.now += 12 * 3600
    assert look().fired is not None


def test_a_clock_that_was_set_back_repeats_no_time_and_one_that_was_far_ahead_is_forgotten(world):
    world.clock.now = MIDNIGHT + 4 * 3600
    look = Looker(world, any=[{"schedule": "0 3 * * *"}])
    world.add(2)
    look()
    look.start()
    world.clock.now -= 2 * 3600  # it is two o'clock again, and then three
    look()
    world.clock.now += 1.5 * 3600
    assert look().fired is None
    world.clock.now += DAY * 400  # a clock that is wrong for a moment
    assert look().fired is not None
    look.start()
    world.clock.now = MIDNIGHT + DAY
    look()
    world.clock.now += 4 * 3600
    assert look().fired is not None


def test_the_cooldown_holds_and_survives_a_clock_that_is_set_back(world):
    look = Looker(world, any=[{"labelled": 1}], cooldown=3600)
    world.add(1)
    assert look().fired is not None
    look.start()
    assert look().blocked == "the next training may start in 1h"
    world.clock.now -= 10 * DAY
    assert look().blocked == "the next training may start in 1h"
    world.clock.now += 3601
    assert look().fired is not None


def test_each_failure_doubles_the_cooldown_and_a_success_ends_that(world):
    look = Looker(world, any=[{"labelled": 1}], cooldown=100)
    world.add(1)
    for _ in range(2):
        look.start()
        look.end(failed=True)
    assert look().blocked == "the next training may start in 6m40s, 2 trainings in a row having failed"
    look.end(failed=False)
    world.clock.now += 101
    assert look().fired is not None


def test_all_rules_of_all_are_needed_and_one_of_any(world):
    look = Looker(world, all=[{"labelled": 2}, {"manual": True}], any=[{"labelled": 50}])
    world.add(2)
    assert look().fired is None
    look.state = Triggers(look.spec, drift.create).asked(look.state, world.clock.now)
    assert look().fired == "2 of 2 new labels; an operator asked for it"
    look.start()
    assert look().fired is None


def test_too_few_labels_are_told_whatever_asks_for_a_training(world):
    look = Looker(world, any=[{"manual": True}], minLabels=3)
    look.state = Triggers(look.spec, drift.create).asked({}, world.clock.now)
    world.add(2)
    assert look().blocked == "a training needs 3 new labels, and there are 2"


def test_accuracy_counts_random_samples_of_the_version_in_use(world):
    look = Looker(world, any=[{"accuracyBelow": 0.9}])
    world.add(40, right=False, reason="hard")
    world.add(40, right=False, model=7)
    world.add(45)
    assert "judged from 50 on" in look().progress[0].text
    world.add(15, right=False)
    found = look()
    assert found.fired == "accuracy 0.750 on the latest 60 labels of random samples, asked below 0.9"
    assert look(serving=2).fired is None


def test_a_drift_is_found_once_across_restarts_and_stays_until_a_training_starts(world):
    look = Looker(world, any=[{"drift": "cusum"}])
    for _ in range(5):
        world.clock.now += 1
        world.add(30)
        assert look().fired is None
    seen = look().progress[0].text
    assert "150 labels looked at" in seen
    world.clock.now += 1
    world.add(40, right=False)
    assert look().fired is not None
    assert look().fired is not None, "it stays"
    look.start()
    assert look().fired is None
    assert look(serving=2).progress[0].text.endswith("0 labels looked at"), "a new version begins anew"


def test_an_edge_that_saw_a_drift_is_believed_by_its_own_clock(world):
    look = Looker(world, any=[{"drift": "adwin"}])
    world.add(1)
    look()
    look.start()

    def beat(at, ahead):
        worker = {"started_at": 0.0, "version": 1, "drift_at": [at]}

        def work(session):
            session.merge(Edge(name="e1", seen_at=1.0, clock_ahead=ahead, heartbeat={"worker": worker, "models": {}}))

        world.hub.database.write(work)

    beat(world.clock.now + 50, ahead=100.0)
    assert look().fired is None, "that was before the last training"
    beat(world.clock.now + 150, ahead=100.0)
    assert look().fired == "edge e1 saw its confidence drift"


@pytest.mark.parametrize(
    ("rule", "told"),
    [({"schedule": "99 3 * * *"}, "is no time in cron's form"), ({"drift": "adwim"}, "did you mean 'adwin'")],
)
def test_a_rule_that_is_none_is_told_at_the_start(rule, told):
    with pytest.raises(SpecError, match=told):
        Triggers(Trigger.model_validate({"any": [rule]}), drift.create)


def test_a_schedule_that_never_comes_is_told_and_hurts_nothing(world):
    look = Looker(world, any=[{"schedule": "0 0 31 2 *"}])
    assert "never comes" in look().progress[0].text
