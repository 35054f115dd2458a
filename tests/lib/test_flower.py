# SPDX-License-Identifier: Apache-2.0
"""Pins what the three Flower adapters use of Flower's private modules: a new Flower shows here first."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import httpx
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, SUPERLINK_NODE_ID
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient

from solar_corona.core.errors import PlatformError, TemporaryError, WireError
from solar_corona.lib import wire
from solar_corona.lib.flower_objects import (
    LinkLostError,
    RunOverError,
    content_of,
    identify_as_server,
    push_objects,
    translated_errors,
)
from solar_corona.lib.flower_run import build_fab


def test_flower_is_the_minor_version_that_the_adapters_were_written_for():
    assert version("flwr").split(".")[:2] == ["1", "41"]


@pytest.mark.parametrize(
    ("client", "calls"),
    [
        (
            FleetHttpClient,
            (
                "RegisterNode ActivateNode SendNodeHeartbeat PullMessages PullObject PushMessages PushObject "
                "ConfirmMessageReceived"
            ),
        ),
        (
            RuntimeHttpClient,
            (
                "AcquireTask SendTaskHeartbeat PullTaskInput PushTaskOutput GetNodes PushMessages PullMessages "
                "PushObject PullObject ConfirmMessageReceived"
            ),
        ),
        (ControlHttpClient, "StartRun StopRun RegisterNode ListNodes"),
    ],
)
def test_each_client_has_the_calls_that_are_made(client, calls):
    assert [call for call in calls.split() if not callable(getattr(client, call, None))] == []
    assert list(inspect.signature(client.from_server_address).parameters)[:4] == [
        "server_address",
        "insecure",
        "root_certificates",
        "interceptors",
    ]


def test_the_grid_has_what_ours_overrides_and_reads():
    assert {"token", "root_certificates", "insecure"} <= set(inspect.signature(HttpGrid.__init__).parameters)
    for name in ("_check_message", "set_run", "push_messages", "pull_messages", "get_node_ids", "close"):
        assert callable(getattr(HttpGrid, name)), name
    grid = HttpGrid("127.0.0.1:1", True, token="t")
    assert {"_retry_invoker", "_addr"} <= set(vars(grid))
    assert grid.node.node_id == SUPERLINK_NODE_ID


def test_a_node_may_beat_as_often_as_ours_does():
    assert HEARTBEAT_MIN_INTERVAL <= 10


def test_a_bundle_of_our_apps_can_be_built_and_is_always_the_same():
    assert build_fab() == build_fab()


@pytest.fixture
def message():
    identify_as_server(1)
    content = RecordDict({"arrays": ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"12345678")})})

    def make(packed: bool) -> Message:
        return Message(wire.pack(content) if packed else content, dst_node_id=7, message_type="train")

    return make


def puller(message, *, missing: str = ""):
    contents = {i: o.deflate() for i, o in get_all_nested_objects(message).items() if i != missing}
    asked: list[str] = []

    def pull(object_id: str) -> tuple[bool, bool, bytes]:
        asked.append(object_id)
        return object_id in contents, object_id in contents, contents.get(object_id, b"")

    return pull, asked


def test_of_a_packed_message_only_the_leaf_is_pulled(message):
    packed = message(packed=True)
    pull, asked = puller(packed)
    content = content_of(get_object_tree(packed), pull)
    assert len(asked) == 1
    assert wire.unpack(content)["arrays"]["w"].data == b"12345678"


def test_an_ordinary_flower_message_is_pulled_whole(message):
    plain = message(packed=False)
    pull, _ = puller(plain)
    assert content_of(get_object_tree(plain), pull)["arrays"]["w"].data == b"12345678"


def test_a_message_whose_part_is_gone_is_a_wire_error(message):
    packed = message(packed=True)
    tree = get_object_tree(packed)
    leaf = tree.children[0].children[0].object_id
    pull, _ = puller(packed, missing=leaf)
    with pytest.raises(WireError, match="not at the SuperLink"):
        content_of(tree, pull)


def test_an_object_that_is_still_on_its_way_is_asked_for_again(message):
    packed = message(packed=True)
    pull, asked = puller(packed)

    def late(object_id: str) -> tuple[bool, bool, bytes]:
        found, available, content = pull(object_id)
        return (found, available, content) if len(asked) > 2 else (True, False, b"")

    assert wire.unpack(content_of(get_object_tree(packed), late))
    assert len(asked) == 3


def test_data_is_pushed_before_what_refers_to_it_and_must_be_kept(message):
    objects = get_all_nested_objects(message(packed=True))
    pushed: list[str] = []
    push_objects(objects, set(objects), lambda i, _: pushed.append(i) is None)
    assert isinstance(objects[pushed[0]], ConfigRecord)
    assert len(pushed) == 3
    with pytest.raises(TemporaryError, match="did not keep"):
        push_objects(objects, set(objects), lambda i, _: False)


def answer(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/x")
    return httpx.HTTPStatusError("x", request=request, response=httpx.Response(status, request=request, text="{}"))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (answer(401), LinkLostError),
        (answer(403), RunOverError),
        (answer(412), TemporaryError),
        (answer(503), TemporaryError),
        (answer(400), PlatformError),
        (httpx.ConnectError("refused"), TemporaryError),
        (httpx.ConnectError("certificate verify failed"), PlatformError),
    ],
)
def test_flowers_errors_say_what_to_do_next(raised, expected):
    with pytest.raises(expected), translated_errors("somewhere:1"):
        raise raised
