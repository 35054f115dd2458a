# SPDX-License-Identifier: Apache-2.0
"""How a sample is shown to a person: as an image, a sound, a text, curves, or a table."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DatasetError, WireError
from ...lib.sample_coding import decode_sample

__all__ = ["Shown", "shown"]

Kind = Literal["image", "audio", "text", "series", "table"]

_MOST_BYTES = 64 << 20
_MOST_TEXT, _MOST_ROWS, _MOST_COLUMNS, _MOST_POINTS, _MOST_CURVES = 200_000, 200, 64, 600, 12
_LONG = 32
_SMALLEST_IMAGE = 6


@dataclass(frozen=True)
class Shown:
    """A sample in a form that a browser shows.

    Parameters
    ----------
    kind
        What it is.
    media_type
        Of `body`: an image's or a sound's own, else JSON: `{"text"}`, `{"series": [[…], …]}`, or
        `{"columns", "rows", "more"}`.
    body
        The bytes.
    """

    kind: Kind
    media_type: str
    body: bytes


def shown(content: bytes, media_type: str) -> Shown:
    """Return a sample as it is shown.

    Parameters
    ----------
    content, media_type
        See `lib/sample_coding.py`.

    Raises
    ------
    DatasetError
        If it is damaged, or of a form that nobody can look at.
    """
    name = media_type.partition(";")[0].strip()
    if name.startswith("image/"):
        return Shown("image", name, content)
    if name.startswith("audio/"):
        return Shown("audio", name, content)
    try:
        value = decode_sample(content, media_type, most_bytes=_MOST_BYTES)
    except WireError as error:
        raise DatasetError(f"the sample cannot be shown: {error}") from error
    if isinstance(value, str):
        return _json("text", {"text": value[:_MOST_TEXT]})
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _of_array(np.squeeze(value) if value.ndim > 2 and value.shape[0] == 1 else value)
    return _json("table", _table_of_value(value))


def _of_array(array: NDArray[Any]) -> Shown:
    curves = array.ndim == 2 and array.shape[0] > _LONG and array.shape[1] <= _MOST_CURVES
    channels = array.shape[-1] if array.ndim == 3 else 1
    if not curves and array.ndim in (2, 3) and channels in (1, 3, 4) and min(array.shape[:2]) >= _SMALLEST_IMAGE:
        return Shown("image", "image/png", _png(array))
    if array.ndim == 1 and len(array) > _LONG:
        return _series(array[:, None])
    if curves:
        return _series(array)
    if array.ndim <= 1:
        # Down the page, where a phone has room for it.
        return _json("table", _table_of_value([_short(each) for each in array.reshape(-1).tolist()]))
    return _json("table", _table(array.reshape(len(array), -1)))


def _png(array: NDArray[Any]) -> bytes:
    from PIL import Image

    pixels = np.nan_to_num(array.astype(np.float64))
    if array.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        # Shares of white as they are; anything else is stretched over the whole range.
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
        pixels = (pixels - low) * (255 / (high - low or 1))
    pixels = pixels.round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def _series(array: NDArray[Any]) -> Shown:
    values = np.nan_to_num(array.astype(np.float64))
    places = np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).round().astype(int)
    curves = [[_short(each) for each in column] for column in values[places].T[:_MOST_CURVES]]
    return _json("series", {"series": curves, "length": len(values)})


def _table(array: NDArray[Any]) -> dict[str, Any]:
    rows, columns = array.shape
    part = array[:_MOST_ROWS, :_MOST_COLUMNS]
    return {
        "columns": [str(number) for number in range(part.shape[1])],
        "rows": [[_short(each) for each in row] for row in part.tolist()],
        "more": rows > _MOST_ROWS or columns > _MOST_COLUMNS,
    }


def _table_of_value(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list | tuple):
        parts = [(str(place), each) for place, each in enumerate(value)]
    else:
        parts = [("value", value)]
    rows = [[str(key), _words(each)] for key, each in parts[:_MOST_ROWS]]
    return {"columns": ["", "value"], "rows": rows, "more": len(parts) > _MOST_ROWS}


def _words(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return np.array2string(value, threshold=50, precision=4)[:2_000]
    return str(value)[:2_000]


def _short(value: Any) -> float | int | None:
    if isinstance(value, bool | int):
        return int(value)
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _json(kind: Kind, value: dict[str, Any]) -> Shown:
    return Shown(kind, "application/json", json.dumps(value).encode())
