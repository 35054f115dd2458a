# SPDX-License-Identifier: Apache-2.0
"""What of a sample goes to the deep model: a tensor, or an image file that is a tenth of its size."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError
from ..lib.tensors import Tensors, TensorSpec, datatype_of

__all__ = ["Encoding", "Upload", "UploadForm"]

Encoding = Literal["auto", "raw", "jpeg", "png", "webp"]

# Up to here the headers of a JPEG outweigh its pixels; WebP has hardly any (CIFAR-10: 390 bytes against 921).
_SMALL_SIDE = 128
_QUALITY = {"jpeg": 75, "webp": 80}
_PILLOW = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
_GREY, _CHANNELS = 1, (1, 3)


@dataclass(frozen=True)
class UploadForm:
    """How samples are sent.

    Parameters
    ----------
    encoding
        `auto`: images of bytes as JPEG, small ones as WebP, where the deep model's service reads files; all else, and
        all to other services, as tensors. `raw` always sends tensors. A format's name sends images in it.
    quality
        Of JPEG (1 to 95) or WebP (1 to 100); by default 75 and 80.
    """

    encoding: Encoding = "auto"
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.encoding not in ("auto", "raw", *_PILLOW):
            raise ModelError(f"encoding is {self.encoding!r}, expected auto, raw, {', '.join(_PILLOW)}")
        whole = type(self.quality) is int
        if self.quality is not None and not (whole and 1 <= self.quality <= 100):
            raise ModelError(f"quality is {self.quality!r}, expected a whole number from 1 to 100")


@dataclass(frozen=True)
class Upload:
    """A batch as it is sent: tensors by name, and which of them are files of which format."""

    inputs: Tensors
    encodings: Mapping[str, str]
    size: int

    @classmethod
    def of(
        cls,
        samples: Sequence[Any],
        inputs: Tensors,
        *,
        wanted: Sequence[TensorSpec],
        form: UploadForm,
        reads_files: bool,
    ) -> Upload:
        """Return what is sent for some samples.

        Parameters
        ----------
        samples
            What `predict` was called with, sample by sample.
        inputs
            What `pre_fun` made of them for the shallow model, batch first.
        wanted
            The deep model's inputs, as its service describes them; empty where it does not.
        form
            How samples are sent.
        reads_files
            Whether the service reads image files.

        Raises
        ------
        ModelError
            If the deep model takes neither the samples nor what the shallow model takes.
        """
        images = _images(samples) if form.encoding != "raw" and len(wanted) <= 1 else None
        if images is not None and (reads_files or form.encoding != "auto"):
            name = wanted[0].name if wanted else next(iter(inputs))
            encoding = _chosen(form.encoding, images[0])
            files = np.empty((len(images), 1), object)
            files[:, 0] = [_encoded(image, encoding, form.quality) for image in images]
            return cls({name: files}, {name: encoding}, sum(map(len, files[:, 0])))
        tensors = _tensors(samples, inputs, wanted)
        return cls(tensors, {}, sum(value.nbytes for value in tensors.values()))


def _images(samples: Sequence[Any]) -> list[NDArray[np.uint8]] | None:
    """Return samples as images of bytes, height x width (x 3), or None where they are none."""
    found = []
    for sample in samples:
        if not isinstance(sample, np.ndarray) or sample.dtype != np.uint8:
            return None
        image = sample[..., 0] if sample.ndim == 3 and sample.shape[2] == _GREY else sample
        if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] in _CHANNELS):
            return None
        found.append(image)
    return found


def _chosen(encoding: Encoding, image: NDArray[np.uint8]) -> str:
    return encoding if encoding != "auto" else "webp" if max(image.shape[:2]) <= _SMALL_SIDE else "jpeg"


def _encoded(image: NDArray[np.uint8], encoding: str, quality: int | None) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise ModelError(f"to send images as {encoding} Pillow is needed ({error}); pip install pillow") from error
    out = io.BytesIO()
    options = {} if encoding == "png" else {"quality": quality or _QUALITY[encoding]}
    Image.fromarray(np.ascontiguousarray(image)).save(out, _PILLOW[encoding], **options)
    return out.getvalue()


def _tensors(samples: Sequence[Any], inputs: Tensors, wanted: Sequence[TensorSpec]) -> Tensors:
    """Return what the deep model takes: what the shallow one takes, or the samples themselves."""
    if not wanted:
        return inputs
    if len(inputs) == len(wanted):
        named = {spec.name: inputs.get(spec.name, value) for spec, value in zip(wanted, inputs.values(), strict=True)}
        if all(spec.problem_with(named[spec.name]) is None for spec in wanted):
            return named
    whole = _stacked(samples)
    if len(wanted) == 1 and whole is not None and wanted[0].problem_with(whole) is None:
        return {wanted[0].name: whole}
    takes = ", ".join(f"{spec.name!r} {spec.datatype} {list(spec.shape)}" for spec in wanted)
    has = ", ".join(f"{datatype_of(value.dtype)} {list(value.shape)}" for value in inputs.values())
    also = "" if whole is None else f", and samples are {whole.dtype} {list(whole.shape)}"
    raise ModelError(f"the deep model takes {takes}; the shallow model's inputs are {has}{also}; neither fits")


def _stacked(samples: Sequence[Any]) -> NDArray[Any] | None:
    arrays = [sample for sample in samples if isinstance(sample, np.ndarray) and sample.dtype.kind in "biuf"]
    same = len(arrays) == len(samples) and len({(a.shape, a.dtype) for a in arrays}) == 1
    return np.stack(arrays) if same else None
