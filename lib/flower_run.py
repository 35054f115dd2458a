# SPDX-License-Identifier: Apache-2.0
"""The server's end of a SuperLink (Flower's Runtime and Control API).

* `start_run` makes a run and `acquire_run` takes the place of its ServerApp.
* `RunGrid` is Flower's own `Grid` for that run, pulling only the objects that carry data.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from threading import Event, Thread
from typing import Any, cast

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest, StopRunRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from ..core.errors import PlatformError
from .flower_objects import HEARTBEAT_EVERY, content_of, identify_as_server, push_objects, translated_errors

__all__ = ["RunGrid", "acquire_run", "build_fab", "register_nodes", "start_run", "stop_run"]


class _NoRetries:
    """Stands in for Flower's retry invoker, which waits for ever and ends the process on a lost token."""

    max_tries = 1

    def invoke(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)


class RunGrid(HttpGrid):
    """Flower's `Grid` for a run that this process serves.

    It differs from Flower's in three ways: it pulls only the objects that carry data, it asks again at once for an
    object that is still on its way, and it raises our typed errors rather than retrying for ever.
    """

    def __init__(self, address: str, *, root_certificates: bytes | None, token: str) -> None:
        super().__init__(address, root_certificates is None, root_certificates, token=token)
        self._retry_invoker = cast("Any", _NoRetries())
        self._stop = Event()

    def open(self) -> None:
        """Take up the run: from now on it is this process's, kept alive by heartbeats until `finish`."""
        with translated_errors(self._addr):
            answer = self._runtime_client.PullTaskInput(PullTaskInputRequest())
        self.set_run(run_from_proto(answer.run))
        identify_as_server(answer.run.run_id, task_id=answer.task_id)
        Thread(target=self._beat, name="run-heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_EVERY):
            try:
                self._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except (httpx.HTTPError, RuntimeError):
                continue  # A lost run shows at the next call, where there is somebody to act on it.

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are online."""
        with translated_errors(self._addr):
            return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send `messages`; the ids come back in their order, empty where a node is gone."""
        messages, objects, trees, protos = list(messages), {}, [], []
        with no_object_id_recompute(), translated_errors(self._addr):
            for message in messages:
                message.metadata.__dict__["_message_id"] = message.object_id
                self._check_message(message)
                objects.update(get_all_nested_objects(message))
                trees.append(get_object_tree(message))
                protos.append(message_to_proto(remove_content_from_message(message)))
            answer = self._runtime_client.PushMessages(
                PushAppMessagesRequest(messages_list=protos, message_object_trees=trees)
            )

            def push(object_id: str, content: bytes) -> bool:
                request = PushObjectRequest(
                    node=self.node,
                    run_id=self.run.run_id,
                    object_id=object_id,
                    object_content=content,
                    session_id=answer.session_id,
                )
                return bool(self._runtime_client.PushObject(request).stored)

            push_objects(objects, set(answer.objects_to_push), push)
        return list(answer.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield the replies that have arrived to `message_ids`, each once, pulling one after the other."""
        with translated_errors(self._addr):
            answer = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=list(message_ids)))
        for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            with translated_errors(self._addr):
                message = message_from_proto(proto)
                if not message.has_error():
                    message.content = content_of(tree, self._pull)
                self._runtime_client.ConfirmMessageReceived(
                    ConfirmMessageReceivedRequest(
                        node=self.node, run_id=self.run.run_id, message_object_id=proto.metadata.message_id
                    )
                )
            yield message
            del message

    def _pull(self, object_id: str) -> tuple[bool, bool, bytes]:
        request = PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=object_id)
        reply = self._runtime_client.PullObject(request)
        return reply.object_found, reply.object_available, reply.object_content

    def finish(self, *, succeeded: bool, details: str = "") -> None:
        """Tell the SuperLink how the run ended, and disconnect."""
        self._stop.set()
        request = PushTaskOutputRequest(sub_status="completed" if succeeded else "failed", details=details[:1000])
        try:
            self._runtime_client.PushTaskOutput(request)
        except (httpx.HTTPError, RuntimeError):
            pass  # The run is over for us either way.
        self.close()


def build_fab() -> bytes:
    """Return the Flower App Bundle through which stock SuperNodes and SuperExecs find our apps."""
    project = (
        '[project]\nname = "solar-corona-app"\nversion = "1.0.0"\nlicense = "Apache-2.0"\ndependencies = []\n\n'
        '[tool.flwr.app]\npublisher = "solar-corona"\n\n'
        '[tool.flwr.app.components]\nserverapp = "corona_app.server:app"\nclientapp = "corona_app.client:app"\n\n'
        "[tool.flwr.app.config]\n"
    )
    files = {
        "pyproject.toml": project.encode(),
        "corona_app/__init__.py": b'"""Solar Corona as a Flower app."""\n',
        "corona_app/server.py": b"from solar_corona.fl_server.app import app as app\n",
        "corona_app/client.py": b"from solar_corona.fl_client.client_app import app as app\n",
        "README.md": b"# Solar Corona as a Flower app\n",
    }
    fab, _ = build_fab_from_files(files)
    return bytes(fab)


def _control(address: str, root_certificates: bytes | None) -> ControlHttpClient:
    return ControlHttpClient.from_server_address(
        address, root_certificates is None, root_certificates, [RuntimeVersionHttpInterceptor("flwr-cli")]
    )


def start_run(address: str, *, root_certificates: bytes | None = None) -> int:
    """Start a run of our app at the SuperLink and return its id."""
    content = build_fab()
    with _control(address, root_certificates) as client, translated_errors(address):
        answer = client.StartRun(
            StartRunRequest(fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})))
        )
    if not answer.HasField("run_id"):
        raise PlatformError(f"the SuperLink at {address} did not start a run; its log says why")
    return int(answer.run_id)


def stop_run(address: str, run_id: int, *, root_certificates: bytes | None = None) -> None:
    """End a run that a server left behind; a run that is over already is left alone."""
    with _control(address, root_certificates) as client:
        try:
            client.StopRun(StopRunRequest(run_id=run_id))
        except (httpx.HTTPError, RuntimeError):
            pass  # Unknown after the SuperLink's restart, or ended already: what was wanted.


def register_nodes(
    address: str, keys: Mapping[str, bytes], *, root_certificates: bytes | None = None
) -> dict[int, str]:
    """Let the nodes with these public keys in (PEM, by edge) and return the edge of each node id.

    A key that is registered already, as after the server's restart, is looked up.
    """
    if not keys:
        return {}
    with _control(address, root_certificates) as client, translated_errors(address):
        known = {node.public_key: int(node.node_id) for node in client.ListNodes(ListNodesRequest()).nodes_info}
        owners = {}
        for edge, key in keys.items():
            if key not in known:
                known[key] = int(client.RegisterNode(RegisterNodeRequest(public_key=key)).node_id)
            owners[known[key]] = edge
    return owners


def acquire_run(
    address: str,
    run_id: int,
    *,
    root_certificates: bytes | None = None,
    secret: bytes | None = None,
    wait: float = 10.0,
) -> RunGrid:
    """Take the ServerApp's place in run `run_id` and return its grid, opened.

    Raises
    ------
    PlatformError
        If another process, such as a SuperExec, took the run first.
    """
    interceptors: list[ProtobufClientInterceptor] = [RuntimeVersionHttpInterceptor("SuperExec")]
    if secret is not None:
        interceptors.append(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"})
        )
    end = time.monotonic() + wait
    with (
        RuntimeHttpClient.from_server_address(
            address, root_certificates is None, root_certificates, interceptors
        ) as client,
        translated_errors(address),
    ):
        while time.monotonic() < end:
            answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
            if answer.token and answer.task.run_id == run_id:
                grid = RunGrid(address, root_certificates=root_certificates, token=answer.token)
                grid.open()
                return grid
            time.sleep(0.05)
    raise PlatformError(
        f"run {run_id} at the SuperLink at {address} was taken by another process; "
        f"start the SuperLink with --isolation process"
    )
