# SPDX-License-Identifier: Apache-2.0
"""One small network, and how it is written in each format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from solar_corona.lib.multitask import make_multitask
from solar_corona.lib.routers import AttributeRouter, GaussianRouter
from solar_corona.tests.lib.test_routers import gaussian

SHAPE, CLASSES = (8, 8, 1), 3
IMAGES = np.random.default_rng(5).uniform(0, 255, (6, *SHAPE)).astype(np.float32)


def network(batch: int | None = None):
    """Return an image classifier with a normalization whose statistics matter."""
    import keras

    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(SHAPE, batch_size=batch, name="image"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    rng = np.random.default_rng(8)
    model.set_weights([rng.uniform(0.1, 0.9, each.shape).astype(np.float32) for each in model.get_weights()])
    kernel = rng.normal(size=(144, CLASSES)).astype(np.float32)
    # Without a mean, so that no class wins for every image.
    model.layers[-1].kernel.assign((kernel - kernel.mean(0)) / 2)
    features = np.asarray(keras.Sequential(model.layers[:-1])(IMAGES))
    model.layers[-1].bias.assign(-(features @ np.asarray(model.layers[-1].kernel)).mean(0))
    return model


def as_onnx(model, path: Path, *, batch="n") -> Path:
    """Write the network of `network` as an ONNX file with the same weights."""
    from onnx import TensorProto, helper, numpy_helper

    kernel, bias, gamma, beta, mean, variance, dense, last = (np.asarray(each) for each in model.weights)
    weights = {
        "scale": np.float32(1 / 255),
        "kernel": kernel.transpose(3, 2, 0, 1),
        "bias": bias,
        "gamma": gamma,
        "beta": beta,
        "mean": mean,
        "variance": variance,
        "dense": dense,
        "last": last,
    }
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["b", "kernel", "bias"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("BatchNormalization", ["d", "gamma", "beta", "mean", "variance"], ["e"], epsilon=1e-3),
        helper.make_node("Transpose", ["e"], ["f"], perm=[0, 2, 3, 1]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "dense", "last"], ["h"]),
        helper.make_node("Softmax", ["h"], ["output_0"]),
    ]
    return write_onnx(
        path,
        nodes,
        inputs=[helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, *SHAPE])],
        outputs=[helper.make_tensor_value_info("output_0", TensorProto.FLOAT, [batch, CLASSES])],
        weights=[numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )


def write_onnx(path: Path, nodes, *, inputs, outputs, weights=()) -> Path:
    import onnx
    from onnx import helper

    graph = helper.make_graph(nodes, "network", inputs, outputs, list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def as_litert(folder: Path, path: Path, *, quantized: bool = False) -> Path:
    """Write a SavedModel folder as a LiteRT file; quantized, it takes and gives uint8."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([each[np.newaxis]] for each in IMAGES)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    path.write_bytes(converter.convert())
    return path


def routers() -> dict[str, AttributeRouter | GaussianRouter]:
    """Return one router of each kind, for the tasks `a` and `b`."""
    size = int(np.prod(SHAPE))
    projection = np.random.default_rng(2).normal(size=(size, 4)) / 255
    seen = IMAGES.reshape(-1, size) @ projection
    # Around two of the images each, so that both tasks get samples.
    form = {"means": seen[:4].reshape(2, 2, 4), "log_variances": np.zeros((2, 2, 4)), "log_weights": np.zeros((2, 2))}
    learned = gaussian(tasks=2, features=size, task_names=("a", "b"), projection=projection, offset=np.zeros(4), **form)
    return {"learned": learned, "attribute": AttributeRouter(values=(0, 1), tasks=(0, 1), task_names=("a", "b"))}


def multitask(router):
    """Return a model of two tasks whose networks differ."""
    model = network()
    weights = model.get_weights()
    return make_multitask(
        model, [weights, [-each if each.ndim == 2 else each for each in weights]], router=router, names=("a", "b")
    )
