# SPDX-License-Identifier: Apache-2.0
"""Deep models elsewhere: what they answer is taken, what they do wrong is told, and deadlines hold."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from solar_corona.core.context_document import DeepModel
from solar_corona.core.errors import ModelError, SpecError, TemporaryError
from solar_corona.core.security import make_credentials
from solar_corona.lib.endpoints.callable_endpoint import CallableEndpoint
from solar_corona.lib.endpoints.endpoint import Description, Endpoint
from solar_corona.lib.endpoints.guarded import GuardedEndpoint
from solar_corona.lib.endpoints.http_client import HttpOptions
from solar_corona.lib.endpoints.open_inference_client import OpenInferenceEndpoint
from solar_corona.lib.endpoints.opening import open_endpoint
from solar_corona.lib.endpoints.tf_serving_client import TensorFlowServingEndpoint
from solar_corona.lib.open_inference import HEADER_LENGTH, Answer, decode_request, encode_answer

BATCH = {"image": np.arange(6, dtype=np.uint8).reshape(2, 3)}


@contextmanager
def serving(answer, *, tls=None):
    """Serve with `answer(handler, body)`; give the base URL and the list of requests."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            seen.append((self.command, self.path, dict(self.headers)))
            answer(self, body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.pem", tls / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(endpoint, *, deadline=5):
    with closing(endpoint):
        return endpoint.infer(BATCH, deadline=deadline)


def described(endpoint):
    with closing(endpoint):
        return endpoint.describe(deadline=5)


def reply(handler, body, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def doubles(handler, body):
    request = decode_request(body, int(handler.headers[HEADER_LENGTH]))
    doubled = Answer({"twice": request.inputs["image"] * 2}, "large", "3")
    data, length = encode_answer(doubled, request)
    reply(handler, data, **{HEADER_LENGTH: str(length)})


def test_a_batch_is_answered_over_one_connection():
    with serving(doubles) as (url, seen):
        endpoint = OpenInferenceEndpoint(url, "a b", version="3", options=HttpOptions(token="secret"))
        for _ in range(3):
            found = endpoint.infer(BATCH, deadline=5)
        endpoint.close()
    np.testing.assert_array_equal(found.outputs["twice"], BATCH["image"] * 2)
    assert (found.model, found.version) == ("large", "3")
    assert found.bytes_up > 6
    assert found.bytes_down > 6
    method, path, headers = seen[0]
    assert (method, path) == ("POST", "/v2/models/a%20b/versions/3/infer")
    assert headers["authorization"] == "Bearer secret"


def test_a_model_says_what_it_takes():
    inputs = [{"name": "image", "datatype": "UINT8", "shape": [-1, 3]}]

    def describe(handler, _):
        server = {"name": "s", "extensions": ["binary_tensor_data", "encoded_images"]}
        document = server if handler.path == "/v2" else {"name": "large", "inputs": inputs}
        reply(handler, json.dumps(document).encode())

    with serving(describe) as (url, _):
        found = described(OpenInferenceEndpoint(url, "large"))
    assert found.reads_files
    (spec,) = found.inputs
    assert (spec.name, spec.datatype, spec.shape) == ("image", "UINT8", (-1, 3))


@pytest.mark.parametrize("inputs", [None, []])
def test_a_server_may_know_nothing_of_inputs_or_binary_tensors(inputs):
    seen = []

    def as_mlserver(handler, body):
        if handler.command == "GET":
            model = {"name": "large", "inputs": inputs}
            reply(handler, json.dumps({"extensions": []} if handler.path == "/v2" else model).encode())
            return
        seen.append(json.loads(body))
        data, _ = encode_answer(Answer({"twice": BATCH["image"] * 2}, "large", ""), decode_request(body, None))
        reply(handler, data)

    with serving(as_mlserver) as (url, _), closing(OpenInferenceEndpoint(url, "large")) as endpoint:
        assert endpoint.describe(deadline=5) == Description()
        found = endpoint.infer(BATCH, deadline=5).outputs["twice"]
    np.testing.assert_array_equal(found, BATCH["image"] * 2)
    assert [tensor["data"] for tensor in seen[0]["inputs"]] == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    "document",
    [[], {}, {"inputs": []}, {"name": "x", "inputs": [{"name": "x"}]}, {"name": "x", "inputs": [3]}],
)
def test_a_description_that_is_none_is_told(document):
    with (
        serving(lambda h, _: reply(h, json.dumps(document).encode())) as (url, _),
        pytest.raises(ModelError, match="expected"),
    ):
        described(OpenInferenceEndpoint(url, "large"))


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (400, ModelError, "answered 400: wrong shape"),
        (401, ModelError, "give it a token"),
        (404, ModelError, "check the model's name"),
        (413, ModelError, "send smaller samples"),
        (302, ModelError, "give that URL"),
        (429, TemporaryError, "answered 429"),
        (500, TemporaryError, "answered 500"),
        (503, TemporaryError, "wrong shape"),
    ],
)
def test_a_refusal_is_told_apart_from_a_fault(status, kind, says):
    body = json.dumps({"error": "wrong shape"}).encode()
    with serving(lambda h, _: reply(h, body, status)) as (url, seen), pytest.raises(kind, match=says):
        ask(OpenInferenceEndpoint(url, "large"), deadline=5)
    assert len(seen) == 1


