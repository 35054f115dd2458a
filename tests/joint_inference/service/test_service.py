# SPDX-License-Identifier: Apache-2.0
"""What the service answers, in this process: right, wrong and too many requests."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import re

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from solar_corona.core.errors import ModelError, TemporaryError
from solar_corona.joint_inference.service.application import Service
from solar_corona.joint_inference.service.logs import JsonLines
from solar_corona.joint_inference.service.options import ServiceOptions
from solar_corona.lib.open_inference import ENCODED_IMAGES, Request, decode_answer, encode_request
from solar_corona.lib.runners.opening import open_runner

from .conftest import save_times

HEADER = "inference-header-content-length"


@pytest.fixture
async def client(model_folder):
    """A client of the repository of small models, whose connections end in this process."""
    options = ServiceOptions(max_batch=16, max_body=1 << 20, max_json=1 << 16, model_control=True)
    service = Service([str(model_folder)], options=options, version="0", opener=open_runner)
    await service.open()
    yield _client(service)
    await service.close()


def _client(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://service", timeout=20)


async def _infer(client, model, inputs, *, binary=True, how=None, headers=None, **request):
    body, length = encode_request(Request(inputs, binary=binary, **request), binary=binary)
    headers = {"accept-encoding": "identity"} | (headers or {}) | ({} if length is None else {HEADER: str(length)})
    reply = await client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    assert reply.status_code == 200, reply.text
    length = reply.headers.get(HEADER)
    return decode_answer(reply.content, None if length is None else int(length)), reply


def _tensor(name="x", shape=(1, 3), datatype="FP32", data=(1.0, 2.0, 3.0), **more):
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": list(data)} | more


def _json(**changes):
    return {"inputs": [_tensor()]} | changes


# --- right


@pytest.mark.parametrize("binary", [True, False])
async def test_a_batch_is_answered_as_the_model_would(client, binary):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    answer, reply = await _infer(client, "times", {"x": x}, binary=binary, id="a1")
    assert (answer.model, answer.version, answer.id) == ("times", "2", "a1")
    np.testing.assert_array_equal(answer.outputs["y"], 2 * x)
    np.testing.assert_array_equal(answer.outputs["total"], 2 * x.sum(1, keepdims=True))
    assert (reply.headers["content-type"] == "application/octet-stream") is binary


async def test_a_version_is_asked_for_by_its_number(client):
    x = np.ones((1, 3), np.float32)
    answer, _ = await _infer(client, "times/versions/1", {"x": x})
    assert (answer.version, answer.outputs["y"][0, 0]) == ("1", 10)


async def test_outputs_come_as_they_are_asked_for(client):
    body = _json(outputs=[{"name": "total", "parameters": {"binary_data": True}}])
    reply = await client.post("/v2/models/times/infer", json=body)
    answer = decode_answer(reply.content, int(reply.headers[HEADER]))
    assert {name: value.tolist() for name, value in answer.outputs.items()} == {"total": [[12]]}


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_bodies_may_be_compressed_both_ways(client, coding):
    import zlib

    x = np.ones((16, 3), np.float32)
    body, _ = encode_request(Request({"x": x}), binary=False)
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}[coding](body)
    headers = {"content-encoding": coding, "accept-encoding": coding}
    reply = await client.post("/v2/models/times/infer", content=packed, headers=headers)
    # Short answers are not worth it; what httpx has read here was plain.
    assert (reply.status_code, reply.headers.get("content-encoding")) == (200, None)
    words = np.full((16, 1), b"a" * 200, object)
    body, _ = encode_request(Request({"words": words}), binary=False)
    reply = await client.post(
        "/v2/models/words/infer", content=body, headers=headers | {"content-encoding": "identity"}
    )
    assert reply.headers["content-encoding"] == coding
    assert reply.json()["outputs"][0]["data"] == ["a" * 200] * 16


async def test_image_files_are_decoded_for_the_model(client):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0] = 250
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    files = np.array([file.getvalue(), file.getvalue()], object)
    answer, _ = await _infer(client, "colours", {"image": files}, encodings={"image": "image/png"})
    np.testing.assert_allclose(answer.outputs["mean"], [[250, 0, 0]] * 2)


async def test_a_plain_tensor_may_carry_a_content_type(client):
    body = {"inputs": [_tensor(parameters={"content_type": "np"})]}
    reply = await client.post("/v2/models/times/infer", json=body)
    assert reply.json()["outputs"][0]["data"] == [2, 4, 6]


async def test_bytes_go_through_a_model_of_strings(client):
    words = np.array([[b"solar"], ["Übergröße".encode()]], object)
    answer, _ = await _infer(client, "words", {"words": words}, binary=False)
    assert answer.outputs["same"].tolist() == words.tolist()


async def test_many_at_once_get_each_their_own_answer(client):
    inputs = [np.full((1 + n % 3, 3), n, np.float32) for n in range(60)]
    answers = await asyncio.gather(*(_infer(client, "times", {"x": x}) for x in inputs))
    for x, (answer, _) in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], 2 * x)


async def test_a_request_id_comes_back_or_is_made(client):
    _, reply = await _infer(client, "times", {"x": np.ones((1, 3), np.float32)}, headers={"x-request-id": "mine-7"})
    assert reply.headers["x-request-id"] == "mine-7"
    made = {(await client.get("/v2/health/live")).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    unsafe = await client.get("/v2", headers={"x-request-id": "a b\tc"})
    assert unsafe.headers["x-request-id"] != "a b\tc"


async def test_metadata_says_what_the_models_take(client):
    extensions = (await client.get("/v2")).json()["extensions"]
    assert extensions == ["binary_tensor_data", ENCODED_IMAGES, "model_repository"]
    found = (await client.get("/v2/models/times/versions/1")).json()
    assert (found["name"], found["versions"], found["platform"]) == ("times", ["1", "2"], "onnx")
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert (await client.get("/v2/models/times/ready")).json() == {"name": "times", "ready": True}
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}


# --- wrong


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "says"),
    [
        ("nothing", _json(), {}, 404, "there is no model 'nothing'; there are: colours, lookup, slow, times, words"),
        ("times/versions/9", _json(), {}, 404, "no version '9'; it has: 1, 2"),
        ("times", b"", {}, 400, "the body is empty; expected a JSON object"),
        ("times", b"\x00garbage", {}, 400, "no JSON"),
        (
            "times",
            b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [NaN, 1, 2]}]}',
            {},
            400,
            "NaN",
        ),
        ("times", {"inputs": [_tensor("z")]}, {}, 400, r"'x' is missing; expected 'x' \(FP32 \[-1, 3\]\)"),
        ("times", {"inputs": [_tensor(), _tensor("z")]}, {}, 400, "no input 'z'"),
        ("times", {"inputs": [_tensor(shape=(1, 2), data=(1, 2))]}, {}, 400, r"shape \[1, 2\], expected \[-1, 3\]"),
        ("times", {"inputs": [_tensor(datatype="INT32", data=(1, 2, 3))]}, {}, 400, "is INT32, expected FP32"),
        ("times", {"inputs": [_tensor(shape=(3,))]}, {}, 400, r"shape \[3\], expected"),
        ("times", {"inputs": [_tensor(shape=(0, 3), data=())]}, {}, 400, "0 samples, expected 1 to 16"),
        ("times", {"inputs": [_tensor(shape=(17, 3), data=[0] * 51)]}, {}, 400, "17 samples, expected 1 to 16"),
        ("times", _json(outputs=[{"name": "z"}]), {}, 400, "no output 'z'; expected 'y'"),
        ("times", _json(parameters={"timeout": "soon"}), {}, 400, "timeout is 'soon', expected microseconds"),
        ("colours", {"inputs": [_tensor("image", (1, 1), "UINT8", (0.5,))]}, {}, 400, "is UINT8 and has '0.5'"),
        ("times", _json(), {HEADER: "ten"}, 400, "is 'ten', expected the JSON header's length"),
        ("times", _json(), {HEADER: "9999"}, 400, "is 9999, expected 1 to"),
        ("times", _json(), {"content-type": "text/html"}, 415, "'text/html', expected application/json"),
        ("times", _json(), {"content-encoding": "br"}, 415, "'br', expected gzip, deflate or none"),
        ("times", b"no gzip", {"content-encoding": "gzip"}, 400, "cannot be decompressed"),
        ("times", gzip.compress(bytes(9 << 20)), {"content-encoding": "gzip"}, 413, "more than 1048576 bytes"),
        ("times", bytes(2 << 20), {}, 413, "content-length is 2097152, expected at most 1048576"),
        ("times", b" " * (1 << 17), {}, 413, "131072 bytes of JSON .send binary tensors., expected at most 65536"),
        (
            "colours",
            {"inputs": [_tensor("image", (1,), "BYTES", ("x",), parameters={"content_type": "gif"})]},
            {},
            415,
            "'gif', expected jpeg, png or webp",
        ),
        (
            "times",
            {"inputs": [_tensor("x", (1,), "BYTES", ("x",), parameters={"content_type": "png"})]},
            {},
            415,
            "takes no image files",
        ),
        (
            "lookup",
            {"inputs": [_tensor("index", (1,), "INT64", (9,))]},
            {},
            422,
            "^the model cannot answer this: failed.*idx=9 must be",
        ),
    ],
)
async def test_a_wrong_request_is_told_what_was_expected(client, path, content, headers, status, says):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    reply = await client.post(f"/v2/models/{path}/infer", content=body, headers=headers)
    assert reply.status_code == status, reply.text
    assert re.search(says, reply.json()["error"]), reply.json()["error"]
    _, after = await _infer(client, "times", {"x": np.ones((1, 3), np.float32)})
    assert after.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/", 404, "there is no GET /"),
        ("GET", "/v2/models/nothing", 404, "there is no model 'nothing'"),
        ("GET", "/v2/models/times/infer", 404, "there is no GET"),
        ("POST", "/v2/health/live", 405, "not allowed"),
        ("POST", "/v2/models/a/b/c/infer", 404, "expected /v2/models/NAME"),
        ("POST", "/v2/models/times/versions//infer", 404, "expected /v2/models/NAME"),
        ("POST", "/v2/repository/models/nothing/load", 404, "there is no model 'nothing'"),
        ("POST", "/v2/repository/models/nothing/unload", 404, "there is no model 'nothing'"),
    ],
)
async def test_a_path_that_is_none_is_told(client, method, path, status, says):
    reply = await client.request(method, path)
    assert reply.status_code == status
    assert says in reply.json()["error"]


@pytest.mark.parametrize("body", [b"[", b"[1]", b"[" * 5000, b"x" * 70_000])
async def test_a_repository_request_is_bounded_and_checked(client, body):
    reply = await client.post("/v2/repository/index", content=body)
    assert reply.status_code == (413 if len(body) > 65_536 else 400)


async def test_not_a_number_goes_back_as_binary_and_is_refused_as_json(steered, steered_service):
    steered.answer = lambda x: x * np.nan
    _, client = await steered_service()
    answer, _ = await _infer(client, "m", {"x": np.ones((1, 2), np.float32)})
    assert np.isnan(answer.outputs["y"]).all()
    reply = await client.post("/v2/models/m/infer", json={"inputs": [_tensor(shape=(1, 2), data=(1, 2))]})
    assert reply.status_code == 422
    assert "NaN" in reply.json()["error"]


async def test_an_error_inside_the_model_is_one_answer(steered, steered_service, caplog):
    steered.fault = lambda x: ZeroDivisionError("by x") if x[0, 0] == 0 else None
    _, client = await steered_service()
    with caplog.at_level(logging.INFO):
        reply = await client.post("/v2/models/m/infer", json={"inputs": [_tensor(shape=(1, 2), data=(0, 0))]})
    assert reply.status_code == 500
    assert reply.json()["error"] == "the model raised ZeroDivisionError: by x"
    assert "ZeroDivisionError" in caplog.text
    answer, _ = await _infer(client, "m", {"x": np.ones((1, 2), np.float32)})
    assert answer.outputs["y"].tolist() == [[2, 2]]


pieces = st.one_of(
    st.binary(max_size=300),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "timeout"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda **entry: json.dumps({"inputs": [entry]}).encode(),
        name=st.sampled_from(["x", "y", ""]),
        shape=st.lists(st.integers(-1, 2**66), max_size=4) | st.just([1, 3]),
        datatype=st.sampled_from(["FP32", "INT64", "BYTES", "FP99"]),
        data=st.lists(st.one_of(st.floats(), st.integers(), st.text(max_size=3)), max_size=4),
        parameters=st.dictionaries(
            st.sampled_from(["binary_data_size", "content_type"]), st.integers() | st.just("png")
        ),
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    pieces,
    st.dictionaries(
        st.sampled_from(
            [HEADER, "content-encoding", "content-type", "accept-encoding", "x-request-id", "authorization"]
        ),
        st.sampled_from(
            ["0", "7", "-1", "gzip", "identity", "application/json", "*;q=x", ",,;;", "é".encode("latin-1")]
        ),
    ),
    st.sampled_from(["times", "words", "lookup", "nothing", "times/versions/1", "times/versions/x"]),
)
async def test_no_request_harms_the_service(client, body, headers, path):
    reply = await client.post(f"/v2/models/{path}/infer", content=body, headers=headers)
    assert reply.status_code in (200, 400, 404, 413, 415, 422)
    if reply.status_code != 200:
        assert reply.json()["error"]


# --- too many


async def test_more_than_fits_is_refused_with_a_time_to_come_back(steered, steered_service):
    service, client = await steered_service(max_queue=4, max_batch=2)
    await _infer(client, "m", {"x": np.ones((1, 2), np.float32)})
    steered.go.clear()
    body, length = encode_request(Request({"x": np.ones((1, 2), np.float32)}, binary=True))
    post = [client.post("/v2/models/m/infer", content=body, headers={HEADER: str(length)}) for _ in range(10)]
    replies = [asyncio.ensure_future(each) for each in post]
    done, waiting = await asyncio.wait(replies, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    while len(waiting) > 4:
        more, waiting = await asyncio.wait(waiting, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    assert {reply.result().status_code for reply in done} == {503}
    assert all(int(reply.result().headers["retry-after"]) >= 1 for reply in done)
    assert "queue is full" in next(iter(done)).result().json()["error"]
    steered.go.set()
    assert [reply.status_code for reply in await asyncio.gather(*waiting)] == [200] * 4
    text = (await client.get("/metrics")).text
    assert 'solar_corona_requests_total{model="m",status="503",version="1"} 6.0' in text
    assert 'solar_corona_queue_samples{model="m",version="1"} 0.0' in text
    assert service.metrics.body_bytes() == 0


async def test_requests_that_would_fill_the_memory_are_refused(steered, steered_service):
    _, client = await steered_service(max_body=100, max_memory=200)
    steered.go.clear()
    body, length = encode_request(Request({"x": np.ones((1, 2), np.float32)}), binary=False)
    assert length is None
    assert 66 < len(body) <= 100
    first, second = (asyncio.ensure_future(client.post("/v2/models/m/infer", content=body)) for _ in range(2))
    await asyncio.to_thread(steered.entered.acquire, timeout=20)
    while not second.done() and not first.done() and len(steered.batches) < 1:
        await asyncio.sleep(0.01)
    refused = await client.post("/v2/models/m/infer", content=body)
    assert refused.status_code == 503
    assert "requests already hold" in refused.json()["error"]
    steered.go.set()
    assert [reply.status_code for reply in await asyncio.gather(first, second)] == [200, 200]


async def test_a_request_gives_up_at_the_deadline_it_names(steered, steered_service):
    _, client = await steered_service()
    steered.go.clear()
    body = {"inputs": [_tensor(shape=(1, 2), data=(1, 2))], "parameters": {"timeout": 1000}}
    reply = await asyncio.wait_for(client.post("/v2/models/m/infer", json=body), 20)
    assert reply.status_code == 504
    assert "deadline" in reply.json()["error"]


# --- who may ask


async def test_only_a_token_lets_in_and_health_needs_none(steered, steered_service):
    tokens = (b"0123456789abcdef", b"another-token-16")
    service, client = await steered_service(tokens=tokens)
    for token in tokens:
        reply = await client.get("/v2/models/m", headers={"authorization": f"Bearer {token.decode()}"})
        assert reply.status_code == 200
    for wrong in ({}, {"authorization": "Bearer 0123456789abcdee"}, {"authorization": "Basic 0123456789abcdef"}):
        for path in ("/v2/models/m", "/metrics", "/v2/health/live/../../models/m"):
            reply = await client.get(path, headers=wrong)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        reply = await client.post("/v2/models/m/infer", content=b"x", headers=wrong)
        assert reply.status_code == 401
    assert (await client.get("/v2/health/live")).status_code == 200
    service.draining = True
    assert (await client.get("/v2/health/ready")).status_code == 503


async def test_models_are_changed_by_clients_only_where_that_is_allowed(steered, steered_service):
    _, client = await steered_service()
    for verb in ("load", "unload"):
        reply = await client.post(f"/v2/repository/models/m/{verb}")
        assert reply.status_code == 403
        assert "--model-control" in reply.json()["error"]


# --- versions come and go


async def test_versions_are_swapped_under_load_without_an_error(tmp_path):
    folder = tmp_path / "times"
    save_times(folder / "1" / "model.onnx", 1)
    options = ServiceOptions(model_control=True)
    service = Service([str(folder)], options=options, version="0", opener=open_runner)
    await service.open()
    client, seen, stop = _client(service), set(), asyncio.Event()

    async def ask() -> None:
        x = np.ones((1, 3), np.float32)
        while not stop.is_set():
            answer, _ = await _infer(client, "times", {"x": x})
            assert answer.outputs["y"][0, 0] == int(answer.version)
            seen.add(answer.version)

    asking = [asyncio.ensure_future(ask()) for _ in range(8)]
    for version in range(2, 7):
        save_times(folder / str(version) / "model.onnx", version)
        for path in (folder / str(version - 1)).iterdir():
            path.unlink()
        (folder / str(version - 1)).rmdir()
        reply = await client.post("/v2/repository/models/times/load")
        assert reply.json() == {"name": "times", "versions": [str(version)]}
        while str(version) not in seen:
            await asyncio.sleep(0.005)
            assert not any(each.done() for each in asking), [each for each in asking if each.done()]
    stop.set()
    await asyncio.gather(*asking)
    await service.close()


async def test_a_request_in_flight_is_answered_by_the_version_it_found(steered, steered_service):
    _, client = await steered_service(model_control=True)
    steered.go.clear()
    asked = asyncio.ensure_future(_infer(client, "m", {"x": np.ones((1, 2), np.float32)}))
    await asyncio.to_thread(steered.entered.acquire, timeout=20)
    assert (await client.post("/v2/repository/models/m/unload")).status_code == 200
    reply = await client.post("/v2/models/m/infer", json={"inputs": [_tensor(shape=(1, 2), data=(1, 2))]})
    assert (reply.status_code, reply.json()["error"]) == (
        404,
        "model 'm' has no version ''; it has: none: it is unloaded",
    )
    assert not steered.closed
    steered.go.set()
    assert (await asked)[0].outputs["y"].tolist() == [[2, 2]]
    index = (await client.post("/v2/repository/index")).json()
    assert index == [{"name": "m", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}]
    assert (await client.post("/v2/repository/index", json={"ready": True})).json() == []
    assert (await client.post("/v2/repository/models/m/load")).status_code == 200


async def test_a_request_whose_body_is_still_coming_keeps_the_version_it_found(steered, steered_service):
    _, client = await steered_service(model_control=True)
    begun, unloaded = asyncio.Event(), asyncio.Event()

    async def body():
        text = json.dumps({"inputs": [_tensor(shape=(1, 2), data=(1, 2))]}).encode()
        yield text[:10]
        begun.set()
        await unloaded.wait()
        yield text[10:]

    asked = asyncio.ensure_future(client.post("/v2/models/m/infer", content=body()))
    await begun.wait()
    assert (await client.post("/v2/repository/models/m/unload")).status_code == 200
    for _ in range(20):
        await asyncio.sleep(0)
    assert not steered.closed
    unloaded.set()
    reply = await asyncio.wait_for(asked, 20)
    assert reply.json()["outputs"][0]["data"] == [2, 3]


async def test_a_version_that_cannot_be_loaded_changes_nothing(client, model_folder):
    broken = model_folder / "times" / "3" / "model.onnx"
    broken.parent.mkdir()
    broken.write_bytes(b"no model")
    try:
        reply = await client.post("/v2/repository/models/times/load")
        assert reply.status_code == 422
        assert "model.onnx" in reply.json()["error"]
        answer, _ = await _infer(client, "times", {"x": np.ones((1, 3), np.float32)})
        assert answer.version == "2"
    finally:
        broken.unlink()
        broken.parent.rmdir()


async def test_a_start_with_a_broken_model_fails(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    service = Service([str(tmp_path / "m.onnx")], options=ServiceOptions(), version="0", opener=open_runner)
    with pytest.raises((ModelError, TemporaryError), match=r"m\.onnx"):
        await service.open()
    await service.close()


# --- what is seen from outside


async def test_metrics_count_requests_and_batches(client):
    for _ in range(3):
        await _infer(client, "times", {"x": np.ones((2, 3), np.float32)})
    await client.post("/v2/models/times/infer", content=b"x")
    await client.post("/v2/models/nothing/infer", content=b"x")
    text = (await client.get("/metrics")).text
    assert 'solar_corona_requests_total{model="times",status="200",version="2"} 3.0' in text
    assert 'solar_corona_requests_total{model="times",status="400",version="2"} 1.0' in text
    assert 'solar_corona_refused_total{status="404"} 1.0' in text
    assert 'solar_corona_batch_samples_sum{model="times",version="2"} 6.0' in text
    assert 'solar_corona_request_seconds_count{model="times",version="2"} 3.0' in text


def test_a_log_line_is_json_with_the_requests_id():
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "refused: %s", ('no "x"',), None)
    record.request_id, record.status = "r-1", 400
    line = json.loads(JsonLines().format(record))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warning", "message": 'refused: no "x"', "request_id": "r-1", "status": 400}
