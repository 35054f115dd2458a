# SPDX-License-Identifier: Apache-2.0
"""`make demo`: prepares the data of this example and runs its job."""

import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    from prepare_data import prepare

    from solar_corona import cli

    try:
        job = HERE.relative_to(Path.cwd()) / "job.yaml"
    except ValueError:
        job = HERE / "job.yaml"
    prepare(HERE / "data")
    print("Four edges, each with mostly a few of the ten digits, train one model. No digit leaves its edge.\n")
    sys.argv = ["solar-corona", "run", str(job), *sys.argv[1:]]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on the command ends what it started
    cli.main()


# Ctrl-C while the libraries load: nothing has been started yet, and no traceback is of use.
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
main()
