# SPDX-License-Identifier: Apache-2.0
"""A worker's samples as NumPy arrays, whatever their form and wherever they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from ..core.errors import DatasetError
from ..core.files import local_copy, local_path, shown
from ..core.spec import DatasetSource
from . import context
from .dataset_readers import READERS, Contents, Reading

__all__ = ["LoadedDataset", "Parse", "load_dataset", "load_eval_dataset", "load_train_dataset", "loaded_tasks"]

Array = npt.NDArray[Any]
Parse = Callable[[Array, Array | None], tuple[npt.ArrayLike, npt.ArrayLike | None]]

# Edges that share a process have a script and a thread each.
_loaded_tasks: ContextVar[Mapping[str, Array | None]] = ContextVar("solar_corona_loaded_tasks", default={})  # noqa: B039

_ENDINGS = {".csv": "csv", ".npy": "npy", ".npz": "npz", ".parquet": "parquet", ".pq": "parquet"}


class LoadedDataset(tuple[Array, Array | None]):
    """The pair `(x, y)`, which also knows the names of its classes.

    Parameters
    ----------
    x
        Features, one sample a row.
    y
        Labels, as many as samples; None where there are none.
    class_names
        Names of the classes: a label 2 is `class_names[2]`. Empty where labels are plain numbers.
    tasks
        Which task each sample is of, where the job names such an attribute of the data; else None.
    """

    class_names: tuple[str, ...]
    tasks: Array | None

    def __new__(
        cls, x: Array, y: Array | None, class_names: tuple[str, ...] = (), tasks: Array | None = None
    ) -> LoadedDataset:
        """Make the pair; see the class."""
        pair = super().__new__(cls, (x, y))
        pair.class_names, pair.tasks = class_names, tasks
        return pair

    @property
    def x(self) -> Array:
        """Features."""
        return self[0]

    @property
    def y(self) -> Array | None:
        """Labels."""
        return self[1]


def load_train_dataset(parse: Parse | None = None, *, classes: Sequence[str] | None = None) -> LoadedDataset:
    """Return `(x, y)`, the samples that this worker trains on: the edge's `trainData`.

    Parameters and results are those of `load_dataset`.

    Raises
    ------
    DatasetError
        If there is no job around the script, or the data cannot be used.
    """
    return _load_of_job("trainData", parse, classes)


def load_eval_dataset(parse: Parse | None = None, *, classes: Sequence[str] | None = None) -> LoadedDataset:
    """Return `(x, y)`, the samples that this worker evaluates on: the edge's `evalData`.

    Parameters and results are those of `load_dataset`.

    Raises
    ------
    DatasetError
        If there is no job around the script, the edge has no `evalData`, or the data cannot be used.
    """
    return _load_of_job("evalData", parse, classes)


def load_dataset(
    source: str | os.PathLike[str] | DatasetSource,
    parse: Parse | None = None,
    *,
    classes: Sequence[str] | None = None,
) -> LoadedDataset:
    r"""Return `(x, y)`, the samples at a path or URL.

    ============ ============================================= ===========================================
    form         what is read                                  what is returned
    ============ ============================================= ===========================================
    npz          arrays `x` and `y`, or as the source names    the arrays as they are
                 them; or `x_train` and `y_train`, or
                 `x_test` and `y_test`, if there are no others
    npy          one array                                     it, and None for labels
    csv, parquet columns with a header: features `x`, by       float32 of shape (n, columns); labels int64
                 default all others; label `y`, by default     for whole numbers and words, float32 for
                 the last                                      other numbers
    images       a folder with a sub-folder for each class;    uint8 of shape (n, height, width, 3), RGB;
                 other files are passed over                   labels int64: places of the sorted names
    ============ ============================================= ===========================================

    Labels that are words become numbers; the result's `class_names` has the words. A dataset without a
    sample is returned as arrays of length 0.

    Parameters
    ----------
    source
        A path, a URL that fsspec opens (`file://`, `memory://`, `https://`, `s3://`), or a full source with
        the form and the names. Without a form, the name's ending tells it; a folder is one of images.
    parse
        Called once with the whole `(x, y)`; what it returns is taken instead.
    classes
        Names of the classes, in the order of their codes. Give them where edges hold different classes: else
        each edge numbers only those that it has, and the same number means different things.

    Raises
    ------
    DatasetError
        If the data is missing, damaged, or not of the form that was expected.
    TemporaryError
        If a server cannot be reached.
    PlatformError
        If the disk has no room for a copy of remote data.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp(), "two.csv")
    >>> _ = path.write_text("height,width,kind\n1,2,dog\n3,4,cat\n")
    >>> samples = load_dataset(path)
    >>> x, y = samples
    >>> x.tolist(), y.tolist(), samples.class_names
    ([[1.0, 2.0], [3.0, 4.0]], [1, 0], ('cat', 'dog'))
    """
    if not isinstance(source, DatasetSource):
        source = DatasetSource(path=os.fspath(source))
    return _load(source, "", parse, classes)


def _load_of_job(field: str, parse: Parse | None, classes: Sequence[str] | None) -> LoadedDataset:
    document = context.current()
    which = "train" if field == "trainData" else "eval"
    if document is None:
        raise DatasetError(
            f"load_{which}_dataset() asks the job for its {field}, but the script runs alone; start it with "
            f"`solar-corona run JOB.yaml`, or use load_dataset(path)"
        )
    source = document.train_data if field == "trainData" else document.eval_data
    if source is None:
        where = f"edge {document.worker!r}" if document.role == "edge" else f"the {document.role}"
        raise DatasetError(
            f"job {document.job!r}: {where} has no {field}; "
            + (f"add {field}: PATH to the edge in spec.edges" if document.role == "edge" else "only edges have data")
        )
    loaded = _load(source, f"{field}.", parse, classes, document.tasks.task_attribute)
    _loaded_tasks.set({**_loaded_tasks.get(), field: loaded.tasks})
    return loaded


def loaded_tasks(field: str) -> Array | None:
    """Return each sample's task as the worker's data of `field` said when it was last loaded, or None."""
    return _loaded_tasks.get().get(field)


def _load(
    source: DatasetSource,
    field: str,
    parse: Parse | None,
    classes: Sequence[str] | None,
    task_attribute: str | None = None,
) -> LoadedDataset:
    name = shown(source.path)
    form = source.format or _form_of(source.path, field)
    try:
        with local_copy(source.path, folder=form == "images") as path:
            reading = Reading(
                path=path, name=name, source=source, field=field, classes=classes, task_attribute=task_attribute
            )
            if path.is_dir() and form != "images":
                raise reading.error(f"is a folder, expected a file of the form {form}; set {field}path to a file in it")
            contents = READERS[form](reading)
    except FileNotFoundError as error:
        raise _not_found(source.path, field, error) from error
    except PermissionError as error:
        raise DatasetError(
            f"{name}: may not be read ({error.strerror}); check its rights or the credentials"
        ) from error
    except ImportError as error:
        raise _package_missing(name, error) from error
    return _checked(name, contents, parse)


def _form_of(path: str, field: str) -> str:
    here = local_path(path)
    if here is not None and here.is_dir():
        return "images"
    name = str(here) if here is not None else urlsplit(path).path
    form = _ENDINGS.get(PurePosixPath(name).suffix.lower())
    if form is not None:
        return form
    if here is None and name.endswith("/"):
        return "images"
    if here is not None and not here.exists():
        raise _not_found(path, field, None)
    raise DatasetError(
        f"{shown(path)}: the name's ending does not tell the form, expected {', '.join(sorted(_ENDINGS))} "
        f"or a folder of images; set {field}format"
    )


def _not_found(path: str, field: str, error: OSError | None) -> DatasetError:
    name = shown(path)
    here = local_path(path)
    if here is None:
        why = f" ({error.strerror})" if error is not None and error.strerror else ""
        return DatasetError(f"{name}: there is no such file{why}; check {field}path")
    if not here.parent.is_dir():
        return DatasetError(f"{name}: there is no such file, nor the folder {here.parent}; check {field}path")
    try:
        near = get_close_matches(here.name, [entry.name for entry in here.parent.iterdir()], n=3)
    except OSError:
        near = []
    beside = f"; in {here.parent} there is {', '.join(near)}" if near else ""
    return DatasetError(f"{name}: there is no such file{beside}; check {field}path")


def _package_missing(name: str, error: ImportError) -> DatasetError:
    if name.startswith(("s3:", "s3a:")):
        return DatasetError(f"{name}: s3:// needs s3fs ({error}); pip install 'solar-corona[s3]'")
    return DatasetError(f"{name}: a package for this kind of URL is missing ({error}); install it")


def _checked(name: str, contents: Contents, parse: Parse | None) -> LoadedDataset:
    whose, (x, y, class_names, tasks) = name, contents
    if tasks is not None and len(tasks) != len(x):
        raise DatasetError(f"{name}: x has {len(x)} samples and the task attribute {len(tasks)}; expected one for each")
    if parse is not None:
        whose = f"{name}: what parse returned"
        result = cast("object", parse(x, y))
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise DatasetError(f"{whose} is {_described(result)}, expected the pair (x, y); end it with `return x, y`")
        if result[0] is None:
            raise DatasetError(f"{whose} has None for x, expected an array; end it with `return x, y`")
        x = _as_array(whose, result[0])
        y = None if result[1] is None else _as_array(whose, result[1])
    if x.ndim == 0 or (y is not None and y.ndim == 0):
        raise DatasetError(f"{whose}: {'x' if x.ndim == 0 else 'y'} is a single value, expected one row a sample")
    if y is not None and len(x) != len(y):
        raise DatasetError(
            f"{whose}: x has {len(x)} samples and y has {len(y)} labels; expected one label for each sample"
        )
    return LoadedDataset(x, y, class_names, tasks)


def _as_array(whose: str, part: object) -> Array:
    try:
        array = np.asarray(part)
    except ValueError as error:
        raise DatasetError(f"{whose} is no array ({error}); give all samples one shape") from error
    if array.dtype.kind == "O":
        raise DatasetError(
            f"{whose} holds Python objects ({_described(part)}), expected numbers; convert them in parse"
        )
    return array


def _described(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
