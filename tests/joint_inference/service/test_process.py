# SPDX-License-Identifier: Apache-2.0
"""The service as a process: the protocol's reference client, hostile connections, TLS, and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from solar_corona.lib.open_inference import Request, encode_request

from .conftest import Process, save_slow, save_times, serving

pytestmark = pytest.mark.system


# --- the protocol's reference client, as it is


@pytest.fixture
def triton(served):
    import tritonclient.http as http

    with http.InferenceServerClient(served.url.partition("://")[2], concurrency=4) as client:
        yield client


def test_tritonclient_reads_health_and_metadata(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("times")
    assert triton.is_model_ready("times", "1")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    found = triton.get_model_metadata("times", "1")
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    names = {entry["name"] for entry in triton.get_model_repository_index()}
    assert names == {"times", "colours", "words", "lookup", "slow"}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritonclient_infers(triton, binary_in, binary_out):
    import tritonclient.http as http

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    given = http.InferInput("x", [2, 3], "FP32")
    given.set_data_from_numpy(x, binary_data=binary_in)
    wanted = [http.InferRequestedOutput(name, binary_data=binary_out) for name in ("total", "y")]
    found = triton.infer("times", [given], model_version="1", outputs=wanted, request_id="r7", timeout=5_000_000)
    np.testing.assert_array_equal(found.as_numpy("y"), 10 * x)
    np.testing.assert_array_equal(found.as_numpy("total"), 10 * x.sum(1, keepdims=True))
    assert found.get_response()["id"] == "r7"
    everything = triton.infer("times", [given])
    np.testing.assert_array_equal(everything.as_numpy("y"), 2 * x)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_tritonclient_compresses_both_ways(triton, coding):
    import tritonclient.http as http

    words = np.full((16, 1), b"w" * 500, object)
    for binary in (True, False):
        given = http.InferInput("words", [16, 1], "BYTES")
        given.set_data_from_numpy(words, binary_data=binary)
        found = triton.infer(
            "words", [given], request_compression_algorithm=coding, response_compression_algorithm=coding
        )
        assert found.as_numpy("same").tolist() == words.tolist()


def test_tritonclient_infers_asynchronously(triton):
    import tritonclient.http as http

    asked = []
    for n in range(20):
        given = http.InferInput("x", [1, 3], "FP32")
        given.set_data_from_numpy(np.full((1, 3), n, np.float32))
        asked.append(triton.async_infer("times", [given]))
    assert [float(each.get_result().as_numpy("y")[0, 0]) for each in asked] == [2 * n for n in range(20)]


async def test_tritonclients_asyncio_infers(served):
    import tritonclient.http.aio as http

    async with http.InferenceServerClient(served.url.partition("://")[2]) as client:
        given = http.InferInput("x", [1, 3], "FP32")
        given.set_data_from_numpy(np.ones((1, 3), np.float32))
        found = await asyncio.gather(*(client.infer("times", [given]) for _ in range(8)))
    assert [each.as_numpy("y").tolist() for each in found] == [[[2, 2, 2]]] * 8


def test_tritonclient_hears_what_was_wrong(triton):
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    given = http.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.ones((1, 2), np.float32))
    with pytest.raises(InferenceServerException, match=r"shape \[1, 2\], expected \[-1, 3\]"):
        triton.infer("times", [given])
    with pytest.raises(InferenceServerException, match="there is no model 'none'"):
        triton.get_model_metadata("none")


def test_tritonclient_swaps_models(tmp_path):
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    save_times(tmp_path / "m" / "1" / "model.onnx", 1)
    with (
        serving(tmp_path / "log", tmp_path / "m", "--model-control") as process,
        http.InferenceServerClient(process.url.partition("://")[2]) as client,
    ):
        save_times(tmp_path / "m" / "2" / "model.onnx", 2)
        client.load_model("m")
        assert client.get_model_metadata("m")["versions"] == ["1", "2"]
        client.unload_model("m")
        assert not client.is_model_ready("m")
        with pytest.raises(InferenceServerException, match="parameters are not taken"):
            client.load_model("m", config="{}")


# --- connections that mean harm, or do not know better


def _answer(connection: socket.socket) -> tuple[int, str]:
    """Return the status and body of an answer."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        part = connection.recv(65536)
        assert part, data
        data += part
    head, body = data[:end].decode().lower(), data[end + 4 :]
    length = int(re.search(r"content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(65536)
    return int(head[9:12]), body.decode("utf-8", "replace")


def _ask(served: Process, data: bytes) -> tuple[int, str]:
    with served.connect() as connection:
        connection.sendall(data)
        return _answer(connection)


def _works(served: Process) -> None:
    x = [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]
    reply = httpx.post(f"{served.url}/v2/models/times/infer", json={"inputs": x}, timeout=20)
    assert reply.json()["outputs"][0]["data"] == [2, 4, 6]


HEAD = b"POST /v2/models/times/infer HTTP/1.1\r\nhost: x\r\n"


def test_ten_gigabytes_are_refused_before_one_is_read(served):
    status, body = _ask(served, HEAD + b"content-length: 10000000000\r\n\r\n{")
    assert status == 413
    assert "content-length is 10000000000, expected at most 1048576 bytes" in body
    _works(served)


def test_a_client_that_sends_on_still_hears_why_it_is_refused(served):
    with served.connect() as connection:
        connection.sendall(HEAD + b"content-length: 50000000\r\n\r\n" + bytes(400_000))
        assert _answer(connection)[0] == 413
    _works(served)


def test_a_stream_without_a_length_is_cut_off_at_the_limit(served):
    chunk = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
    with served.connect() as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        connection.sendall(chunk * 17)
        status, body = _answer(connection)
    assert status == 413
    assert "more than 1048576 bytes" in body
    _works(served)


def test_a_body_of_one_byte_a_second_ends_at_the_time_limit(served):
    with served.connect() as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        status, body = _answer(connection)
        assert status == 408
        assert "did not come in time" in body
        assert connection.recv(10) == b""


def test_a_head_of_one_byte_a_second_ends_too(served):
    with served.connect() as connection:
        connection.sendall(b"POST /")
        connection.settimeout(0.5)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                connection.sendall(b"x")
                if connection.recv(10) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    pytest.fail("the connection was kept")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\x01garbage\r\n\r\n", 400),
        (b"GET /v2 HTTP/9.9\r\n\r\n", 400),
        (HEAD + b"content-length: -5\r\n\r\n", 400),
        (HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (HEAD + b"content-length: 99999999999999999999999999\r\n\r\n", 400),
        (HEAD + b"x: " + b"a" * 70_000, 431),
        (HEAD + b"".join(b"x%d: y\r\n" % n for n in range(9000)), 431),
        (b"GET /v2 HTTP/1.1\r\nhost: x\r\ncontent-length: 90000000\r\n\r\n", 413),
        (b"GET /v2/models/%ff%00%2e%2e HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"POST /v2/repository/index HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n[]", 400),
        (HEAD + b"content-type: text/html\r\ncontent-length: 2\r\n\r\n{}", 415),
    ],
)
def test_garbage_is_answered_and_harms_nobody(served, data, status):
    with served.connect() as connection:
        connection.sendall(data)
        text = connection.recv(1000).decode()
        assert int(text[9:12]) == status, text
    _works(served)


def test_a_client_that_waits_for_a_word_before_its_body_hears_it_or_the_refusal(served):
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
    with served.connect() as connection:
        connection.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert _answer(connection)[0] == 200
    assert _ask(served, HEAD + b"expect: 100-continue\r\ncontent-length: 9999999\r\n\r\n")[0] == 413


def test_a_client_that_does_not_read_is_cut_off(served):
    words = np.full((16, 1), b"w" * 60_000, object)
    body, length = encode_request(Request({"words": words}, binary=True))
    head = b"POST /v2/models/words/infer HTTP/1.1\r\nhost: x\r\ninference-header-content-length: %d\r\n" % length
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    with served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        connection.settimeout(0.2)
        end = time.monotonic() + 60
        try:
            while time.monotonic() < end:  # asks again and again, and never reads
                try:
                    connection.sendall(request)
                except TimeoutError:
                    continue
        except ConnectionError:
            _works(served)
            return
    pytest.fail("the connection was kept")


def test_requests_in_one_packet_are_answered_in_turn(served):
    body, length = encode_request(Request({"x": np.ones((1, 3), np.float32)}, binary=True))
    one = HEAD + b"inference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n" % (length, len(body)) + body
    with served.connect() as connection:
        connection.sendall(one * 5)
        data = b""
        while data.count(b"HTTP/1.1 200") < 5:
            data += connection.recv(65536)


def _binary(served: Process, model: str, inputs, *, token=None, asks_binary=True, **request) -> httpx.Response:
    """Ask with binary tensors, which a connection answers without ASGI where it can."""
    body, length = encode_request(Request(inputs, binary=asks_binary, **request))
    headers = {"inference-header-content-length": str(length), "x-request-id": "b-1"}
    headers |= {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.post(f"{served.url}/v2/models/{model}/infer", content=body, headers=headers, timeout=20)


NUMBERS = np.array([[1, 2, 3]], np.float32)


@pytest.mark.parametrize(
    ("model", "inputs", "request_", "status", "says"),
    [
        ("times", {"x": NUMBERS}, {}, 200, ""),
        ("times", {"x": NUMBERS}, {"asks_binary": False}, 200, '"data":[2.0,4.0,6.0]'),
        ("times", {"x": NUMBERS}, {"outputs": ("total",)}, 200, "total"),
        ("words", {"words": np.full((1, 1), b"a" * 4000, object)}, {}, 200, "aaaa"),
        ("times", {"x": NUMBERS[:, :2]}, {}, 400, "expected [-1, 3]"),
        ("times", {"x": NUMBERS}, {"outputs": ("z",)}, 400, "no output 'z'"),
        ("times", {"x": NUMBERS * np.nan}, {"asks_binary": False}, 422, "NaN or infinity cannot be sent as JSON"),
        ("times", {"x": NUMBERS}, {"parameters": {"timeout": "soon"}}, 400, "expected microseconds"),
        ("times/versions/7", {"x": NUMBERS}, {}, 404, "no version '7'"),
        ("lookup", {"index": np.array([9])}, {}, 422, "idx=9 must be within"),
        ("slow", {"x": np.ones((1, 256), np.float32)}, {"parameters": {"timeout": 1}}, 504, "the deadline passed"),
        ("colours", {"image": np.array([b"no image"], object)}, {"encodings": {"image": "png"}}, 400, "cannot be read"),
    ],
)
def test_binary_requests_are_answered_as_others_are(served, model, inputs, request_, status, says):
    before = _count(served, "solar_corona_refused_total")
    reply = _binary(served, model, inputs, **request_)
    assert reply.status_code == status, reply.text
    assert says in reply.text
    assert reply.headers["x-request-id"] == "b-1"
    if status not in (200, 404):
        assert "error" in reply.json()
    assert _count(served, "solar_corona_refused_total") - before <= (status == 404)


def test_a_client_that_goes_within_its_body_leaves_nothing_behind(served):
    with served.connect() as connection:
        connection.sendall(HEAD + b"inference-header-content-length: 9\r\ncontent-length: 999\r\n\r\nhalf")
        _until(lambda: _count(served, "solar_corona_body_bytes") == 999)
    _until(lambda: _count(served, "solar_corona_body_bytes") == 0)


def test_a_token_is_asked_for_on_every_way(model_folder, tmp_path):
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    with serving(tmp_path / "log", model_folder / "times", "--token-file", tmp_path / "tokens") as process:
        assert _binary(process, "times", {"x": NUMBERS}, token="0123456789abcdef").status_code == 200
        for token in (None, "0123456789abcdee"):
            reply = _binary(process, "times", {"x": NUMBERS}, token=token)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert httpx.get(f"{process.url}/v2/health/ready", timeout=20).status_code == 200


def test_work_whose_client_has_gone_is_dropped(served):
    before = _count(served, 'solar_corona_batch_samples_sum{model="slow",version="1"}')
    body, length = encode_request(Request({"x": np.ones((16, 256), np.float32)}, binary=True))
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ninference-header-content-length: %d\r\n" % length
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    connections = [served.connect() for _ in range(8)]
    for connection in connections:
        connection.sendall(request)
    for connection in connections[1:]:
        connection.close()
    with connections[0] as connection:
        assert _answer(connection)[0] == 200
    _until(lambda: _count(served, 'solar_corona_queue_samples{model="slow",version="1"}') == 0)
    assert _count(served, 'solar_corona_batch_samples_sum{model="slow",version="1"}') - before < 8 * 16


def _count(served: Process, name: str) -> float:
    text = httpx.get(f"{served.url}/metrics", timeout=20).text
    return float(next((line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)), 0))


def _until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_log_is_json_and_names_the_request(served):
    httpx.post(f"{served.url}/v2/models/nothing/infer", headers={"x-request-id": "find-me"}, timeout=20)
    _until(lambda: "find-me" in served.log.read_text())
    lines = [json.loads(line) for line in served.log.read_text().splitlines() if line.startswith("{")]
    line = next(line for line in lines if line.get("request_id") == "find-me")
    assert (line["status"], line["level"]) == (404, "info")


def test_serving_onnx_loads_no_other_engine(served):
    maps = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert not re.search("tensorflow|litert|jaxlib|pydantic", maps)


# --- TLS


def _make_keys(folder: Path) -> None:
    """Write `ca.pem`, and `server.pem` and `client.pem`, each with its key behind it."""
    folder.mkdir()
    authority, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    ca = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ca of {folder.name}")])
    for name in ("ca", "server", "client"):
        key = authority if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        subject = ca if name == "ca" else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(authority, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(
            certificate.public_bytes(Encoding.PEM) + (b"" if name == "ca" else private)
        )


def test_tls_with_client_certificates_lets_in_only_those_of_its_ca(model_folder, tmp_path):
    for name in ("ours", "theirs"):
        _make_keys(tmp_path / name)
    server, ca = tmp_path / "ours" / "server.pem", tmp_path / "ours" / "ca.pem"
    tls = ("--tls-cert", server, "--tls-key", server, "--client-ca", ca)
    with serving(tmp_path / "log", model_folder / "words.onnx", *tls) as process:
        assert process.url.startswith("https://")
        for name in ("ours", "theirs", None):
            trust = ssl.create_default_context(cafile=str(ca))
            if name is not None:
                trust.load_cert_chain(tmp_path / name / "client.pem")
            if name == "ours":
                assert httpx.get(f"{process.url}/v2", verify=trust, timeout=20).json()["name"] == "solar-corona"
            else:
                with pytest.raises(httpx.TransportError):
                    httpx.get(f"{process.url}/v2", verify=trust, timeout=20)


# --- its start and its end


def _serve(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "solar_corona.cli", "serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing.onnx"], 3, "nothing.onnx: there is no such model"),
        (["{folder}/words.onnx", "{folder}/words.onnx"], 2, "both named 'words'"),
        (["{folder}/words.onnx", "--max-batch", "200"], 2, "max-queue is 128 and max-batch 200"),
        (["{folder}/words.onnx", "--tls-cert", "x"], 2, "--tls-cert and --tls-key belong together"),
        (["{folder}/words.onnx", "--client-ca", "x"], 2, "--client-ca needs TLS"),
        (["{folder}/words.onnx", "--tls-cert", "x", "--tls-key", "y"], 2, "x: there is no such file"),
        (["{folder}/words.onnx", "--token-file", "nothing"], 2, "nothing: cannot be read"),
        (["{folder}/words.onnx", "--port", "{port}"], 4, "is in use; choose another with --port"),
        (["{folder}/words.onnx", "--host", "no.such.host.invalid"], 4, "is no address that can be listened on"),
        (["{folder}/words.onnx", "--port", "99999"], 2, "99999"),
    ],
)
def test_what_cannot_be_served_is_one_error_and_its_exit_code(model_folder, served, arguments, code, says):
    names = {"folder": model_folder, "port": served.address[1]}
    done = _serve(*(argument.format(**names) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_certificate_that_is_none_is_told(model_folder, tmp_path):
    (tmp_path / "x.pem").write_text("no certificate")
    done = _serve(model_folder / "words.onnx", "--tls-cert", tmp_path / "x.pem", "--tls-key", tmp_path / "x.pem")
    assert done.returncode == 2
    assert "cannot be used for TLS" in done.stderr


def test_sigterm_loses_none_of_24_in_flight_and_leaves_no_process(tmp_path):
    from solar_corona.benchmarks._load import post, run_load

    save_slow(tmp_path / "slow.onnx")
    body, length = encode_request(Request({"x": np.ones((1, 256), np.float32)}, binary=True))
    request = post("/v2/models/slow/infer", body, {"inference-header-content-length": str(length)})
    with serving(tmp_path / "log", tmp_path / "slow.onnx") as process:
        loads = []
        asking = threading.Thread(
            target=lambda: loads.append(run_load(process.address, [request] * 24, seconds=60, until_cut=True))
        )
        asking.start()
        _until(lambda: _count(process, 'solar_corona_queue_samples{model="slow",version="1"}') >= 8)
        os.kill(process.process.pid, signal.SIGTERM)
        asking.join(60)
        assert process.process.wait(30) == 0
    (load,) = loads
    assert load.lost == 0
    assert set(load.statuses) == {200}
    assert load.statuses[200] >= 24


def test_a_request_on_its_way_at_sigterm_is_still_answered(model_folder, tmp_path):
    body, length = encode_request(Request({"x": np.ones((1, 3), np.float32)}, binary=True))
    request = HEAD + b"inference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n" % (length, len(body)) + body
    with serving(tmp_path, model_folder / "times") as process, process.connect() as idle, process.connect() as other:
        for connection in (idle, other):
            connection.sendall(request)
            assert _answer(connection)[0] == 200
        process.process.send_signal(signal.SIGTERM)
        _until(lambda: "stopping" in process.log.read_text())
        idle.sendall(request)  # its client could not know
        text = idle.recv(4096)
        assert text.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in text
        assert process.process.wait(30) == 0


def test_an_idle_service_stops_at_once(model_folder, tmp_path):
    with serving(tmp_path, model_folder / "words.onnx") as process:
        begin = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - begin < 10


def test_a_second_signal_does_not_wait_for_a_model_that_hangs(tmp_path):
    save_slow(tmp_path / "slow.onnx", steps=100_000)
    body, length = encode_request(Request({"x": np.ones((1, 256), np.float32)}, binary=True))
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ninference-header-content-length: %d\r\n" % length
    with serving(tmp_path / "log", tmp_path / "slow.onnx") as process, process.connect() as connection:
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        _until(lambda: _count(process, 'solar_corona_queue_samples{model="slow",version="1"}') == 1)
        process.process.send_signal(signal.SIGTERM)
        _until(lambda: "stopping" in process.log.read_text())
        process.process.send_signal(signal.SIGTERM)
        process.process.wait(30)
