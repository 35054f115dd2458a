# SPDX-License-Identifier: Apache-2.0
"""The second half of `make demo`: runs this example's job, and draws how its model got bad and was repaired."""

import csv
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BARS, COLUMNS = "▁▂▃▄▅▆▇█", 60


def curve(path):
    """Return when, which version answered, and the share of right answers among the latest 100."""
    with path.open() as file:
        return [(float(at), model, float(right)) for at, _, model, right in csv.reader(file)]


def bar(points, begin, end):
    """Return one line of bars, and one of the versions that answered."""
    bars, versions, before = "", "", ""
    for column in range(COLUMNS):
        upto = begin + (end - begin) * (column + 1) / COLUMNS
        past = [point for point in points if point[0] <= upto]
        _, model, right = past[-1] if past else (0, "", 0.0)
        bars += BARS[min(int(right * len(BARS)), len(BARS) - 1)] if past else " "
        versions += " " if model == before else "^"
        before = model
    return bars, versions


def tell(curves):
    begin = min(points[0][0] for points in curves.values())
    end = max(points[-1][0] for points in curves.values())
    print(f"\nRight answers over {end - begin:.0f} s, the latest 100 forms at each time; ^ marks another version:\n")
    for desk, points in curves.items():
        bars, versions = bar(points, begin, end)
        worst = min(points[len(points) // 8 :], key=lambda point: point[2])
        print(f"  {desk}  {bars}  {points[0][2]:.0%} → {worst[2]:.0%} → {points[-1][2]:.0%}")
        print(f"  {' ' * len(desk)}  {versions}")


def main():
    from prepare_data import prepare

    print("\nTwo desks read digits from forms. From the 100th on, the forms lie on their side.")
    print("Clerks correct what was read; the loop finds the drift, trains, tests, tries one desk, and goes on.\n")
    prepare(HERE / "data")
    done = subprocess.run(
        [sys.executable, "-m", "solar_corona.cli", "run", str(HERE / "job.yaml"), *sys.argv[1:]], check=False
    )
    curves = {path.stem: curve(path) for path in sorted((HERE / "data").glob("desk-*.csv"))}
    if done.returncode == 0 and all(curves.values()):
        tell(curves)
    sys.exit(done.returncode)


if __name__ == "__main__":
    # TensorFlow's start-up chatter would hide what is shown.
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
