# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol's bytes: what is sent comes back, and what is wrong is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from solar_corona.core.errors import WireError
from solar_corona.lib.open_inference import (
    Answer,
    Request,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from solar_corona.lib.tensors import DATATYPES

_NUMBERS = [dtype for name, dtype in DATATYPES.items() if name != "BYTES"]
_SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
_FINITE = {"allow_nan": False, "allow_infinity": False}
tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    st.sampled_from(_NUMBERS).flatmap(
        lambda dtype: arrays.arrays(dtype, _SHAPES, elements=_FINITE if dtype.kind == "f" else None)
    ),
    min_size=1,
    max_size=4,
)


@given(tensors, st.booleans(), st.booleans())
def test_a_request_comes_back_as_it_was_sent(inputs, as_binary, wants_binary):
    request = Request(inputs, id="a1", binary=wants_binary, parameters={"user": "me"})
    found = decode_request(*encode_request(request, binary=as_binary))
    assert (found.id, found.binary, found.parameters["user"]) == ("a1", wants_binary, "me")
    assert list(found.inputs) == list(inputs)
    for name, value in inputs.items():
        assert found.inputs[name].dtype == value.dtype
        np.testing.assert_array_equal(found.inputs[name], value)


@given(tensors, st.booleans())
def test_an_answer_comes_back_as_it_was_sent(outputs, binary):
    asked = decode_request(*encode_request(Request({"x": np.zeros(1, np.float32)}, binary=binary)))
    found = decode_answer(*encode_answer(Answer(outputs, "digits", "3", "a1", {"took": 1}), asked))
    assert (found.model, found.version, found.id, found.parameters) == ("digits", "3", "a1", {"took": 1})
    for name, value in outputs.items():
        np.testing.assert_array_equal(found.outputs[name], value)


@pytest.mark.parametrize("binary", [True, False])
def test_bytes_keep_their_elements(binary):
    value = np.empty((2, 2), object)
    value[:] = [[b"a", b""], ["é".encode(), b"dd"]]
    found = decode_request(*encode_request(Request({"t": value}), binary=binary)).inputs["t"]
    assert found.shape == (2, 2)
    assert found.tolist() == value.tolist()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_json_has_no_word_for_goes_as_binary_alone(number):
    x = np.array([1, number], np.float32)
    with pytest.raises(WireError, match="NaN or infinity cannot be sent as JSON; send, or ask for, binary"):
        encode_request(Request({"x": x}), binary=False)
    with pytest.raises(WireError, match="NaN or infinity"):
        encode_answer(Answer({"x": x}, "m"), Request({}))
    np.testing.assert_array_equal(decode_request(*encode_request(Request({"x": x}))).inputs["x"], x)
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [%s]}]}'
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        with pytest.raises(WireError, match=f"{word.decode()} is no JSON"):
            decode_request(body % word)


def test_an_empty_tensor_may_have_any_shape_that_an_array_has():
    empty = decode_request(*encode_request(Request({"x": np.zeros((0, 7), np.float32)}))).inputs["x"]
    assert empty.shape == (0, 7)
    entry = {"name": "x", "shape": [0, 2**39, 2**39], "datatype": "FP32", "parameters": {"binary_data_size": 0}}
    header = json.dumps({"inputs": [entry]}).encode()
    with pytest.raises(WireError, match="which no array has"):
        decode_request(header, len(header))


def test_an_output_is_binary_only_where_it_was_asked_for_by_name():
    request = Request({"x": np.zeros(1)}, outputs=("a", "b"), binary=frozenset({"b"}))
    asked = decode_request(*encode_request(request))
    assert (asked.outputs, asked.wants_binary("a"), asked.wants_binary("b")) == (("a", "b"), False, True)


@pytest.mark.parametrize("length", [None, 0, 5])
def test_an_empty_body_is_called_so(length):
    with pytest.raises(WireError, match="the body is empty; expected a JSON object with 'inputs'"):
        decode_request(b"", length)


def test_nested_data_is_read_as_flat_data_is():
    body = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "INT64", "data": [[1, 2], [3, 4]]}]}
    assert decode_request(json.dumps(body).encode()).inputs["x"].tolist() == [[1, 2], [3, 4]]


def test_an_image_file_says_its_form():
    request = Request({"x": np.array([b"\xff\xd8"], object)}, encodings={"x": "jpeg"})
    assert decode_request(*encode_request(request)).encodings == {"x": "jpeg"}


def _tensor(**changes):
    return {"inputs": [{"name": "x", "shape": [2], "datatype": "UINT8", "data": [1, 2]} | changes]}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "list 'inputs'"),
        ({"inputs": {}}, "list 'inputs'"),
        ({"inputs": [1]}, "object with name"),
        ({"inputs": _tensor()["inputs"] * 2}, "two tensors of one name"),
        ({"inputs": _tensor()["inputs"] * 100}, "at most 64"),
        (_tensor(name=3), "'name' that is text"),
        (_tensor(datatype="BYTES", shape=[65_537], data=[]), "65537 elements of BYTES; expected at most 65536"),
        (_tensor(datatype="uint8"), "has the datatype 'uint8', expected one of BOOL"),
        (_tensor(shape=[-1]), "whole numbers from 0"),
        (_tensor(shape=[True, 2]), "whole numbers from 0"),
        (_tensor(shape=[1] * 17), "whole numbers from 0"),
        (_tensor(shape=[3]), "3 values, and 2"),
        (_tensor(data=[0.5, 1]), "is UINT8 and has '0.5'"),
        (_tensor(data=[256, 1]), "out of its range"),
        (_tensor(data=[True, 1]), "has 'True'"),
        (_tensor(data="ab"), "no list"),
        (_tensor(data=[[1], 2]), "unevenly"),
        (_tensor(parameters={"binary_data_size": 2}), "either 'data' or"),
        (_tensor(parameters=[]), "'parameters' is no object"),
        (_tensor() | {"id": 3}, "'id' is '3'"),
        (_tensor() | {"outputs": [{}]}, "'name'"),
    ],
)
def test_a_wrong_request_is_told_what_was_expected(document, says):
    with pytest.raises(WireError, match=says):
        decode_request(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("size", "shape", "blob", "says"),
    [
        (4, [4], b"abc", "3 bytes are left"),
        (4, [4], b"abcde", "left over"),
        (4, [5], b"abcd", "has 5 bytes, and binary_data_size says 4"),
        (-1, [4], b"", "whole number from 0"),
        (4, [2**39, 2**39, 2**39], b"abcd", "binary_data_size says 4"),
    ],
)
def test_wrong_binary_tensors_are_refused(size, shape, blob, says):
    entry = {"name": "x", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [entry]}).encode()
    with pytest.raises(WireError, match=says):
        decode_request(header + blob, len(header))


@pytest.mark.parametrize("length", [-1, 0, 10**9])
def test_a_header_longer_than_the_body_is_refused(length):
    with pytest.raises(WireError, match="Inference-Header-Content-Length"):
        decode_request(b"{}", length)


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 300)))
def test_garbage_is_an_error_that_is_told_and_nothing_else(body, length):
    with pytest.raises(WireError):
        decode_request(body, length)


@given(st.data())
def test_a_damaged_request_is_read_or_refused(data):
    body, length = encode_request(Request({"x": np.arange(4, dtype=np.float32)}))
    place = data.draw(st.integers(0, len(body) - 1))
    damaged = body[:place] + bytes([data.draw(st.integers(0, 255))]) + body[place + 1 :]
    try:
        decode_request(damaged, length)
    except WireError:
        pass
