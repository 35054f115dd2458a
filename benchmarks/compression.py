# SPDX-License-Identifier: Apache-2.0
"""How many bytes compression saves, and what it costs: CIFAR-10 on eight unlike edges, each method against float32.

Everything is real but the network: Flower's messages, the round loop, the warm nodes and the codec, with the edges as
threads of this process. All edges share one Keras model, one after the other, because training is not what is measured.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import RecordDict
from rich.console import Console

from solar_corona.core.events import Event, RoundEvaluated, RoundFinished
from solar_corona.core.spec import Compression
from solar_corona.fl_client.model_coding import EdgeCoding
from solar_corona.fl_client.node import Node
from solar_corona.fl_client.warm_node import serve
from solar_corona.fl_server.in_process import InProcessGrid, InProcessLink
from solar_corona.fl_server.mail import Mail, Outgoing
from solar_corona.fl_server.model_coding import ServerCoding
from solar_corona.fl_server.roster import Roster
from solar_corona.fl_server.round_loop import Limits, Progress, RoundLoop
from solar_corona.lib import exchange
from solar_corona.lib.exchange import Instruction, Verb
from solar_corona.lib.flower_objects import identify_as_server
from solar_corona.strategies import FedAvg

from . import _report
from ._data import Images, add_data_option, dirichlet_split, load_cifar10
from ._report import Figure, median
from ._stock_app.stock_app import task

if TYPE_CHECKING:
    from numpy.typing import NDArray

EDGES, ALPHA = 8, 0.3
BATCH, RATE = 32, 0.05
BITS_PER_SECOND = 100e6
MORE = 0.4  # rounds beyond float32's in which a method may reach float32's last accuracy
FLOAT32 = "none"
METHODS = {
    FLOAT32: Compression(),
    "fp16": Compression(method="fp16"),
    "int8": Compression(method="int8"),
    "topk 0.2": Compression(method="topk", fraction=0.2),
    "topk 0.1": Compression(method="topk", fraction=0.1),
    "topk 0.05": Compression(method="topk", fraction=0.05),
}
MODEL = "cnn-cifar10"


@dataclass
class Run:
    """One job: accuracy on the test set after each round, from round 0, and bytes of each round, both directions."""

    accuracies: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)

    def bytes_until(self, accuracy: float) -> int | None:
        """Return the bytes of the rounds up to the first that reaches `accuracy`; None if none does."""
        for number, reached in enumerate(self.accuracies[1 : len(self.bytes) + 1], start=1):
            if reached >= accuracy:
                return sum(self.bytes[:number])
        return None


class Shared:
    """One Keras model for all edges; who uses it puts its weights in first."""

    def __init__(self, images: Images) -> None:
        self.lock = Lock()
        self.model = task.load_model(MODEL, learning_rate=RATE)
        self.test = images.x_test.astype(np.float32), images.y_test


class SharedTrainable:
    """One edge's weights and samples, with the shared model."""

    def __init__(
        self, shared: Shared, samples: tuple[NDArray[Any], NDArray[Any]], *, seed: int, weights: list[Any]
    ) -> None:
        self._shared, self.samples = shared, samples
        self._weights = weights
        self._seed = seed

    def get_weights(self) -> list[Any]:
        """Return the edge's own weights."""
        return self._weights

    def set_weights(self, weights: Any) -> None:
        """Take over weights; the shared model gets them when it is this edge's turn."""
        self._weights = [weights[str(i)] for i in range(len(weights))]

    def train(self, config: Any) -> tuple[int, dict[str, float]]:
        """Train one epoch, in an order that the seed, the edge and the round decide alone."""
        x, y = self.samples
        order = np.random.default_rng([self._seed, int(config["server-round"])]).permutation(len(x))
        loss = 0.0
        with self._shared.lock:
            self._shared.model.set_weights(self._weights)
            for start in range(0, len(x) - BATCH + 1, BATCH):
                part = order[start : start + BATCH]
                loss = float(self._shared.model.train_on_batch(x[part].astype(np.float32), y[part])[0])
            self._weights = self._shared.model.get_weights()
        return len(x), {"loss": loss}

    def evaluate(self) -> tuple[int, dict[str, float]]:
        """Return loss and accuracy on the test set."""
        with self._shared.lock:
            self._shared.model.set_weights(self._weights)
            loss, accuracy = self._shared.model.evaluate(*self._shared.test, verbose=0, batch_size=500)
        return len(self._shared.test[0]), {"loss": float(loss), "accuracy": float(accuracy)}


def federate(shared: Shared, trainables: Sequence[SharedTrainable], compression: Compression, rounds: int) -> Run:
    """Run a job in this process and return what its events say; only the first edge evaluates."""
    identify_as_server(1)
    grid, names = InProcessGrid(), [f"edge-{i}" for i in range(len(trainables))]
    nodes = [
        Node(name, trainable, samples=len(trainable.samples[0]), eval_samples=0 if i else len(shared.test[0]))
        for i, (name, trainable) in enumerate(zip(names, trainables, strict=True))
    ]
    threads = [Thread(target=serve, args=(node, InProcessLink(grid)), daemon=True) for node in nodes]
    for thread in threads:
        thread.start()
    found = Run()

    def emit(event: Event) -> None:
        if isinstance(event, RoundFinished):
            found.bytes.append(event.bytes_down + event.bytes_up)
            found.down.append(event.bytes_down)
        elif isinstance(event, RoundEvaluated):
            found.accuracies.append(event.metrics["accuracy"])

    mail = Mail(grid, ttl=3600.0, compression=compression)
    RoundLoop(
        mail,
        Roster(mail, names, algorithm="fedavg"),
        FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1, weighted_by_key="num-examples"),
        limits=Limits(rounds=rounds, min_edges=len(names), round_deadline=1800.0, start_deadline=600.0),
        progress=Progress(),
        emit=emit,
        after_round=lambda _: None,
        on_export=lambda _: None,
    ).run()
    for thread in threads:
        thread.join(60.0)
    return found


