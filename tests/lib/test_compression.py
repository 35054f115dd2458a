# SPDX-License-Identifier: Apache-2.0
"""Coded models: what is lost, what never is, and what damaged bytes give."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from solar_corona.core.errors import WireError
from solar_corona.lib.coded_records import CodedModel, Label, ReplyCoding, read_coded
from solar_corona.lib.compression import Coder, decode, digest, encode, form_of, readable, work_dtype
from solar_corona.lib.exchange import ArraySpec, to_arrays

NOTHING = 1e-18  # what is closer than this counts as equal
CODERS = [Coder("exact"), Coder("fp16"), Coder("int8"), Coder("topk", 0.1)]


def model(seed=0, size=3000):
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.standard_normal((size // 10, 10)).astype(np.float32),
        "bias": rng.standard_normal(7),
        "half": rng.standard_normal(40).astype(np.float16),
        "steps": np.asarray(seed, np.int64),
        "none": np.zeros((0, 3), np.float32),
    }


def changed(start, by=1e-2, seed=1):
    rng = np.random.default_rng(seed)
    found = {}
    for name, value in start.items():
        moved = value + by * rng.laplace(size=value.shape) if value.dtype.kind == "f" else value + 1
        found[name] = np.asarray(moved).astype(value.dtype)
    return found


def same(a, b):
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a
    )


floats = st.floats(-1e6, 1e6, width=32)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=25), elements=floats)


@given(st.sampled_from(CODERS), arrays, st.data())
def test_the_receiver_decodes_exactly_what_the_sender_expects(coder, start, data):
    base = {"w": start}
    target = {"w": data.draw(hnp.arrays(np.float32, start.shape, elements=floats))}
    coded, expected = encode(target, base, coder)
    assert same(decode(coded, form_of(base), base), expected)
    assert expected["w"].dtype == np.float32
    assert expected["w"].shape == start.shape


@given(arrays, st.data())
def test_exact_loses_nothing(start, data):
    target = {"w": data.draw(hnp.arrays(np.float32, start.shape, elements=floats))}
    assert same(encode(target, {"w": start}, Coder("exact"))[1], target)
    assert same(encode(target, None, Coder("exact"))[1], target)


@given(arrays, st.data())
def test_fp16_is_off_by_at_most_a_two_thousandth_of_the_largest_change(start, data):
    target = data.draw(hnp.arrays(np.float32, start.shape, elements=floats))
    difference = np.abs(target.astype(np.float64) - start)
    _, decoded = encode({"w": target}, {"w": start}, Coder("fp16"))
    rounding = 4 * np.spacing(np.maximum(np.abs(target), np.abs(start)).max(initial=0.0))
    assert np.abs(decoded["w"].astype(np.float64) - target).max() <= difference.max() / 2000 + rounding + NOTHING


@given(arrays, st.data())
def test_int8_is_off_by_at_most_half_a_step(start, data):
    target = data.draw(hnp.arrays(np.float32, start.shape, elements=floats))
    difference = target.astype(np.float64) - start
    step = max(np.abs(difference).max() / 127, np.sqrt((difference**2).mean()))
    _, decoded = encode({"w": target}, {"w": start}, Coder("int8"))
    rounding = 4 * np.spacing(np.maximum(np.abs(target), np.abs(start)).max(initial=0.0))
    assert np.abs(decoded["w"].astype(np.float64) - target).max() <= 0.51 * step + rounding + NOTHING


@pytest.mark.parametrize("coder", CODERS[1:], ids=lambda c: c.method)
def test_models_of_all_dtypes_come_back_in_their_form_and_whole_numbers_exactly(coder):
    start = model()
    target = changed(start)
    coded, decoded = encode(target, start, coder)
    found = decode(coded, form_of(start), start)
    assert same(found, decoded)
    assert form_of(found) == form_of(target)
    assert found["steps"] == target["steps"]
    assert len(coded) < sum(v.nbytes for v in target.values()) / 1.9


def test_topk_sends_the_largest_entries_and_no_other():
    start = {"w": np.zeros(1000, np.float32)}
    target = {"w": np.arange(1000, dtype=np.float32)}
    _, decoded = encode(target, start, Coder("topk", 0.05))
    assert np.flatnonzero(decoded["w"]).tolist() == list(range(950, 1000))


@pytest.mark.parametrize("places", [[0], [999], [0, 255, 510, 766], [254, 255, 256, 999], list(range(1000))])
def test_topk_finds_each_place_again(places):
    start = {"w": np.zeros(1000, np.float32)}
    target = {"w": np.zeros(1000, np.float32)}
    target["w"][places] = 3.0
    _, decoded = encode(target, start, Coder("topk", 1.0))
    assert np.flatnonzero(decoded["w"]).tolist() == places
    assert np.allclose(decoded["w"], target["w"], rtol=1e-5)


@pytest.mark.parametrize("coder", CODERS[1:], ids=lambda c: c.method)
def test_with_the_error_fed_back_the_sum_of_what_comes_follows_the_sum_of_what_was_meant(coder):
    rng = np.random.default_rng(0)
    drift = 1e-2 * rng.standard_normal(2000).astype(np.float32)
    there = {"w": np.zeros(2000, np.float32)}
    lost = {"w": np.zeros(2000, np.float32)}
    meant = np.zeros(2000)
    gaps = []
    for _ in range(200):
        target = {"w": there["w"] + drift + 1e-3 * rng.standard_normal(2000).astype(np.float32)}
        meant += target["w"].astype(np.float64) - there["w"]
        _, decoded = encode(target, there, coder, residual=lost)
        lost = {"w": target["w"] - decoded["w"] + lost["w"]}
        there = decoded
        gaps.append(np.linalg.norm(meant - there["w"]) / np.linalg.norm(drift))
    # What is missing stays a few rounds' worth; without feedback topk would miss most of 200.
    assert max(gaps[100:]) < 12
    assert np.linalg.norm(meant - there["w"]) < 0.08 * np.linalg.norm(meant)


def test_what_did_not_change_takes_no_bytes():
    start = model()
    coded, decoded = encode(start, start, Coder("int8"))
    assert len(coded) == 5 * len(start)
    assert same(decoded, start)


def test_values_further_apart_than_their_dtype_reaches_go_as_they_are():
    start = {"w": np.full(4, -3e38, np.float32)}
    target = {"w": np.full(4, 3e38, np.float32)}
    for coder in CODERS:
        assert same(encode(target, start, coder)[1], target)


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e-17, 1e13, 1e17, 1e25, 1e37])
@pytest.mark.parametrize("coder", CODERS[1:], ids=lambda c: c.method)
def test_tiny_and_huge_changes_are_coded_without_a_warning(coder, size):
    target = {"w": np.linspace(-size, size, 200_001).astype(np.float32)}
    _, decoded = encode(target, {"w": np.zeros(200_001, np.float32)}, coder)
    assert np.isfinite(decoded["w"]).all()
    assert np.abs(decoded["w"] - target["w"]).max() <= size
    if size > NOTHING:
        assert np.abs(decoded["w"] - target["w"]).max() < size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_with_values_that_are_no_numbers_is_not_coded(bad):
    weights = model()
    assert readable(to_arrays(weights)) is not None
    weights["kernel"][3, 3] = bad
    assert readable(to_arrays(weights)) is None


def test_a_record_whose_bytes_do_not_fit_its_label_is_not_coded():
    good = Array(np.zeros(3, np.float32))
    for record in (
        Array(dtype="float32", shape=(3,), stype=good.stype, data=good.data[:-2]),
        Array(dtype="float32", shape=(4,), stype=good.stype, data=good.data),
        Array(dtype="float64", shape=(3,), stype=good.stype, data=good.data),
        Array(np.zeros(3, ">f4")),
        Array(np.array(["text"])),
    ):
        assert readable(ArrayRecord({"w": record})) is None


def test_a_digest_tells_values_names_shapes_and_dtypes_apart():
    w = np.arange(6, dtype=np.float32)
    others = [{"v": w}, {"w": w.reshape(2, 3)}, {"w": w.view(np.int32)}, {"w": w + 1}, {"w": w, "x": w[:0]}]
    assert len({digest(m) for m in [{"w": w}, *others]}) == 6
    assert digest({"w": w}) == digest({"w": w.copy()})


@pytest.mark.parametrize("coder", CODERS, ids=lambda c: c.method)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_give_a_model_of_the_same_form(coder, data):
    start = model(size=600)
    coded, _ = encode(changed(start), start, coder)
    damaged = bytearray(coded)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.sampled_from([len(damaged), len(damaged) - 1, len(damaged) // 2]))])
    try:
        found = decode(damaged, form_of(start), start)
    except WireError:
        return
    assert form_of(found) == form_of(start)


def _item(kind, body):
    return bytes([kind]) + len(body).to_bytes(4, "little") + body


def _sparse(count, gaps, scale=1.0, levels=b"\1"):
    def deflated(data):
        coder = zlib.compressobj(1, zlib.DEFLATED, -15)
        return coder.compress(data) + coder.flush()

    packed = deflated(gaps)
    return _item(4, struct.pack("<dII", scale, count, len(packed)) + packed + deflated(levels))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        _item(0, b"\0" * 7),
        _item(9, b""),
        _item(1, b"x"),
        _item(2, b"\0" * 8),
        _item(2, struct.pack("<d", 1.0) + np.full(10, np.nan, "<f2").tobytes()),
        _item(2, struct.pack("<d", 0.0) + np.full(10, 1.0, "<f2").tobytes()),
        _item(3, b"\0" * 8 + b"\3\0"),
        _sparse(1, b"\xff\x05", levels=b"\1"),
        _sparse(1, b"\x05", scale=float("nan")),
        _sparse(1, b"\x05", scale=float("inf")),
        _sparse(1, b"\x05", scale=-1.0),
        _sparse(1, b"\x05", scale=1e300),
        _sparse(2, b"\x05", levels=b"\1\1"),
        _sparse(1, b"\x05\xff"),
        _sparse(4_000_000_000, b"\x05"),
        _sparse(1, b"\x05", levels=b"\1" * 9),
        _sparse(1, b"\0" * 1_000_000),
        _item(0, b"\0" * 40) + _item(0, b""),
    ],
)
def test_hostile_bytes_are_a_wire_error(data):
    base = {"w": np.zeros(10, np.float32)}
    with pytest.raises(WireError):
        decode(data, form_of(base), base)


def test_a_whole_model_cannot_ask_for_more_memory_than_it_has_bytes():
    form = [ArraySpec(name="w", shape=(10**13,), dtype="float32")]
    for data in (_item(2, b"\0" * 100), _item(3, b"\0" * 100), _sparse(1, b"\x05"), _item(0, b"")):
        with pytest.raises(WireError, match="array w of a coded model"):
            decode(data, form, None)
    with pytest.raises(WireError, match="is no array that is sent coded"):
        decode(_item(0, b"\0" * 8), [ArraySpec(name="w", shape=(1,), dtype="object")], None)


def test_a_small_message_that_unfolds_into_a_large_one_is_refused_before_it_does():
    base = {"w": np.zeros(10, np.float32)}
    data = _sparse(1, b"\x05", levels=b"\0" * 50_000_000)
    assert len(data) < 300_000
    tracemalloc.start()
    with pytest.raises(WireError, match="holds other than"):
        decode(data, form_of(base), base)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_label_comes_back_and_a_bad_one_is_a_wire_error():
    coded = CodedModel(Label(base="a", version="b", reply=ReplyCoding(method="topk", fraction=0.5)), (b"x", b"y"))
    record = coded.to_record()
    assert read_coded(record) == coded
    assert read_coded(CodedModel(Label(base="a"), ()).to_record()) == CodedModel(Label(base="a"), ())
    assert read_coded(ConfigRecord({"steps": 3})) is None
    name = next(iter(record))
    for bad in ({name: "{", "steps": [b"x"]}, {name: "{}", "steps": 3}, {name: "{}", "steps": [b"x"] * 65}):
        with pytest.raises(WireError):
            read_coded(ConfigRecord(bad))
    with pytest.raises(WireError):
        read_coded(ConfigRecord({name: '{"reply": {"method": "topk", "fraction": 0}}'}))


def test_only_floats_are_rounded():
    assert [work_dtype(np.dtype(d)) for d in ("f2", "f4", "f8", "i4", "?", "c8")] == [
        np.float32,
        np.float32,
        np.float64,
        None,
        None,
        None,
    ]
