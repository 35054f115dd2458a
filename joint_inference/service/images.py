# SPDX-License-Identifier: Apache-2.0
"""Turns image files that come as a tensor of bytes into the tensor that a model takes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import RefusedRequestError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...lib.tensors import TensorSpec

__all__ = ["decoded_images", "image_form"]

_FORMATS = {"jpeg": "JPEG", "jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_VALUES_A_PIXEL = 4
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DATATYPES = ("UINT8", "UINT16", "UINT32", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")


@dataclass(frozen=True)
class _Form:
    """How a model wants its images: `None` where any height or width will do."""

    height: int | None
    width: int | None
    mode: str
    channels_first: bool
    flat: bool


def image_form(content_type: str) -> str:
    """Return Pillow's name of a format such as `jpeg` or `image/png`.

    Raises
    ------
    RefusedRequestError
        With status 415, if it is not one that is read.
    """
    name = content_type.lower().removeprefix("image/")
    if name not in _FORMATS:
        raise RefusedRequestError(415, f"content_type is {content_type[:40]!r}, expected jpeg, png or webp")
    return _FORMATS[name]


def decoded_images(files: NDArray[Any], form: str, spec: TensorSpec, *, max_pixels: int) -> NDArray[Any]:
    """Return the images in the shape and dtype that a model takes; values are 0 to 255 whatever the dtype.

    An image of another size is scaled (bilinear), one of other channels converted.

    Parameters
    ----------
    files
        The files' bytes, shape (n,) or (n, 1).
    form
        Their format, as `image_form` returns it.
    spec
        What the model takes: (n, height, width), (n, height, width, channels) or (n, channels, height, width).
    max_pixels
        Pixels of one image, which is refused before it is decoded if it has more, and of all together.

    Raises
    ------
    RefusedRequestError
        With status 415 if the model takes no images, 413 if one is too large, 400 if one is damaged or of another
        format.
    """
    wanted = _wanted(spec)
    images: list[NDArray[Any]] = []
    for index, data in enumerate(files.ravel().tolist()):
        images.append(_decoded(data, form, wanted, f"image {index} of {spec.name!r}", max_pixels))
        if sum(image.size for image in images) > _VALUES_A_PIXEL * max_pixels:
            raise RefusedRequestError(
                413, f"the images of {spec.name!r} are too large together; expected at most {max_pixels} pixels"
            )
    if len({image.shape for image in images}) > 1:
        raise RefusedRequestError(400, f"the images of {spec.name!r} differ in size; expected one size in a batch")
    return np.stack(images).astype(spec.dtype, copy=False)


def _wanted(spec: TensorSpec) -> _Form:
    shape = spec.shape[1:]
    last, first = (shape[-1], shape[0]) if len(shape) == 3 else (0, 0)
    if spec.datatype in _DATATYPES:
        if len(shape) == 2:
            return _Form(_size(shape[0]), _size(shape[1]), "L", channels_first=False, flat=True)
        if last in _MODES:
            return _Form(_size(shape[0]), _size(shape[1]), _MODES[last], channels_first=False, flat=False)
        if first in _MODES:
            return _Form(_size(shape[1]), _size(shape[2]), _MODES[first], channels_first=True, flat=False)
    raise RefusedRequestError(
        415, f"{spec.name!r} takes no image files: it is {spec.datatype} of shape {list(spec.shape)}; send a tensor"
    )


def _size(axis: int) -> int | None:
    return axis if axis > 0 else None


def _decoded(data: bytes, form: str, wanted: _Form, name: str, max_pixels: int) -> NDArray[Any]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=[form]) as image:
            if image.width * image.height > max_pixels:
                raise RefusedRequestError(
                    413, f"{name} has {image.width} x {image.height} pixels; expected at most {max_pixels} pixels"
                )
            pixels = np.asarray(_scaled(image, wanted))
    except RefusedRequestError:
        raise
    except Image.DecompressionBombError as error:
        raise RefusedRequestError(413, f"{name} has too many pixels; expected at most {max_pixels}") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise RefusedRequestError(400, f"{name} cannot be read; expected a {form} file ({str(error)[:80]})") from error
    if not wanted.flat and pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return np.moveaxis(pixels, 2, 0) if wanted.channels_first else pixels


def _scaled(image: Image, wanted: _Form) -> Image:
    size = (wanted.width or image.width, wanted.height or image.height)
    image.draft(wanted.mode, size)  # lets JPEG skip detail that would be scaled away
    converted = image if image.mode == wanted.mode else image.convert(wanted.mode)
    return converted if converted.size == size else converted.resize(size, _bilinear())


def _bilinear() -> Any:
    from PIL.Image import Resampling

    return Resampling.BILINEAR