def test_an_answer_that_is_a_web_page_is_a_fault_of_the_service():
    with (
        serving(lambda h, _: reply(h, b"<html>welcome</html>")) as (url, _),
        pytest.raises(TemporaryError, match="cannot be read"),
    ):
        ask(OpenInferenceEndpoint(url, "large"), deadline=5)


def test_one_byte_a_second_does_not_stretch_the_deadline():
    over = threading.Event()

    def dribble(handler, _):
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        while not over.wait(0.02):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return

    with serving(dribble) as (url, _):
        begin = time.monotonic()
        with pytest.raises(TemporaryError, match=r"within 0\.3 s"):
            ask(OpenInferenceEndpoint(url, "large"), deadline=0.3)
        took = time.monotonic() - begin
        over.set()
    assert took < 2


def test_an_endless_answer_is_cut():
    def endless(handler, _):
        handler.send_response(200)
        handler.send_header("content-length", str(10 * 2**30))
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"\0" * 65536)
        except OSError:
            return

    with serving(endless) as (url, _), pytest.raises(TemporaryError, match="more than 1000000 bytes"):
        ask(OpenInferenceEndpoint(url, "large", options=HttpOptions(largest_answer=1_000_000)), deadline=30)


@pytest.mark.parametrize(
    ("coding", "body", "says"),
    [
        ("gzip", b"no gzip at all", "cannot be decompressed"),
        ("gzip", gzip.compress(b"{}" * 1000)[:-9], "cut off"),
        ("br", b"\x0b\x00", "compressed as 'br'"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), "compressed as 'gzip, gzip'"),
        ("gzip", gzip.compress(bytes(50 * 2**20), 9), "more than 1000000 bytes"),
    ],
    ids=["no gzip", "cut off", "another coding", "two codings", "a bomb"],
)
def test_a_compressed_answer_that_cannot_be_read_is_a_fault_and_fills_no_memory(coding, body, says):
    options = HttpOptions(largest_answer=1_000_000)
    with serving(lambda h, _: reply(h, body, content_encoding=coding)) as (url, _):
        endpoint = OpenInferenceEndpoint(url, "large", options=options)
        tracemalloc.start()
        with pytest.raises(TemporaryError) as told:
            ask(endpoint, deadline=5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert says in str(told.value)
    assert peak < 20 * 2**20


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_answer_is_read(coding):
    def compressed(handler, body):
        request = decode_request(body, int(handler.headers[HEADER_LENGTH]))
        data, length = encode_answer(Answer({"twice": request.inputs["image"] * 2}, "large"), request)
        squeezed = gzip.compress(data) if coding == "gzip" else zlib.compress(data)
        reply(handler, squeezed, **{HEADER_LENGTH: str(length), "content-encoding": coding})

    with serving(compressed) as (url, seen):
        found = ask(OpenInferenceEndpoint(url, "large"))
    np.testing.assert_array_equal(found.outputs["twice"], BATCH["image"] * 2)
    assert seen[0][2]["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (HttpOptions(token="tökén"), "the token .* expected ASCII"),
        (HttpOptions(token="a\nb: c"), "the token .* expected ASCII"),
        (HttpOptions(key=Path("mine.key")), r"mine\.key: is a key without its certificate"),
    ],
)
def test_what_no_connection_can_be_made_with_is_told_before_one_is_needed(options, says):
    with pytest.raises(ModelError, match=says):
        OpenInferenceEndpoint("https://h", "large", options=options)


