# SPDX-License-Identifier: Apache-2.0
"""A federation in one thread: real Flower messages, the real round loop, codec and edges; only the network is away."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from solar_corona.core.events import Event
from solar_corona.core.spec import Compression, Tasks
from solar_corona.fl_client.edge_data import EdgeData
from solar_corona.fl_client.model_coding import EdgeCoding
from solar_corona.fl_client.node import Node
from solar_corona.fl_server.mail import Mail
from solar_corona.fl_server.roster import Roster
from solar_corona.fl_server.round_loop import Limits, Progress, RoundLoop
from solar_corona.lib import wire
from solar_corona.lib.flower_objects import identify_as_server

__all__ = ["DirectGrid", "Edge", "Floats", "Mlp", "Run", "simulate"]

Floats = NDArray[np.float32]


class Mlp:
    """A perceptron with one hidden layer in NumPy, trained by plain SGD: small enough for hundreds of runs.

    Parameters
    ----------
    x, y
        Training samples: n x d float32 in 0 to 1, and n classes.
    x_eval, y_eval
        Held-out samples.
    steps, batch, rate
        Local steps in a round, samples in a step, learning rate.
    seed
        Which samples each step takes. They follow from this, the round and how many fits there were since weights
        were set, so that two methods which send the same weights in the same round get the same back: what differs
        between them is not chance.
    """

    round = 0

    def __init__(
        self,
        x: Floats,
        y: NDArray[np.int64],
        x_eval: Floats,
        y_eval: NDArray[np.int64],
        *,
        classes: int = 10,
        hidden: int = 64,
        steps: int = 15,
        batch: int = 32,
        rate: float = 0.1,
        seed: int = 0,
    ) -> None:
        first = np.random.default_rng(12345)  # the same on every edge
        self.weights: dict[str, Floats] = {
            "0/kernel": (first.normal(size=(x.shape[1], hidden)) * np.sqrt(2 / x.shape[1])).astype(np.float32),
            "1/bias": np.zeros(hidden, np.float32),
            "2/kernel": (first.normal(size=(hidden, classes)) * np.sqrt(1 / hidden)).astype(np.float32),
            "3/bias": np.zeros(classes, np.float32),
        }
        self.train_data, self.eval_data = (x, y), (x_eval, y_eval)
        self._steps, self._batch, self._rate = steps, batch, rate
        self._rng = np.random.default_rng(seed)
        self._seed, self._fits = seed, 0
        self._chosen: tuple[Any, Any] = (None, None)

    def get_weights(self) -> Mapping[str, Floats]:
        return self.weights

    def set_weights(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        self.weights = {name: np.array(value, np.float32) for name, value in weights.items()}
        self._fits = 0

    def use_samples(self, train: NDArray[np.int64] | None, evaluate: NDArray[np.int64] | None) -> None:
        self._chosen = train, evaluate

    def evaluate_on_train(self, indices: NDArray[np.int64] | None) -> Mapping[str, float]:
        return self._measure(*_part(self.train_data, indices))

    def train(self, config: Mapping[str, Any]) -> tuple[int, Mapping[str, float]]:  # noqa: ARG002
        x, y = _part(self.train_data, self._chosen[0])
        self._rng = np.random.default_rng([self._seed, self.round, self._fits])
        self._fits += 1
        return len(x), {"loss": self._fit(x, y)}

    def train_weighted(self, weights: NDArray[np.float64]) -> None:
        """Train on all samples, each drawn as often as its weight says."""
        self._fit(*self.train_data, np.cumsum(weights) / weights.sum())

    def probabilities(self, x: Floats, weights: Mapping[str, Any]) -> Floats:
        """Return the probability of each class under some weights: n x classes."""
        self.set_weights(weights)
        return _softmax(self._scores(x))

    def _fit(self, x: Floats, y: NDArray[np.int64], chances: NDArray[np.float64] | None = None) -> float:
        w = self.weights
        loss = 0.0
        for _ in range(self._steps):
            if chances is None:
                rows = self._rng.integers(0, len(x), min(self._batch, len(x)))
            else:
                rows = np.searchsorted(chances, self._rng.random(self._batch)).clip(0, len(x) - 1)
            xb, yb = x[rows], y[rows]
            hidden = np.maximum(xb @ w["0/kernel"] + w["1/bias"], 0)
            p = _softmax(hidden @ w["2/kernel"] + w["3/bias"])
            loss += float(-np.log(p[np.arange(len(yb)), yb] + 1e-9).mean())
            p[np.arange(len(yb)), yb] -= 1
            p *= self._rate / len(yb)
            back = (p @ w["2/kernel"].T) * (hidden > 0)
            w["2/kernel"] -= hidden.T @ p
            w["3/bias"] -= p.sum(0)
            w["0/kernel"] -= xb.T @ back
            w["1/bias"] -= back.sum(0)
        return loss / self._steps

    def _scores(self, x: Floats) -> Floats:
        w = self.weights
        found: Floats = np.maximum(x @ w["0/kernel"] + w["1/bias"], 0) @ w["2/kernel"] + w["3/bias"]
        return found

    def evaluate(self) -> tuple[int, Mapping[str, float]]:
        x, y = _part(self.eval_data, self._chosen[1])
        return len(x), self._measure(x, y)

    def accuracy(self, x: Floats, y: NDArray[np.int64], weights: Mapping[str, Any] | None = None) -> float:
        if weights is not None:
            self.set_weights(weights)
        return self._measure(x, y)["accuracy"]

    def _measure(self, x: Floats, y: NDArray[np.int64]) -> dict[str, float]:
        if not len(x):
            return {}
        p = _softmax(self._scores(x))
        return {
            "loss": float(-np.log(p[np.arange(len(y)), y] + 1e-9).mean()),
            "accuracy": float((p.argmax(1) == y).mean()),
        }


def _part(data: tuple[Any, Any], indices: Any) -> tuple[Any, Any]:
    return data if indices is None else (data[0][indices], data[1][indices])


def _softmax(scores: Floats) -> Floats:
    e: Floats = np.exp(scores - scores.max(1, keepdims=True))
    e /= e.sum(1, keepdims=True)
    return e


@dataclass
class Edge:
    """An edge of a simulation: it is there in rounds for which `here` says so.

    With `stock`, each message has a node of its own, as at a stock SuperNode, and only `folder` is kept between them.
    """

    name: str
    model: Mlp
    tasks: Tasks = field(default_factory=Tasks)
    here: Callable[[int], bool] = lambda _: True
    before_training: Callable[[int], None] = lambda _: None
    stock: bool = False
    folder: Path | None = None

    def node(self) -> Node:
        """Return what answers the edge's messages."""
        return Node(
            self.name,
            self.model,
            samples=len(self.model.train_data[0]),
            eval_samples=len(self.model.eval_data[1]),
            data=EdgeData(self.model.train_data, self.model.eval_data, tasks=self.tasks),
            warm=not self.stock,
            folder=self.folder,
        )


