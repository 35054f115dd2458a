# SPDX-License-Identifier: Apache-2.0
"""A joint inference service as a user runs it: a real service, an edge with a script, and what may befall them."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from solar_corona.joint_inference.statistics import EdgeStatistics
from solar_corona.joint_inference.view import InferenceView

pytestmark = pytest.mark.system

INFER = """
import os, time
import numpy as np
import solar_corona

model = solar_corona.load_model(
    solar_corona.context.get_model_path(),
    cloud_offload_algorithm=solar_corona.joint_inference.Margin(threshold=1.0),
    big_model_endpoint=solar_corona.joint_inference.get_big_model_endpoint(),
)
rng = np.random.default_rng(0)
# LOOP
while not os.path.exists("camera-off"):
    assert model.predict(rng.normal(size=4).astype(np.float32)).shape == (3,)
    time.sleep(0.02)  # a camera of 50 frames a second
print("the camera is off")
"""


def write_model(path: Path, seed: int) -> None:
    kernel = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "kernel"], ["z"]), helper.make_node("Softmax", ["z"], ["p"])],
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def make_service(make_job):
    """Return a function that lays out a service with one edge that uploads every frame."""

    def make():
        job = make_job(name="service")
        write_model(job.folder / "small.onnx", 1)
        write_model(job.folder / "large.onnx", 2)
        (job.folder / "infer.py").write_text(INFER)
        spec = {
            "edgeWorker": {"script": "infer.py", "model": "small.onnx", "deadline": "10s"},
            "edges": [{"name": "door"}],
            "cloudWorker": {"model": "large.onnx"},
        }
        document = {
            "apiVersion": "solar-corona.io/v1alpha1",
            "kind": "JointInferenceService",
            "metadata": {"name": "service"},
            "spec": spec,
        }
        job.file.write_text(yaml.safe_dump(document))
        return job

    return make


def statistics(job) -> EdgeStatistics | None:
    view = InferenceView(["door"])
    view.read(job.run_folder().path)
    return view.statistics.get("door")


def answers(job, source: str) -> int:
    found = statistics(job)
    return found.sources[source].answers if found is not None and source in found.sources else 0


def switch_camera_off(job) -> None:
    (job.folder / "camera-off").touch()


def test_a_service_runs_until_the_script_ends_and_leaves_no_process(make_service):
    job = make_service()
    process = job.start()
    job.wait_for(lambda: answers(job, "cloud") > 20, "the deep model answers")
    switch_camera_off(job)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err + job.logs()
    found = statistics(job)
    assert found.degraded == 0
    assert found.uploads == found.frames
    assert found.bytes_up > 0
    assert "door" in out
    assert "the camera is off" in job.run("--edge", "door", command="logs").stdout
    status = job.run(command="status")
    assert "succeeded" in status.stdout
    assert f"{found.frames:,}" in status.stdout
    job.assert_no_leftovers()


def test_edges_go_on_degraded_while_the_killed_cloud_worker_is_away_and_upload_again(make_service):
    job = make_service()
    process = job.start()
    job.wait_for(lambda: answers(job, "cloud") > 20, "the deep model answers")
    job.kill("cloud")
    # The circuit rests for two seconds, and an edge tells once a second.
    job.wait_for(lambda: statistics(job).degraded and statistics(job).trouble, "the edge answers alone and says why")
    told = job.run(command="status").stdout
    assert re.search(r"^door .* [1-9][\d,]* +(open|half-open|closed)$", told, re.MULTILINE), told
    job.wait_for(lambda: job.state().workers["cloud"].restarts == 1, "the service is started again")
    before = answers(job, "cloud")
    job.wait_for(lambda: answers(job, "cloud") > before + 20, "the deep model answers again")
    assert (statistics(job).circuit, statistics(job).trouble) == ("closed", "")
    switch_camera_off(job)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err + job.logs()
    found = statistics(job)
    assert found.frames == sum(each.answers for each in found.sources.values())  # none is lost
    job.assert_no_leftovers()


@pytest.mark.parametrize("worker", ["edgeWorker", "cloudWorker"])
def test_a_wrong_model_path_is_one_error_before_anything_starts(make_service, worker):
    job = make_service()
    job.change(lambda spec: spec[worker].update(model="lage.onnx"))
    done = job.run()
    assert done.returncode == 3
    assert f"spec.{worker}.model" in done.stderr
    assert "lage.onnx" in done.stderr
    assert "Traceback" not in done.stderr
    job.assert_no_leftovers()


@pytest.mark.parametrize(
    ("offload", "says"),
    [
        ({"algorithm": "ibt", "options": {"upload_ratio": 1.7}}, "upload_ratio is 1.7"),
        ({"algorithm": "margn"}, "did you mean 'margin'"),
    ],
)
def test_a_wrong_offload_algorithm_is_told_before_anything_starts(make_service, offload, says):
    job = make_service()
    job.change(lambda spec: spec["edgeWorker"].update(offload=offload))
    done = job.run(command="validate")
    assert done.returncode == 2
    assert "spec.edgeWorker.offload" in done.stderr
    assert says in done.stderr


def test_a_script_that_raises_ends_the_run_with_its_own_traceback(make_service):
    job = make_service()
    script = job.folder / "infer.py"
    script.write_text(INFER.replace("# LOOP", "raise KeyError('no lens')"))
    done = job.run()
    assert done.returncode not in (0, 130)
    assert "no lens" in done.stderr
    job.assert_no_leftovers()


def test_ctrl_c_ends_the_service_and_its_edges(make_service):
    job = make_service()
    process = job.start()
    job.wait_for(lambda: answers(job, "cloud") > 0, "the deep model answers")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    job.assert_no_leftovers()
