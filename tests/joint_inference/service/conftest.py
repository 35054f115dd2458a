# SPDX-License-Identifier: Apache-2.0
"""Models of a few hundred bytes, a runner that tests steer, and the service as a process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from solar_corona.joint_inference.service.application import Service
from solar_corona.joint_inference.service.options import ServiceOptions
from solar_corona.lib.tensors import TensorSpec

# --- models


def _save(path: Path, nodes, inputs, outputs, weights=()) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def _value(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


def save_times(path: Path, factor: float) -> Path:
    """`y` (n, 3) is `x` times a factor, and `total` (n, 1) its sum."""
    return _save(
        path,
        [helper.make_node("Mul", ["x", "factor"], ["y"]), helper.make_node("ReduceSum", ["y", "axes"], ["total"])],
        [_value("x", TensorProto.FLOAT, "n", 3)],
        [_value("y", TensorProto.FLOAT, "n", 3), _value("total", TensorProto.FLOAT, "n", 1)],
        [("factor", np.array(factor, np.float32)), ("axes", np.array([1]))],
    )


def save_colours(path: Path) -> Path:
    """`mean` (n, 3) is the mean of `image` (n, 8, 8, 3) for each channel."""
    return _save(
        path,
        [
            helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["f"], ["mean"], axes=[1, 2], keepdims=0),
        ],
        [_value("image", TensorProto.UINT8, "n", 8, 8, 3)],
        [_value("mean", TensorProto.FLOAT, "n", 3)],
    )


def save_words(path: Path) -> Path:
    """`same` is `words`, which are BYTES (n, 1)."""
    return _save(
        path,
        [helper.make_node("Identity", ["words"], ["same"])],
        [_value("words", TensorProto.STRING, "n", 1)],
        [_value("same", TensorProto.STRING, "n", 1)],
    )


def save_lookup(path: Path) -> Path:
    """`row` (n, 2) of a table of four, for `index` (n); ONNX Runtime raises for any other index."""
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    return _save(
        path,
        [helper.make_node("Gather", ["table", "index"], ["row"])],
        [_value("index", TensorProto.INT64, "n")],
        [_value("row", TensorProto.FLOAT, "n", 2)],
        [("table", table)],
    )


def save_slow(path: Path, steps: int = 150) -> Path:
    """`y` (n, 256) takes some milliseconds a sample."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("MatMul", ["state", "w"], ["product"]),
            helper.make_node("Tanh", ["product"], ["next"]),
        ],
        "body",
        [
            _value("step", TensorProto.INT64),
            _value("go", TensorProto.BOOL),
            _value("state", TensorProto.FLOAT, "n", 256),
        ],
        [_value("on", TensorProto.BOOL), _value("next", TensorProto.FLOAT, "n", 256)],
    )
    weights = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32) / 16
    return _save(
        path,
        [helper.make_node("Loop", ["steps", "", "x"], ["y"], body=body)],
        [_value("x", TensorProto.FLOAT, "n", 256)],
        [_value("y", TensorProto.FLOAT, "n", 256)],
        [("steps", np.array(steps)), ("w", weights)],
    )


# --- a runner that tests steer


@dataclass
class SteeredRunner:
    """Adds one to `x` (n, 2); waits while `go` is cleared, and raises what `fault` returns for a batch."""

    platform: str = "steered"
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, 2)),)
    batches: list[np.ndarray] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    fault: Callable[[np.ndarray], BaseException | None] = lambda x: None
    answer: Callable[[np.ndarray], np.ndarray] = lambda x: x + 1
    closed: bool = False

    def __post_init__(self) -> None:
        self.go.set()

    def run(self, inputs):
        x = inputs["x"]
        self.batches.append(x)
        self.entered.release()
        assert self.go.wait(30)
        error = self.fault(x)
        if error is not None:
            raise error
        return {"y": self.answer(x)}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def steered() -> Iterator[SteeredRunner]:
    runner = SteeredRunner()
    yield runner
    runner.go.set()


@pytest.fixture
async def steered_service(steered, tmp_path):
    """A function that returns a client of a service in this process, whose model `m` is the steered runner."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"steered")
    services = []

    async def make(**options) -> tuple[Service, httpx.AsyncClient]:
        service = Service([str(path)], options=ServiceOptions(**options), version="0", opener=lambda _: steered)
        await service.open()
        steered.batches.clear()
        while steered.entered.acquire(blocking=False):
            pass
        services.append(service)
        return service, httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://service", timeout=20)

    yield make
    steered.go.set()
    for service in services:
        await service.close()


# --- the service as a process


@dataclass
class Process:
    """A running `solar-corona serve`."""

    process: subprocess.Popen
    log: Path
    url: str

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.partition("://")[2].rsplit(":", 1)
        return host, int(port)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def serving(folder: Path, *arguments: object) -> Iterator[Process]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "service.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "solar_corona.cli", "serve", *map(str, arguments), "--port", "0"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"listening on (\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        yield Process(process, log, found[1])
        assert process.poll() in (None, 0), log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A repository: `times` in versions 1 and 2, `colours`, `words`, `lookup`, `slow`."""
    folder = tmp_path_factory.mktemp("models")
    save_times(folder / "times" / "1" / "model.onnx", 10)
    save_times(folder / "times" / "2" / "model.onnx", 2)
    save_colours(folder / "colours.onnx")
    save_words(folder / "words.onnx")
    save_lookup(folder / "lookup.onnx")
    save_slow(folder / "slow.onnx")
    return folder


@pytest.fixture(scope="session")
def served(model_folder, tmp_path_factory) -> Iterator[Process]:
    """The repository, served with short limits to all tests of the session."""
    with serving(
        tmp_path_factory.mktemp("served"), model_folder, "--timeout", 3, "--max-body", 1 << 20, "--max-batch", 16
    ) as process:
        yield process
