# SPDX-License-Identifier: Apache-2.0
"""Splits scikit-learn's digits over four edges by a Dirichlet law, so that each edge has mostly a few of the digits.

All edges are evaluated on the same held-out digits of all classes: what a model is worth outside its own data.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

EDGES, ALPHA, SEED = 4, 0.3, 7


def prepare(folder: Path) -> None:
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x.astype("float32"), y, test_size=0.25, random_state=SEED, stratify=y)
    rng = np.random.default_rng(SEED)
    owner = np.empty(len(y), dtype=int)
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(y == digit))
        shares = rng.dirichlet([ALPHA] * EDGES)
        owner[rows] = np.repeat(np.arange(EDGES), np.diff([0, *np.round(np.cumsum(shares) * len(rows)).astype(int)]))
    folder.mkdir(parents=True, exist_ok=True)
    for edge in range(EDGES):
        np.savez_compressed(folder / f"edge-{edge}.npz", x=x[owner == edge], y=y[owner == edge])
    np.savez_compressed(folder / "eval.npz", x=x_test, y=y_test)


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
