# SPDX-License-Identifier: Apache-2.0
"""The workers of a joint inference service, and what its job file may say."""

from __future__ import annotations

import pytest

from solar_corona.core.errors import SpecError
from solar_corona.core.inference_spec import JointInferenceService
from solar_corona.core.job_file import read_any_job_file, read_job_file
from solar_corona.core.plan import plan
from solar_corona.core.workers import Placement

SERVICE = """
apiVersion: solar-corona.io/v1alpha1
kind: JointInferenceService
metadata: {name: cars}
spec:
  edgeWorker:
    script: infer.py
    model: models/small.tflite
    parameters: {ip_camera_address: lane.mp4, fps: 5}
    offload: {algorithm: ibt, options: {upload_ratio: 0.5}}
  edges:
    - {name: camera-1}
    - {name: camera-2, node: pole-7, parameters: {fps: 1}, env: {ZONE: b}}
  cloudWorker: {model: "model:large", threads: 2}
---
apiVersion: solar-corona.io/v1alpha1
kind: Model
metadata: {name: large}
spec: {path: models/large.onnx, sha256: SHA}
""".replace("SHA", "ab" * 32)

PLACE = Placement(
    run="r1",
    python="python",
    superlink="flower-superlink",
    address="127.0.0.1:8001",
    listen="127.0.0.1",
    run_folder=lambda worker: f"/runs/{worker}",
    base=lambda role: f"/{role}",
    keys="/keys",
)


def planned(tmp_path, text=SERVICE):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return plan(read_any_job_file(path), PLACE)


def test_the_deep_models_service_comes_first_and_is_waited_for(tmp_path):
    cloud, *edges = planned(tmp_path).workers
    assert (cloud.name, cloud.role, cloud.ready) == ("cloud", "cloud", "/v2/health/ready")
    command = " ".join(cloud.command)
    assert "serve cars=/cloud/models/large.onnx --host 127.0.0.1 --port 8001" in command
    assert "--token-file /keys/inference.token --threads 2" in command
    assert f"--sha256 cars={'ab' * 32}" in command
    assert "--tls-cert" not in command
    assert [edge.name for edge in edges] == ["camera-1", "camera-2"]


def test_each_edge_knows_its_model_its_parameters_and_where_hard_samples_go(tmp_path):
    _, first, second = planned(tmp_path).workers
    assert second.node == "pole-7"
    assert second.env == {"ZONE": "b"}
    assert second.context.parameters == {"ip_camera_address": "lane.mp4", "fps": 1}
    assert first.context.parameters["fps"] == 5
    assert first.context.model.path == "/edge/models/small.tflite"
    deep = first.context.deep_model
    assert (deep.url, deep.model, deep.token_file) == ("http://127.0.0.1:8001", "cars", "/keys/inference.token")
    assert first.context.offload.options == {"upload_ratio": 0.5}
    assert first.command[-1] == "/edge/infer.py"


def test_with_tls_the_service_has_a_certificate_and_edges_the_ca(tmp_path):
    cloud, edge, _ = planned(
        tmp_path, SERVICE.replace("spec:\n  edge", "spec:\n  security: {tls: true}\n  edge")
    ).workers
    assert cloud.command[-4:] == ("--tls-cert", "/keys/server.pem", "--tls-key", "/keys/server.key")
    assert (edge.context.deep_model.url, edge.context.deep_model.ca) == ("https://127.0.0.1:8001", "/keys/ca.pem")


def test_an_endpoint_that_exists_needs_no_cloud_worker(tmp_path):
    there = "endpoint: {url: 'https://models.example.org', model: big, tokenFile: token, dialect: tensorflow-serving}"
    workers = planned(tmp_path, SERVICE.replace('cloudWorker: {model: "model:large", threads: 2}', there)).workers
    assert [worker.role for worker in workers] == ["edge", "edge"]
    deep = workers[0].context.deep_model
    assert (deep.url, deep.model, deep.token_file) == ("https://models.example.org", "big", "/edge/token")
    assert deep.dialect == "tensorflow-serving"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('cloudWorker: {model: "model:large", threads: 2}', "security: {}", "either cloudWorker or endpoint"),
        ('cloudWorker: {model: "model:large", threads: 2}', "endpoint: {}", "either url or callable"),
        ('cloudWorker: {model: "model:large", threads: 2}', "endpoint: {url: 'http://x'}", "endpoint.model is missing"),
        ("script: infer.py", "script: infer.py\n    deadline: 0s", "leaves the cloud no time"),
        ("threads: 2", "threads: 0", "expected a number from 1"),
        ("threads: 2", "thread: 2", "did you mean threads?"),
        ("name: camera-2", "name: camera-1", "stands more than once"),
        ("name: camera-2", "name: cloud", "rename that edge"),
        ("model:large", "model:larger", "names the Model 'larger'"),
        ("    model: models/small.tflite\n", "", "spec.edgeWorker.model is missing"),
        ("JointInferenceService", "JointInferenceServce", "did you mean JointInferenceService?"),
    ],
)
def test_a_wrong_service_is_told_what_to_do(tmp_path, old, new, says):
    assert old in SERVICE
    with pytest.raises(SpecError) as told:
        planned(tmp_path, SERVICE.replace(old, new))
    assert says in str(told.value)


def test_a_command_for_another_kind_says_so(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(SERVICE)
    with pytest.raises(
        SpecError, match="its job is a JointInferenceService, and this works with a FederatedLearningJob"
    ):
        read_job_file(path)
    assert read_job_file(path, [], JointInferenceService).job.metadata.name == "cars"
