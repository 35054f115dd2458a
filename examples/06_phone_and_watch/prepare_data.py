# SPDX-License-Identifier: Apache-2.0
"""Gives each of eight people an edge with the windows of their phone and their watch.

A person's first four recordings are for training, the others for evaluation: windows overlap in time, so a window of a
recording says much about the next one.

`people.npz` beside this file holds persons 1 to 8 of `har_phone_watch.npz`, unchanged:

    python prepare_data.py --source har_phone_watch.npz --subset people.npz
"""

import argparse
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PEOPLE, RECORDINGS = 8, 4
DEVICES = ("phone", "watch")


def prepare(source: Path, folder: Path) -> None:
    with np.load(source) as file:
        windows = {device: file[f"x_{device}"].astype("float32") for device in DEVICES}
        y, subject, recording = file["y"].astype("int64"), file["subject"], file["execution"]
    folder.mkdir(parents=True, exist_ok=True)
    for person in range(1, PEOPLE + 1):
        first = np.isin(recording, np.unique(recording[subject == person])[:RECORDINGS])
        for part, chosen in (("train", first), ("eval", ~first)):
            rows = (subject == person) & chosen
            np.savez_compressed(
                folder / f"person-{person}-{part}.npz",
                x=np.concatenate([windows[device][rows] for device in DEVICES]),
                y=np.tile(y[rows], len(DEVICES)),
                device=np.repeat(DEVICES, rows.sum()),
            )
            print(f"person-{person}-{part}.npz  {rows.sum()} windows of each device")


def shrink(source: Path, target: Path) -> None:
    with np.load(source) as file:
        kept = file["subject"] <= PEOPLE
        arrays = {name: file[name][kept] for name in ("x_phone", "x_watch", "y", "subject", "execution", "start")}
        names = {name: file[name] for name in ("class_names", "channel_names")}
    np.savez_compressed(target, **arrays, **names)
    print(f"{target}  {kept.sum()} windows of each device, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=HERE / "people.npz", help="windows with their persons")
    parser.add_argument("--subset", type=Path, help="write the people that are used to this file, and nothing else")
    arguments = parser.parse_args()
    if arguments.subset is not None:
        shrink(arguments.source, arguments.subset)
    else:
        prepare(arguments.source, HERE / "data")
