# SPDX-License-Identifier: Apache-2.0
"""What `solar-corona calibrate` does: both models on labelled data, the trade-off, a promise beside the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ..core.errors import DatasetError, ModelError, PlatformError
from ..core.files import atomic_write, sha256_of
from ..lib.endpoints.endpoint import Endpoint
from ..lib.endpoints.opening import open_endpoint
from ..lib.runners.opening import open_runner
from ..lib.runners.runner import Runner
from ..lib.scores import Scores, class_scores
from .calibrated import Calibrated, calibration_file
from .curves import accuracy_curve, area_under_curve, oracle_hardness
from .deep_model import DeepModel
from .margin import Margin
from .samples import given
from .uploads import UploadForm

__all__ = ["Measured", "calibrate", "measure", "plot_tradeoff", "print_tradeoff"]

_BATCH = 32
_DEADLINE = 60.0
_Bools = NDArray[np.bool_]
_SHOWN = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Measured:
    """Both models on n labelled samples: the shallow one's scores, and who was right."""

    scores: Sequence[Scores]
    shallow_right: NDArray[np.bool_]
    deep_right: NDArray[np.bool_]

    @property
    def hardness(self) -> NDArray[np.float64]:
        """1 − margin of each sample."""
        margin = Margin(threshold=0.0)
        return np.array([1 - margin.confidence(each) for each in self.scores])


def measure(
    shallow: Runner,
    deep: Runner | DeepModel,
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    pre_fun: Callable[[Any], Any] | None = None,
) -> Measured:
    """Run both models on labelled samples.

    Parameters
    ----------
    shallow, deep
        The models; both end with class probabilities or logits.
    x, y
        Samples n x …, and their classes: n whole numbers, or n x K one-hot rows.
    pre_fun
        What `load_model` would get, called with each sample.

    Raises
    ------
    DatasetError
        If there are no samples, or their labels are no classes of the shallow model.
    ModelError
        If a model takes no such samples, or is no classifier, or the two do not tell the same classes apart.
    """
    truth = _classes(x, y)
    scores, shallow_right, deep_right = list[Scores](), list[_Bools](), list[_Bools]()
    for begin in range(0, len(x), _BATCH):
        samples = list(x[begin : begin + _BATCH])
        prepared = [np.asarray(sample if pre_fun is None else pre_fun(sample)) for sample in samples]
        batch = given(np.stack(prepared), np.stack(prepared), shallow.inputs)
        classes = truth[begin : begin + _BATCH]
        vectors = _vectors(shallow.run(batch.inputs), "shallow")
        if classes.max() >= (count := max(2, vectors.shape[1])):
            raise DatasetError(f"a label is {classes.max()}, and the shallow model has {count} classes, counted from 0")
        scores += [class_scores(vector) for vector in vectors]
        shallow_right.append(_predicted(vectors) == classes)
        if isinstance(deep, DeepModel):
            outputs = deep.ask(samples, batch.inputs, alike=[]).outputs
        else:
            outputs = deep.run(given(np.stack(samples), np.stack(samples), deep.inputs).inputs)
        theirs = _vectors(outputs, "deep")
        if theirs.shape != vectors.shape:
            raise ModelError(
                f"the deep model tells {theirs.shape[1]} classes apart, and the shallow one {vectors.shape[1]}; the "
                f"answers of one have to be able to take the other's place"
            )
        deep_right.append(_predicted(theirs) == classes)
    return Measured(scores, np.concatenate(shallow_right), np.concatenate(deep_right))