def run_seed(shared: Shared, images: Images, seed: int, rounds: int, methods: Sequence[str]) -> dict[str, Run]:
    """Run every method from the same weights on the same parts."""
    task.fix_seed(seed)
    shared.model = task.load_model(MODEL, learning_rate=RATE)
    first = shared.model.get_weights()
    parts = dirichlet_split(images.y_train, edges=EDGES, alpha=ALPHA, seed=seed, min_samples=2 * BATCH)
    runs = {}
    for method in methods:
        trainables = [
            SharedTrainable(
                shared, (images.x_train[part], images.y_train[part]), seed=1000 * seed + i, weights=list(first)
            )
            for i, part in enumerate(parts)
        ]
        # A method that is a little behind at the last round needs a few more for the same accuracy.
        more = 0 if method == FLOAT32 else round(MORE * rounds)
        runs[method] = federate(shared, trainables, METHODS[method], rounds + more)
        total = sum(runs[method].bytes) / 1e6
        text = f"seed {seed} {method}: {total:.1f} MB, " + " ".join(f"{a:.4f}" for a in runs[method].accuracies)
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
    return runs


def coding_seconds(shared: Shared, images: Images, compression: Compression, repeats: int = 20) -> tuple[float, float]:
    """Return how long the coding of one edge's round takes, both ways and at both ends, and float32 on the wire.

    The server codes a new model once for all edges; here one edge bears it all.
    """
    shared.model = task.load_model(MODEL, learning_rate=RATE)
    trainable = SharedTrainable(
        shared, (images.x_train[:640], images.y_train[:640]), seed=1, weights=shared.model.get_weights()
    )
    assert compression.method != "none"
    server, edge, times = ServerCoding(compression.method, compression.fraction), EdgeCoding(), []
    size = sum(value.nbytes for value in trainable.get_weights())
    for number in range(repeats):
        new = RecordDict({"arrays": exchange.to_arrays(trainable.get_weights())})
        trainable.train({"server-round": number})
        trained = RecordDict({"arrays": exchange.to_arrays(trainable.get_weights())})
        begin = time.thread_time()
        [dispatch] = server.dispatch([Outgoing(1, new, Instruction(verb=Verb.TRAIN, round=number))], ())
        assert edge.decode(dispatch.content) is not None
        server.arrived(1, dispatch, edge.encode(trained))
        times.append(time.thread_time() - begin)
    return median(times), 2 * size * 8 / BITS_PER_SECOND


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: 1 2 3)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--train", type=int, default=10_000, help="images to train on (default: %(default)s)")
    parser.add_argument("--test", type=int, default=8_000, help="images to test on (default: %(default)s)")
    parser.add_argument("--quoted", default="int8", choices=list(METHODS), help="method that the figures quote")
    add_data_option(parser)
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    methods = list(dict.fromkeys([FLOAT32, arguments.quoted, *arguments.methods]))
    images = load_cifar10(arguments.data, train=arguments.train, test=arguments.test)
    shared = Shared(images)
    runs = [run_seed(shared, images, seed, arguments.rounds, methods) for seed in arguments.seeds]
    figures = _figures(runs, methods, arguments.quoted)
    for method in methods[1:]:
        seconds, wire = coding_seconds(shared, images, METHODS[method])
        main = method == arguments.quoted
        name = f"coding_time_share{'' if main else _ending(method)}"
        figures.append(Figure(name, seconds / wire, "of 1", 0.1 if main else None, better="low"))
    extra = {"seeds": arguments.seeds, "runs": [{name: asdict(run) for name, run in of.items()} for of in runs]}
    _report.write("compression", figures, extra=extra, picture=_picture(runs[0]))


def _figures(runs: list[dict[str, Run]], methods: list[str], quoted: str) -> list[Figure]:
    figures = []
    for method in [quoted, *(m for m in methods[1:] if m != quoted)]:
        ratios, gaps, totals = [], [], []
        for of in runs:
            whole, run = of[FLOAT32], of[method]
            goal, rounds = whole.accuracies[-1], len(whole.bytes)
            needed = run.bytes_until(goal)
            # Where the accuracy is not reached no number of bytes is enough, which counts as no saving at all.
            ratios.append(sum(whole.bytes) / needed if needed else 0.0)
            totals.append(sum(whole.bytes) / sum(run.bytes[:rounds]))
            gaps.append(100 * (goal - run.accuracies[rounds]))
        main = method == quoted
        end = "" if main else _ending(method)
        figures += [
            Figure(f"byte_ratio{end}", median(ratios), "x", 8.0 if main else None, ratios),
            Figure(f"accuracy_gap{end}", median(gaps), "points", 0.5 if main else None, gaps, better="low"),
            Figure(f"byte_ratio_same_rounds{end}", median(totals), "x", None, totals),
        ]
    return figures


def _ending(method: str) -> str:
    return "_" + method.replace(" ", "_").replace(".", "")


def _picture(runs: dict[str, Run]) -> Callable[[Any], None]:
    def picture(axes: Any) -> None:
        for name, run in runs.items():
            axes.plot(np.cumsum(run.bytes) / 1e6, run.accuracies[1:], label="float32" if name == FLOAT32 else name)
        axes.set_xscale("log")
        axes.set_xlabel("MB on the wire, both directions, all edges")
        axes.set_ylabel("accuracy on the test set")
        axes.legend()

    return picture


if __name__ == "__main__":
    main()
