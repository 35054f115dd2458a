# SPDX-License-Identifier: Apache-2.0
"""What NumPy and the zip reader raise for damaged files."""

from __future__ import annotations

import zipfile
import zlib
from tokenize import TokenError

__all__ = ["NUMPY_ERRORS"]

NUMPY_ERRORS = (
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