def test_nobody_listening_is_a_fault():
    with pytest.raises(TemporaryError, match="cannot be reached"):
        ask(OpenInferenceEndpoint("http://127.0.0.1:9", "large"), deadline=5)


def test_a_reset_connection_is_told_in_words():
    def resets():
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                near.recv(1)
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                near.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=resets, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TemporaryError, match=r"cannot be reached: \w+"):
            ask(OpenInferenceEndpoint(url, "large"), deadline=5)


def test_a_connection_that_the_service_closed_is_opened_anew():
    def once(handler, body):
        doubles(handler, body)
        handler.close_connection = True

    with serving(once) as (url, seen):
        endpoint = OpenInferenceEndpoint(url, "large")
        for _ in range(5):
            endpoint.infer(BATCH, deadline=5)
        endpoint.close()
    assert len(seen) == 5


def test_a_certificate_is_checked(tmp_path):
    make_credentials(tmp_path / "ours", hosts=["127.0.0.1"], edges=[])
    make_credentials(tmp_path / "theirs", hosts=["127.0.0.1"], edges=[])
    with serving(doubles, tls=tmp_path / "theirs") as (url, _):
        good = OpenInferenceEndpoint(url, "large", options=HttpOptions(ca=tmp_path / "theirs" / "ca.pem"))
        assert ask(good).model == "large"
        bad = OpenInferenceEndpoint(url, "large", options=HttpOptions(ca=tmp_path / "ours" / "ca.pem"))
        with pytest.raises(TemporaryError, match="certificate is not accepted"):
            ask(bad)


