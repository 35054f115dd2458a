# SPDX-License-Identifier: Apache-2.0
"""Public data sets, and how they are spread over edges so that each edge sees other classes."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "DEFAULT_DATA",
    "Images",
    "add_data_option",
    "dirichlet_split",
    "load_cifar10",
    "load_fashion_mnist",
    "open_data",
    "write_shards",
]

_ROOT = Path(__file__).parents[1]
DEFAULT_DATA = _ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Images:
    """Images (uint8, `n x height x width x channels`) and labels (int64, `n`), to train on and to test on."""

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the option `--data`."""
    parser.add_argument(
        "--data",
        type=Path,
        default=DEFAULT_DATA,
        metavar="FOLDER",
        help="folder with cifar10_jpeg.npz and fashion_mnist.npz"
        " (default: ../shared/data, seen from the root of the repository)",
    )


def open_data(folder: Path, name: str) -> Path:
    """Return the path of a data file; end with what to do if it is not there."""
    path = folder / name
    if not path.is_file():
        raise SystemExit(
            f"{path} does not exist, and this benchmark trains on it; "
            f"name the folder that holds {name}: --data FOLDER (its arrays: see benchmarks/_data.py)"
        )
    return path


def load_fashion_mnist(folder: Path = DEFAULT_DATA, *, train: int = 20_000, test: int = 10_000) -> Images:
    """Return the first `train` and `test` images of Fashion-MNIST (28x28 grey, one channel).

    Reads `x_train`, `y_train`, `x_test` and `y_test` of `fashion_mnist.npz`.

    Raises
    ------
    SystemExit
        If the file is not there.
    """
    with np.load(open_data(folder, "fashion_mnist.npz"), allow_pickle=False) as file:
        return Images(
            x_train=file["x_train"][:train, ..., None],
            y_train=file["y_train"][:train].astype(np.int64),
            x_test=file["x_test"][:test, ..., None],
            y_test=file["y_test"][:test].astype(np.int64),
        )


def load_cifar10(folder: Path = DEFAULT_DATA, *, train: int = 10_000, test: int = 2_000) -> Images:
    """Return the first `train` and `test` images of CIFAR-10 (32x32 RGB), class-balanced for multiples of 10.

    Reads `{train,test}_jpeg` (all JPEG files, one after the other), `{train,test}_offsets` and
    `{train,test}_labels` of `cifar10_jpeg.npz`, about 5,000 images a second.

    Raises
    ------
    SystemExit
        If the file is not there.
    """
    with np.load(open_data(folder, "cifar10_jpeg.npz"), allow_pickle=False) as file:
        return Images(
            x_train=_decode(file["train_jpeg"], file["train_offsets"], train),
            y_train=file["train_labels"][:train].astype(np.int64),
            x_test=_decode(file["test_jpeg"], file["test_offsets"], test),
            y_test=file["test_labels"][:test].astype(np.int64),
        )


def _decode(jpeg: NDArray[np.uint8], offsets: NDArray[np.int32], count: int) -> NDArray[np.uint8]:
    from PIL import Image

    bounds = offsets[: count + 1]
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(jpeg[begin:end].tobytes())).convert("RGB"))
            for begin, end in itertools.pairwise(bounds)
        ]
    )


def dirichlet_split(
    labels: NDArray[np.integer],
    *,
    edges: int,
    alpha: float,
    seed: int,
    min_samples: int = 10,
) -> list[NDArray[np.int64]]:
    """Divide samples over edges, each class in proportions drawn from a Dirichlet distribution.

    The usual label skew of the field (Hsu et al., 2019, arXiv:1909.06335): the smaller `alpha`, the fewer
    classes an edge sees. It draws again until each edge has `min_samples`.

    Parameters
    ----------
    labels
        Class of each sample, shape `(n,)`.
    edges
        How many parts.
    alpha
        Concentration of the Dirichlet distribution.
    seed
        The same seed gives the same parts.
    min_samples
        The fewest samples an edge may get.

    Returns
    -------
    list of arrays
        Indices of each edge's samples, in a random order; each sample is in exactly one part.

    Raises
    ------
    ValueError
        If no draw of 1,000 gives each edge `min_samples`.

    Examples
    --------
    >>> parts = dirichlet_split(np.arange(100) % 10, edges=4, alpha=0.3, seed=1)
    >>> sorted(np.concatenate(parts).tolist()) == list(range(100))
    True
    """
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(edges)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(edges, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(members)).astype(int)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        joined = [np.concatenate(part) for part in parts]
        if min(len(part) for part in joined) >= min_samples:
            return [rng.permutation(part) for part in joined]
    raise ValueError(
        f"no draw gave each of {edges} edges {min_samples} of {len(labels)} samples at alpha={alpha}; "
        "use fewer edges, a larger alpha or a smaller min_samples"
    )


def write_shards(folder: Path, images: Images, parts: Sequence[NDArray[np.int64]], *, holdout: float = 0.2) -> Path:
    """Write each edge's samples to `edge_<i>.npz` and the global test set to `test.npz`, decoded.

    Both sides of a comparison read these files, so that none pays for decoding.

    Parameters
    ----------
    folder
        Where to write; made if it is not there.
    images
        The data set.
    parts
        Indices of each edge's training samples.
    holdout
        Share of an edge's samples that it keeps for its own evaluation (`x_eval`, `y_eval`).

    Returns
    -------
    Path
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index, part in enumerate(parts):
        cut = len(part) - max(1, round(len(part) * holdout))
        train, rest = part[:cut], part[cut:]
        np.savez(
            folder / f"edge_{index}.npz",
            x_train=images.x_train[train],
            y_train=images.y_train[train],
            x_eval=images.x_train[rest],
            y_eval=images.y_train[rest],
        )
    np.savez(folder / "test.npz", x=images.x_test, y=images.y_test)
    return folder
