# SPDX-License-Identifier: Apache-2.0
"""MLServer and KServe's Python server with the same ONNX model, each in an environment of its own.

Both get what they are fastest with: their own uvloop and orjson, one process without workers behind it, ONNX Runtime
with one thread, and tensors in their most compact form over HTTP (KServe: the binary extension; MLServer has none, and
gets base64). MLServer is asked with and without its adaptive batching, and the better counts.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ._load import post

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._serving_models import ServedCnn

__all__ = ["PEERS", "Peer", "PeerMissingError", "pinned", "ready"]

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "solar-corona" / "peers"
_SESSION = """
import numpy as np
import onnxruntime


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

"""
_MLSERVER = (
    _SESSION
    + """
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        self.session = session(self.settings.parameters.uri)
        self.shape = self.session.get_inputs()[0].shape[1:]
        return True

    async def predict(self, payload):
        images = Base64Codec.decode_input(payload.inputs[0])
        x = np.stack([np.frombuffer(image, np.uint8).reshape(self.shape) for image in images])
        (y,) = self.session.run(["probabilities"], {"image": x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", y)])
"""
)
_KSERVE = (
    _SESSION
    + """
import logging
import sys

import kserve


class Onnx(kserve.Model):
    def __init__(self, name, path):
        super().__init__(name)
        self.session = session(path)
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        (y,) = self.session.run(["probabilities"], {"image": payload.inputs[0].as_numpy()})
        out = kserve.InferOutput("probabilities", list(y.shape), "FP32")
        out.set_data_from_numpy(y, binary_data=True)
        return kserve.InferResponse(payload.id or "0", self.name, [out])


if __name__ == "__main__":
    name, path, port = sys.argv[1:]
    server = kserve.ModelServer(http_port=int(port), enable_grpc=False, workers=1, enable_latency_logging=False)
    logging.disable(logging.INFO)
    server.start([Onnx(name, path)])
"""
)


class PeerMissingError(RuntimeError):
    """A peer cannot be installed or started here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    Parameters
    ----------
    name, version
        The package on PyPI.
    write
        Writes its files to a folder, for a model's file and a port, and returns the command that starts it there.
    requests
        Makes requests for it: one list for each way to ask, of which the best counts.
    """

    name: str
    version: str
    write: Callable[[Path, ServedCnn, Path, int], list[str]]
    requests: Callable[[ServedCnn, int], list[list[bytes]]]

    def python(self) -> Path:
        """Return its interpreter, in an environment that is made where it is not there."""
        folder = _CACHE / f"{self.name}-{self.version}"
        python = folder / "bin" / "python"
        if not (folder / "complete").exists():
            here = [sys.executable, "-m", "uv"]
            _run([*here, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
            packages = [f"{self.name}=={self.version}", f"onnxruntime=={_onnxruntime()}"]
            _run([*here, "pip", "install", "--quiet", "--python", str(python), *packages])
            (folder / "complete").touch()
        return python

    @contextmanager
    def running(self, model: ServedCnn, path: Path, folder: Path, port: int, core: int) -> Iterator[None]:
        """Run it with a model on one core, until the context ends."""
        folder.mkdir(parents=True)
        command = [str(self.python()), *self.write(folder, model, path, port)]
        with (folder / "log").open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                pinned(core, command), cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            ready(f"http://127.0.0.1:{port}/v2/models/{model.name}/ready", process)
            yield
        except TimeoutError as error:
            text = (folder / "log").read_text(errors="replace")[-500:]
            raise PeerMissingError(f"{self.name} {self.version} does not start: {text}") from error
        finally:
            process.kill()
            process.wait()


def pinned(core: int, command: list[str]) -> list[str]:
    """Return a command that runs on one core."""
    return ["taskset", "-c", str(core), *command]


def ready(url: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Wait until a URL answers with 200.

    Raises
    ------
    TimeoutError
        If it does not in time, or the process ends.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerMissingError(f"{' '.join(command[2:4])}: {done.stderr.strip()[-500:]}")


def _onnxruntime() -> str:
    from importlib.metadata import version

    return version("onnxruntime")


def _write_mlserver(folder: Path, model: ServedCnn, path: Path, port: int) -> list[str]:
    (folder / "runtime.py").write_text(_MLSERVER)
    ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    (folder / "settings.json").write_text(
        json.dumps({"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports})
    )
    for name, batch in ((model.name, 0), (f"{model.name}-batched", 32)):
        settings = {"name": name, "implementation": "runtime.Onnx", "parameters": {"uri": str(path)}}
        settings |= {"max_batch_size": batch, "max_batch_time": 0.001 if batch else 0}
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(settings))
    return ["-m", "mlserver.cli.main", "start", "."]


def _mlserver_requests(model: ServedCnn, count: int) -> list[list[bytes]]:
    def request(name: str, image: bytes) -> bytes:
        data = [base64.b64encode(image).decode()]
        tensor = {
            "name": "image",
            "shape": [1],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},
            "data": data,
        }
        body = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
        return post(f"/v2/models/{name}/infer", body, {"content-type": "application/json"})

    images = [image.tobytes() for image in model.images(count)]
    return [[request(name, image) for image in images] for name in (model.name, f"{model.name}-batched")]


def _write_kserve(folder: Path, model: ServedCnn, path: Path, port: int) -> list[str]:
    (folder / "runtime.py").write_text(_KSERVE)
    return ["runtime.py", model.name, str(path), str(port)]


PEERS = (
    Peer("mlserver", "1.7.1", _write_mlserver, _mlserver_requests),
    Peer("kserve", "0.21.0", _write_kserve, lambda model, count: [model.requests(count)]),
)