class DirectGrid(Grid):
    """A grid that lets edges answer within the call that sends the message."""

    def __init__(self, edges: Sequence[Edge]) -> None:
        self.round = 0
        self.edges = edges
        self.nodes = {i + 1: edge.node() for i, edge in enumerate(edges)}
        self._codings = {i + 1: EdgeCoding() for i in range(len(edges))}
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return [i for i in self.nodes if self.edges[i - 1].here(self.round)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node_id = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = message_id = uuid.uuid4().hex
            content = self._codings[node_id].decode(wire.unpack(message.content))
            assert content is not None, "no edge ever forgets what it has"
            edge = self.edges[node_id - 1]
            edge.before_training(self.round)
            edge.model.round = self.round
            if edge.stock:
                self.nodes[node_id] = edge.node()
            record = self._codings[node_id].encode(self.nodes[node_id].answer(content))
            reply = Message(wire.pack(record), reply_to=message)
            self._replies[message_id] = reply
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def wait(self, seconds: float) -> None:
        """Nothing is ever on its way."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError

    set_run = create_message = send_and_receive = _refuse
    run = property(_refuse)


@dataclass
class Run:
    """What a simulation gave."""

    nodes: dict[str, Node]
    events: list[Event]
    bytes_up: int
    bytes_down: int


def simulate(
    edges: Sequence[Edge],
    strategy: Strategy,
    *,
    rounds: int,
    min_edges: int = 1,
    each_round: Callable[[int], None] = lambda _: None,
    compression: Compression | None = None,
) -> Run:
    """Run a federation to its end and return what happened."""
    identify_as_server(1)
    grid = DirectGrid(edges)
    mail = Mail(grid, ttl=3600.0, compression=compression)
    roster = Roster(mail, [edge.name for edge in edges], algorithm="benchmark", owners=None)
    events: list[Event] = []

    def after(number: int) -> None:
        each_round(number)
        grid.round = number
        roster.look(0.0)

    loop = RoundLoop(
        mail,
        roster,
        strategy,
        limits=Limits(rounds=rounds, min_edges=min_edges, round_deadline=600.0, start_deadline=600.0, patience=0.0),
        progress=Progress(),
        emit=events.append,
        after_round=after,
        on_export=lambda _: None,
    )
    loop.run()
    nodes = {edge.name: node for edge, node in zip(edges, grid.nodes.values(), strict=True)}
    return Run(nodes, events, mail.bytes_up, mail.bytes_down)