def serve_http2(listener, tls, paths):
    """Answer one connection's requests over HTTP/2, each with what `doubles` says."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import DataReceived, RequestReceived, StreamEnded

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.pem", tls / "server.key")
    context.set_alpn_protocols(["h2"])
    near, _ = listener.accept()
    with context.wrap_socket(near, server_side=True) as line, suppress(OSError):
        http2 = H2Connection(H2Configuration(client_side=False, header_encoding="ascii"))
        http2.initiate_connection()
        headers, bodies = {}, {}
        while True:
            line.sendall(http2.data_to_send())
            data = line.recv(65536)
            if not data:
                return
            for event in http2.receive_data(data):
                if isinstance(event, RequestReceived):
                    headers[event.stream_id], bodies[event.stream_id] = dict(event.headers), b""
                elif isinstance(event, DataReceived):
                    bodies[event.stream_id] += event.data
                elif isinstance(event, StreamEnded):
                    asked = headers[event.stream_id]
                    request = decode_request(bodies[event.stream_id], int(asked[HEADER_LENGTH.lower()]))
                    answer = Answer({"twice": request.inputs["image"] * 2}, "large")
                    body, length = encode_answer(answer, request)
                    paths.append(asked[":path"])
                    http2.send_headers(event.stream_id, [(":status", "200"), (HEADER_LENGTH.lower(), str(length))])
                    http2.send_data(event.stream_id, body, end_stream=True)


def test_http_2_is_spoken_over_one_connection_where_it_is_asked_for(tmp_path):
    make_credentials(tmp_path, hosts=["127.0.0.1"], edges=[])
    paths = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve_http2, args=(listener, tmp_path, paths), daemon=True)
        server.start()
        options = HttpOptions(ca=tmp_path / "ca.pem", http2=True)
        endpoint = OpenInferenceEndpoint(f"https://127.0.0.1:{listener.getsockname()[1]}", "large", options=options)
        with closing(endpoint):
            for _ in range(3):
                found = endpoint.infer(BATCH, deadline=5)
        server.join(5)
    np.testing.assert_array_equal(found.outputs["twice"], BATCH["image"] * 2)
    assert paths == ["/v2/models/large/infer"] * 3


def test_a_file_that_is_no_certificate_is_told(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ModelError, match=r"ca\.pem: is no certificate"):
        OpenInferenceEndpoint("https://127.0.0.1", "large", options=HttpOptions(ca=tmp_path / "ca.pem"))


def test_tensorflow_serving_is_understood():
    def serve(handler, body):
        if handler.command == "GET":
            shape = {"dim": [{"size": "-1"}, {"size": "3"}]}
            inputs = {"image": {"dtype": "DT_UINT8", "tensor_shape": shape}}
            signatures = {"signature_def": {"serving_default": {"inputs": inputs}}}
            reply(handler, json.dumps({"metadata": {"signature_def": signatures}}).encode())
        else:
            given = json.loads(body)
            assert given["signature_name"] == "serving_default"
            reply(handler, json.dumps({"outputs": (np.array(given["inputs"]) / 2).tolist()}).encode())

    with serving(serve) as (url, seen), closing(TensorFlowServingEndpoint(url, "large", version="2")) as endpoint:
        (spec,) = endpoint.describe(deadline=5).inputs
        found = endpoint.infer(BATCH, deadline=5)
    assert (spec.name, spec.datatype, spec.shape) == ("image", "UINT8", (-1, 3))
    np.testing.assert_array_equal(found.outputs["output"], (BATCH["image"] / 2).astype(np.float32))
    assert [path for _, path, _ in seen] == [
        "/v1/models/large/versions/2/metadata",
        "/v1/models/large/versions/2:predict",
    ]


@pytest.mark.parametrize("answer", [[], {"predictions": 1}, {"outputs": [[1], [1, 2]]}, {"outputs": {"a": {"b": 1}}}])
def test_what_tensorflow_serving_would_not_say_is_a_fault(answer):
    with (
        serving(lambda h, _: reply(h, json.dumps(answer).encode())) as (url, _),
        pytest.raises(TemporaryError, match="output"),
    ):
        ask(TensorFlowServingEndpoint(url, "large"), deadline=5)


def test_a_function_takes_the_place_of_a_service():
    found = CallableEndpoint(lambda batch: batch * 2).infer(BATCH, deadline=5)
    np.testing.assert_array_equal(found.outputs["output"], BATCH["image"] * 2)
    several = CallableEndpoint(lambda batch: {"n": batch["a"] + batch["b"]})
    assert several.infer({"a": np.ones(2), "b": np.ones(2)}, deadline=5).outputs["n"].tolist() == [2, 2]


def test_a_function_that_raises_or_hangs_is_a_fault():
    with pytest.raises(TemporaryError, match="raised ZeroDivisionError"):
        CallableEndpoint(lambda batch: 1 // 0, name="mine").infer(BATCH, deadline=5)
    over = threading.Event()
    with pytest.raises(TemporaryError, match=r"mine gave no answer within 0\.05 s"):
        CallableEndpoint(lambda batch: over.wait(5), name="mine").infer(BATCH, deadline=0.05)
    over.set()
    with pytest.raises(TemporaryError, match="mine returned what is no array"):
        CallableEndpoint(lambda batch: [[1, 2], [3]], name="mine").infer(BATCH, deadline=5)


def test_a_function_that_hangs_does_not_keep_the_process_from_ending():
    script = """
