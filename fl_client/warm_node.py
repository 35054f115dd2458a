# SPDX-License-Identifier: Apache-2.0
"""The warm node: answers a job's messages from inside the user's own script.

The model, the data and the framework load once, where a stock SuperNode starts a process for each message. The node
outlives everything else: a SuperLink that restarts, a server that resumes, a network that comes and goes.
"""

from __future__ import annotations

import logging
import time

import stamina
from flwr.app import Error, Message, RecordDict

from ..core.errors import JobFailedError, TemporaryError, WireError
from ..lib import exchange, wire
from ..lib.coded_records import NEEDS_MODEL
from ..lib.exchange import Instruction, Verb
from ..lib.flower_objects import LinkLostError, RunOverError
from ..lib.links import NodeLink
from .model_coding import EdgeCoding
from .node import Node

__all__ = ["serve"]

log = logging.getLogger(__name__)

RECONNECT_FOR = 900.0
_FIRST_POLL = 0.05
_LONGEST_POLL = 2.0
_GROWTH = 1.25
_MALFORMED = 400
# A server that is just starting is no news; one that stays away is, and is not to fill the log.
_TELL_AFTER, _TELL_EVERY = 5.0, 60.0


class _Poller:
    """Decides how long to wait before the next question.

    Right after a reply nothing can come until the slowest edge is done; then the next message is due and questions are
    frequent; the longer it does not come, the rarer they get.
    """

    def __init__(self) -> None:
        self._wait = _FIRST_POLL
        self._due = 0.0

    def after_reply(self, instruction: Instruction, seconds: float) -> None:
        self._wait = max(instruction.poll, 0.005)
        self._due = time.monotonic() + max(0.0, instruction.slowest - seconds) * 0.9

    def next_wait(self) -> float:
        early = self._due - time.monotonic()
        if early > 0:
            return min(early, _LONGEST_POLL)
        wait, self._wait = self._wait, min(self._wait * _GROWTH, _LONGEST_POLL)
        return wait


def serve(node: Node, link: NodeLink, *, reconnect_for: float = RECONNECT_FOR) -> None:
    """Answer messages until the job is finished.

    Parameters
    ----------
    node
        Does the work.
    link
        Carries the messages.
    reconnect_for
        How long a lost connection is tried again, in seconds.

    Raises
    ------
    JobFailedError
        If the job failed elsewhere.
    TemporaryError
        If the connection was lost for longer than `reconnect_for`.
    """
    _connect(link, reconnect_for)
    poller = _Poller()
    coding = EdgeCoding(keeps_model=not link.warm)
    try:
        while not node.finished:
            try:
                message = link.receive()
                if message is None:
                    link.wait(poller.next_wait())
                    continue
                _answer(node, link, message, poller, coding)
            except RunOverError as error:
                log.info("a message was for a run that is over (%s)", error)
            except WireError as error:
                log.warning("a message could not be fetched: %s", error)
            except TemporaryError as error:
                if node.finished:  # the server is gone with the job, and this edge has its model
                    log.warning("the server may not have heard that this edge is done: %s", error)
                    return
                log.warning("%s; connecting again", error)
                _connect(link, reconnect_for)
    finally:
        link.close()


def _connect(link: NodeLink, reconnect_for: float) -> None:
    begun = time.monotonic()
    tell_at = begun + _TELL_AFTER
    for attempt in stamina.retry_context(
        on=TemporaryError,
        attempts=None,
        timeout=reconnect_for,
        wait_initial=0.1,
        wait_max=5.0,
        wait_jitter=0.5,
    ):
        with attempt:
            try:
                link.connect()
            except TemporaryError as error:
                now = time.monotonic()
                if now >= tell_at:
                    tell_at = now + _TELL_EVERY
                    log.warning(
                        "no connection for %.0f s: %s; it is tried for %.0f s; is the server up, and does it want "
                        "TLS (--ca, --key)?",
                        now - begun,
                        error,
                        reconnect_for,
                    )
                raise
    log.info("connected; waiting for the server")


def _answer(node: Node, link: NodeLink, message: Message, poller: _Poller, coding: EdgeCoding) -> None:
    started = time.monotonic()
    try:
        packed = wire.unpack(message.content)
        instruction = exchange.read_instruction(packed)
        folder = node.settle(instruction.run)
        coding.settle(instruction.run, None if folder is None else folder / "compression.bin")
        content = coding.decode(packed)
    except WireError as error:
        log.warning("a message was left unanswered: %s", error)
        link.reply(Message(Error(code=_MALFORMED, reason=str(error)), reply_to=message))
        return
    if content is None:
        log.info("the server is asked for the whole model: this process does not have what its message builds on")
        reason = "the edge does not have the model that the message builds on"
        link.reply(Message(Error(code=NEEDS_MODEL, reason=reason), reply_to=message))
        return
    del packed
    if instruction.verb is Verb.STOP:
        _confirm(link, message, node)
    try:
        record = node.answer(content)
    except (JobFailedError, KeyboardInterrupt):
        raise
    except BaseException as error:
        _tell(link, message, node, error)
        raise
    reply = Message(wire.pack(coding.encode(record)), reply_to=message)
    _send(link, reply, finished=node.finished)
    # After the reply: the round does not wait for the disk.
    if node.finished:
        coding.forget()
    else:
        coding.save()
    seconds = time.monotonic() - started
    if instruction.verb is Verb.TRAIN:
        log.info("round %d: trained on %d samples, %.1f s", instruction.round, node.about.samples, seconds)
    elif node.finished:
        log.info("the job is done after round %d", instruction.round)
    poller.after_reply(instruction, seconds)


def _confirm(link: NodeLink, message: Message, node: Node) -> None:
    """Say that the request to stop came; who asked may be gone already."""
    try:
        link.reply(Message(wire.pack(exchange.attach(RecordDict(), node.about)), reply_to=message))
    except TemporaryError as unreachable:
        log.info("the server has not waited for an answer: %s", unreachable)


def _tell(link: NodeLink, message: Message, node: Node, error: BaseException) -> None:
    try:
        link.reply(Message(wire.pack(node.failure(error)), reply_to=message))
    except TemporaryError as unreachable:
        log.warning("the server could not be told: %s", unreachable)


def _send(link: NodeLink, reply: Message, *, finished: bool) -> None:
    """Send a reply; a short outage is waited out, so that a round's work is not lost to it."""
    for attempt in stamina.retry_context(
        on=lambda error: isinstance(error, TemporaryError) and not isinstance(error, LinkLostError | RunOverError),
        attempts=None,
        timeout=20.0,
        wait_initial=0.1,
        wait_max=2.0,
    ):
        with attempt:
            try:
                link.reply(reply)
            except RunOverError:
                if not finished:
                    raise
