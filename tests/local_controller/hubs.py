# SPDX-License-Identifier: Apache-2.0
"""A hub of a few lines that keeps everything in memory, and that tests make fail."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx

from solar_corona.core.errors import WireError
from solar_corona.core.hub_messages import Heartbeat, Labels, Observations, Orders
from solar_corona.lib.sample_records import unpack

TOKEN = "edge-token-of-the-tests"


class MiniHub:
    """A WSGI application: in-process with `transport`, or over a socket with `served`."""

    def __init__(self):
        self.samples: dict[str, tuple] = {}
        self.arrivals: list[str] = []  # ids in the order of arrival, also such as were known
        self.contents: dict[str, bytearray] = {}
        self.labels: list = []
        self.observations: dict[int, object] = {}
        self.heartbeats: list[Heartbeat] = []
        self.orders = Orders(next_heartbeat=0.2)
        self.files: dict[int, bytes] = {}
        self.requests: list[tuple[str, str, dict, int]] = []
        self.sizes: list[int] = []
        self.outcome = lambda record: None  # what a test wants to be answered for a sample
        self.fault = lambda request: None  # a (status, headers) that a test wants to be answered
        self.lock = threading.Lock()

    def transport(self) -> httpx.WSGITransport:
        return httpx.WSGITransport(self)

    @contextmanager
    def served(self, tls: ssl.SSLContext | None = None):
        server = make_server("127.0.0.1", 0, self, server_class=_Server, handler_class=_Quiet)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self.lock:
            self.requests.append((method, path, environ, len(body)))
            self.sizes.append(len(body))
            status, headers, answer = self._answer(method, path, environ, body)
        start_response(f"{status} X", [("Content-Length", str(len(answer))), *headers])
        return [b"" if method == "HEAD" else answer]

    def _answer(self, method, path, environ, body):
        if environ.get("HTTP_AUTHORIZATION") != f"Bearer {TOKEN}":
            return 401, [], b"who is this?"
        if (fault := self.fault((method, path, body))) is not None:
            return fault[0], list(fault[1].items()), b"a fault that the test wants"
        if found := re.fullmatch(r"/v1/contents/([0-9a-f]{64})", path):
            return self._content(method, found[1], environ, body)
        if found := re.fullmatch(r"/v1/models/(\d+)/file", path):
            return self._file(int(found[1]), environ)
        route = getattr(self, "_post_" + path.rpartition("/")[2], None)
        if method != "POST" or route is None:
            return 404, [], b"no such place"
        try:
            answer = route(body)
        except (WireError, ValueError) as error:
            return 400, [], str(error).encode()
        return (204, [], b"") if answer is None else (200, [], json.dumps(answer).encode())

    def _post_samples(self, body):
        receipts = []
        for record, content in unpack(body):
            outcome = self.outcome(record)
            if outcome is None:
                found = bytes(self.contents.get(record.id, b"")) if record.ahead else content
                whole = hashlib.sha256(found).hexdigest() == record.id and len(found) == record.size
                outcome = "known" if record.id in self.samples else "stored" if whole else "later"
                if outcome == "stored":
                    self.samples[record.id] = (record, found)
                self.arrivals.append(record.id)
            receipts.append({"id": record.id, "outcome": outcome, "reason": "" if outcome != "later" else "quota"})
        return {"receipts": receipts}

    def _post_labels(self, body):
        labels = Labels.model_validate_json(body).labels
        outcomes = [self.outcome(each) or "stored" for each in labels]
        self.labels += [each for each, outcome in zip(labels, outcomes, strict=True) if outcome == "stored"]
        return {"receipts": [{"id": e.sample, "outcome": o} for e, o in zip(labels, outcomes, strict=True)]}

    def _post_observations(self, body):
        for each in Observations.model_validate_json(body).observations:
            self.observations[each.seq] = each

    def _post_heartbeat(self, body):
        self.heartbeats.append(Heartbeat.model_validate_json(body))
        return self.orders.model_dump(mode="json")

    def _content(self, method, id_, environ, body):
        have = self.contents.get(id_)
        if method == "HEAD":
            return (404, [], b"") if have is None else (200, [("Upload-Offset", str(len(have)))], b"")
        have = self.contents.setdefault(id_, bytearray())
        if int(environ["HTTP_UPLOAD_OFFSET"]) != len(have):
            return 409, [("Upload-Offset", str(len(have)))], b""
        have += body
        if len(have) == int(environ["HTTP_UPLOAD_LENGTH"]) and hashlib.sha256(have).hexdigest() != id_:
            del self.contents[id_]
            return 422, [], b"not what its id says"
        return 204, [("Upload-Offset", str(len(have)))], b""

    def _file(self, version, environ):
        content = self.files.get(version)
        if content is None:
            return 404, [], b"no such version"
        begin = int(re.fullmatch(r"bytes=(\d+)-", environ.get("HTTP_RANGE", "bytes=0-"))[1])
        if begin >= len(content):
            return 416, [], b""
        span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return (206, [("Content-Range", span)], content[begin:]) if begin else (200, [], content)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


class SimulatedClock:
    """Time that passes only where somebody waits; `then` is called with each second that it has become."""

    def __init__(self, begin: float = 1e9):
        self.begin, self.passed, self.jump = begin, 0.0, 0.0
        self.waits: list[float] = []
        self.then = lambda passed: None

    def now(self) -> float:
        return self.begin + self.passed + self.jump

    def monotonic(self) -> float:
        return self.passed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        if not event.is_set():
            self.passed += seconds
            self.then(self.passed)
        return event.is_set()
