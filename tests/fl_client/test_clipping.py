# SPDX-License-Identifier: Apache-2.0
"""What a strategy for differential privacy asks of edges is done: no update is longer than it says."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.fl_client.clipping import clipped, clipping_norm
from solar_corona.fl_client.orders import Orders, order_of
from solar_corona.lib import exchange

before = {"w": np.zeros(3, np.float32), "b": np.ones(1, np.float32)}


class Jumps:
    """Moves each weight by `step`; weights come as a list."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.weights = [np.zeros(4, np.float32)]

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = [value.copy() for value in weights.values()]

    def train(self, config):
        self.weights = [value + np.float32(self.step) for value in self.weights]
        return 5, {"loss": 1.0}

    def evaluate(self):
        return 5, {"loss": 1.0}


def _length(weights):
    return np.sqrt(sum(np.square(weights[n].astype(float) - before[n]).sum() for n in before))


@given(st.floats(0.01, 100), st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4))
def test_an_update_is_cut_to_the_norm_over_all_arrays_and_keeps_its_direction(norm, values):
    after = {"w": np.asarray(values[:3], np.float32), "b": np.asarray(values[3:], np.float32)}
    weights, metrics = clipped(before, after, norm)
    long = _length(after)
    assert _length(weights) <= norm * 1.001 or _length(weights) <= long * 1.001 <= norm
    assert metrics == {"norm_bit": float(long <= norm)}
    assert all(weights[n].dtype == np.float32 for n in weights)
    scale = max(1.0, long / norm)
    for name, start in before.items():
        np.testing.assert_allclose((weights[name] - start) * scale, after[name] - start, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("config", "norm"), [({}, None), ({"clipping_norm": 2}, 2.0), ({"clipping_norm": "x"}, None)])
def test_the_bound_is_what_the_strategy_sent(config, norm):
    assert clipping_norm(config) == norm


@pytest.mark.parametrize(("step", "bit"), [(3.0, 0.0), (0.1, 1.0)])
def test_an_edge_clips_when_it_is_asked_to(step, bit):
    content = RecordDict({"arrays": exchange.to_arrays([np.zeros(4, np.float32)])})
    reply = Orders(Jumps(step), eval_samples=0).train(
        order_of(content), content, {"clipping_norm": 1.0}, evaluate=False
    )
    assert reply["metrics"]["norm_bit"] == bit
    sent = reply["arrays"]["0"].numpy()
    assert np.linalg.norm(sent) == pytest.approx(min(1.0, 2 * step))
    plain = Orders(Jumps(step), eval_samples=0).train(order_of(content), content, {}, evaluate=False)
    assert "norm_bit" not in plain["metrics"]
    np.testing.assert_allclose(plain["arrays"]["0"].numpy(), step)
