# SPDX-License-Identifier: Apache-2.0
"""The two ONNX models that the serving benchmarks serve: a small CNN and one of about 10 ms a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from solar_corona.lib.open_inference import Request, encode_request

from ._load import post

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LARGE", "SMALL", "ServedCnn"]

_HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class ServedCnn:
    """A CNN: 3 x 3 convolutions with ReLU, a pooling after each stage, two dense layers.

    Parameters
    ----------
    name
        Under which it is served.
    side
        Height and width of its uint8 images of three channels.
    stages
        Channels of the convolutions of each stage.
    dense
        Width of the hidden dense layer.
    """

    name: str
    side: int
    stages: tuple[tuple[int, ...], ...]
    dense: int

    def save(self, folder: Path) -> Path:
        """Write the model with random weights, the same each time, and return its path."""
        path = folder / f"{self.name}.onnx"
        onnx.save(self._model(), str(path))
        return path

    @property
    def parameters(self) -> int:
        """How many numbers it has learnt, or would have."""
        return sum(int(np.prod(each.dims)) for each in self._model().graph.initializer)

    def images(self, count: int) -> list[np.ndarray]:
        """Return batches of one image each."""
        rng = np.random.default_rng(0)
        return [rng.integers(0, 256, (1, self.side, self.side, 3), np.uint8) for _ in range(count)]

    def requests(self, count: int) -> list[bytes]:
        """Return HTTP requests with one image each, as a binary tensor, whose answers are binary too."""
        path, found = f"/v2/models/{self.name}/infer", list[bytes]()
        for image in self.images(count):
            body, length = encode_request(Request({"image": image}, binary=True))
            headers = {"content-type": "application/octet-stream", _HEADER_LENGTH: str(length)}
            found.append(post(path, body, headers))
        return found

    def _model(self) -> onnx.ModelProto:
        rng, nodes, weights = np.random.default_rng(0), list[onnx.NodeProto](), dict[str, np.ndarray]()

        def weight(name: str, *shape: int) -> str:
            inputs = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
            weights[name] = (rng.standard_normal(shape) * np.sqrt(2 / inputs)).astype(np.float32)
            return name

        def node(kind: str, inputs: list[str], output: str, **how: object) -> str:
            nodes.append(helper.make_node(kind, inputs, [output], **how))
            return output

        weights["scale"] = np.array(1 / 255, np.float32)
        x = node("Cast", ["image"], "numbers", to=TensorProto.FLOAT)
        x = node("Mul", [x, "scale"], "scaled")
        x = node("Transpose", [x], "channels_first", perm=[0, 3, 1, 2])
        channels, side = 3, self.side
        for stage, widths in enumerate(self.stages):
            for step, width in enumerate(widths):
                name = f"{stage}_{step}"
                kernel, bias = weight(f"kernel{name}", width, channels, 3, 3), f"bias{name}"
                weights[bias] = np.zeros(width, np.float32)
                x = node("Conv", [x, kernel, bias], f"conv{name}", pads=[1, 1, 1, 1], kernel_shape=[3, 3])
                x, channels = node("Relu", [x], f"relu{name}"), width
            x, side = node("MaxPool", [x], f"pool{stage}", kernel_shape=[2, 2], strides=[2, 2]), side // 2
        x, width = node("Flatten", [x], "flat"), channels * side * side
        for layer, (name, out) in enumerate((("hidden", self.dense), ("logits", 10))):
            weights[f"bias_{name}"] = np.zeros(out, np.float32)
            x = node("Gemm", [x, weight(f"kernel_{name}", width, out), f"bias_{name}"], name)
            x, width = (node("Relu", [x], "hidden_relu") if layer == 0 else x), out
        node("Softmax", [x], "probabilities", axis=1)
        graph = helper.make_graph(
            nodes,
            self.name,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", self.side, self.side, 3])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


SMALL = ServedCnn("small", side=32, stages=((32,), (64,), (64,)), dense=424)
LARGE = ServedCnn("large", side=80, stages=((64, 64), (128, 128), (256, 256), (256, 256)), dense=512)
