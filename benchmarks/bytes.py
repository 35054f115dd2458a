# SPDX-License-Identifier: Apache-2.0
"""What images cost on the wire by how they are sent, and what the deep model makes of them then.

CIFAR-10's test images go through the edge's own encoder and the service's own decoder to the deep model.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solar_corona.joint_inference.service.images import decoded_images, image_form
from solar_corona.joint_inference.uploads import Upload, UploadForm
from solar_corona.lib.runners.opening import open_runner
from solar_corona.lib.tensors import TensorSpec

from . import _report
from ._cascade import load_cascade, load_images
from ._data import add_data_option
from ._report import Figure

_FORMS = {
    "auto": UploadForm(),
    "raw": UploadForm("raw"),
    "png": UploadForm("png"),
    "jpeg_75": UploadForm("jpeg", 75),
    "jpeg_50": UploadForm("jpeg", 50),
    "webp_80": UploadForm("webp", 80),
    "webp_50": UploadForm("webp", 50),
    "webp_20": UploadForm("webp", 20),
}
_BATCH, _MOST_PIXELS = 250, 1 << 20


def sent(images: NDArray[np.uint8], form: UploadForm, spec: TensorSpec) -> tuple[NDArray[Any], int]:
    """Return a batch as the service has it, and the bytes that were sent."""
    upload = Upload.of(list(images), {spec.name: images}, wanted=[spec], form=form, reads_files=True)
    value = upload.inputs[spec.name]
    encoding = upload.encodings.get(spec.name)
    if encoding is None:
        return value, upload.size
    return decoded_images(value, image_form(encoding), spec, max_pixels=_MOST_PIXELS), upload.size


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    arguments = parser.parse_args()
    cascade, images = load_cascade("cifar10", arguments.data), load_images("cifar10", arguments.data)
    runner = open_runner(cascade.folder / "deep.keras")
    name = runner.inputs[0].name
    spec = TensorSpec(name, "UINT8", (-1, *images.x_test.shape[1:]))
    found: dict[str, tuple[float, float]] = {}
    for what, form in _FORMS.items():
        right = size = 0
        for begin in range(0, len(images.x_test), _BATCH):
            pixels, bytes_sent = sent(images.x_test[begin : begin + _BATCH], form, spec)
            (answer,) = runner.run({name: pixels.astype(np.float32)}).values()
            right += int((answer.argmax(1) == images.y_test[begin : begin + _BATCH]).sum())
            size += bytes_sent
        found[what] = (size / len(images.x_test), right / len(images.x_test))
    (auto, accuracy), (jpeg, _), (_, whole) = found["auto"], found["jpeg_75"], found["raw"]
    figures = [
        Figure("share_of_jpeg_75", auto / jpeg, "of JPEG's bytes", 0.45, better="low"),
        Figure("points_lost", 100 * (whole - accuracy), "points", 0.5, better="low"),
        *(Figure(f"bytes_{what}", size, "bytes an image", better="low") for what, (size, _) in found.items()),
        *(Figure(f"accuracy_{what}", right, "of 1") for what, (_, right) in found.items()),
    ]

    def picture(axes: Any) -> None:
        for what, (size, right) in found.items():
            axes.scatter(size, 100 * right, s=90 if what == "auto" else 30, color="#e8590c" if what == "auto" else "k")
            axes.annotate(what, (size, 100 * right), textcoords="offset points", xytext=(6, 4), fontsize=8)
        axes.set_xscale("log")
        axes.set_xlabel("bytes an image")
        axes.set_ylabel("deep model's accuracy, %")

    _report.write("bytes", figures, picture=picture)


if __name__ == "__main__":
    main()