def _classes(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    truth = y.argmax(1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)
    if not len(x) or len(truth) != len(x) or truth.dtype.kind not in "biuf":
        raise DatasetError(f"labels are {y.dtype} of shape {list(y.shape)} for {len(x)} samples; expected a class each")
    with np.errstate(invalid="ignore"):
        whole = truth.astype(np.int64)
    wrong = truth[(whole != truth) | (whole < 0)]
    if len(wrong):
        raise DatasetError(f"a label is {wrong[0]}, which is no class; expected whole numbers from 0")
    return whole


def _vectors(outputs: dict[str, NDArray[Any]], whose: str) -> NDArray[Any]:
    vectors = next(iter(outputs.values()))
    if len(outputs) != 1 or vectors.ndim != 2:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
        raise ModelError(
            f"only classifiers can be calibrated, and the model gives {shapes}; expected samples x classes"
        )
    if not np.isfinite(vectors).all():
        raise ModelError(f"the {whose} model answers with values that are no numbers; look at the samples, and at it")
    return vectors


def _predicted(vectors: NDArray[Any]) -> NDArray[np.int64]:
    if vectors.shape[1] == 1:
        return np.array([class_scores(row).values.argmax() for row in vectors], np.int64)
    found: NDArray[np.int64] = vectors.argmax(1)
    return found


def calibrate(
    model: Path,
    big_model: str,
    x: NDArray[Any],
    y: NDArray[Any],
    promise: Calibrated,
    *,
    pre_fun: Callable[[Any], Any] | None = None,
) -> Measured:
    """Measure both models, learn the promise's threshold, and keep it beside the shallow model.

    Parameters
    ----------
    model
        The shallow model, on this machine.
    big_model
        The deep model: a path, or the URL of a model that is served.
    promise
        What to promise; it is fitted in place.

    Raises
    ------
    ModelError
        If the data cannot support the promise, or a model cannot be used.
    """
    shallow, deep = open_runner(model), _deep(big_model)
    measured = measure(shallow, deep, x, y, pre_fun=pre_fun)
    promise.fit(measured.scores, measured.shallow_right, measured.deep_right)
    promise.save(calibration_file(model), model_sha256=sha256_of(model))
    return measured


def _deep(big_model: str) -> Runner | DeepModel:
    if big_model.startswith(("http://", "https://")):
        endpoint: Endpoint = open_endpoint(big_model)
        return DeepModel(endpoint, deadline=_DEADLINE, form=UploadForm("raw"))
    return open_runner(big_model)


def print_tradeoff(measured: Measured, promise: Calibrated, console: Console) -> None:
    """Print accuracy at several shares of uploads, and the promise."""
    curves = _curves(measured)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("uploads", *curves):
        table.add_column(name, justify="right")
    count = len(measured.scores)
    for share in _SHOWN:
        table.add_row(f"{share:.0%}", *(f"{curve[round(share * count)]:.2%}" for curve in curves.values()))
    console.print(table)
    found = promise.calibration
    console.print(
        f"promise: {found.says} at 95 %{', exact' if found.exact else ', for many samples'}\n"
        f"margin below {found.threshold:.4f} is uploaded: {found.uploads:.1%} of {found.samples:,} samples",
        highlight=False,
    )


def _curves(measured: Measured) -> dict[str, NDArray[np.float64]]:
    shallow, deep = measured.shallow_right, measured.deep_right
    share = np.linspace(0, 1, len(shallow) + 1)
    return {
        "random": shallow.mean() + share * (deep.mean() - shallow.mean()),
        "margin": accuracy_curve(measured.hardness, shallow, deep),
        "best possible": accuracy_curve(oracle_hardness(shallow, deep), shallow, deep),
    }


def plot_tradeoff(measured: Measured, promise: Calibrated, path: Path) -> None:
    """Draw the whole trade-off as a picture, `.svg` or `.png`.

    Raises
    ------
    PlatformError
        If matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlatformError(f"a picture needs matplotlib ({error}); pip install 'solar-corona[calibrate]'") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    share = 100 * np.linspace(0, 1, len(measured.scores) + 1)
    for (name, curve), colour in zip(_curves(measured).items(), ("#a89c8c", "#e8710a", "#1f1b16"), strict=True):
        axes.plot(share, 100 * curve, label=name, color=colour)
    found = promise.calibration
    axes.axvline(100 * found.uploads, color="#1a6b3c", linestyle="--", label=found.says)
    axes.set_xlabel("samples uploaded, %")
    axes.set_ylabel("accuracy, %")
    area = area_under_curve(measured.hardness, measured.shallow_right, measured.deep_right)
    axes.set_title(f"margin: area {area:.4f}, {found.samples:,} samples", fontsize=10)
    axes.legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
