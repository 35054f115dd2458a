# SPDX-License-Identifier: Apache-2.0
"""Services of others as they are published: our edge asks a real MLServer about what is hard."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest

from solar_corona.benchmarks._serving_models import ServedCnn
from solar_corona.benchmarks._serving_peers import PEERS, PeerMissingError, ready
from solar_corona.core.local_launcher import free_port
from solar_corona.joint_inference import Threshold
from solar_corona.joint_inference.loading import load_model

RUNTIME = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Brightest(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        images = NumpyCodec.decode_input(payload.inputs[0])
        assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 3), (images.dtype, images.shape)
        places = images.reshape(len(images), -1).max(1) % 10
        output = NumpyCodec.encode_output("probabilities", np.eye(10, dtype=np.float32)[places])
        return InferenceResponse(model_name=self.name, model_version="5", outputs=[output])
"""


pytestmark = pytest.mark.system


@contextmanager
def mlserver(folder):
    """Serve one model that names no inputs; give the process and the model's URL."""
    try:
        python = next(peer for peer in PEERS if peer.name == "mlserver").python()
    except PeerMissingError as error:
        pytest.skip(f"MLServer cannot be installed here: {error}")
    port = free_port()
    (folder / "runtime.py").write_text(RUNTIME)
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0, **ports}))
    (folder / "large").mkdir()
    settings = {"name": "large", "implementation": "runtime.Brightest"}
    (folder / "large" / "model-settings.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        command = [str(python), "-m", "mlserver.cli.main", "start", "."]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}/v2/models/large"
        try:
            ready(f"{url}/ready", process)
        except TimeoutError:
            pytest.fail((folder / "log").read_text()[-2000:])
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(300)  # the first run installs MLServer
def test_an_edge_asks_an_mlserver_and_goes_on_without_it(tmp_path):
    shallow = ServedCnn("small", side=8, stages=((4,),), dense=8).save(tmp_path)
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = 3, 17, 250
    with (
        mlserver(tmp_path) as (process, url),
        load_model(shallow, cloud_offload_algorithm=Threshold(1.0), big_model_endpoint=url, deadline=10) as model,
    ):
        stories = model.infer(images)
        assert [story.source for story in stories] == ["cloud"] * 3, stories[0].reason
        assert [int(story.result.argmax()) for story in stories] == [3, 7, 0]
        assert stories[0].deep_model == "large 5"
        process.kill()
        process.wait()
        story = model.infer(images[0])
        assert (story.source, story.degraded) == ("edge", True)
