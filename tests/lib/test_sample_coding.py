# SPDX-License-Identifier: Apache-2.0
"""Samples as bytes: the same sample comes back, and no content of another process is believed."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from solar_corona.core.errors import ModelError, WireError
from solar_corona.core.incremental_spec import Encoding
from solar_corona.lib.sample_coding import SampleForm, decode_sample, encode_sample

_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
_ARRAYS = st.one_of(
    hnp.arrays(hnp.scalar_dtypes() | hnp.unicode_string_dtypes() | hnp.byte_string_dtypes(), _SHAPES),
    hnp.arrays(np.uint8, st.sampled_from([(7, 5), (7, 5, 1), (7, 5, 3), (7, 5, 4), (0, 5), (2, 7, 5, 3)])),
)
_PLAIN = st.recursive(st.text(max_size=5) | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=3))


@given(_ARRAYS, st.sampled_from(["auto", "npy", "png", "text"]))
def test_any_array_comes_back_with_its_dtype_and_shape(array, form):
    coded = encode_sample(array, SampleForm(format=form))
    back = decode_sample(coded.content, coded.media_type)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == np.ascontiguousarray(array).tobytes()
    assert encode_sample(np.asarray(array, order="F")).content == encode_sample(array).content


@given(st.text() | st.binary() | _PLAIN)
def test_texts_bytes_and_plain_values_come_back(sample):
    coded = encode_sample(sample)
    back = decode_sample(coded.content, coded.media_type)
    # A list of numbers is the array that NumPy makes of it.
    assert (back.tolist() if isinstance(back, np.ndarray) else back) == sample


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), hnp.arrays(hnp.integer_dtypes(), _SHAPES), min_size=1),
    st.booleans(),
)
def test_several_arrays_come_back_by_name_or_in_order(arrays, named):
    sample = arrays if named else tuple(arrays.values())
    coded = encode_sample(sample)
    back = decode_sample(coded.content, coded.media_type)
    pairs = [(back[name], sample[name]) for name in sample] if named else list(zip(back, sample, strict=True))
    assert type(back) is type(sample)
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(np.int16), np.dtype(np.float32)]),
        st.sampled_from([(0,), (5,), (5, 1), (5, 2)]),
    )
)
def test_sound_comes_back(sound):
    coded = encode_sample(sound, SampleForm(format="wav", rate=8000))
    back = decode_sample(coded.content, coded.media_type)
    assert coded.media_type.startswith("audio/wav")
    assert (back.dtype, back.shape, back.tobytes()) == (sound.dtype, sound.shape, sound.tobytes())


def test_pythons_own_reader_hears_the_same_sound():
    import wave

    sound = np.arange(-50, 50, dtype=np.int16).reshape(50, 2)
    with wave.open(io.BytesIO(encode_sample(sound, SampleForm(format="wav", rate=8000)).content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 2, 2)
        assert file.readframes(50) == sound.tobytes()


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_lossy_formats_give_images_that_look_alike(form):
    y, x = np.mgrid[:40, :50]
    image = np.stack([2 * x, 3 * y, x + y], 2).astype(np.uint8)
    coded = encode_sample(image, SampleForm(format=form))
    back = decode_sample(coded.content, coded.media_type)
    assert coded.media_type == f"image/{form}"
    assert back.shape == image.shape
    assert np.abs(back.astype(int) - image).mean() < 5


def test_an_image_file_in_bytes_stays_as_it_is_and_says_what_it_is():
    file = encode_sample(np.zeros((4, 4, 3), np.uint8)).content
    coded = encode_sample(file)
    assert (coded.content, coded.media_type) == (file, "image/png;kind=bytes")
    assert decode_sample(coded.content, coded.media_type) == file


def test_what_the_format_does_not_fit_goes_exactly_and_is_told_once(caplog):
    image = np.linspace(0, 1, 77, dtype=np.float64).reshape(11, 7)
    for _ in range(2):
        coded = encode_sample(image, SampleForm(format="jpeg"))
    assert coded.media_type == "application/x-npy"
    np.testing.assert_array_equal(decode_sample(coded.content, coded.media_type), image)
    assert [r.getMessage() for r in caplog.records] == [
        "samples of float64 [11, 7] cannot be written as jpeg; they go as npy"
    ]


def test_a_pillow_image_is_the_array_of_its_pixels():
    from PIL import Image

    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert encode_sample(Image.fromarray(pixels)) == encode_sample(pixels)


@pytest.mark.parametrize("sample", [object(), np.array([object()]), {"a": object()}, [{1, 2}]])
def test_what_has_no_form_without_pickle_is_refused(sample):
    with pytest.raises(ModelError, match="cannot be kept"):
        encode_sample(sample)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"format": "bmp"}, "expected one of auto"), ({"quality": 0}, "from 1 to 100"), ({"rate": 0}, "1 to 1,000,000")],
)
def test_a_form_that_there_is_not_is_refused(options, said):
    with pytest.raises(ModelError, match=said):
        SampleForm(**options)


def test_a_jobs_encoding_is_a_form():
    assert SampleForm(**Encoding().model_dump()) == SampleForm()


_CODED = [
    encode_sample(np.arange(12.0).reshape(3, 4)),
    encode_sample(np.zeros((9, 9, 3), np.uint8)),
    encode_sample(np.zeros(9, np.int16), SampleForm(format="wav")),
    encode_sample({"a": np.zeros(3)}),
    encode_sample("text"),
]
_TYPES = st.sampled_from([coded.media_type for coded in _CODED] + ["image/jpeg", "image/webp", "application/json", ""])


@given(st.binary(max_size=200) | st.sampled_from([coded.content for coded in _CODED]), _TYPES, st.data())
def test_no_content_does_more_than_be_refused(content, media_type, data):
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_sample(bytes(damaged), media_type)
    except WireError:
        pass


def test_a_small_file_that_unpacks_without_measure_is_refused():
    file = encode_sample(np.zeros((2000, 2000), np.uint8)).content
    assert len(file) < 20_000
    with pytest.raises(WireError, match="2000 x 2000 pixels"):
        decode_sample(file, "image/png", most_bytes=1_000_000)


def test_an_array_that_claims_more_than_there_is_is_refused():
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,), }"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with pytest.raises(WireError, match="is not what follows"):
        decode_sample(content, "application/x-npy", most_bytes=1 << 40)


def test_an_array_of_pickled_objects_is_refused():
    out = io.BytesIO()
    np.save(out, np.array([{}], object), allow_pickle=True)
    with pytest.raises(WireError, match="is not what follows"):
        decode_sample(out.getvalue(), "application/x-npy")