import threading
from solar_corona.core.errors import TemporaryError
from solar_corona.lib.endpoints.callable_endpoint import CallableEndpoint
try:
    CallableEndpoint(lambda batch: threading.Event().wait()).infer({"x": 1}, deadline=0.05)
except TemporaryError:
    print("goes on")
"""
    ran = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=20)
    assert (ran.returncode, ran.stdout) == (0, "goes on\n")


def test_a_function_is_called_from_four_threads_at_most():
    together, most, lock, release = 0, 0, threading.Lock(), threading.Event()

    def counts(batch):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        release.wait(0.05)
        with lock:
            together -= 1
        return batch

    with closing(CallableEndpoint(counts)) as endpoint, ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda _: endpoint.infer(BATCH, deadline=10), range(24)))
    assert len(answers) == 24
    assert most == 4


class Flaky:
    """An endpoint that fails as often as it is told."""

    def __init__(self):
        self.asked, self.error = 0, TemporaryError("gone")

    def describe(self, *, deadline):
        return Description()

    def infer(self, inputs, *, deadline, encodings=None):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return "answer"

    def close(self):
        pass


def test_a_dead_service_is_left_alone_and_tried_again_later():
    flaky = Flaky()
    guarded = GuardedEndpoint(flaky, failures=3, rest=1)
    for _ in range(10):
        with pytest.raises(TemporaryError, match="gone"):
            guarded.infer(BATCH, deadline=1)
    assert (flaky.asked, guarded.circuit) == (3, "open")
    flaky.error = None
    end = time.monotonic() + 5
    while guarded.circuit == "open" and time.monotonic() < end:
        time.sleep(0.01)
    assert guarded.infer(BATCH, deadline=1) == "answer"
    assert guarded.circuit == "closed"


def test_a_refusal_opens_no_circuit():
    flaky = Flaky()
    flaky.error = ModelError("wrong shape")
    guarded = GuardedEndpoint(flaky, failures=3)
    for _ in range(10):
        with pytest.raises(ModelError):
            guarded.infer(BATCH, deadline=1)
    assert (flaky.asked, guarded.circuit) == (10, "closed")


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://h:8000/v2/models/large", OpenInferenceEndpoint),
        ("https://h/sub/v2/models/large/versions/3", OpenInferenceEndpoint),
        ("http://h:8501/v1/models/large", TensorFlowServingEndpoint),
    ],
)
def test_a_url_says_the_dialect(url, kind):
    endpoint = open_endpoint(url)
    assert isinstance(endpoint, kind)
    assert isinstance(endpoint, Endpoint)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("large", "no URL of a model"),
        ("ftp://h/v2/models/a", "no URL of a model"),
        ("http://h:8000", "names no model"),
        ("http://me:pw@h/v2/models/a", "password"),
        ("http://[::1/v2/models/a", "is no URL"),
        ("http://h:99999/v2/models/a", "is no URL"),
        ("http://h:port/v2/models/a", "is no URL"),
        (3, "is a int"),
        (DeepModel(), "names no deep model"),
        (DeepModel(url="http://h", model="a", token_file="/nowhere"), "/nowhere: the token"),
    ],
)
def test_what_names_no_deep_model_is_told(what, says):
    with pytest.raises(ModelError, match=says):
        open_endpoint(what)


def test_a_jobs_token_and_function_are_read(tmp_path):
    (tmp_path / "token").write_text("abc\n")
    deep = DeepModel(url="http://h", model="a", token_file=str(tmp_path / "token"))
    assert isinstance(open_endpoint(deep), OpenInferenceEndpoint)
    assert open_endpoint(DeepModel(callable="numpy:negative")).infer(BATCH, deadline=1).model == "numpy:negative"
    with pytest.raises(SpecError, match="cannot be loaded"):
        open_endpoint(DeepModel(callable="numpy:nothing"))
    with pytest.raises(ModelError, match="no function"):
        open_endpoint(DeepModel(callable="numpy:pi"))
    (tmp_path / "token").write_text("two words")
    with pytest.raises(ModelError, match="holds no token"):
        open_endpoint(deep)
