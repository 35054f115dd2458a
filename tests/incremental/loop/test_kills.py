# SPDX-License-Identifier: Apache-2.0
"""A loop that is killed before and after any of its steps goes on as if nothing had been."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from solar_corona.incremental.tables import ConsumedLabel, ModelVersion, TrainingRun

UNDISTURBED = ["train", "candidate", "passed", "canary", "promoted", "settled"]


class KilledError(BaseException):
    """What a kill -9 looks like from within: nothing can handle it."""


class Fate:
    """Says at each step whether the process is killed before it, after it, or not."""

    def __init__(self, seed, share):
        self.rng, self.share, self.armed, self.kills = random.Random(seed), share, False, 0

    def around(self, work):
        drawn = self.rng.random() if self.armed else 1.0
        what = "before" if drawn < self.share / 2 else "after" if drawn < self.share else ""
        self.kills += what != ""
        if what == "before":
            raise KilledError
        found = work()
        if what == "after":
            raise KilledError
        return found


class Database:
    """A database whose user is killed now and then."""

    def __init__(self, real, fate):
        self._real, self._fate = real, fate

    def write(self, work):
        return self._fate.around(lambda: self._real.write(work))

    def __getattr__(self, name):
        return getattr(self._real, name)


def disturbed(world, fate):
    """Carry a loop from its first step to the next version on all edges, starting it anew whenever it is killed."""
    world.hub.database = Database(world.hub.database, fate)
    start = world.tasks.start
    world.tasks.start = lambda worker: fate.around(lambda: start(worker))
    observed = False
    for _ in range(300):
        fate.armed = True
        try:
            world.loop = world.fresh()
            world.loop.step()
        except KilledError:
            pass
        fate.armed = False
        phase = world.phase
        if phase == "canary" and "canary" in world.row.data and not observed:
            world.observe(30)
            observed = True
        if phase in ("canary", "promoting"):
            world.follow()
            world.clock.now += 3
        if phase == "collecting" and (version := world.version(2)) is not None and version.state == "promoted":
            return
    raise AssertionError(f"it is {world.phase} after 300 steps: {world.decisions()}")


@settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 1 << 30), share=st.sampled_from([0.5, 0.8]))
@example(seed=1, share=0.8)
def test_a_loop_that_is_killed_at_any_step_goes_on_and_repeats_nothing(seed, share, make_world):
    folder = Path(tempfile.mkdtemp(prefix="solar-corona-kills-"))
    try:
        world = make_world(folder)
        world.follow()
        world.add(160)
        fate = Fate(seed, share)
        disturbed(world, fate)
        assert [what for what, _ in world.decisions()] == UNDISTURBED
        assert sorted(world.tasks.started) == ["evaluation-2-1", "training-1-1"]
        read = world.hub.database.read
        assert read(lambda s: s.scalar(select(func.count()).select_from(TrainingRun))) == 1
        assert read(lambda s: s.scalar(select(func.count()).select_from(ModelVersion))) == 2
        assert read(lambda s: s.scalar(select(func.count()).select_from(ConsumedLabel))) == 160
        assert fate.kills > 0
        world.hub.close()
    finally:
        shutil.rmtree(folder)
