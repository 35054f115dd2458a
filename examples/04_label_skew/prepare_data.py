# SPDX-License-Identifier: Apache-2.0
"""Write `data/edge-N.npz` and `data/eval.npz`: handwritten digits, of which each edge has seen two alone."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

EDGES = 5
DATA = Path(__file__).parent / "data"


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype("float32"), y.astype("int64")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    evaluation, training = order[:397], order[397:]
    digits = rng.permutation(10)

    DATA.mkdir(exist_ok=True)
    np.savez(DATA / "eval.npz", x=x[evaluation], y=y[evaluation])
    print(f"eval.npz    {len(evaluation)} samples of all digits")
    for edge in range(EDGES):
        own = digits[2 * edge : 2 * edge + 2]
        samples = training[np.isin(y[training], own)]
        np.savez(DATA / f"edge-{edge + 1}.npz", x=x[samples], y=y[samples])
        print(f"edge-{edge + 1}.npz  {len(samples)} samples of the digits {min(own)} and {max(own)}")


if __name__ == "__main__":
    main()
