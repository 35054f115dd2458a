# SPDX-License-Identifier: Apache-2.0
"""`solar-corona calibrate`: from two models and labelled samples to a promise beside the model."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from typer.testing import CliRunner

from solar_corona import load_model
from solar_corona.cli import app
from solar_corona.joint_inference import Calibrated
from solar_corona.joint_inference.calibrated import calibration_file

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def perceptron(path, layers):
    """Write a network of dense layers, with ReLU between, that ends in a softmax."""
    nodes, initializers, name = [], [], "x"
    for i, (weights, bias) in enumerate(layers):
        initializers += [
            numpy_helper.from_array(weights.astype(np.float32), f"w{i}"),
            numpy_helper.from_array(bias.astype(np.float32), f"b{i}"),
        ]
        nodes += [
            helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [f"h{i}"]),
            helper.make_node("Relu" if i + 1 < len(layers) else "Softmax", [f"h{i}"], [name := f"o{i}"]),
        ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", len(layers[-1][1])])],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    x_noisy = (x + rng.normal(0, 0.35, x.shape)).astype(np.float32)
    shallow = LogisticRegression(max_iter=30).fit(x[:60], y[:60])
    deep = MLPClassifier((64,), max_iter=60, random_state=0).fit(x_noisy[:900], y[:900])
    perceptron(folder / "small.onnx", [(shallow.coef_.T, shallow.intercept_)])
    perceptron(folder / "large.onnx", list(zip(deep.coefs_, deep.intercepts_, strict=True)))
    np.savez(folder / "eval.npz", x=x_noisy[900:], y=y[900:])
    np.savez(folder / "few.npz", x=x_noisy[900:1100], y=y[900:1100])
    perceptron(folder / "seven.onnx", [(shallow.coef_.T[:, :7], shallow.intercept_[:7])])
    some, classes = x_noisy[900:1200], y[900:1200]
    np.savez(folder / "empty.npz", x=some[:0], y=classes[:0])
    np.savez(folder / "from_1.npz", x=some, y=classes + 1)
    np.savez(folder / "from_minus_1.npz", x=some, y=classes - 1)
    np.savez(folder / "halves.npz", x=some, y=classes + 0.5)
    np.savez(folder / "no_labels.npz", x=some, y=classes * np.nan)
    np.savez(folder / "no_numbers.npz", x=some * np.nan, y=classes)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)], catch_exceptions=True)


def test_the_tradeoff_is_printed_drawn_and_the_promise_kept_beside_the_model(models):
    small = models / "small.onnx"
    ran = run(
        small,
        "--data",
        models / "eval.npz",
        "--big-model",
        models / "large.onnx",
        "--max-loss",
        0.03,
        "--plot",
        models / "curve.svg",
    )
    assert ran.exit_code == 0, ran.output
    assert "promise: at most 3.00% below the deep model's accuracy at 95 %, exact" in ran.output
    assert (models / "curve.svg").read_text().startswith("<?xml")
    kept = json.loads(calibration_file(small).read_text())
    assert kept["promise"] == {"max_loss": 0.03}
    assert 0 < kept["uploads"] < 1
    # A script that names no threshold uses the one that was found.
    with load_model(small, cloud_offload_algorithm=Calibrated(), big_model_endpoint=lambda x: x) as model:
        assert model.statistics.algorithm["promise"] == kept["says"]


def test_json_for_programs(models):
    ran = run(
        models / "small.onnx",
        "--data",
        models / "eval.npz",
        "--big-model",
        models / "large.onnx",
        "--max-upload",
        0.2,
        "--json",
    )
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.output)["promise"] == {"max_upload": 0.2}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--max-loss": 0.01, "--data": "few.npz"}, "at least 299"),
        ({"--max-loss": 0.01, "--max-upload": 0.1}, "one promise"),
        ({}, "give one of --max-loss, --target-accuracy and --max-upload"),
        ({"--max-loss": 1.7, "--big-model": "none.onnx"}, "max_loss is 1.7, expected a share"),
        ({"--max-loss": 0.1, "--big-model": "none.onnx"}, "there is no such model"),
        ({"--max-loss": 0.1, "--data": "none.npz"}, "none.npz"),
        ({"--max-loss": 0.1, "--data": "empty.npz"}, "for 0 samples"),
        ({"--max-loss": 0.1, "--data": "from_1.npz"}, "a label is 10, and the shallow model has 10 classes"),
        ({"--max-loss": 0.1, "--data": "from_minus_1.npz"}, "a label is -1"),
        ({"--max-loss": 0.1, "--data": "halves.npz"}, "whole numbers from 0"),
        ({"--max-loss": 0.1, "--data": "no_labels.npz"}, "a label is nan"),
        ({"--max-loss": 0.1, "--data": "no_numbers.npz"}, "the shallow model answers with values that are no numbers"),
        ({"--max-loss": 0.1, "--big-model": "seven.onnx"}, "tells 7 classes apart, and the shallow one 10"),
    ],
)
def test_what_cannot_be_calibrated_is_told(models, changes, says):
    options = {"--data": "eval.npz", "--big-model": "large.onnx"} | changes
    flat = [
        part for name, value in options.items() for part in (name, models / value if isinstance(value, str) else value)
    ]
    ran = run(models / "small.onnx", *flat)
    assert ran.exception is not None
    assert says in str(ran.exception)
