# SPDX-License-Identifier: Apache-2.0
"""The wire codec: what goes in comes out, and no damage raises anything but a WireError."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from solar_corona.core.errors import WireError
from solar_corona.lib import wire

names = st.text(max_size=12)
dtypes = st.sampled_from(["?", "i1", "u1", "i4", "i8", "f2", "f4", "f8", "c8", ">f4", "<U3"])
arrays = npst.arrays(dtypes, npst.array_shapes(min_dims=0, min_side=0, max_side=4)).map(lambda a: Array(np.asarray(a)))
# What NumPy has no name for travels as bytes under its own label.
opaque = st.binary(max_size=16).map(lambda d: Array(dtype="bfloat16", shape=(len(d) // 2,), stype="raw", data=d))
numbers = st.integers(-(2**62), 2**62) | st.floats()
configs = (
    st.booleans()
    | numbers
    | st.text()
    | st.binary()
    | st.lists(st.booleans())
    | st.lists(st.integers(-(2**62), 2**62))
    | st.lists(st.floats())
    | st.lists(st.text())
    | st.lists(st.binary())
)
records = (
    st.dictionaries(names, arrays | opaque, max_size=4).map(ArrayRecord)
    | st.dictionaries(names, configs, max_size=5).map(ConfigRecord)
    | st.dictionaries(names, numbers | st.lists(st.floats()), max_size=5).map(MetricRecord)
)
contents = st.dictionaries(names, records, max_size=4).map(RecordDict)


def _plain(content):
    """Return `content` as plain values that tell NaN, types and order apart."""
    return [
        (
            key,
            type(record).__name__,
            [
                (name, (v.dtype, tuple(v.shape), v.stype, v.data) if isinstance(v, Array) else (type(v), repr(v)))
                for name, v in record.items()
            ],
        )
        for key, record in content.items()
    ]


def _payload(packed):
    return b"".join(part["data"] for part in packed.config_records.values())


def _as_packed(payload):
    return RecordDict({"solar-corona-0": ConfigRecord({"part": 0, "parts": 1, "data": payload})})


def _headed(head, body=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return _as_packed(struct.pack(">4sI", b"SCW1", len(text)) + text + body)


@given(contents)
def test_what_is_packed_is_unpacked_as_it_was(content):
    before = _plain(content)
    packed = wire.pack(content)
    assert wire.is_packed(packed)
    assert not wire.is_packed(content)
    assert wire.packed_size(packed) == len(_payload(packed))
    assert _plain(wire.unpack(packed)) == before
    assert _plain(content) == before


@given(content=contents, part=st.integers(1, 200))
def test_a_message_of_many_parts_is_put_together_in_whatever_order_they_come(content, part):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "PART_BYTES", part)
        packed = wire.pack(content)
    assert len(packed) == max(1, -(-wire.packed_size(packed) // part))
    backwards = RecordDict(dict(reversed(packed.items())))
    assert _plain(wire.unpack(backwards)) == _plain(content)
    assert _plain(wire.unpack(packed, consume=True)) == _plain(content)
    assert len(packed) == 0


def test_a_large_message_has_one_record_for_each_16_mib():
    content = RecordDict({"a": ArrayRecord({"w": Array(np.zeros(5 * 2**20, np.float32))})})
    packed = wire.pack(content)
    assert next(len(part["data"]) for part in packed.config_records.values()) == 16 * 2**20
    assert len(packed) == 2
    assert _plain(wire.unpack(packed)) == _plain(content)


def _unpacks_or_refuses(packed):
    try:
        wire.unpack(packed)
    except WireError as error:
        return str(error)
    return None


@given(content=contents, data=st.data())
def test_any_cut_is_refused(content, data):
    payload = _payload(wire.pack(content))
    cut = data.draw(st.integers(0, len(payload) - 1))
    told = _unpacks_or_refuses(_as_packed(payload[:cut]))
    # Cut behind the last byte that the head refers to, nothing is missing: each byte after the head is referred to.
    assert told is not None


@settings(max_examples=300)
@given(content=contents, data=st.data())
def test_any_flipped_bytes_raise_nothing_but_a_wire_error(content, data):
    payload = bytearray(_payload(wire.pack(content)))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    _unpacks_or_refuses(_as_packed(bytes(payload)))


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(payload):
    assert _unpacks_or_refuses(_as_packed(payload)) is not None


heads = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["arrays", "config", "metrics", "b", "bs", "v", "", "f4", "numpy.ndarray"]),
    lambda v: st.lists(v, max_size=7) | st.dictionaries(st.text(max_size=2), v, max_size=2),
    max_leaves=40,
)


@settings(max_examples=300)
@given(heads)
def test_a_head_of_any_json_raises_nothing_but_a_wire_error(head):
    _unpacks_or_refuses(_headed(head, b"x" * 64))


@pytest.mark.parametrize("kind", ["arrays", "config", "metrics"])
@given(items=st.lists(heads, max_size=3))
def test_a_record_of_any_items_raises_nothing_but_a_wire_error(kind, items):
    _unpacks_or_refuses(_headed([[kind, "k", items]], b"x" * 64))


@given(st.lists(heads, min_size=4, max_size=4))
def test_an_array_with_any_label_raises_nothing_but_a_wire_error(label):
    _unpacks_or_refuses(_headed([["arrays", "k", [[*label, 0, 8]]]], b"x" * 64))


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900])
def test_deep_json_is_refused(deep):
    assert "cannot be read" in _unpacks_or_refuses(_headed(deep))


@pytest.mark.parametrize(
    "head",
    [
        [["config", "k", [["n", "b", [0, 2**62]]]]],
        [["config", "k", [["n", "b", [2**62, 1]]]]],
        [["config", "k", [["n", "b", [-8, 16]]]]],
        [["config", "k", [["n", "b", [8, -8]]]]],
        [["config", "k", [["n", "b", [0.0, 1]]]]],
        [["config", "k", [["n", "b", [True, 1]]]]],
        [["arrays", "k", [["n", "f4", [2**40], "numpy.ndarray", 0, 2**40]]]],
    ],
)
def test_bytes_that_were_not_sent_are_refused(head):
    assert _unpacks_or_refuses(_headed(head, b"x" * 16)) is not None


@pytest.mark.parametrize("parts", [2**62, 10**9, -1, 0])
def test_a_number_of_parts_beyond_reason_is_refused_at_no_cost(parts):
    record = RecordDict({"solar-corona-0": ConfigRecord({"part": 0, "parts": parts, "data": b"x" * 8})})
    tracemalloc.start()
    try:
        assert "parts" in _unpacks_or_refuses(record)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_bytes_that_are_referred_to_often_are_not_copied_often():
    body = b"x" * 100_000
    head = [["config", "k", [[str(i), "b", [0, len(body)]] for i in range(1000)]]]
    packed = _headed(head, body)
    tracemalloc.start()
    try:
        assert _unpacks_or_refuses(packed) is not None
        assert tracemalloc.get_traced_memory()[1] < 20 * wire.packed_size(packed)
    finally:
        tracemalloc.stop()


def _parts(*parts):
    return RecordDict({name: ConfigRecord(values) for name, values in parts})


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"a": MetricRecord({"x": 1})}),
        _parts(("solar-corona-0", {})),
        _parts(("other", {"part": 0, "parts": 1, "data": b"SCW1\0\0\0\2[]"})),
        _parts(("solar-corona-0", {"part": 0, "parts": 1, "data": "SCW1"})),
        _parts(("solar-corona-0", {"part": 0, "parts": 2, "data": b"SCW1\0\0\0\2[]"})),
        _parts(("solar-corona-1", {"part": 1, "parts": 2, "data": b"SCW1\0\0\0\2[]"})),
        _parts(
            ("solar-corona-0", {"part": 0, "parts": 2, "data": b"SCW1"}),
            ("solar-corona-1", {"part": 0, "parts": 2, "data": b"SCW1"}),
        ),
        _parts(
            ("solar-corona-0", {"part": 0, "parts": 1, "data": b"SCW1\0\0\0\2[]"}),
            ("extra", {"part": 1, "parts": 1, "data": b""}),
        ),
        RecordDict(
            {
                "solar-corona-0": ConfigRecord({"part": 0, "parts": 1, "data": b"SCW1\0\0\0\2[]"}),
                "m": MetricRecord({"x": 1}),
            }
        ),
    ],
)
def test_what_is_not_in_wire_form_is_refused(record):
    assert _unpacks_or_refuses(record) is not None


def test_a_message_beyond_the_limit_is_refused(monkeypatch):
    packed = wire.pack(RecordDict({"c": ConfigRecord({"data": b"x" * 5000})}))
    monkeypatch.setattr(wire, "MAX_PAYLOAD", 4000)
    assert "larger than 4000 bytes" in _unpacks_or_refuses(packed)


def test_another_version_is_told_what_to_do():
    assert "update both sides to the same version" in _unpacks_or_refuses(_as_packed(b"SCW2\0\0\0\2[]"))
