# SPDX-License-Identifier: Apache-2.0
"""A sample as a script hands it to `predict`, as bytes with a media type, and back.

====================  ============================================  ===============================================
media type            what                                          parameters
====================  ============================================  ===============================================
image/png             an image of 8 bits, exact                     `axes=3` where the one channel has an axis
image/jpeg, -/webp    the same, smaller, with some detail lost      the same
audio/wav             sound: samples (x channels), int16 or float   `axes=2` where the one channel has an axis
text/plain            a text in UTF-8
application/x-npy     any other array, or several by name, exact    `kind=mapping` or `tuple` for several arrays
application/json      plain values, such as a list of texts
====================  ============================================  ===============================================

A sample of the type `bytes`, such as an image file that `pre_fun` reads, keeps its bytes: `kind=bytes`. The same
sample always gives the same bytes, for their SHA-256 is its id. A list of numbers comes back as an array.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError, WireError
from .said_once import SaidOnce
from .sound_files import decode_wav, encode_wav

__all__ = ["CodedSample", "Format", "SampleForm", "decode_sample", "encode_sample"]

Format = Literal["auto", "npy", "png", "jpeg", "webp", "wav", "text"]

MOST_BYTES = 256 << 20
_PILLOW: Mapping[str, str] = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LONGEST_SIDE = 16_383  # WebP's own; others carry more
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))

_log = logging.getLogger(__name__)
_said = SaidOnce(_log)


@dataclass(frozen=True, slots=True)
class SampleForm:
    """How samples are written; a job says it under `hardSamples.encode`.

    Parameters
    ----------
    format
        `auto`: png for images of 8 bits, text for text, npy for all else.
    quality
        Of jpeg and webp, 1 to 100.
    rate
        Samples a second of sound, for wav.
    """

    format: Format = "auto"
    quality: int = 90
    rate: int = 16_000

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise ModelError(f"format is {self.format!r}, expected one of {', '.join(get_args(Format))}")
        if not 1 <= self.quality <= 100:
            raise ModelError(f"quality is {self.quality}, expected a whole number from 1 to 100")
        if not 1 <= self.rate <= 1_000_000:
            raise ModelError(f"rate is {self.rate}, expected samples a second, 1 to 1,000,000")


@dataclass(frozen=True, slots=True)
class CodedSample:
    """A sample as bytes, and what they are."""

    content: bytes
    media_type: str


def encode_sample(sample: Any, form: SampleForm | None = None) -> CodedSample:
    """Return a sample as bytes.

    Where the sample does not fit the format that is asked for, such as an image of floats and png, it is written as
    `auto` would, and the log says so once.

    Parameters
    ----------
    sample
        One sample as `predict` gets it: an array of any dtype without objects, a Pillow image, several arrays in a
        mapping or tuple, a text, bytes, or plain values.
    form
        How it is written.

    Raises
    ------
    ModelError
        If it is none of these, or Pillow is needed and missing.
    """
    form = form or SampleForm()
    if isinstance(sample, bytes | bytearray):
        return _of_bytes(bytes(sample))
    if isinstance(sample, str):
        return _of_text(sample)
    if isinstance(sample, Mapping) or (isinstance(sample, tuple) and any(isinstance(v, np.ndarray) for v in sample)):
        return _of_several(sample)
    if isinstance(sample, list | tuple | bool | None):
        return _of_plain(sample)
    array = _array(sample)
    if array.dtype.kind == "O":
        return _of_plain(array.tolist())
    return _of_array(array, form)


def decode_sample(content: bytes, media_type: str, *, most_bytes: int = MOST_BYTES) -> Any:
    """Return the sample that `encode_sample` was given, or for jpeg and webp one that looks like it.

    Parameters
    ----------
    content, media_type
        What `encode_sample` returned, or another process sent.
    most_bytes
        How much memory the sample may take.

    Raises
    ------
    WireError
        If the content is damaged, larger than that, or of a media type that is none of this module's.
    """
    name, parameters = _parsed(media_type)
    if len(content) > most_bytes:
        raise WireError(f"a sample has {len(content)} bytes, expected at most {most_bytes}")
    if parameters.get("kind") == "bytes":
        return content
    try:
        if name.startswith("image/") and name[6:] in _PILLOW:
            return _image(content, _PILLOW[name[6:]], parameters, most_bytes)
        if name == "audio/wav":
            return decode_wav(content, axes=int(parameters.get("axes", 1)))
        if name == "text/plain":
            return content.decode()
        if name == "application/json":
            return json.loads(content)
        if name == "application/x-npy":
            return _several(_npy(content, most_bytes), parameters.get("kind"))
    except WireError:
        raise
    except Exception as error:  # each decoder has errors of its own for damaged contents
        text = " ".join(str(error).split())[:200]
        raise WireError(f"a sample cannot be read as {name}: {type(error).__name__}: {text}") from error
    raise WireError(
        f"a sample's media type is {media_type[:100]!r}; expected one of image/png, image/jpeg, "
        f"image/webp, audio/wav, text/plain, application/json, application/x-npy"
    )


def _parsed(media_type: str) -> tuple[str, dict[str, str]]:
    name, *rest = (part.strip() for part in media_type.lower().split(";"))
    return name, {key: value for key, _, value in (part.partition("=") for part in rest)}


def _array(sample: Any) -> NDArray[Any]:
    if (
        not isinstance(sample, np.ndarray | np.generic | int | float | complex)
        and not hasattr(sample, "__array_interface__")
        and not hasattr(sample, "__array__")
    ):
        raise ModelError(
            f"a sample of the type {type(sample).__name__} cannot be kept; expected an array, an image, a text, "
            f"bytes, or plain values; let pre_fun make something else of what predict is called with"
        )
    return np.asarray(sample, order="C")


def _of_bytes(content: bytes) -> CodedSample:
    for magic, name in _MAGIC:
        if content.startswith(magic):
            return CodedSample(content, f"{name};kind=bytes")
    if content[:4] == b"RIFF" and content[8:12] in (b"WEBP", b"WAVE"):
        return CodedSample(content, f"{'image/webp' if content[8:12] == b'WEBP' else 'audio/wav'};kind=bytes")
    return CodedSample(_npy_of(np.frombuffer(content, np.uint8)), "application/x-npy;kind=octets")


def _of_text(text: str) -> CodedSample:
    try:
        if "\0" not in text:
            return CodedSample(text.encode(), "text/plain")
    except UnicodeEncodeError:
        pass  # half a surrogate pair, which JSON can write
    return _of_plain(text)


def _of_plain(value: Any) -> CodedSample:
    numbers = isinstance(value, list | tuple) and value and not _has_text(value)
    if numbers:
        try:
            return CodedSample(_npy_of(np.asarray(value)), "application/x-npy")
        except ValueError:
            pass  # rows of different lengths
    try:
        return CodedSample(json.dumps(value, separators=(",", ":")).encode(), "application/json")
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"a sample of the type {type(value).__name__} cannot be kept ({error}); expected arrays, texts, bytes or "
            f"plain values"
        ) from error


def _has_text(value: Any) -> bool:
    return any(
        _has_text(each)
        if isinstance(each, list | tuple)
        else not isinstance(each, int | float | np.generic | np.ndarray)
        for each in value
    )


def _of_several(sample: Any) -> CodedSample:
    kind = "mapping" if isinstance(sample, Mapping) else "tuple"
    named = sample.items() if isinstance(sample, Mapping) else ((str(i), value) for i, value in enumerate(sample))
    arrays = {str(name): np.asarray(value, order="C") for name, value in named}
    try:
        record = np.zeros((), [(name, array.dtype, array.shape) for name, array in arrays.items()])
    except (TypeError, ValueError) as error:
        raise ModelError(f"a sample of several arrays cannot be kept ({error}); give each a name of its own") from error
    if record.dtype.hasobject:
        return _of_plain({name: array.tolist() for name, array in arrays.items()})
    for name, array in arrays.items():
        record[name] = array
    return CodedSample(_npy_of(record), f"application/x-npy;kind={kind}")


def _of_array(array: NDArray[Any], form: SampleForm) -> CodedSample:
    wanted = form.format if form.format != "auto" else "png"
    if wanted in _PILLOW:
        pixels = _pixels(array)
        if pixels is not None:
            if wanted == "jpeg" and pixels.ndim == 3:
                pixels = pixels[:, :, :3]  # JPEG has no transparency
            axes = ";axes=3" if array.ndim == 3 and array.shape[2] == 1 else ""
            return CodedSample(_file(pixels, wanted, form.quality), f"image/{wanted}{axes}")
    elif wanted == "wav":
        coded = encode_wav(array, form.rate)
        if coded is not None:
            return CodedSample(coded, "audio/wav;axes=2" if array.ndim == 2 and array.shape[1] == 1 else "audio/wav")
    if form.format not in ("auto", "npy"):
        trouble = f"samples of {array.dtype} {list(array.shape)} cannot be written as {form.format}; they go as npy"
        _said.warn(trouble, trouble)
    return CodedSample(_npy_of(array), "application/x-npy")


def _pixels(array: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return an image of bytes as Pillow takes it; None where the array is none."""
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _MODES)
    if array.dtype != np.uint8 or not fits or not all(1 <= side <= _LONGEST_SIDE for side in array.shape[:2]):
        return None
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ModelError(
            f"to keep images as files Pillow is needed ({error}); pip install pillow, or set "
            f"hardSamples.encode.format to npy"
        ) from error
    return Image


