# SPDX-License-Identifier: Apache-2.0
"""`make demo`: prepares the data of this example and runs its job."""

import sys
from pathlib import Path

from prepare_data import prepare

from solar_corona.cli import main

here = Path(__file__).resolve().parent
try:
    job = here.relative_to(Path.cwd()) / "job.yaml"
except ValueError:
    job = here / "job.yaml"

prepare(here / "data")
print("Four edges, each with mostly a few of the ten digits, train one model. No digit leaves its edge.\n")
sys.argv = ["solar-corona", "run", str(job), *sys.argv[1:]]
main()
