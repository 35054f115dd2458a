# SPDX-License-Identifier: Apache-2.0
"""One reader for each form of dataset: from a file or folder on this machine to arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.errors import DatasetError
from .numpy_errors import NUMPY_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..core.spec import DatasetSource

__all__ = ["READERS", "Reading", "encode_labels"]

Array = npt.NDArray[Any]
Labels = tuple[Array, tuple[str, ...]]


class Contents(NamedTuple):
    """What a dataset holds: features, labels, the classes' names, and each sample's task where that is asked for."""

    x: Array
    y: Array | None
    class_names: tuple[str, ...]
    tasks: Array | None = None


# Names that arrays go by, in the order in which they are looked for; each pair but the first must be all
# there is.
_PAIRS = (("x", "y"), ("x_train", "y_train"), ("x_test", "y_test"))
# Above this, an array that was packed more than a hundredfold is taken for an attack on the memory; Keras
# draws the same line for its files.
_BOMB_BYTES, _BOMB_RATIO = 4 << 30, 100
_ATTRIBUTE = "tasks.taskAttribute"
_IMAGE_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# What Pillow's decoders raise for damaged files.
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, zlib.error)


@dataclass(frozen=True)
class Reading:
    """What is to be read, and how messages call it.

    Parameters
    ----------
    path
        File or folder on this machine.
    name
        What messages call the path: the user's own words, without secrets.
    source
        What the job says about it.
    field
        What stands before `x`, `y` and `size` in messages: `trainData.`, `evalData.` or nothing.
    classes
        Names of the classes in the order of their codes; None takes the sorted names that occur.
    task_attribute
        Array or column that says which task each sample is of.
    """

    path: Path
    name: str
    source: DatasetSource
    field: str = ""
    classes: Sequence[str] | None = None
    task_attribute: str | None = None

    def error(self, text: str) -> DatasetError:
        """Return an error about this dataset."""
        return DatasetError(f"{self.name}: {text}")

    def no_attribute(self) -> None:
        """Refuse a task attribute in a form of data that cannot have one."""
        if self.task_attribute is not None:
            raise self.error(
                f"tasks.taskAttribute is {self.task_attribute!r}, which only npz, csv and parquet can hold; use one of "
                f"them, or tasks.division"
            )

    def missing(self, what: str, wanted: str, names: Sequence[str], field: str) -> DatasetError:
        """Return an error about a name that is not among `names`."""
        near = get_close_matches(wanted, names, n=1)
        return self.error(
            f"there is no {what} {wanted!r}; "
            + (f"did you mean {near[0]!r}? It" if near else "it")
            + f" has {_listed(names)}; set {self.field}{field} to one of them"
        )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - 12
    return (", ".join(map(str, names[:12])) or "none") + (f" and {rest} more" if rest > 0 else "")


def encode_labels(reading: Reading, y: Array) -> Labels:
    """Return labels as numbers, and the classes' names; words become their places in the sorted names."""
    given = tuple(reading.classes) if reading.classes is not None else None
    if y.dtype.kind not in "US":
        return y, given or ()
    try:
        words, places = np.unique(y.astype(np.str_), return_inverse=True)
    except UnicodeDecodeError as error:
        raise reading.error(f"has labels of bytes that are no ASCII ({error}); save them as text") from error
    names = given if given is not None else tuple(words.tolist())
    unknown = sorted(set(words.tolist()) - set(names))
    if unknown:
        raise reading.error(f"has labels that are not in classes: {_listed(unknown)}; add them to classes=[…]")
    codes = np.fromiter((names.index(word) for word in words.tolist()), np.int64, len(words))
    return codes[places].reshape(y.shape), names


def _numpy_error(reading: Reading, what: str, error: Exception) -> DatasetError:
    if "Object arrays cannot be loaded" in str(error):
        return reading.error(
            f"{what} holds Python objects, which only pickle can read, and a pickle can run any code; save "
            f"numbers or text: np.savez(path, x=np.stack(samples), y=np.asarray(labels))"
        )
    if isinstance(error, MemoryError):
        return reading.error(f"{what} does not fit in memory ({error}); use a smaller part of the data")
    return reading.error(f"{what} is damaged or cut short ({error}); copy or write the file anew")


def _read_npz(reading: Reading) -> Contents:
    if not zipfile.is_zipfile(reading.path):
        raise reading.error("is no .npz file, or is damaged or cut short; write it with np.savez(path, x=x, y=y)")
    try:
        archive = zipfile.ZipFile(reading.path)
    except NUMPY_ERRORS as error:
        raise _numpy_error(reading, "it", error) from error
    with archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        x_name, y_name = _npz_names(reading, list(members))
        x = _read_member(reading, archive, x_name, members[x_name])
        y = _read_member(reading, archive, y_name, members[y_name])
        tasks = None
        if (name := reading.task_attribute) is not None:
            if name not in members:
                raise reading.missing("array", name, list(members), _ATTRIBUTE)
            tasks = _task_values(reading, _read_member(reading, archive, name, members[name]))
    return Contents(x, *encode_labels(reading, y), tasks)


