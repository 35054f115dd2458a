# SPDX-License-Identifier: Apache-2.0
"""What both ends of a SuperLink share: typed errors, and messages as the objects that carry them.

This module, `flower_fleet` and `flower_run` are the only ones that touch Flower's private modules. `flwr` is pinned to
a minor version, and `tests/lib/test_flower.py` pins each private name that is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_type_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from ..core.errors import PlatformError, TemporaryError, WireError

__all__ = [
    "HEARTBEAT_EVERY",
    "NODE_GONE",
    "LinkLostError",
    "RunOverError",
    "content_of",
    "identify_as_server",
    "push_objects",
    "translated_errors",
]

HEARTBEAT_EVERY = HEARTBEAT_MIN_INTERVAL / 2
NODE_GONE = ErrorCode.NODE_UNAVAILABLE  # what answers for a node whose heartbeats stopped
# An object that its sender announced but has not pushed yet: Flower waits 1 s before it asks again.
_FIRST_WAIT = 0.01
_LONGEST_WAIT = 0.5
_OBJECT_DEADLINE = 170.0  # Flower drops an unfinished push after 180 s.
_RETRYABLE = (502, 503, 504)


class LinkLostError(TemporaryError):
    """The SuperLink no longer knows this node or run, as after its restart: connect anew."""


class RunOverError(TemporaryError):
    """The run that a message belongs to has ended."""


@contextmanager
def translated_errors(address: str) -> Iterator[None]:
    """Turn what Flower's clients raise into our own errors, told apart by what to do next."""
    try:
        yield
    except httpx.TransportError as error:
        text = str(error).lower()
        if any(word in text for word in ("certificate", "ssl", "tls")):
            raise PlatformError(
                f"the SuperLink at {address} and this side do not trust each other ({error}); "
                f"give the CA that signed its certificate with --ca"
            ) from error
        raise TemporaryError(
            f"the SuperLink at {address} does not answer ({str(error) or type(error).__name__})"
        ) from error
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        known = FlowerError.from_json(error.response.text)
        reason = known.message if known else error.response.text[:200]
        if status == httpx.codes.UNAUTHORIZED:
            raise LinkLostError(f"the SuperLink at {address} does not know this node or run: {reason}") from error
        if status == httpx.codes.PRECONDITION_FAILED:
            raise TemporaryError(f"the SuperLink at {address} does not know this node's key yet: {reason}") from error
        if status == httpx.codes.FORBIDDEN:
            raise RunOverError(f"the run is over at the SuperLink at {address}: {reason}") from error
        if status in _RETRYABLE:
            raise TemporaryError(f"the SuperLink at {address} is overloaded (status {status})") from error
        raise PlatformError(f"the SuperLink at {address} refused a request (status {status}): {reason}") from error


def identify_as_server(run_id: int, *, task_id: int = 0) -> None:
    """Let this process make messages of run `run_id`; Flower asks who sends them."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, task_id, SUPERLINK_NODE_ID


def _fetch(pull: Callable[[str], tuple[bool, bool, bytes]], object_id: str) -> bytes:
    """Pull one object, waiting shortly while its sender is still pushing it."""
    wait, end = _FIRST_WAIT, time.monotonic() + _OBJECT_DEADLINE
    while True:
        found, available, content = pull(object_id)
        if available:
            return content
        if not found or time.monotonic() > end:
            raise WireError(f"a part of a message is not at the SuperLink (object {object_id[:12]})")
        time.sleep(wait)
        wait = min(wait * 1.5, _LONGEST_WAIT)


def content_of(tree: ObjectTree, pull: Callable[[str], tuple[bool, bool, bytes]]) -> RecordDict:
    """Return a message's content, pulling only the leaves where the message is in our wire form.

    The tree is message → RecordDict → records. Our records carry their own place in the whole, so the objects above
    them hold nothing that is needed; Flower's own messages are pulled whole.
    """
    records = tree.children[0].children if len(tree.children) == 1 else []
    contents: dict[str, bytes] = {}
    if records and not any(record.children for record in records):
        contents = {record.object_id: _fetch(pull, record.object_id) for record in records}
        if all(get_object_type_from_object_content(c) == ConfigRecord.__qualname__ for c in contents.values()):
            parts = [ConfigRecord.inflate(c) for c in contents.values()]
            if all("part" in part and "data" in part for part in parts):
                return RecordDict({f"solar-corona-{part['part']!s}": part for part in parts})
    for node in iterate_object_tree(tree):
        if node.object_id not in contents:
            contents[node.object_id] = _fetch(pull, node.object_id)
    message = cast("Message", inflate_object_from_contents(tree.object_id, contents))
    return message.content if message.has_content() else RecordDict()


def push_objects(objects: dict[str, InflatableObject], wanted: set[str], push: Callable[[str, bytes], bool]) -> None:
    """Push the objects of messages, those that carry data first.

    A receiver that pulls only these confirms at once, and the SuperLink then refuses the rest, which nobody needs.
    """
    for object_id, item in objects.items():
        if object_id in wanted and not item.children and not push(object_id, item.deflate()):
            raise TemporaryError("the SuperLink did not keep a part of a message; it is sent anew")
    for object_id, item in objects.items():
        if object_id in wanted and item.children:
            push(object_id, item.deflate())
