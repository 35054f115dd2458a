# SPDX-License-Identifier: Apache-2.0
"""The ClientApp: trains and evaluates on one edge's samples, and says how long that alone took."""

from __future__ import annotations

import time

import keras
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from stock_app import task

app = ClientApp()


def _model(msg: Message, context: Context) -> keras.Model:
    keras.backend.clear_session()
    task.fix_seed(int(context.run_config["seed"]))
    model = task.load_model(context.run_config["model"], learning_rate=float(context.run_config["learning-rate"]))
    model.set_weights(msg.content["arrays"].to_numpy_ndarrays())
    return model


def _samples(context: Context) -> tuple[task.Samples, task.Samples]:
    return task.load_edge(
        context.run_config["data"],
        edge=int(context.node_config["partition-id"]),
        model=context.run_config["model"],
    )


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on this edge's samples."""
    model = _model(msg, context)
    samples, _ = _samples(context)
    server_round = int(msg.content["config"]["server-round"])
    begin = time.perf_counter()
    loss = task.train(
        model,
        samples,
        epochs=int(context.run_config["local-epochs"]),
        batch_size=int(context.run_config["batch-size"]),
        seed=int(context.run_config["seed"]) + 1000 * server_round + int(context.node_config["partition-id"]),
    )
    seconds = time.perf_counter() - begin
    metrics = {"num-examples": len(samples[0]), "train_loss": loss, "seconds": seconds}
    content = RecordDict({"arrays": ArrayRecord(model.get_weights()), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on samples of this edge that it does not train on."""
    model = _model(msg, context)
    _, samples = _samples(context)
    begin = time.perf_counter()
    loss, accuracy = model.evaluate(*samples, verbose=0)
    seconds = time.perf_counter() - begin
    metrics = {
        "num-examples": len(samples[0]),
        "eval_loss": float(loss),
        "eval_acc": float(accuracy),
        "seconds": seconds,
    }
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