def _task_values(reading: Reading, values: Array) -> Array:
    if values.ndim != 1 or values.dtype.kind not in "iubUS":
        raise reading.error(
            f"{reading.task_attribute!r} holds {values.dtype} of shape {values.shape}, expected one whole number or "
            f"name for each sample; set {_ATTRIBUTE} to an array of that kind"
        )
    return values


def _read_member(reading: Reading, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Array:
    if info.file_size > _BOMB_BYTES and info.file_size > _BOMB_RATIO * info.compress_size:
        raise reading.error(
            f"array {name!r} would grow from {info.compress_size:,} to {info.file_size:,} bytes, which looks "
            f"like an attack on the memory; write it with np.savez, which does not compress"
        )
    try:
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except NUMPY_ERRORS as error:
        raise _numpy_error(reading, f"array {name!r}", error) from error


def _npz_names(reading: Reading, names: list[str]) -> tuple[str, str]:
    x, y = reading.source.x, reading.source.y
    if isinstance(x, list):
        if len(x) != 1:
            raise reading.error(f"{reading.field}x lists {len(x)} names, expected the name of one array")
        x = x[0]
    if x is None and y is None:
        for pair in _PAIRS[1:]:
            if set(names) - {reading.task_attribute} == set(pair):
                return pair
    x, y = x or "x", y or "y"
    for wanted, field in ((x, "x"), (y, "y")):
        if wanted not in names:
            raise reading.missing("array", wanted, names, field)
    return x, y


def _read_npy(reading: Reading) -> Contents:
    if reading.source.x is not None or reading.source.y is not None:
        raise reading.error(
            f"a .npy file holds one array without a name, and {reading.field}x or {reading.field}y is set; "
            f"remove it, or save both with np.savez(path, x=x, y=y)"
        )
    with reading.path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise reading.error("is no .npy file, or is damaged; write it with np.save(path, x)")
    reading.no_attribute()
    try:
        return Contents(np.load(reading.path, allow_pickle=False), None, tuple(reading.classes or ()))
    except NUMPY_ERRORS as error:
        raise _numpy_error(reading, "it", error) from error


def _arrow_missing(error: ImportError) -> DatasetError:
    return DatasetError(f"csv and parquet datasets need pyarrow ({error}); pip install 'solar-corona[data]'")


def _read_csv(reading: Reading) -> Contents:
    try:
        import pyarrow as pa
        import pyarrow.csv as arrow_csv
    except ImportError as error:
        raise _arrow_missing(error) from error
    try:
        with reading.path.open("rb") as file:
            table = arrow_csv.read_csv(file)
    except (pa.ArrowException, OSError) as error:
        raise reading.error(
            f"cannot be read as CSV ({error}); expected a line with the columns' names, then as many "
            f"fields on every line, separated by commas, in UTF-8"
        ) from error
    return _from_table(reading, table)


def _read_parquet(reading: Reading) -> Contents:
    try:
        import pyarrow as pa
        import pyarrow.parquet as arrow_parquet
    except ImportError as error:
        raise _arrow_missing(error) from error
    try:
        with reading.path.open("rb") as file:
            table = arrow_parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise reading.error(f"cannot be read as Parquet ({error}); it may be cut short, write it anew") from error
    return _from_table(reading, table)


def _from_table(reading: Reading, table: Any) -> Contents:
    features, label = _columns(reading, list(table.column_names))
    x = np.empty((table.num_rows, len(features)), np.float32)
    for place, name in enumerate(features):
        x[:, place] = _numbers(reading, name, table.column(name))
    y, classes = _labels(reading, label, table.column(label))
    tasks = None
    if (attribute := reading.task_attribute) is not None:
        codes, words = _labels(replace(reading, classes=None), attribute, table.column(attribute))
        tasks = _task_values(reading, np.asarray(words)[codes] if words else codes)
    return Contents(x, y, classes, tasks)


def _columns(reading: Reading, names: list[str]) -> tuple[list[str], str]:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise reading.error(f"column {twice[0]!r} stands more than once; give each column a name of its own")
    wanted = reading.source.x
    features = [wanted] if isinstance(wanted, str) else wanted
    others = [name for name in names if name != reading.task_attribute]
    label = reading.source.y or (others[-1] if others else "")
    asked = [] if reading.task_attribute is None else [(reading.task_attribute, _ATTRIBUTE)]
    for name, field in (*((name, "x") for name in features or ()), (label, "y"), *asked):
        if name not in names:
            raise reading.missing("column", name, names, field)
    if features is None:
        features = [name for name in others if name != label]
    elif label in features:
        raise reading.error(
            f"column {label!r} is both a feature and the label; set {reading.field}y to the label's "
            f"column, and leave that one out of {reading.field}x"
        )
    return features, label


def _refuse_missing(reading: Reading, name: str, absent: Array) -> None:
    if absent.any():
        raise reading.error(
            f"column {name!r} has {int(absent.sum())} missing value(s), the first in row "
            f"{int(absent.argmax()) + 1}; fill them in, or leave out those rows or the column"
        )


def _numbers(reading: Reading, name: str, column: Any) -> Array:
    import pyarrow as pa

    _refuse_missing(reading, name, column.is_null().to_numpy())
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        if pa.types.is_decimal(kind):
            column = column.cast(pa.float64())
        elif not pa.types.is_null(kind):
            raise reading.error(
                f"column {name!r} holds {kind}{_example(column)}, expected numbers; encode it before, or name only "
                f"the columns with numbers in {reading.field}x"
            )
    values = column.to_numpy()
    if values.dtype.kind == "f":
        _refuse_missing(reading, name, np.isnan(values))
    return np.asarray(values, np.float32)


def _example(column: Any) -> str:
    """Return the first value that is no number, with its row; a column of words may hold numbers as well."""
    for row, value in enumerate(column.to_pylist(), start=1):
        try:
            float(value)
        except (TypeError, ValueError):
            return f", such as {value!r} in row {row}"
    return ""


def _labels(reading: Reading, name: str, column: Any) -> Labels:
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        numbers = _numbers(reading, name, column)
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            # Classes above 2**24 would not survive the way through float32.
            numbers = column.to_numpy()
        whole = numbers.dtype.kind in "iub" or pa.types.is_null(kind)
        return encode_labels(reading, numbers.astype(np.int64) if whole else numbers)
    words = column.to_pylist()
    _refuse_missing(reading, name, np.fromiter((not word for word in words), bool, len(words)))
    return encode_labels(reading, np.asarray(words, dtype=np.str_))


def _read_images(reading: Reading) -> Contents:
    reading.no_attribute()
    if not reading.path.is_dir():
        raise reading.error("is a file, expected a folder with one sub-folder of images for each class")
    found = sorted(entry.name for entry in reading.path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found and any(entry.suffix.lower() in _IMAGE_ENDINGS for entry in reading.path.iterdir()):
        raise reading.error("has images but no sub-folder; put the images of each class in a sub-folder of its name")
    classes = tuple(reading.classes) if reading.classes is not None else tuple(found)
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise reading.error(f"has sub-folders that are not in classes: {_listed(unknown)}; add them to classes=[…]")
    files = [
        (file, classes.index(name))
        for name in found
        for file in sorted((reading.path / name).iterdir())
        if file.suffix.lower() in _IMAGE_ENDINGS and not file.name.startswith(".")
    ]
    size = reading.source.size
    x = np.empty((0, *(size or (0, 0)), 3), np.uint8)
    for number, (file, _) in enumerate(files):
        pixels = _read_image(reading, file, size)
        if number == 0:
            x = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != x.shape[1:]:
            raise reading.error(
                f"{_inside(reading, file)} is {pixels.shape[0]}×{pixels.shape[1]} pixels, and "
                f"{_inside(reading, files[0][0])} is {x.shape[1]}×{x.shape[2]} (height×width); set "
                f"{reading.field}size: [{x.shape[1]}, {x.shape[2]}] to give all images one size"
            )
        x[number] = pixels
    return Contents(x, np.asarray([code for _, code in files], np.int64), classes)


def _inside(reading: Reading, file: Path) -> str:
    return file.relative_to(reading.path).as_posix()


def _read_image(reading: Reading, file: Path, size: tuple[int, int] | None) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise DatasetError(f"images need Pillow ({error}); pip install 'solar-corona[data]'") from error
    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
            if size is not None:
                picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise reading.error(
            f"{_inside(reading, file)} has far more pixels than a photo ({error}); make it smaller or remove it"
        ) from error
    except _IMAGE_ERRORS as error:
        raise reading.error(
            f"{_inside(reading, file)} cannot be read as an image ({error}); replace or remove it"
        ) from error


READERS: dict[str, Callable[[Reading], Contents]] = {
    "csv": _read_csv,
    "images": _read_images,
    "npy": _read_npy,
    "npz": _read_npz,
    "parquet": _read_parquet,
}
