# SPDX-License-Identifier: Apache-2.0
"""What a model takes and gives: names, dtypes and shapes of its tensors, in the Open Inference Protocol's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DATATYPES", "TensorSpec", "Tensors", "datatype_of"]

Tensors = Mapping[str, NDArray[Any]]
"""Tensors by name."""

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""The protocol's name of each dtype; BYTES are arrays of `bytes` objects."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return the protocol's name of a dtype; text and bytes are BYTES.

    Raises
    ------
    ValueError
        If the protocol has none.

    Examples
    --------
    >>> datatype_of(np.dtype("float32")), datatype_of(np.dtype("S3"))
    ('FP32', 'BYTES')
    """
    name = _NAMES.get(dtype)
    if name is not None:
        return name
    if dtype.kind in "SUO":
        return "BYTES"
    name = _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        raise ValueError(f"a tensor of {dtype} cannot be sent; expected one of {', '.join(DATATYPES)}")
    return name


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Parameters
    ----------
    name
        Its name.
    datatype
        A key of `DATATYPES`.
    shape
        Length of each axis; -1 where it varies, as the batch axis does.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of its arrays."""
        return DATATYPES[self.datatype]

    def problem_with(self, value: NDArray[Any]) -> str | None:
        """Say why an array does not fit, or None if it does.

        Examples
        --------
        >>> TensorSpec("image", "UINT8", (-1, 28, 28)).problem_with(np.zeros((1, 28, 27), np.uint8))
        "'image' has shape [1, 28, 27], expected [-1, 28, 28]"
        """
        if datatype_of(value.dtype) != self.datatype:
            return f"{self.name!r} is {datatype_of(value.dtype)}, expected {self.datatype}"
        fits = len(value.shape) == len(self.shape)
        for want, has in zip(self.shape, value.shape, strict=False):
            fits = fits and (want in (has, -1))
        return None if fits else f"{self.name!r} has shape {list(value.shape)}, expected {list(self.shape)}"