def _file(pixels: NDArray[np.uint8], form: str, quality: int) -> bytes:
    out = io.BytesIO()
    options = {} if form == "png" else {"quality": quality}
    _pillow().fromarray(np.ascontiguousarray(pixels)).save(out, _PILLOW[form], **options)
    return out.getvalue()


def _image(content: bytes, form: str, parameters: Mapping[str, str], most_bytes: int) -> NDArray[np.uint8]:
    image_module = _pillow()
    with image_module.open(io.BytesIO(content), formats=[form]) as image:
        # The header alone was read so far: a small file that grows without measure is not unpacked.
        if image.width * image.height * 4 > most_bytes:
            raise WireError(f"a sample has {image.width} x {image.height} pixels, more than {most_bytes} bytes hold")
        wanted = image if image.mode in _MODES.values() else image.convert("RGB")
        pixels: NDArray[np.uint8] = np.array(wanted)
    return pixels[:, :, None] if parameters.get("axes") == "3" and pixels.ndim == 2 else pixels


def _npy_of(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array, order="C"), allow_pickle=False)
    return out.getvalue()


def _npy(content: bytes, most_bytes: int) -> NDArray[Any]:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file, max_header_size=len(content))
    size = dtype.itemsize
    for side in shape:
        size *= side
    if dtype.hasobject or not 0 <= size <= most_bytes or size != len(content) - file.tell():
        raise WireError(f"a sample's array of {dtype} {list(shape)} is not what follows in {len(content)} bytes")
    file.seek(0)
    found: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False, max_header_size=len(content))
    return found


def _several(array: NDArray[Any], kind: str | None) -> Any:
    if kind == "octets":
        return array.tobytes()
    if kind not in ("mapping", "tuple"):
        return array
    if array.dtype.names is None or array.shape:
        raise WireError("a sample of several arrays is one array without names")
    arrays = {name: np.array(array[name]) for name in array.dtype.names}
    return arrays if kind == "mapping" else tuple(arrays.values())
