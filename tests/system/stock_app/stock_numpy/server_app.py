# SPDX-License-Identifier: Apache-2.0
"""The server's half: Flower's own FedAvg, started as Flower's documentation says."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    result = FedAvg().start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=context.run_config["num-server-rounds"]
    )
    print("the average is", result.arrays.to_numpy_ndarrays()[0])
