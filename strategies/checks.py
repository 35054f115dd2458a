# SPDX-License-Identifier: Apache-2.0
"""The contract that every strategy keeps, ours and yours: `check_strategy(lambda: MyStrategy(...))`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from ..core.errors import StrategyError
from ..lib.exchange import metrics_key, read_order
from ..lib.records import arrays_in
from .nodes import ReadyNodes
from .state import restore, state_of

__all__ = ["check_strategy"]

_NODES = 6
_T = TypeVar("_T")
_Weights = dict[str, NDArray[np.float32]]


def _nodes() -> ReadyNodes:
    return ReadyNodes(lambda: list(range(1, _NODES + 1)))


def check_strategy(make: Callable[[], Strategy]) -> None:
    """Check that a strategy works in our round loop.

    Parameters
    ----------
    make
        Makes a new strategy, with room for six edges (six are there, all are asked).

    Raises
    ------
    StrategyError
        If it does not: the message says which promise is broken, and what to change.
    """
    from ..lib.flower_objects import identify_as_server

    identify_as_server(1)
    weights = _weights(0)
    strategy = _is_strategy(make())
    messages = _within("configure_train", lambda: _asked(strategy, weights))
    _within("aggregate_train", lambda: _agrees_with_identical_replies(make(), weights))
    _within(
        "aggregate_train, given an iterator that can be read once,",
        lambda: _takes_replies_one_by_one(strategy, messages),
    )
    _within("aggregate_train, given no replies,", lambda: _survives_no_replies(make(), weights))
    _within("configure_evaluate or aggregate_evaluate", lambda: _evaluates(strategy, weights))
    _within("a round after a restart", lambda: _resumes(make))


def _within(step: str, check: Callable[[], _T]) -> _T:
    """Run a check; what the strategy raises in it is a broken promise too."""
    try:
        return check()
    except StrategyError:
        raise
    except Exception as error:
        raise StrategyError(f"{step} raised {type(error).__name__}: {error}") from error


def _require(condition: object, promise: str) -> None:
    if not condition:
        raise StrategyError(promise)


def _is_strategy(strategy: object) -> Strategy:
    _require(isinstance(strategy, Strategy), f"{type(strategy).__name__} is no flwr.serverapp.strategy.Strategy")
    assert isinstance(strategy, Strategy)
    return strategy


def _weights(seed: int) -> _Weights:
    rng = np.random.default_rng(seed)
    return {
        "dense/kernel": rng.normal(size=(4, 3)).astype(np.float32),
        "dense/bias": rng.normal(size=3).astype(np.float32),
    }


def _record(weights: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in weights.items()})


def _asked(strategy: Strategy, weights: _Weights) -> list[Message]:
    messages = list(strategy.configure_train(1, _record(weights), ConfigRecord(), _nodes()))
    _require(messages, "configure_train returned no message although six edges are there; check its fractions")
    for message in messages:
        _require(message.metadata.message_type == MessageType.TRAIN, "configure_train must return train messages")
        _require(message.metadata.dst_node_id in range(1, _NODES + 1), "a message goes to a node that is not there")
        _require(
            len(arrays_in(message.content)) == 1 or read_order(message.content) is not None,
            "a train message must carry exactly one ArrayRecord, or a WorkOrder that says what each is for",
        )
    return messages


def _replies(messages: list[Message], seed: Callable[[int], int], *, samples: int | None = None) -> list[Message]:
    """Return what the edges reply: a model for each one of an order, or for one of them where the edge chooses."""
    found = []
    for message in messages:
        node, order = message.metadata.dst_node_id, read_order(message.content)
        keys = ["arrays"] if order is None else [model.key for model in order.models]
        if order is not None and order.choose:
            keys = [keys[node % len(keys)]]
        found.append(_reply(node, _weights(seed(node)), samples=samples or node, keys=keys))
    return found


def _reply(node_id: int, weights: _Weights | None, *, samples: int = 10, keys: Sequence[str] = ("arrays",)) -> Message:
    content = RecordDict()
    for key in keys:
        content[metrics_key(key)] = MetricRecord({"num-examples": samples, "loss": 1.0 / node_id})
        if weights is not None:
            content[key] = _record(weights)
    metadata = Metadata(
        run_id=1,
        message_id=f"{node_id}",
        src_node_id=node_id,
        dst_node_id=1,
        reply_to_message_id=f"to-{node_id}",
        group_id="1",
        created_at=0.0,
        ttl=60.0,
        message_type=MessageType.TRAIN if weights is not None else MessageType.EVALUATE,
    )
    return make_message(metadata=metadata, content=content)


def _like(result: ArrayRecord | None, weights: _Weights, step: str) -> None:
    _require(result is not None, f"{step} returned no model for six good replies")
    assert result is not None
    for name, value in weights.items():
        _require(name in result, f"{step} lost the array {name}; keep the names of the replies")
        got = result[name].numpy()
        _require(got.shape == value.shape, f"{step} changed the shape of {name} from {value.shape} to {got.shape}")
        # The round loop makes float32 of float64 again, which some of Flower's own strategies return.
        _require(got.dtype.kind == "f", f"{step} changed the dtype of {name} from {value.dtype} to {got.dtype}")
        _require(np.isfinite(got).all(), f"{step} made values of {name} that are not finite")


def _agrees_with_identical_replies(strategy: Strategy, weights: _Weights) -> None:
    messages = _asked(strategy, weights)
    # Alike, but not what was sent: an edge always changes something.
    result, _ = strategy.aggregate_train(1, _replies(messages, lambda _: 1, samples=10))
    _like(result, weights, "aggregate_train")


def _takes_replies_one_by_one(strategy: Strategy, messages: list[Message]) -> None:
    result, metrics = strategy.aggregate_train(1, iter(_replies(messages, lambda node: node)))
    _like(result, _weights(0), "aggregate_train, given an iterator,")
    _require(
        metrics is None or isinstance(metrics, MetricRecord),
        "aggregate_train must return a MetricRecord or None",
    )


def _survives_no_replies(strategy: Strategy, weights: _Weights) -> None:
    _asked(strategy, weights)
    result = strategy.aggregate_train(1, iter(()))
    _require(
        isinstance(result, tuple) and len(result) == 2,
        "aggregate_train must return a pair also when no reply came, such as (None, None)",
    )


def _evaluates(strategy: Strategy, weights: _Weights) -> None:
    for message in strategy.configure_evaluate(1, _record(weights), ConfigRecord(), _nodes()):
        _require(
            message.metadata.message_type == MessageType.EVALUATE,
            "configure_evaluate must return evaluate messages",
        )
    strategy.aggregate_evaluate(1, [_reply(i, None) for i in range(1, _NODES + 1)])


def _resumes(make: Callable[[], Strategy]) -> None:
    """Check that a strategy restored from its state goes on as one that was not interrupted."""
    whole, first = make(), make()
    for strategy in (whole, first):
        _round(strategy, 1)
    resumed = make()
    restore(resumed, state_of(first))
    expected, got = _round(whole, 2), _round(resumed, 2)
    for name in expected or {}:
        _require(
            expected is not None
            and got is not None
            and np.allclose(expected[name].numpy(), got[name].numpy(), rtol=1e-4, atol=1e-6),
            "after a restart the strategy goes on differently; keep its state in plain attributes (numbers, arrays), "
            "or give it state_dict() and load_state_dict()",
        )


def _round(strategy: Strategy, number: int) -> ArrayRecord | None:
    messages = list(strategy.configure_train(number, _record(_weights(0)), ConfigRecord(), _nodes()))
    for message in messages:
        for arrays in arrays_in(message.content).values():
            form = {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}
            _require(
                form == {name: (value.shape, str(value.dtype)) for name, value in _weights(0).items()},
                f"a train message of round {number} carries a model that is not of the job's form, which edges refuse: "
                f"{form}; give a strategy inside yours back what it made in the dtypes of the replies",
            )
    result, _ = strategy.aggregate_train(number, _replies(messages, lambda node: 10 * number + node, samples=10))
    return result
