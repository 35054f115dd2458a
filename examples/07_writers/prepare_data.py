# SPDX-License-Identifier: Apache-2.0
"""Spreads handwritten digits over six edges: three have digits that employees wrote, three those of students.

Each edge has ten writers. It trains on the digits of eight and is evaluated on those of the other two, whom it has
never seen.

`writers.npz` beside this file holds the first thirty writers of each kind in `mnist_writers.npz`, unchanged:

    python prepare_data.py --source mnist_writers.npz --subset writers.npz
"""

import argparse
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
KINDS = {"employees": 0, "students": 4}  # the series of NIST's forms
EDGES, WRITERS, HELD_OUT = 3, 10, 2  # of each kind, and on each edge


def prepare(source: Path, folder: Path) -> None:
    with np.load(source) as file:
        x, y, writer = file["x_train"], file["y_train"], file["writer_train"]
        kind = file["series_train"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, series in KINDS.items():
        for edge in range(EDGES):
            people = np.unique(writer[kind == series])[edge * WRITERS : (edge + 1) * WRITERS]
            for part, those in (("train", people[:-HELD_OUT]), ("eval", people[-HELD_OUT:])):
                rows = (kind == series) & np.isin(writer, those)
                np.savez_compressed(folder / f"{name}-{edge}-{part}.npz", x=x[rows], y=y[rows].astype("int64"))
                print(f"{name}-{edge}-{part}.npz  {rows.sum()} digits of {len(those)} writers")


def shrink(source: Path, target: Path) -> None:
    with np.load(source) as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "writer_train", "series_train")}
    kind, writer = arrays["series_train"], arrays["writer_train"]
    kept = np.zeros(len(writer), bool)
    for series in KINDS.values():
        kept |= (kind == series) & np.isin(writer, np.unique(writer[kind == series])[: EDGES * WRITERS])
    np.savez_compressed(target, **{name: values[kept] for name, values in arrays.items()})
    print(f"{target}  {kept.sum()} digits, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=HERE / "writers.npz", help="digits with their writers")
    parser.add_argument("--subset", type=Path, help="write the writers that are used to this file, and nothing else")
    arguments = parser.parse_args()
    if arguments.subset is not None:
        shrink(arguments.source, arguments.subset)
    else:
        prepare(arguments.source, HERE / "data")
