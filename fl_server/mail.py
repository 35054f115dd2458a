# SPDX-License-Identifier: Apache-2.0
"""Instructions out, replies in, over any Flower `Grid`: packed on the way, counted, and each reply told apart.

Where the job compresses, models are coded here, so that neither the round loop nor a strategy sees it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ..core.errors import WireError
from ..core.spec import Compression
from ..lib import exchange, wire
from ..lib.coded_records import NEEDS_MODEL
from ..lib.exchange import Answer, Instruction, Verb
from .model_coding import Dispatch, ServerCoding

__all__ = ["Mail", "Outgoing", "Reply", "Sent"]

_SHORTEST_WAIT, _LONGEST_WAIT = 0.02, 1.0


@dataclass(frozen=True)
class Outgoing:
    """A message to be sent; `content` is shared between nodes that get the same."""

    node_id: int
    content: RecordDict
    instruction: Instruction


@dataclass(frozen=True)
class Sent:
    """A message that was sent and is not answered yet."""

    node_id: int
    instruction: Instruction
    at: float
    size: int


@dataclass(frozen=True)
class Reply:
    """What came back for a message: an answer with its content, or an error."""

    sent: Sent
    message: Message
    content: RecordDict
    answer: Answer | None
    error: str | None
    size: int


class Mail:
    """The server's side of the exchange.

    Parameters
    ----------
    grid
        Flower's grid, a SuperLink's or one in this process.
    ttl
        How long a message may lie unread, in seconds.
    compression
        How models are coded on the way.
    run
        The job's run, by which edges know which of what they kept is of use.
    """

    def __init__(self, grid: Grid, *, ttl: float, compression: Compression | None = None, run: str = "") -> None:
        self.grid, self._run = grid, run
        self.bytes_down = self.bytes_up = 0
        self._ttl = ttl
        self._outstanding: dict[str, Sent] = {}
        self._dispatched: dict[str, Dispatch] = {}
        self._since = time.monotonic()
        self._coding: ServerCoding | None = None
        if compression is not None and compression.method != "none":
            self._coding = ServerCoding(compression.method, compression.fraction)

    def send(self, messages: Iterable[Outgoing]) -> dict[int, bool]:
        """Send messages; say for each node whether the SuperLink took its message."""
        all_of_them = list(messages)
        if self._coding is None:
            return self._send(all_of_them, [Dispatch(message.content) for message in all_of_them])
        busy = {sent.node_id for sent in self._outstanding.values()}
        return self._send(all_of_them, self._coding.dispatch(all_of_them, busy))

    def _send(self, messages: Sequence[Outgoing], dispatches: Sequence[Dispatch]) -> dict[int, bool]:
        packed: dict[tuple[int, str], RecordDict] = {}
        out, sent = [], []
        for message, dispatch in zip(messages, dispatches, strict=True):
            instruction = message.instruction.model_copy(update={"run": self._run})
            key = (id(dispatch.content), instruction.model_dump_json())
            if key not in packed:
                packed[key] = wire.pack(exchange.attach(dispatch.content, instruction))
            record = packed[key]
            out.append(
                Message(
                    content=record,
                    dst_node_id=message.node_id,
                    message_type=exchange.message_type(message.instruction.verb),
                    group_id=str(message.instruction.round),
                    ttl=self._ttl,
                )
            )
            size = wire.packed_size(record)
            sent.append(Sent(message.node_id, message.instruction, time.monotonic(), size))
        if not out:
            return {}
        taken: dict[int, bool] = {}
        for message_id, item, dispatch in zip(self.grid.push_messages(out), sent, dispatches, strict=True):
            taken[item.node_id] = bool(message_id)
            if message_id:
                self._outstanding[message_id] = item
                self.bytes_down += item.size
                if dispatch.models:
                    self._dispatched[message_id] = dispatch
        self._since = time.monotonic()
        return taken

    def outstanding(self) -> list[Sent]:
        """Return the messages without a reply."""
        return list(self._outstanding.values())

    def forget(self, node_id: int) -> list[Sent]:
        """Wait no longer for anything from a node, and return what it was asked."""
        gone = {key: sent for key, sent in self._outstanding.items() if sent.node_id == node_id}
        for key in gone:
            del self._outstanding[key]
            self._dispatched.pop(key, None)
        if self._coding is not None:
            self._coding.forget(node_id)
        return list(gone.values())

    def poll(self) -> Iterator[Reply]:
        """Yield the replies that have come since the last call; one is fetched when it is asked for."""
        if not self._outstanding:
            return
        again: list[tuple[str, Sent, Dispatch]] = []
        for message in self.grid.pull_messages(list(self._outstanding)):
            key = message.metadata.reply_to_message_id
            sent, dispatch = self._outstanding.get(key), self._dispatched.pop(key, Dispatch(RecordDict()))
            if sent is not None and self._lacks_a_model(message, sent, dispatch):
                again.append((key, sent, dispatch))
            elif sent is not None:
                del self._outstanding[key]
                yield self._read(sent, message, dispatch)
            del message
        for key, sent, dispatch in again:
            if self._outstanding.pop(key, None) is not None:
                self._send_whole(sent, dispatch)

    def _lacks_a_model(self, message: Message, sent: Sent, dispatch: Dispatch) -> bool:
        if not message.has_error() or self._coding is None:
            return False
        self._coding.forget(sent.node_id)
        return message.error.code == NEEDS_MODEL and bool(dispatch.models) and not dispatch.whole

    def _send_whole(self, sent: Sent, dispatch: Dispatch) -> None:
        assert self._coding is not None
        whole = self._coding.again(dispatch)
        self._send([Outgoing(sent.node_id, whole.content, sent.instruction)], [whole])

    def _read(self, sent: Sent, message: Message, dispatch: Dispatch) -> Reply:
        if message.has_error():
            error = message.error.reason or f"error {message.error.code}"
            return Reply(sent, message, RecordDict(), None, error, 0)
        size = wire.packed_size(message.content)
        self.bytes_up += size
        try:
            content = wire.unpack(message.content, consume=True)
            answer = exchange.read_answer(content)
            if self._coding is not None:
                content = self._coding.arrived(sent.node_id, dispatch, content)
        except WireError as error:
            return Reply(sent, message, RecordDict(), None, str(error), size)
        return Reply(sent, message, content, answer, None, size)

    def wait(self, at_most: float) -> None:
        """Wait before the next poll: shortly after sending, longer as time goes by, and the more nodes there are."""
        elapsed = time.monotonic() - self._since
        shortest = min(max(_SHORTEST_WAIT, 0.01 * len(self._outstanding)), 0.25)
        seconds = max(0.0, min(max(shortest, 0.05 * elapsed), _LONGEST_WAIT, at_most))
        wait = getattr(self.grid, "wait", time.sleep)
        wait(seconds)

    def tell(self, node_ids: Iterable[int], reason: str) -> None:
        """Tell nodes to stop, without waiting for an answer."""
        stop = Instruction(verb=Verb.STOP, reason=reason)
        content = RecordDict()
        self.send([Outgoing(node_id, content, stop) for node_id in node_ids])
