# SPDX-License-Identifier: Apache-2.0
"""A router learns which task a sample is of."""

from __future__ import annotations

import numpy as np
import pytest

from solar_corona.lib.router_fitting import fit_router

CENTRES = np.random.default_rng(0).normal(size=(2, 3, 30)) * 2


def drawn(seed, count=200):
    rng = np.random.default_rng(seed)
    task, y = rng.integers(0, 2, count), rng.integers(0, 3, count)
    return (CENTRES[task, y] + rng.normal(size=(count, 30))).astype(np.float32).reshape(count, 5, 6), y, task


@pytest.mark.parametrize("labels", [True, False])
def test_samples_go_to_their_own_task(labels):
    x, y, task = drawn(1)
    router = fit_router(x, y if labels else None, task, ("a", "b"))
    new_x, _, new_task = drawn(2)
    assert (router.route(new_x) == new_task).mean() > (0.97 if labels else 0.6)


def test_what_has_few_samples_is_still_routed():
    x, y, _ = drawn(1, 12)
    router = fit_router(x, y, [0] * 10 + [1] * 2, ("a", "b"))
    assert np.isfinite(router.scores(x)).all()


def test_constant_and_broken_inputs_do_not_break_it():
    x = np.ones((20, 4), np.float32)
    x[0, 0] = np.nan
    router = fit_router(x, np.zeros(20, int), np.arange(20) % 2, ("a", "b"))
    assert set(router.route(x)) <= {0, 1}
