# SPDX-License-Identifier: Apache-2.0
"""Image files become what the model takes, and nothing that an image file can do harms the service."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from solar_corona.core.errors import RefusedRequestError
from solar_corona.joint_inference.service.images import decoded_images, image_form
from solar_corona.lib.tensors import TensorSpec

PHOTO = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)


def _file(array, form="PNG", **how) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, form, **how)
    return out.getvalue()


def _batch(*files: bytes, shape=None):
    array = np.empty(len(files), object)
    array[:] = files
    return array.reshape(shape or (-1,))


def _decode(*files, shape=(-1, 8, 8, 3), datatype="UINT8", form="PNG", max_pixels=10_000):
    return decoded_images(_batch(*files), form, TensorSpec("image", datatype, shape), max_pixels=max_pixels)


@pytest.mark.parametrize(("form", "how"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_file_gives_the_very_pixels(form, how):
    found = _decode(_file(PHOTO, form, **how), _file(255 - PHOTO, form, **how), form=form)
    np.testing.assert_array_equal(found, [PHOTO, 255 - PHOTO])


def test_a_jpeg_gives_nearly_the_pixels():
    smooth = np.broadcast_to(np.arange(0, 256, 32, dtype=np.uint8)[:, None, None], (8, 8, 3))
    found = _decode(_file(np.ascontiguousarray(smooth), "JPEG", quality=95), form="JPEG")
    assert np.abs(found[0].astype(int) - smooth).max() < 12


@pytest.mark.parametrize(
    ("shape", "datatype", "expected"),
    [
        ((-1, 3, 8, 8), "UINT8", np.moveaxis(PHOTO, 2, 0)),
        ((-1, 8, 8, 3), "FP32", PHOTO.astype(np.float32)),
        ((-1, -1, -1, 3), "INT32", PHOTO.astype(np.int32)),
        ((-1, 8, 8), "UINT8", np.asarray(Image.fromarray(PHOTO).convert("L"))),
        ((-1, 8, 8, 1), "UINT8", np.asarray(Image.fromarray(PHOTO).convert("L"))[..., None]),
        ((-1, 8, 8, 4), "UINT8", np.dstack([PHOTO, np.full((8, 8), 255, np.uint8)])),
    ],
)
def test_pixels_come_in_the_models_layout_and_dtype(shape, datatype, expected):
    found = _decode(_file(PHOTO), shape=shape, datatype=datatype)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found[0], expected)


def test_a_larger_image_is_scaled_to_the_models_size():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3))
    found = _decode(_file(np.ascontiguousarray(ramp)))[0].astype(int)
    assert found.shape == (8, 8, 3)
    # Every eighth row stands for the mean of eight.
    assert np.abs(found[:, :, 0] - ramp[4::8, :8, 0]).max() <= 4


@pytest.mark.parametrize(
    ("shape", "datatype"), [((-1, 10), "FP32"), ((-1, 8, 8, 3), "BOOL"), ((-1, 8, 8, 7), "UINT8"), ((-1,), "UINT8")]
)
def test_a_model_of_something_else_takes_no_image_files(shape, datatype):
    with pytest.raises(RefusedRequestError, match="takes no image files") as refused:
        _decode(_file(PHOTO), shape=shape, datatype=datatype)
    assert refused.value.status == 415


def _bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(101, 100), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_decoded(size):
    with pytest.raises(RefusedRequestError) as refused:
        _decode(_bomb(*size))
    assert refused.value.status in (400, 413)
    assert size[0] > 2**30 or refused.value.status == 413


@pytest.mark.parametrize(
    "data", [b"", b"no image", _file(PHOTO)[:40], _file(PHOTO, "JPEG"), _file(PHOTO, "GIF"), _bomb(80, 80)[:60]]
)
def test_a_damaged_file_or_one_of_another_format_is_told(data):
    with pytest.raises(RefusedRequestError, match="image 0 of 'image' cannot be read; expected a PNG file") as refused:
        _decode(data)
    assert refused.value.status == 400


def test_images_that_would_fill_the_memory_together_are_refused():
    large = _file(np.zeros((90, 90, 3), np.uint8))
    assert _decode(large, shape=(-1, -1, -1, 3)).shape == (1, 90, 90, 3)
    with pytest.raises(RefusedRequestError, match="too large together") as refused:
        _decode(large, large, shape=(-1, -1, -1, 3))
    assert refused.value.status == 413


def test_images_of_two_sizes_make_no_batch():
    with pytest.raises(RefusedRequestError, match="differ in size"):
        _decode(_file(PHOTO), _file(PHOTO[:4]), shape=(-1, -1, -1, 3))


@pytest.mark.parametrize(
    ("name", "form"), [("jpeg", "JPEG"), ("image/jpg", "JPEG"), ("PNG", "PNG"), ("image/webp", "WEBP")]
)
def test_formats_go_by_their_usual_names(name, form):
    assert image_form(name) == form


@pytest.mark.parametrize("name", ["gif", "application/pdf", "", "image/"])
def test_another_format_is_refused(name):
    with pytest.raises(RefusedRequestError, match="expected jpeg, png or webp") as refused:
        image_form(name)
    assert refused.value.status == 415


@given(st.data(), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_a_file_with_flipped_bytes_is_an_image_or_refused(data, form):
    damaged = bytearray(_file(PHOTO, form))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert _decode(bytes(damaged), form=form).shape == (1, 8, 8, 3)
    except RefusedRequestError:
        pass
