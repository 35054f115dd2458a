# SPDX-License-Identifier: Apache-2.0
"""A LocalController for tests of the script's side: real HTTP on a real unix socket, which does as it is told."""

from __future__ import annotations

import contextlib
import json
import socketserver
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from solar_corona.core.hub_messages import Labels, Observations, WorkerState
from solar_corona.lib.sample_coding import decode_sample
from solar_corona.lib.sample_records import FRAME_TYPE, sample_id_of, unpack


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Controller:
    """Takes what comes, checks it as the real one does, and keeps it.

    `status` other than 200 is what it answers; while `hung` is set it takes requests and says nothing.
    """

    def __init__(self, socket_path):
        self.path = str(socket_path)
        self.status = 200
        self.hung = threading.Event()
        self.samples, self.labels, self.states, self.observations = [], [], [], []
        self.requests = 0
        self.refuse = ""
        self._server = None

    def start(self):
        Path(self.path).unlink(missing_ok=True)
        controller = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                controller.requests += 1
                while controller.hung.is_set():
                    time.sleep(0.01)
                answer = b""
                if controller.status == 200:
                    answer = controller.take(self.path, self.headers["Content-Type"], body)
                with contextlib.suppress(OSError):
                    self.send_response(controller.status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def address_string(self):
                return "unix"

            def log_message(self, *_):
                pass

        self._server = _Server(self.path, Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        self.hung.clear()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def take(self, path, content_type, body):
        if path == "/v1/samples":
            assert content_type == FRAME_TYPE
            receipts = []
            for record, content in unpack(body):
                assert record.id == sample_id_of(content)
                self.samples.append((record, decode_sample(content, record.media_type)))
                receipts.append(
                    {"id": record.id, "outcome": "refused" if self.refuse else "stored", "reason": self.refuse}
                )
            return json.dumps({"receipts": receipts}).encode()
        if path == "/v1/labels":
            self.labels += Labels.model_validate_json(body).labels
            return b'{"receipts": []}'
        if path == "/v1/worker":
            self.states.append(WorkerState.model_validate_json(body))
        elif path == "/v1/observations":
            self.observations += Observations.model_validate_json(body).observations
        else:
            raise AssertionError(path)
        return b""


@contextlib.contextmanager
def running_controller():
    # A unix socket's path has 107 bytes at most, and a test's own folder may be longer.
    with tempfile.TemporaryDirectory(prefix="sc-") as folder:
        controller = Controller(Path(folder, "c.sock")).start()
        try:
            yield controller
        finally:
            controller.stop()


def until(true, seconds=10.0):
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)
