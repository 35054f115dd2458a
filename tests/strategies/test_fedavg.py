# SPDX-License-Identifier: Apache-2.0
"""Our FedAvg held against Flower's."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from solar_corona.strategies import FedAvg, fedavg
from solar_corona.strategies.fedavg import view


def _reply(weights, samples=1, *, error=None, **metrics):
    content = RecordDict()
    if weights is not None:
        content["arrays"] = ArrayRecord({name: Array(np.asarray(value)) for name, value in weights.items()})
        content["metrics"] = MetricRecord({"num-examples": samples, **metrics})
    metadata = Metadata(
        run_id=1,
        message_id="m",
        src_node_id=2,
        dst_node_id=1,
        reply_to_message_id="r",
        group_id="1",
        created_at=0.0,
        ttl=60.0,
        message_type="train",
    )
    return (
        make_message(metadata=metadata, content=content)
        if error is None
        else make_message(metadata=metadata, error=Error(code=1, reason=error))
    )


def _ours(replies):
    return FedAvg(fraction_evaluate=1.0).aggregate_train(1, iter(replies))


def _theirs(replies):
    return FlowerFedAvg(fraction_evaluate=1.0).aggregate_train(1, replies)


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from(["f2", "f4", "f8", "c8", "i4", "i8", "u1", "?", ">f4", ">f8"]))
    bound = {"f": 100.0, "c": 100.0, "i": 1000, "u": 255, "b": 1}[np.dtype(dtype).kind]
    if np.dtype(dtype).kind == "f":
        elements = st.floats(-bound, bound, width=16)
    elif np.dtype(dtype).kind == "c":
        elements = st.complex_numbers(max_magnitude=bound, width=64, allow_nan=False)
    else:
        elements = st.booleans() if dtype == "?" else st.integers(0 if dtype == "u1" else -bound, bound)
    shapes = draw(st.lists(npst.array_shapes(min_dims=0, min_side=0, max_side=4), min_size=1, max_size=3))
    count = draw(st.integers(1, 6))
    order = draw(st.sampled_from(["C", "F"]))
    weights = [
        {
            f"layer/{i}": np.asarray(draw(npst.arrays(dtype, shape, elements=elements)), order=order)
            for i, shape in enumerate(shapes)
        }
        for _ in range(count)
    ]
    samples = draw(st.lists(st.integers(1, 10_000) | st.floats(0.01, 100), min_size=count, max_size=count))
    losses = draw(st.lists(st.floats(-10, 10), min_size=count, max_size=count))
    return [_reply(w, n, loss=loss) for w, n, loss in zip(weights, samples, losses, strict=True)]


@settings(deadline=None)
@given(cases())
def test_the_result_is_flowers_up_to_rounding(replies):
    (ours, our_metrics), (theirs, their_metrics) = _ours(replies), _theirs(replies)
    first = next(iter(replies[0].content.array_records.values()))
    assert list(ours) == list(theirs)
    for name in ours:
        value, kind = ours[name].numpy(), first[name].numpy().dtype
        assert (value.dtype, value.shape) == (kind, first[name].numpy().shape)
        assert ours[name].dtype == str(value.dtype)
        if kind.kind in "fc":
            close = {"rtol": 1e-6, "atol": 1e-4} if kind.itemsize > 2 else {"rtol": 5e-3, "atol": 0.2}
            np.testing.assert_allclose(value, theirs[name].numpy(), **close)
        else:  # Flower makes float64 of whole numbers; ours stay whole, as near as they can.
            assert (np.abs(value - theirs[name].numpy().astype(float)) <= 0.5 + 1e-9).all()
    assert dict(our_metrics) == pytest.approx(dict(their_metrics))


@settings(deadline=None)
@given(replies=cases(), data=st.data())
def test_the_order_of_the_replies_does_not_matter(replies, data):
    shuffled = data.draw(st.permutations(replies))
    (one, _), (other, _) = _ours(replies), _ours(shuffled)
    for name in one:
        kind = one[name].numpy().dtype
        close = {"rtol": 1e-5, "atol": 1e-4} if kind.kind in "fc" and kind.itemsize > 2 else {"rtol": 1e-2, "atol": 1}
        np.testing.assert_allclose(one[name].numpy().astype(complex), other[name].numpy().astype(complex), **close)


@pytest.mark.parametrize("samples", [1, 3, 7, 49, 1000])
def test_replies_that_agree_on_a_whole_number_keep_it(samples):
    for value in range(50):
        result, _ = _ours([_reply({"n": np.asarray([value])}, samples) for _ in range(3)])
        assert result["n"].numpy()[0] == value


def test_one_reply_comes_back_as_it_was():
    weights = {"w": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "s": np.float32(2.5)}
    result, _ = _ours([_reply(weights, 17)])
    np.testing.assert_allclose(result["w"].numpy(), weights["w"], rtol=1e-6)
    assert (result["s"].numpy(), result["s"].numpy().shape) == (2.5, ())


def test_large_values_do_not_overflow_because_of_many_samples():
    replies = [_reply({"mask": np.asarray([-1e38, 1e30], np.float32)}, 60_000) for _ in range(2)]
    result, _ = _ours(replies)
    np.testing.assert_allclose(result["mask"].numpy(), [-1e38, 1e30], rtol=1e-6)


def test_replies_with_errors_and_no_replies_are_passed_over():
    result, metrics = _ours([_reply(None, error="boom"), _reply({"w": [2.0]}, 1, loss=3.0), _reply(None, error="boom")])
    assert result["w"].numpy() == [2.0]
    assert dict(metrics) == {"loss": 3.0}
    assert _ours([]) == (None, None)
    assert _ours([_reply(None, error="boom")]) == (None, None)
    assert _ours([_reply({"w": [2.0]}, 0)]) == (None, None)


def test_the_result_is_a_copy_and_the_replies_stay_as_they_were():
    reply = _reply({"w": np.ones(3, np.float32)}, 2)
    before = reply.content["arrays"]["w"].data
    _ours([reply, _reply({"w": np.zeros(3, np.float32)}, 2)])
    assert reply.content["arrays"]["w"].data == before


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.zeros((2, 2))},
        {"w": np.zeros(3), "more": np.zeros(1)},
        {"x": np.zeros(3)},
        {},
        {"w": np.zeros((3, 1))},
        {"w": np.zeros((1, 3))},
    ],
)
def test_replies_of_different_form_are_refused(other):
    with pytest.raises(InconsistentMessageReplies):
        _ours([_reply({"w": np.zeros(3)}), _reply(other)])


@pytest.mark.parametrize(
    "content",
    [
        {"metrics": MetricRecord({"num-examples": 1})},
        {"arrays": ArrayRecord({})},
        {"arrays": ArrayRecord({}), "metrics": MetricRecord({"loss": 1.0})},
        {"arrays": ArrayRecord({}), "metrics": MetricRecord({"num-examples": [1, 2]})},
        {"arrays": ArrayRecord({}), "more": ArrayRecord({}), "metrics": MetricRecord({"num-examples": 1})},
    ],
)
def test_replies_without_a_model_or_a_weight_are_refused(content):
    reply = _reply({"w": np.zeros(1)})
    reply.content = RecordDict(content)
    with pytest.raises(InconsistentMessageReplies):
        _ours([reply])


def test_only_one_reply_is_alive_at_a_time():
    alive: list[weakref.ref[Message]] = []
    most = 0

    def arriving():
        nonlocal most
        for i in range(10):
            most = max(most, sum(ref() is not None for ref in alive))
            reply = _reply({"w": np.full(100_000, float(i), np.float32)}, i + 1)
            alive.append(weakref.ref(reply))
            yield reply
            del reply

    gc.disable()
    try:
        result, _ = FedAvg().aggregate_train(1, arriving())
    finally:
        gc.enable()
    assert most == 0
    np.testing.assert_allclose(result["w"].numpy()[0], sum(i * (i + 1) for i in range(10)) / 55, rtol=1e-6)


def test_values_are_read_without_a_copy_and_cannot_be_written_to():
    array = Array(np.arange(6.0).reshape(2, 3))
    seen = view(array)
    np.testing.assert_array_equal(seen, array.numpy())
    assert not seen.flags.writeable
    assert seen.base is not None


@given(npst.arrays(st.sampled_from(["f4", "i8", "?", ">f8", "<U2", "c8"]), npst.array_shapes(min_dims=0, min_side=0)))
def test_a_view_is_what_flower_reads(value):
    for order in "CF":
        array = Array(np.asarray(value, order=order))
        np.testing.assert_array_equal(view(array), array.numpy())
        assert view(array).dtype == array.numpy().dtype


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_array_is_a_value_error_and_nothing_else(data):
    good = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    damaged = bytearray(good.data)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    _reads_or_refuses(bytes(damaged))
    _reads_or_refuses(bytes(damaged[:cut]))


@pytest.mark.parametrize(
    "shape", ["(2**70,)", "(-1,)", "(9223372036854775807, 4)", "(" + "9" * 30 + ",)", "(True,)", "(0, -5)", "'x'"]
)
@pytest.mark.parametrize("descr", ["'<f4'", "'|O'", "'|V0'", "[('a', '<f4')]", "'<U0'", "7"])
def test_a_label_beyond_reason_is_a_value_error(shape, descr):
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    _reads_or_refuses(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + b"x" * 24)


def _reads_or_refuses(data):
    try:
        view(Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data))
    except ValueError:
        pass


@pytest.mark.parametrize("best", [1, None])
def test_large_replies_are_added_with_the_number_of_threads_that_was_faster(monkeypatch, best):
    used, clock = [], [0.0]

    class Blas:
        @contextmanager
        def limit(self, *, limits, user_api):
            assert user_api == "blas"
            used.append(limits)
            yield

    monkeypatch.setattr(fedavg, "ThreadpoolController", Blas)
    monkeypatch.setattr(fedavg.time, "perf_counter", lambda: clock[0])
    threads = fedavg._Threads()
    for _ in range(8):
        with threads.faster(100 << 20):
            clock[0] += 1.0 if used[-1] == best else 2.0
    assert set(used[:4]) == {1, None}
    assert used[4:] == [best] * 4


def test_small_replies_say_nothing_of_threads(monkeypatch):
    monkeypatch.setattr(fedavg, "ThreadpoolController", None)  # a call of it would raise
    threads = fedavg._Threads()
    for _ in range(8):
        with threads.faster(4096):
            pass
