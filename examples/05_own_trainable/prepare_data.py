# SPDX-License-Identifier: Apache-2.0
"""Split scikit-learn's digits over three edges."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

EDGES, SEED = 3, 9
DATA = Path(__file__).parent / "data"


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype("float32"), y.astype("int64")
    order = np.random.default_rng(SEED).permutation(len(y))
    evaluation, training = order[:397], order[397:]

    DATA.mkdir(exist_ok=True)
    np.savez(DATA / "eval.npz", x=x[evaluation], y=y[evaluation])
    for edge, rows in enumerate(np.array_split(training, EDGES)):
        np.savez(DATA / f"edge-{edge}.npz", x=x[rows], y=y[rows])
        print(f"edge-{edge}.npz  {len(rows)} samples")


if __name__ == "__main__":
    main()
