# SPDX-License-Identifier: Apache-2.0
"""An edge's end of a SuperLink (Flower's Fleet API): what a SuperNode does, without its process per message."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Thread

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from ..core.errors import PlatformError
from .flower_objects import HEARTBEAT_EVERY, LinkLostError, content_of, push_objects, translated_errors

__all__ = ["FleetConnection", "load_node_key"]


def load_node_key(path: Path) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    """Read an edge's private key (OpenSSH or PEM, elliptic curve) and return it with its public half."""
    try:
        data = path.read_bytes()
        load = load_ssh_private_key if b"OPENSSH" in data else load_pem_private_key
        key = load(data, None)
    except (OSError, ValueError) as error:
        raise PlatformError(
            f"the key {path} cannot be read: {error}; make one with: ssh-keygen -t ecdsa -b 384"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PlatformError(f"the key {path} is no elliptic-curve key; make one with: ssh-keygen -t ecdsa -b 384")
    return key, key.public_key()


class FleetConnection:
    """An edge's connection to a SuperLink.

    Parameters
    ----------
    address
        HOST:PORT of the SuperLink.
    root_certificates
        PEM of the CA that signed the SuperLink's certificate; None connects without TLS.
    keys
        The node's key pair, which the SuperLink's operator has registered; None makes one and registers it.
    """

    def __init__(
        self,
        address: str,
        *,
        root_certificates: bytes | None = None,
        keys: tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey] | None = None,
    ) -> None:
        self._address = address
        self._root_certificates = root_certificates
        self._keys = keys
        self._client: FleetHttpClient | None = None
        self._node: Node | None = None
        self._stop = Event()

    warm = True

    @property
    def node_id(self) -> int:
        """The id that the SuperLink gave this node."""
        return int(self._session()[1].node_id)

    def _session(self) -> tuple[FleetHttpClient, Node]:
        if self._client is None or self._node is None:
            raise LinkLostError(f"not connected to the SuperLink at {self._address}")
        return self._client, self._node

    def wait(self, seconds: float) -> None:
        """Wait, at most so long."""
        self._stop.wait(seconds)

    def connect(self) -> None:
        """Register and activate this node, and keep it alive by heartbeats until `close`.

        Called again, it makes a new connection, as a node that the SuperLink has not seen before.
        """
        self.close()
        private, public = self._keys or generate_key_pairs()
        key = public_key_to_bytes(public)
        client = FleetHttpClient.from_server_address(
            self._address,
            self._root_certificates is None,
            self._root_certificates,
            [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(private, public)],
        )
        self._client, self._stop = client, Event()
        with translated_errors(self._address):
            if self._keys is None:
                client.RegisterNode(RegisterNodeFleetRequest(public_key=key))
            answer = client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=HEARTBEAT_MIN_INTERVAL))
        self._node = Node(node_id=answer.node_id)
        Thread(target=self._beat, args=(client, self._node, self._stop), name="fleet-heartbeat", daemon=True).start()

    @staticmethod
    def _beat(client: FleetHttpClient, node: Node, stop: Event) -> None:
        request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_MIN_INTERVAL)
        while not stop.wait(HEARTBEAT_EVERY):
            try:
                client.SendNodeHeartbeat(request)
            except (httpx.HTTPError, RuntimeError):
                continue  # A lost link shows at the next pull, where there is somebody to act on it.

    def receive(self) -> Message | None:
        """Return the next message for this node, or None if there is none."""
        client, node = self._session()
        with translated_errors(self._address):
            answer = client.PullMessages(PullMessagesRequest(node=node))
            if not answer.messages_list:
                return None
            message = message_from_proto(answer.messages_list[0])
            run_id = message.metadata.run_id

            def pull(object_id: str) -> tuple[bool, bool, bytes]:
                reply = client.PullObject(PullObjectRequest(node=node, run_id=run_id, object_id=object_id))
                return reply.object_found, reply.object_available, reply.object_content

            content = content_of(answer.message_object_trees[0], pull)
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message.metadata.message_id)
            )
        message.content = content
        return message

    def reply(self, message: Message) -> None:
        """Send a reply made by `flwr.app.Message(content, reply_to=…)`."""
        (client, node), run_id = self._session(), message.metadata.run_id
        with no_object_id_recompute(), translated_errors(self._address):
            message.metadata.__dict__["_message_id"] = message.object_id
            objects = get_all_nested_objects(message)
            tree = get_object_tree(message)
            bare = remove_content_from_message(message) if message.has_content() else message
            answer = client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(bare)],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[0.0],
                )
            )

            def push(object_id: str, content: bytes) -> bool:
                request = PushObjectRequest(
                    node=node,
                    run_id=run_id,
                    object_id=object_id,
                    object_content=content,
                    session_id=answer.session_id,
                )
                return bool(client.PushObject(request).stored)

            push_objects(objects, set(answer.objects_to_push), push)

    def close(self) -> None:
        """Disconnect; the SuperLink finds out by the missing heartbeats.

        The node does not say that it leaves: from then on the SuperLink would answer for it that it is unavailable,
        also where its last reply lies ready and the server has not asked yet.
        """
        self._stop.set()
        self._node = None
        if self._client is not None:
            self._client.close()
            self._client = None
