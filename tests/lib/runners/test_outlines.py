# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged or made to do harm: an error, never the end of the process."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solar_corona.core.errors import ModelError
from solar_corona.lib.runners.flatbuffer import check_litert
from solar_corona.lib.runners.protobuf import check_onnx

# Runs damaged copies of a model in a process of its own, for a crash would end this one's tests.
HOSTILE = """
import random, struct, sys
from pathlib import Path
import numpy as np
from solar_corona.core.errors import ModelError
from solar_corona.lib.runners.opening import open_runner

source, folder, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
data, path = source.read_bytes(), folder / f"m{source.suffix}"
for seed in range(first, first + count):
    rng, made = random.Random(seed), bytearray(data)
    kind = seed % 4
    if kind == 0:
        at = 4 * rng.randrange(len(made) // 4 - 1)
        struct.pack_into("<I", made, at, rng.choice([0, 1, 127, 2**31 - 1, 2**31, 2**32 - 1]))
    elif kind == 1:
        for _ in range(rng.randint(1, 20)):
            made[rng.randrange(len(made))] = rng.randrange(256)
    elif kind == 2:
        at = rng.randrange(len(made))
        made[at : at + rng.randint(1, 200)] = rng.randbytes(rng.randint(0, 200))
    else:
        made[8:] = rng.randbytes(rng.randint(0, 3000))
    path.write_bytes(made)
    (folder / "last").write_text(str(seed))
    try:
        runner = open_runner(path)
        shapes = {spec.name: [min(max(size, 2), 16) for size in spec.shape] for spec in runner.inputs}
        runner.run({spec.name: np.ones(shapes[spec.name], spec.dtype) for spec in runner.inputs})
    except ModelError:
        pass
"""


@pytest.mark.parametrize("name", ["m.tflite", "quantized.tflite", "attribute.tflite", "m.onnx"])
def test_a_damaged_file_never_ends_the_process(models, tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, models / name, tmp_path, "0", "400"],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, f"seed {(tmp_path / 'last').read_text()}: {done.stderr[-1500:]}"


# Not a thousand files on the disk: one that is written over.
@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outlines") / "m"


_many = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_many
@given(data=st.data(), name=st.sampled_from(["m.tflite", "m.onnx"]))
def test_the_outline_of_any_damaged_file_is_read_without_any_other_error(models, place, data, name):
    made = bytearray((models / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(made) - 4))
        struct.pack_into("<I", made, at, data.draw(st.sampled_from([0, 1, 0x7F, 2**31 - 1, 2**31, 2**32 - 1])))
    _read(place, bytes(made[: data.draw(st.integers(1, len(made)))]), name)


@_many
@given(content=st.binary(min_size=1, max_size=400), name=st.sampled_from(["m.tflite", "m.onnx"]))
def test_the_outline_of_any_bytes_is_read_without_any_other_error(place, content, name):
    _read(place, content, name)


def _read(place: Path, content: bytes, name: str) -> None:
    place.write_bytes(content)
    try:
        (check_litert if name.endswith(".tflite") else check_onnx)(place, name=name)
    except ModelError:
        pass


def _rebuilt(source: Path, target: Path, change) -> Path:
    """Write a LiteRT file in which one thing is changed."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(source.read_bytes(), 0)
    change(model)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(builder.Output())
    return target


def _operator(model):
    return model.subgraphs[0].operators[-1]


def _no_outputs(model):
    _operator(model).outputs = [-1]


def _no_input(model):
    _operator(model).inputs = [-1]


def _far_input(model):
    _operator(model).inputs = [999]


def _far_code(model):
    _operator(model).opcodeIndex = 99


def _far_buffer(model):
    model.subgraphs[0].tensors[3].buffer = 999


def _far_graph_input(model):
    model.subgraphs[0].inputs = [999]


def _writes_to_the_graphs_input(model):
    _operator(model).outputs = model.subgraphs[0].inputs


def _far_signature(model):
    model.signatureDefs[0].subgraphIndex = 9


def _far_signature_tensor(model):
    model.signatureDefs[0].outputs[0].tensorIndex = 999


def _no_graph(model):
    model.subgraphs = []


def _far_weights(model):
    model.buffers[2].offset, model.buffers[2].size = 1 << 40, 5


def _quantization(model):
    return next(
        each.quantization
        for each in model.subgraphs[0].tensors
        if each.type in (3, 9) and each.quantization.scale is not None and len(each.quantization.scale) == 1
    )


def _odd_zero_point(model):
    _quantization(model).zeroPoint = [300]


def _odd_scale(model):
    _quantization(model).scale = [0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_outputs, r"subgraph 0, operator \d+ points to tensor -1, and there are \d+"),
        (_no_input, r"subgraph 0, operator \d+ points to tensor -1, and there are \d+"),
        (_far_input, r"subgraph 0, operator \d+ points to tensor 999, and there are \d+"),
        (_far_code, r"subgraph 0, operator \d+ points to operator code 99, and there are \d+"),
        (_far_buffer, r"subgraph 0, tensor 3 points to buffer 999, and there are \d+"),
        (_far_graph_input, r"subgraph 0 points to tensor 999, and there are \d+"),
        (
            _writes_to_the_graphs_input,
            r"subgraph 0, operator \d+ writes to tensor \d+, which is given or written before",
        ),
        (_far_signature, r"signature 0 points to subgraph 9, and there are 1"),
        (_far_signature_tensor, r"signature 0 points to tensor 999, and there are \d+"),
        (_no_graph, "it holds no graph"),
        (_far_weights, r"buffer 2 would end at byte 1099511627781, behind the file's end at \d+"),
        (_odd_zero_point, r"subgraph 0, tensor \d+ has zero points outside (0 to 255|-128 to 127)"),
        (_odd_scale, r"subgraph 0, tensor \d+ has the scale 0.0"),
    ],
)
def test_what_a_litert_file_points_to_has_to_be_there(models, tmp_path, change, message):
    same = _rebuilt(models / "quantized.tflite", tmp_path / "same.tflite", lambda _model: None)
    check_litert(same, name="same")
    path = _rebuilt(models / "quantized.tflite", tmp_path / "m.tflite", change)
    with pytest.raises(ModelError, match=f"m: is no whole LiteRT model \\({message}.*; fetch or save it anew"):
        check_litert(path, name="m")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x08\x0a\x3a\x7f", "a part of it would end at byte 131, behind its end at 4"),
        (b"\x08\x0a\x12\x00", "it holds no graph"),
        (b"\x08\x0a\x3b\x00", "at byte 3 stands a field of an unknown kind"),
        (b"\x08\xff", "it is cut off at byte 2"),
        (b"\x08" + b"\xff" * 12, "at byte 11 stands a number that is too long"),
        (b"\x02\x00", "a part of it would end at byte 2"),
    ],
)
def test_what_is_no_onnx_outline_says_where(place, content, message):
    place.write_bytes(content)
    with pytest.raises(ModelError, match=f"m: is no whole ONNX model .{message}"):
        check_onnx(place, name="m")
