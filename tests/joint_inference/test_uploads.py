# SPDX-License-Identifier: Apache-2.0
"""What of a sample is sent: the smallest thing that the deep model understands."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from solar_corona.core.errors import ModelError
from solar_corona.joint_inference.uploads import Upload, UploadForm
from solar_corona.lib.tensors import TensorSpec

FRAME = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
TILE = FRAME[:32, :32]
INPUTS = {"x": np.zeros((1, 96, 96, 3), np.float32)}
WANTED = (TensorSpec("image", "UINT8", (-1, -1, -1, 3)),)


def upload(sample, *, form=None, wanted=WANTED, reads_files=True, inputs=INPUTS):
    return Upload.of([sample], inputs, wanted=wanted, form=form or UploadForm(), reads_files=reads_files)


@pytest.mark.parametrize(("sample", "form"), [(FRAME, "jpeg"), (TILE, "webp")])
def test_images_go_as_files_where_they_are_read(sample, form):
    sent = upload(sample)
    assert sent.encodings == {"image": form}
    image = Image.open(io.BytesIO(sent.inputs["image"][0, 0]))
    assert (image.format, image.size) == (form.upper(), sample.shape[1::-1])
    assert sent.size < sample.nbytes


def test_grey_images_go_as_files_too():
    assert upload(TILE[..., 0]).encodings == {"image": "webp"}
    assert upload(TILE[..., :1]).encodings == {"image": "webp"}


def test_a_format_and_its_quality_can_be_chosen():
    good, poor = (upload(FRAME, form=UploadForm("jpeg", quality)).size for quality in (95, 10))
    assert poor < good / 3
    png = upload(TILE, form=UploadForm("png"))
    assert (np.asarray(Image.open(io.BytesIO(png.inputs["image"][0, 0]))) == TILE).all()


@pytest.mark.parametrize("form", [UploadForm("raw"), UploadForm()])
def test_a_service_that_reads_no_files_gets_the_tensor_that_it_takes(form):
    sent = upload(FRAME, form=form, reads_files=False)
    assert sent.encodings == {}
    np.testing.assert_array_equal(sent.inputs["image"], FRAME[None])
    assert sent.size == FRAME.nbytes


def test_what_the_shallow_model_takes_comes_first_where_it_fits():
    sent = upload(FRAME, wanted=(TensorSpec("deep", "FP32", (-1, 96, 96, 3)),), reads_files=False)
    assert sent.inputs["deep"] is INPUTS["x"]
    assert upload(None, wanted=()).inputs is INPUTS


def test_several_inputs_go_by_name_or_by_place():
    inputs = {"b": np.zeros((1, 2), np.float32), "a": np.ones((1, 3), np.float32)}
    wanted = (TensorSpec("a", "FP32", (-1, 3)), TensorSpec("b", "FP32", (-1, 2)))
    sent = upload(None, wanted=wanted, inputs=inputs)
    assert sent.inputs["a"] is inputs["a"]
    assert sent.inputs["b"] is inputs["b"]


def test_samples_that_fit_nowhere_are_told_with_both_shapes():
    with pytest.raises(ModelError, match=r"takes 'deep' FP32 \[-1, 5\].*UINT8|uint8"):
        upload(FRAME, wanted=(TensorSpec("deep", "FP32", (-1, 5)),), reads_files=False)


@pytest.mark.parametrize(
    "form", [{"encoding": "gif"}, {"quality": 0}, {"quality": 101}, {"quality": "high"}, {"quality": 7.5}]
)
def test_a_form_that_there_is_not_is_told(form):
    with pytest.raises(ModelError, match="expected"):
        UploadForm(**form)
