# SPDX-License-Identifier: Apache-2.0
"""Two models on the same samples, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from solar_corona.core.errors import DatasetError, ModelError, PlatformError
from solar_corona.incremental.loop.evaluate import evaluate
from solar_corona.incremental.loop.evaluation import (
    EvaluationRequest,
    read_evaluation,
    read_request,
    write_evaluation,
    write_request,
)

WIDTH, CLASSES = 4, 4


def linear(path: Path, weights: np.ndarray, *, outputs: int = 1) -> str:
    """Write softmax(x W) as ONNX; with two outputs it is no classifier."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        *[helper.make_node("Softmax", ["z"], [f"p{i}"]) for i in range(outputs)],
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(f"p{i}", TensorProto.FLOAT, ["n", weights.shape[1]]) for i in range(outputs)],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("evaluation")
    linear(place / "right.onnx", 9 * np.eye(WIDTH))
    linear(place / "swapped.onnx", 9 * np.eye(WIDTH)[:, [1, 0, 2, 3]])
    linear(place / "wider.onnx", np.hstack([9 * np.eye(WIDTH), np.full((WIDTH, 1), -9.0)]))
    linear(place / "nan.onnx", np.full((WIDTH, CLASSES), np.nan))
    linear(place / "two.onnx", np.eye(WIDTH), outputs=2)
    y = np.arange(100) % CLASSES
    np.savez(place / "new.npz", x=np.eye(WIDTH, dtype=np.float32)[y], y=y)
    np.savez(place / "old.npz", x=np.eye(WIDTH, dtype=np.float32)[y[:20]], y=y[:20])
    np.savez(place / "bare.npz", x=np.eye(WIDTH, dtype=np.float32))
    return place


def asked(folder: Path, candidate: str, **changes: str | None) -> EvaluationRequest:
    fields: dict[str, str | None] = {
        "serving": str(folder / "right.onnx"),
        "candidate": str(folder / candidate),
        "new": str(folder / "new.npz"),
        "old": str(folder / "old.npz"),
        "output": str(folder / "result.npz"),
        **changes,
    }
    return EvaluationRequest.model_validate(fields)


def test_both_models_answer_the_same_samples(folder: Path) -> None:
    found = evaluate(asked(folder, "swapped.onnx"))
    assert (found.new.serving == found.new.truth).all()
    assert (found.new.candidate == found.new.truth).mean() == 0.5
    assert len(found.old) == 20
    assert found.costs.size == pytest.approx(1, abs=0.05)
    assert found.costs.latency is not None
    assert found.trouble == ""


def test_a_candidate_may_know_more_classes(folder: Path) -> None:
    found = evaluate(asked(folder, "wider.onnx"))
    assert found.new.candidate_probabilities is not None
    assert found.new.candidate_probabilities.shape == (100, CLASSES + 1)
    assert (found.new.candidate == found.new.truth).all()


@pytest.mark.parametrize("candidate", ["nan.onnx", "two.onnx"])
def test_a_candidate_without_an_answer_is_wrong_everywhere(folder: Path, candidate: str) -> None:
    found = evaluate(asked(folder, candidate))
    assert (found.new.candidate == -1).all()
    assert (found.new.serving == found.new.truth).all()


def test_without_old_samples_there_are_none(folder: Path) -> None:
    assert len(evaluate(asked(folder, "right.onnx", old=None)).old) == 0


def test_samples_go_through_the_jobs_own_function(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "prepared_by_me.py").write_text("def backwards(sample):\n    return sample[::-1]\n")
    monkeypatch.syspath_prepend(str(folder))
    found = evaluate(asked(folder, "right.onnx", pre_fun="prepared_by_me:backwards"))
    assert (found.new.serving == CLASSES - 1 - found.new.truth).all()
    with pytest.raises(ModelError, match="prepared_by_me:forwards cannot be loaded"):
        evaluate(asked(folder, "right.onnx", pre_fun="prepared_by_me:forwards"))


def test_what_is_found_survives_being_written_and_read(folder: Path) -> None:
    request = asked(folder, "swapped.onnx")
    write_request(folder / "request.json", request)
    assert read_request(folder / "request.json") == request
    found = evaluate(request)
    write_evaluation(folder / "again.npz", found)
    again = read_evaluation(folder / "again.npz")
    assert again.costs == found.costs
    assert (again.new.candidate == found.new.candidate).all()
    assert again.old.serving_probabilities is not None


def test_a_result_that_is_cut_or_another_file_is_told_as_such(folder: Path) -> None:
    (folder / "cut.npz").write_bytes((folder / "new.npz").read_bytes()[:50])
    for name in ("cut.npz", "new.npz", "missing.npz"):
        with pytest.raises(ModelError, match="is no evaluation's result"):
            read_evaluation(folder / name)
    with pytest.raises(PlatformError, match="is no request"):
        read_request(folder / "cut.npz")


def test_samples_without_labels_are_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match="there is no array 'y'"):
        evaluate(asked(folder, "right.onnx", new=str(folder / "bare.npz")))


def test_the_worker_says_in_one_line_what_is_wrong(folder: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"not a model")
    write_request(folder / "broken.json", asked(folder, "broken.onnx"))
    command = [sys.executable, "-m", "solar_corona.incremental.loop.evaluate", str(folder / "broken.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
